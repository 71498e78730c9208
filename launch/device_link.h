/* A rank's part in edges between devices, by NCCL: what it offers when it has loaded, and its ends
 * of those that rank 0 then settles on.
 *
 *   device_link_offer --> rank 0 chooses --> device_link_open --> device_link_settle
 *                                            on all ranks at once   once all have opened theirs
 *
 * Threads: one caller. */
#ifndef LEAN_LAUNCH_DEVICE_LINK_H
#define LEAN_LAUNCH_DEVICE_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/transport/nccl_library.h"

struct cluster_rank;
struct model_part;
struct transport_edge;
struct world;

/* What rank 0 must know of a rank, to choose. */
struct link_offer {
    char gpu[40]; /* which it is, of its host; "": no layer is on a device */
    bool has_id;  /* of an edge to the next rank */
    struct nccl_id id;
    int nccl_version; /* 0: it cannot be used */
    char why_not[256];
};

struct device_link {
    struct link_offer offer;
    struct nccl_library *nccl;
    struct transport_edge *in, *out; /* open, and not settled */
};

/* link: zero before. part: loaded. */
void device_link_offer(struct device_link *link, const struct model_part *part,
                       const struct world *world);
/* in, out: ids of the edges from the rank before and to the next one; NULL: that is none of NCCL's.
 * What is open if it fails goes with settle. LM_E_FAIL: NCCL cannot. */
enum lm_status device_link_open(struct device_link *link, struct model_part *part,
                                struct world *world, const struct nccl_id *in,
                                const struct nccl_id *out, struct lm_error *err);
/* keep: all ranks have theirs, and the worker takes them over; else they are closed. */
enum lm_status device_link_settle(struct device_link *link, struct model_part *part, bool keep,
                                  struct lm_error *err);
/* When the worker is gone. Legal of zeros. */
void device_link_fini(struct device_link *link);

/* Which edges are NCCL's. nccl: [n_rank - 1], out. transport: "auto": those that can be; "nccl":
 * all between devices, and at least one; "mpi": none. LM_E_UNSUPPORTED: one that was asked for
 * cannot be. */
enum lm_status device_link_choose(bool *nccl, const struct cluster_rank *ranks, uint32_t n_rank,
                                  const char *transport, struct lm_error *err);

#endif
