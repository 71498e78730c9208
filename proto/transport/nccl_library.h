/* NCCL, opened at run time: the functions of it that we call, declared here as its manual has them,
 * so that neither building nor starting the program needs it.
 *
 * Threads: the functions as NCCL says: any, those of one communicator one at a time. */
#ifndef LEAN_PROTO_TRANSPORT_NCCL_LIBRARY_H
#define LEAN_PROTO_TRANSPORT_NCCL_LIBRARY_H

#include <limits.h>
#include <stddef.h>

#include "proto/base/error.h"

/* Older ones have trouble with the end of a communicator while something is under way. */
enum { NCCL_VERSION_MIN = 21900 };
enum { NCCL_SUCCESS = 0, NCCL_IN_PROGRESS = 7 }; /* ncclResult_t */
enum { NCCL_INT8 = 0 };                          /* ncclDataType_t */

struct nccl_comm;

struct nccl_id {
    char bytes[128];
};

/* The ncclConfig_t of version 2.17; later ones take what it lacks for not given. */
struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas; /* INT_MIN: not given */
    const char *net_name;
};
#define NCCL_CONFIG_NONE                                                                           \
    {                                                                                              \
        .size = sizeof(struct nccl_config), .magic = 0xcafebeef, .version = 21700,                 \
        .blocking = INT_MIN, .cga_cluster_size = INT_MIN, .min_ctas = INT_MIN, .max_ctas = INT_MIN \
    }

struct nccl_library {
    void *handle;
    int version; /* 22809: 2.28.9 */
    int (*get_version)(int *version);
    int (*get_unique_id)(struct nccl_id *out);
    int (*comm_init_rank_config)(struct nccl_comm **out, int n_rank, struct nccl_id id, int rank,
                                 struct nccl_config *config);
    int (*comm_get_async_error)(struct nccl_comm *comm, int *error);
    int (*comm_abort)(struct nccl_comm *comm);
    int (*comm_destroy)(struct nccl_comm *comm);
    int (*send)(const void *buffer, size_t n, int type, int peer, struct nccl_comm *comm,
                void *stream);
    int (*recv)(void *buffer, size_t n, int type, int peer, struct nccl_comm *comm, void *stream);
    int (*group_start)(void);
    int (*group_end)(void);
    const char *(*get_error_string)(int result);
    const char *(*get_last_error)(struct nccl_comm *comm);
};

/* file: "libnccl.so.2", sought as the system does and where the CUDA toolkit has it; with a path
 * that file alone. LM_E_UNSUPPORTED: it is not there, or too old. */
enum lm_status nccl_library_open(struct nccl_library **out, const char *file, struct lm_error *err);
/* What the library started goes on: it is not unloaded. NULL is legal. */
void nccl_library_close(struct nccl_library *nccl);

/* A new id, by which two ranks find each other: a communicator's upstream makes it. */
enum lm_status nccl_library_make_id(const struct nccl_library *nccl, struct nccl_id *out,
                                    struct lm_error *err);
/* What a call returned, as an error. comm: or NULL. */
enum lm_status nccl_library_fail(const struct nccl_library *nccl, int result, const char *call,
                                 struct nccl_comm *comm, struct lm_error *err);

#endif
