/* Listening sockets, from the texts of --listen. */
#ifndef LEAN_COORDINATOR_SERVER_HTTP_LISTEN_H
#define LEAN_COORDINATOR_SERVER_HTTP_LISTEN_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

enum { HTTP_LISTEN_BACKLOG = 1024 };

struct http_listener {
    int fd;            /* non-blocking */
    char address[128]; /* "127.0.0.1:8080", "[::1]:8080", "unix:/run/lean.sock": the real port */
    bool is_unix;
    bool loopback; /* reached from this machine only; Unix sockets too */
};

/* text: "HOST:PORT", HOST a name or an address, IPv6 in brackets, empty for all; PORT 0 takes a
 * free one; or "unix:PATH", a socket of mode 0600 in place of one that nobody serves any more.
 * LM_E_USAGE: not an address; LM_E_BUSY: in use; LM_E_IO. */
enum lm_status http_listen(struct http_listener *out, const char *text, struct lm_error *err);
void http_listener_close(struct http_listener *listener);

#endif
