/* Messages of the start (proto/control.proto), to and from frames. */
#ifndef LEAN_LAUNCH_CLUSTER_MESSAGE_H
#define LEAN_LAUNCH_CLUSTER_MESSAGE_H

#include "proto/control.pb-c.h"
#include "proto/transport/world.h"

/* This program: another one has other messages, or rounds differently. */
uint64_t cluster_build_id(void);

enum lm_status cluster_send(struct world *world, uint32_t to, Lean__FrameType type,
                            const ProtobufCMessage *message, struct lm_error *err);
/* The message of a frame, which free_unpacked frees. NULL: malformed; err says so. */
void *cluster_unpack(const struct frame *frame, const ProtobufCMessageDescriptor *descriptor,
                     struct lm_error *err);

/* What a rank offers for edges between devices, into a message, which borrows it, and out of it. */
struct link_offer;
void cluster_put_offer(Lean__Ready *ready, const struct link_offer *offer);
void cluster_read_offer(struct link_offer *offer, const Lean__Ready *ready);

#endif
