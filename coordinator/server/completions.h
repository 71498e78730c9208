/* POST /v1/completions: text in, its continuation out, as it is; echo and log-probabilities. */
#ifndef LEAN_COORDINATOR_SERVER_COMPLETIONS_H
#define LEAN_COORDINATOR_SERVER_COMPLETIONS_H

struct http_exchange;

/* context: the struct server. The route has a reserved place in the queue. */
void completions_handle(void *context, struct http_exchange *exchange);

#endif
