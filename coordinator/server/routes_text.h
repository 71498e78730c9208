/* Routes that turn text into tokens and back, without generating: tokenizer, template, counting.
 *
 * The context of each is the struct server. They run on the handlers' threads and do not wait for
 * the engine. */
#ifndef LEAN_COORDINATOR_SERVER_ROUTES_TEXT_H
#define LEAN_COORDINATOR_SERVER_ROUTES_TEXT_H

struct http_exchange;

void tokenize_handle(void *context, struct http_exchange *exchange);
void detokenize_handle(void *context, struct http_exchange *exchange);
void tokenizer_info_handle(void *context, struct http_exchange *exchange);
void apply_template_handle(void *context, struct http_exchange *exchange);
/* /v1/chat/completions/input_tokens */
void input_tokens_handle(void *context, struct http_exchange *exchange);

#endif
