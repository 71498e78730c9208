/* What the program wants of MPI: the table of liblean_mpi.so, the one place where MPI appears.
 *
 * Nothing here waits for another rank but open and close, and exchange up to its deadline. Messages
 * are told apart by their channel alone; those of one channel from one rank to another arrive in
 * the order in which they were sent, and match receives in that order.
 *
 * Threads: one at a time; open and close from the same one. */
#ifndef LEAN_PROTO_TRANSPORT_MPI_MPI_PLUGIN_H
#define LEAN_PROTO_TRANSPORT_MPI_MPI_PLUGIN_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/plugin.h"

#define MPI_PLUGIN_FILE "liblean_mpi.so"

enum mpi_channel { MPI_CHANNEL_FRAMES, MPI_CHANNEL_EDGES, MPI_CHANNEL_COUNT };

/* An MPI_Request or MPI_Message. */
struct mpi_handle {
    uint64_t opaque;
};

struct mpi_plugin {
    struct plugin_head head;
    /* Starts MPI; what its users have set in the environment stays as it is.
     * interface: "10.0.0.0/24", or NULL */
    enum lm_status (*open)(const char *interface, uint32_t *rank, uint32_t *n_rank,
                           struct lm_error *err);
    void (*close)(void); /* waits for all ranks */
    /* all: [n_rank][n_bytes], mine of every rank. LM_E_RANK_LOST: not all had come in timeout_s. */
    enum lm_status (*exchange)(const void *mine, size_t n_bytes, void *all, double timeout_s,
                               struct lm_error *err);
    /* buffer is in use until test says that the request is done. n_bytes <= INT_MAX */
    enum lm_status (*send)(enum mpi_channel channel, uint32_t to, const void *buffer,
                           size_t n_bytes, struct mpi_handle *request, struct lm_error *err);
    enum lm_status (*recv)(enum mpi_channel channel, uint32_t from, void *buffer, size_t n_bytes,
                           struct mpi_handle *request, struct lm_error *err);
    /* n_bytes: set when a receive is done; NULL for a send. */
    enum lm_status (*test)(struct mpi_handle *request, bool *done, size_t *n_bytes,
                           struct lm_error *err);
    /* Whether a message has come; it is then out of the channel and taken once with take. */
    enum lm_status (*probe)(enum mpi_channel channel, bool *found, uint32_t *from, size_t *n_bytes,
                            struct mpi_handle *message, struct lm_error *err);
    enum lm_status (*take)(struct mpi_handle *message, void *buffer, size_t n_bytes,
                           struct mpi_handle *request, struct lm_error *err);
    void (*cancel)(struct mpi_handle *request); /* of recv, not done */
};

#endif
