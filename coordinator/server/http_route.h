/* From a path to its route. */
#ifndef LEAN_COORDINATOR_SERVER_HTTP_ROUTE_H
#define LEAN_COORDINATOR_SERVER_HTTP_ROUTE_H

#include "coordinator/server/http.h"

struct http_match {
    const struct http_route *route; /* NULL: none for this method */
    const char *rest;               /* what {id} stands for, in path; NULL: nothing */
    size_t n_rest;
    char allow[64]; /* the path's methods, "GET, HEAD, OPTIONS"; "": the path is unknown */
};

/* path: decoded, with the prefix cut off. Slashes at its end do not count. HEAD matches GET. A
 * route without {id} wins over one with it. */
struct http_match http_route_match(const struct http_route *routes, const char *method,
                                   const char *path);

/* Cuts prefix ("/x", or NULL) off path; NULL: path is not below it. */
const char *http_route_below(const char *path, const char *prefix);

#endif
