/* Answers at once, without having read the request, and then reads it until the client closes: a
 * close with unread bytes would be a reset, which may overtake the answer. */
#include "launch/port_holder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "coordinator/server/http_listen.h"
#include "proto/base/log.h"

enum { MAX_LISTENER = 16, MAX_CLIENT = 64 };

struct port_holder {
    int ready; /* epoll: of listeners by number, of clients by MAX_LISTENER + number */
    struct http_listener listener[MAX_LISTENER];
    size_t n_listener;
    int client[MAX_CLIENT]; /* -1: free */
    size_t next;            /* whose turn it is to be replaced */
    char answer[512];
};

static void write_answer(struct port_holder *holder, double retry_after_s)
{
    static const char body[] =
        "{\"error\":{\"message\":\"A worker rank was lost; the server is being started again.\","
        "\"type\":\"unavailable_error\",\"param\":null,\"code\":\"rank_lost\"}}";
    snprintf(holder->answer, sizeof(holder->answer),
             "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\nRetry-After: %.0f\r\nConnection: close\r\n\r\n%s",
             strlen(body), ceil(retry_after_s), body);
}

static void watch(struct port_holder *holder, int fd, size_t number)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = number};
    epoll_ctl(holder->ready, EPOLL_CTL_ADD, fd, &event);
}

static void close_client(struct port_holder *holder, size_t i)
{
    if (holder->client[i] >= 0) close(holder->client[i]);
    holder->client[i] = -1;
}

static void take_client(struct port_holder *holder, const struct http_listener *listener)
{
    const int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    const size_t i = holder->next++ % MAX_CLIENT;
    close_client(holder, i);
    holder->client[i] = fd;
    watch(holder, fd, MAX_LISTENER + i);
    /* it fits into any socket's buffer */
    if (send(fd, holder->answer, strlen(holder->answer), MSG_NOSIGNAL) < 0)
        close_client(holder, i);
    else
        shutdown(fd, SHUT_WR);
}

static void drain_client(struct port_holder *holder, size_t i)
{
    char bytes[4096];
    if (recv(holder->client[i], bytes, sizeof(bytes), MSG_DONTWAIT) <= 0) close_client(holder, i);
}

struct port_holder *port_holder_open(const char *const *listen, size_t n, double retry_after_s)
{
    struct port_holder *holder = calloc(1, sizeof(*holder));
    if (!holder) return NULL;
    holder->ready = epoll_create1(EPOLL_CLOEXEC);
    for (size_t i = 0; i < MAX_CLIENT; i++)
        holder->client[i] = -1;
    write_answer(holder, retry_after_s);
    for (size_t i = 0; i < n && holder->n_listener < MAX_LISTENER; i++) {
        const size_t length = strlen(listen[i]);
        struct http_listener *const listener = &holder->listener[holder->n_listener];
        struct lm_error err;
        if (length > 2 && !strcmp(listen[i] + length - 2, ":0")) continue;
        if (http_listen(listener, listen[i], &err) == LM_OK)
            watch(holder, listener->fd, holder->n_listener++);
        else
            log_verbose("%s", err.message);
    }
    if (holder->ready >= 0 && holder->n_listener) return holder;
    port_holder_close(holder);
    return NULL;
}

int port_holder_fd(const struct port_holder *holder)
{
    return holder ? holder->ready : -1;
}

void port_holder_serve(struct port_holder *holder)
{
    struct epoll_event event[16];
    if (!holder) return;
    const int n = epoll_wait(holder->ready, event, sizeof(event) / sizeof(event[0]), 0);
    for (int i = 0; i < n; i++) {
        const size_t number = (size_t)event[i].data.u64;
        if (number < MAX_LISTENER)
            take_client(holder, &holder->listener[number]);
        else if (holder->client[number - MAX_LISTENER] >= 0)
            drain_client(holder, number - MAX_LISTENER);
    }
}

void port_holder_close(struct port_holder *holder)
{
    if (!holder) return;
    for (size_t i = 0; i < holder->n_listener; i++)
        http_listener_close(&holder->listener[i]);
    for (size_t i = 0; i < MAX_CLIENT; i++)
        close_client(holder, i);
    if (holder->ready >= 0) close(holder->ready);
    free(holder);
}
