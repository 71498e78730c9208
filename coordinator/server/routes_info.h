/* Routes that tell about the server: health, models, version, metrics, slots; and cancelling.
 *
 * The context of each is the struct server. None of them waits for the engine. */
#ifndef LEAN_COORDINATOR_SERVER_ROUTES_INFO_H
#define LEAN_COORDINATOR_SERVER_ROUTES_INFO_H

struct http_exchange;

void health_handle(void *context, struct http_exchange *exchange);
void ping_handle(void *context, struct http_exchange *exchange);
void models_handle(void *context, struct http_exchange *exchange);
void model_handle(void *context, struct http_exchange *exchange);
void version_handle(void *context, struct http_exchange *exchange);
void metrics_handle(void *context, struct http_exchange *exchange);
void cancel_handle(void *context, struct http_exchange *exchange);
void props_handle(void *context, struct http_exchange *exchange);
void slots_handle(void *context, struct http_exchange *exchange);
/* Known APIs that this server does not have: 501. */
void unsupported_handle(void *context, struct http_exchange *exchange);

#endif
