/* What the server keeps for its own routes (server.c, routes_info.c). */
#ifndef LEAN_COORDINATOR_SERVER_SERVER_STATE_H
#define LEAN_COORDINATOR_SERVER_SERVER_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "coordinator/plan/weight_census.h"
#include "coordinator/server/metrics.h"
#include "coordinator/server/server.h"

struct access_log;

struct server_state {
    struct server_config config;
    struct http_route *routes;
    struct access_log *log;

    pthread_mutex_t lock;
    const char *stage;                        /* of loading, guarded by lock like the next */
    uint64_t expected_bytes, resident_before; /* 0 expected: not known yet */
    struct metrics_rank *rank;                /* [n_rank], likewise */

    /* set by server_begin, loaded last */
    atomic_bool loaded;
    struct weight_census census;
    char quantization[16]; /* the type of most weights, "q4_k" */
    bool has_tools, has_reasoning;
};

/* What /metrics looks at. Takes no lock of the engine. */
struct metrics_state server_metrics_state(struct server *server);
/* How far loading is: its stage, and how much of the weights is in memory, 0 to 1. */
const char *server_progress(struct server *server, double *fraction);
/* Whether the model is called so: by its id, an alias, or the repository of its weights. */
bool server_has_name(const struct server *server, const char *name);

#endif
