#include "coordinator/server/http_route.h"

#include <stdio.h>
#include <string.h>

static const char id_mark[] = "{id}";

/* Whether the n characters of path fit the pattern; *rest, *n_rest: what {id} stands for. */
static bool fits(const char *pattern, const char *path, size_t n, const char **rest, size_t *n_rest)
{
    const char *mark = strstr(pattern, id_mark);
    *rest = NULL;
    *n_rest = 0;
    if (!mark) return strlen(pattern) == n && !memcmp(pattern, path, n);
    const size_t n_before = (size_t)(mark - pattern);
    const char *after = mark + strlen(id_mark);
    const size_t n_after = strlen(after);
    if (n <= n_before + n_after || memcmp(path, pattern, n_before) ||
        memcmp(path + n - n_after, after, n_after))
        return false;
    *rest = path + n_before;
    *n_rest = n - n_before - n_after;
    return true;
}

static bool fits_route(const struct http_route *route, const char *path, size_t n,
                       const char **rest, size_t *n_rest)
{
    static const char version[] = "/v1";
    const size_t n_version = strlen(version);
    if (fits(route->path, path, n, rest, n_rest)) return true;
    if (!route->has_alias) return false;
    if (!strncmp(route->path, "/v1/", n_version + 1))
        return fits(route->path + n_version, path, n, rest, n_rest);
    return n > n_version && !strncmp(path, version, n_version) &&
           fits(route->path, path + n_version, n - n_version, rest, n_rest);
}

static void allow(struct http_match *match, const char *methods)
{
    const size_t used = strlen(match->allow);
    snprintf(match->allow + used, sizeof(match->allow) - used, "%s, ", methods);
}

struct http_match http_route_match(const struct http_route *routes, const char *method,
                                   const char *path)
{
    struct http_match match = {0};
    const char *wanted = strcmp(method, "HEAD") ? method : "GET";
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    for (const struct http_route *route = routes; route->method; route++) {
        const char *rest;
        size_t n_rest;
        if (!fits_route(route, path, n, &rest, &n_rest)) continue;
        allow(&match, strcmp(route->method, "GET") ? route->method : "GET, HEAD");
        if (strcmp(route->method, wanted) || (match.route && !match.rest)) continue;
        match.route = route;
        match.rest = rest;
        match.n_rest = n_rest;
    }
    if (*match.allow) {
        allow(&match, "OPTIONS");
        match.allow[strlen(match.allow) - 2] = '\0';
    }
    return match;
}

const char *http_route_below(const char *path, const char *prefix)
{
    const size_t n = prefix ? strlen(prefix) : 0;
    if (!n) return path;
    if (strncmp(path, prefix, n) || (path[n] && path[n] != '/')) return NULL;
    return path[n] ? path + n : "/";
}
