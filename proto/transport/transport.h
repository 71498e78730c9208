/* Transport of activations along one edge of the pipeline, from stage s to stage s + 1.
 *
 * A message is the residual stream of one batch, rows of F32, in the order of the plan; both ends
 * know its size from the plan, so there is no handshake. Messages of an edge arrive in order, and
 * transfers of one direction end in the order in which they began:
 *
 *   send_begin a, send_begin b, send_end (a's buffer is free again), send_end (b's)
 *   recv_begin a, recv_begin b, recv_end (a is filled), recv_end (b)
 *
 * At most TRANSPORT_DEPTH may be under way. Buffers are memory of the stages' backend, opaque here.
 *
 * Threads: one sender, one receiver; abort from any thread. */
#ifndef LEAN_PROTO_TRANSPORT_TRANSPORT_H
#define LEAN_PROTO_TRANSPORT_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

enum { TRANSPORT_DEPTH = 8 };

struct transport_edge {
    const struct transport_ops *ops;
};

struct transport_ops {
    const char *name;
    /* begin does not wait for the other end, end does. LM_E_RANK_LOST: the edge was aborted or the
     * other end is gone. */
    enum lm_status (*send_begin)(struct transport_edge *edge, const void *buffer, size_t n_bytes,
                                 struct lm_error *err);
    enum lm_status (*send_end)(struct transport_edge *edge, struct lm_error *err);
    enum lm_status (*recv_begin)(struct transport_edge *edge, void *buffer, size_t n_bytes,
                                 struct lm_error *err);
    enum lm_status (*recv_end)(struct transport_edge *edge, struct lm_error *err);
    /* Whether recv_end of the oldest receive would not wait. NULL: it never does. */
    bool (*recv_ready)(struct transport_edge *edge);
    void (*abort)(struct transport_edge *edge);
    void (*close)(struct transport_edge *edge);
};

/* Both ends in one process, in host memory: two stages that share it. close gives up one reference,
 * open takes the first. */
enum lm_status transport_loopback_open(struct transport_edge **out, struct lm_error *err);
struct transport_edge *transport_loopback_ref(struct transport_edge *edge); /* returns edge */
/* Aborts with this text. */
void transport_loopback_fail(struct transport_edge *edge, const struct lm_error *why);

#endif
