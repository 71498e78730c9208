/* POST /v1/chat/completions: messages in, an assistant's message out. */
#ifndef LEAN_COORDINATOR_SERVER_CHAT_H
#define LEAN_COORDINATOR_SERVER_CHAT_H

struct http_exchange;

/* context: the struct server. The route has a reserved place in the queue. */
void chat_handle(void *context, struct http_exchange *exchange);

#endif
