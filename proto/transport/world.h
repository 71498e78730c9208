/* The processes of one job, ranks 0 .. n_rank - 1, and what goes between any two of them: control
 * messages in frames. Activations have edges of their own (transport.h).
 *
 *   frame   a type, and a packed protobuf message of it (proto/control.proto)
 *
 * Frames from one rank to another arrive whole and in order. Sending never waits for the receiver.
 * A job lives and dies as one: when a rank is gone, by death, silence or a cut link, every frame
 * and every edge on every other rank fails with LM_E_RANK_LOST and a text that names the rank, its
 * host and what happened; there is no repair.
 *
 * Threads: send and abort from any; recv from one; edge_open as transport.h says. */
#ifndef LEAN_PROTO_TRANSPORT_WORLD_H
#define LEAN_PROTO_TRANSPORT_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/transport/transport.h"

struct progress;

struct world {
    const struct world_ops *ops;
    uint32_t rank, n_rank;
    struct progress *progress; /* what this rank does, watched over by the world; NULL: it is not */
};

struct frame {
    uint32_t from;
    uint16_t type;  /* enum lean__frame_type of control.proto */
    size_t n_bytes; /* of payload */
    uint8_t payload[];
};

struct world_ops {
    const char *name; /* "loopback", "mpi" */
    /* Copies the payload. to: another rank. */
    enum lm_status (*send)(struct world *world, uint32_t to, uint16_t type, const void *payload,
                           size_t n_bytes, struct lm_error *err);
    /* Waits for the next frame from anyone, without turning; the caller frees it with free().
     * timeout_s < 0: for ever; LM_E_BUSY: none came in time. */
    enum lm_status (*recv)(struct world *world, double timeout_s, struct frame **out,
                           struct lm_error *err);
    /* LM_OK, or why the job is lost. From any thread. */
    enum lm_status (*check)(struct world *world, struct lm_error *err);
    /* The sending end of the edge to rank + 1, or the receiving end of that from rank - 1. */
    enum lm_status (*edge_open)(struct world *world, bool sending, struct transport_edge **out,
                                struct lm_error *err);
    /* This rank cannot go on: all others see it as lost, with this text. Does not wait. */
    void (*abort)(struct world *world, const struct lm_error *why);
    /* Leaves in order: all ranks must, after their last frame. Frees world. */
    void (*close)(struct world *world);
};

/* n_rank ranks in this process, for threads: out: [n_rank]. */
enum lm_status world_loopback_create(struct world **out, uint32_t n_rank, struct lm_error *err);

/* The job that this process was launched into by mpirun, srun or the like. LM_E_UNSUPPORTED: MPI is
 * not installed; LM_E_USAGE: the ranks were started as separate jobs. */
struct world_mpi_config {
    double startup_timeout_s;  /* for all ranks to start and connect; MPI_Init has no other end */
    double liveness_timeout_s; /* silence of a rank that counts as loss */
    double stall_timeout_s;    /* a step that stands still for so long is the end; 0: it is not */
    uint32_t spin_us;          /* how long a waiting thread tests before it sleeps */
    const char *interface;     /* "10.0.0.0/24", address or name of that between hosts; NULL */
    /* When the job is lost and a rank but 0 is about to exit with 11, on a thread of the world; or
     * NULL. */
    void (*on_leave)(void);
    /* Whether somebody wants to know what this rank does, asked now and then; or NULL. */
    bool (*wants_state)(void);
};
enum lm_status world_mpi_open(struct world **out, const struct world_mpi_config *config,
                              struct lm_error *err);
/* Whether the environment says so: rank variables of Open MPI, PMIx or Slurm. */
bool world_mpi_launched(uint32_t *rank, uint32_t *n_rank);

#endif
