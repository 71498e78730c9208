/* An edge between two GPUs by NCCL: from memory of one device into that of the other, past the
 * host. It carries rows alone; what goes with them, and that they have been sent, is told by other
 * means.
 *
 *   sender     send_begin(k), then tells the receiver that k is sent
 *   receiver   told of k: recv_begin(k), operations on what came
 *
 * A receive that waits occupies its device, and blocks whatever is behind it on the rank's stream;
 * so it is begun only when the sender has said that its half is begun. All transfers of a rank, in
 * and out, are on one stream (proto/base/device_stream.h), in the order in which steps need them:
 * CUDA does not promise that two streams make progress beside each other, and with two
 * communicators on two of them either may keep the other from running. Every rank does receive k,
 * send k, receive k + 1; messages go forward only and the last rank sends none: so whichever
 * transfer waits, what it waits for runs without it.
 *
 *   recv_end   does not wait: operations called behind it do, on the device
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
