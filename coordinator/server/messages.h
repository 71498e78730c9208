/* The Messages API: the chat API's answers in the shape that Anthropic's clients read. */
#ifndef LEAN_COORDINATOR_SERVER_MESSAGES_H
#define LEAN_COORDINATOR_SERVER_MESSAGES_H

struct http_exchange;

/* POST /v1/messages. context: the struct server. The route has a reserved place in the queue. */
void messages_handle(void *context, struct http_exchange *exchange);
/* POST /v1/messages/count_tokens */
void messages_count_handle(void *context, struct http_exchange *exchange);

#endif
