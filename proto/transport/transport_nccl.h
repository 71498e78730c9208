/* An edge between two GPUs by NCCL: from memory of one device into that of the other, past the
 * host. It carries rows alone; what goes with them, and that they have been sent, is told by other
 * means.
 *
 *   sender     send_begin(k), then tells the receiver that k is sent
 *   receiver   told of k: recv_begin(k), while it computes what came before; recv_end(k),
 *              operations on what came
 *
 * A receive that waits occupies its device, and blocks whatever is behind it on the rank's stream;
 * so it is begun only when the sender has said that its half is begun. All transfers of a rank, in
 * and out, are on one stream (proto/base/device_stream.h): CUDA does not promise that two streams
 * make progress beside each other, and with two communicators on two of them either may keep the
 * other from running.
 *
 * On that stream a rank has its receives in their order and its sends in theirs, send k behind
 * receive k. How the two alternate is free, receive k + 1 may be in front of send k or behind, and
 * nothing waits in a circle. For that, transfers would have to wait for each other from an edge on
 * to later ones and back. At the last edge of such a circle they come in as receive a, behind a
 * send b on that rank's stream, and leave as a receive c before a send no later than b: c is before
 * a, so every round leads to an earlier message.
 *
 *   recv_begin does not wait for operations: those on its buffer have ended
 *   recv_end   does not wait: operations called behind it do, on the device
 *   send_begin goes behind the operations called so far
 *   send_end   waits until the buffer is free
 *
 * Never part of a captured graph: what is replayed would have to be so on both sides alike.
 *
 * Errors:  LM_E_RANK_LOST as transport.h says; of open LM_E_FAIL where NCCL cannot connect the two.
 *          Where a transfer does not end, the world's guard sees a step that stands still.
 * Threads: as transport.h says. */
#ifndef LEAN_PROTO_TRANSPORT_TRANSPORT_NCCL_H
#define LEAN_PROTO_TRANSPORT_TRANSPORT_NCCL_H

#include "proto/transport/nccl_library.h"
#include "proto/transport/transport.h"

struct device_stream;
struct world;

struct transport_nccl_config {
    const struct nccl_library *nccl;
    struct nccl_id id; /* that the sender made */
    bool sending;
    struct device_stream *stream; /* the rank's one */
    struct world *world;          /* that may be lost */
    double timeout_s;             /* for open */
    void *memory; /* of the device, TRANSPORT_NCCL_WARM_BYTES, overwritten by open */
};
enum { TRANSPORT_NCCL_WARM_BYTES = 64 };

/* Connects; both ends must, at the same time, and a first message goes over. */
enum lm_status transport_nccl_open(struct transport_edge **out,
                                   const struct transport_nccl_config *config,
                                   struct lm_error *err);

#endif
