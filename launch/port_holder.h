/* The ports of a server while its ranks are being started again: whoever connects is told to come
 * back, with 503 and Retry-After.
 *
 * Threads: one owner. Nothing here waits. */
#ifndef LEAN_LAUNCH_PORT_HOLDER_H
#define LEAN_LAUNCH_PORT_HOLDER_H

#include <stddef.h>

struct port_holder;

/* listen: [n], as of --listen; those with port 0, and those that cannot be had, are left out. NULL:
 * none is held. */
struct port_holder *port_holder_open(const char *const *listen, size_t n, double retry_after_s);
/* Readable when there is something to do. holder NULL: -1. */
int port_holder_fd(const struct port_holder *holder);
void port_holder_serve(struct port_holder *holder); /* NULL is legal */
/* From now on the ports are free. NULL is legal. */
void port_holder_close(struct port_holder *holder);

#endif
