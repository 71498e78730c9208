/* The Responses API, stateless: the chat API's answers as lists of items. */
#ifndef LEAN_COORDINATOR_SERVER_RESPONSES_H
#define LEAN_COORDINATOR_SERVER_RESPONSES_H

struct http_exchange;

/* POST /v1/responses. context: the struct server. The route has a reserved place in the queue. */
void responses_handle(void *context, struct http_exchange *exchange);
/* POST /v1/responses/input_tokens */
void responses_count_handle(void *context, struct http_exchange *exchange);

#endif
