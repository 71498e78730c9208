#include "coordinator/server/http_listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- Unix sockets ---- */

static bool is_served(const struct sockaddr_un *name)
{
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return false;
    const bool connected = !connect(fd, (const struct sockaddr *)name, sizeof(*name));
    const bool served = connected || errno == EAGAIN; /* its backlog is full */
    close(fd);
    return served;
}

static enum lm_status listen_unix(struct http_listener *out, const char *text, struct lm_error *err)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    const char *path = text + strlen("unix:");
    struct stat info;
    if (!*path || strlen(path) >= sizeof(name.sun_path))
        return lm_fail(err, LM_E_USAGE, "--listen: the path of a Unix socket has 1 to %zu bytes",
                       sizeof(name.sun_path) - 1);
    strcpy(name.sun_path, path);
    if (!lstat(path, &info)) {
        if (!S_ISSOCK(info.st_mode))
            return lm_fail(err, LM_E_USAGE, "--listen: %s exists and is no socket", path);
        if (is_served(&name)) return lm_fail(err, LM_E_BUSY, "%s: another server listens", path);
        unlink(path);
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return lm_fail_errno(err, "%s: socket", path);
    /* the mode of a socket file is what fchmod set before bind gave it a name */
    if (fchmod(fd, 0600) || bind(fd, (const struct sockaddr *)&name, sizeof(name)) ||
        chmod(path, 0600) || listen(fd, HTTP_LISTEN_BACKLOG)) {
        lm_fail_errno(err, "%s: listen", path);
        close(fd);
        return err ? err->status : LM_E_IO;
    }
    *out = (struct http_listener){.fd = fd, .is_unix = true, .loopback = true};
    snprintf(out->address, sizeof(out->address), "%s", text);
    return LM_OK;
}

/* ---- TCP ---- */

/* Cuts "HOST:PORT" into its parts. */
static enum lm_status split(const char *text, char host[256], char port[24], struct lm_error *err)
{
    const char *colon = strrchr(text, ':'), *begin = text, *end = colon;
    const char *close = *text == '[' ? strchr(text, ']') : NULL;
    if (close) {
        begin = text + 1;
        end = close;
        if (colon != close + 1) colon = NULL;
    }
    char *stop = NULL;
    const long number = colon ? strtol(colon + 1, &stop, 10) : -1;
    if (!colon || !colon[1] || *stop || colon[1] < '0' || colon[1] > '9' || number > 65535 ||
        end - begin >= 256 || (!close && memchr(begin, ':', (size_t)(end - begin)))) {
        lm_fail(err, LM_E_USAGE, "--listen must be HOST:PORT or unix:PATH, got '%.80s'", text);
        return lm_hint(err, "an IPv6 address stands in brackets: [::1]:8080");
    }
    memcpy(host, begin, (size_t)(end - begin));
    host[end - begin] = '\0';
    snprintf(port, 24, "%ld", number);
    return LM_OK;
}

static bool is_loopback(const struct sockaddr *name)
{
    if (name->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)name)->sin_addr.s_addr) >> 24 ==
               127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)name)->sin6_addr);
}

static enum lm_status listen_at(int *out, const struct addrinfo *at, const char *text,
                                struct lm_error *err)
{
    const int one = 1;
    const int fd =
        socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, at->ai_protocol);
    if (fd < 0) return lm_fail_errno(err, "%s: socket", text);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, at->ai_addr, at->ai_addrlen) || listen(fd, HTTP_LISTEN_BACKLOG)) {
        const int error = errno;
        close(fd);
        errno = error;
        if (error == EADDRINUSE) {
            lm_fail(err, LM_E_BUSY, "%s: the port is in use", text);
            lm_hint(err, "--listen takes another one; port 0 finds one that is free");
            return LM_E_BUSY;
        }
        lm_fail_errno(err, "%s: listen", text);
        return err ? err->status : LM_E_IO;
    }
    *out = fd;
    return LM_OK;
}

static enum lm_status listen_tcp(struct http_listener *out, const char *text, struct lm_error *err)
{
    char host[256], port[24];
    enum lm_status status = split(text, host, port, err);
    if (status != LM_OK) return status;
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    const int error = getaddrinfo(*host ? host : NULL, port, &hints, &found);
    if (error) return lm_fail(err, LM_E_USAGE, "--listen: '%.80s': %s", host, gai_strerror(error));
    status = listen_at(&out->fd, found, text, err);
    freeaddrinfo(found);
    if (status != LM_OK) return status;

    struct sockaddr_storage name = {0};
    socklen_t n = sizeof(name);
    char number[INET6_ADDRSTRLEN] = "", service[8] = "";
    getsockname(out->fd, (struct sockaddr *)&name, &n);
    getnameinfo((struct sockaddr *)&name, n, number, sizeof(number), service, sizeof(service),
                NI_NUMERICHOST | NI_NUMERICSERV);
    out->loopback = is_loopback((struct sockaddr *)&name);
    out->is_unix = false;
    snprintf(out->address, sizeof(out->address), strchr(number, ':') ? "[%s]:%s" : "%s:%s", number,
             service);
    return LM_OK;
}

enum lm_status http_listen(struct http_listener *out, const char *text, struct lm_error *err)
{
    return strncmp(text, "unix:", 5) ? listen_tcp(out, text, err) : listen_unix(out, text, err);
}

void http_listener_close(struct http_listener *listener)
{
    if (listener->fd < 0) return;
    close(listener->fd);
    listener->fd = -1;
    if (listener->is_unix) unlink(listener->address + strlen("unix:"));
}
