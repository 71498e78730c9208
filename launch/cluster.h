/* The ranks of the job that this process was launched into: who they are, what each gets, and when
 * all of them are ready. Rank 0 asks and settles, the others answer:
 *
 *   rank 0                                    ranks 1 ..
 *   cluster_open          <-- HELLO           who I am; other programs are refused
 *   cluster_share_model   --> MODEL           opened, its fingerprint compared: nothing is loaded
 *                         <-- INVENTORY       before that
 *   cluster_cut, cluster_send_setup --> SETUP loads its layers
 *   cluster_wait_ready    <-- READY           is loaded
 *   cluster_link          --> LINK, LINKED    opens its ends of edges between devices, and once all
 *                         <--                 have, runs steps (worker/pipeline/stage.h)
 *   cluster_close         --> DRAIN           ends
 *
 * A rank that fails says why instead; that is then the error of rank 0, with the rank's name.
 *
 * Threads: one caller. */
#ifndef LEAN_LAUNCH_CLUSTER_H
#define LEAN_LAUNCH_CLUSTER_H

#include "coordinator/plan/partition.h"
#include "launch/device_link.h"
#include "launch/inventory.h"
#include "launch/model_part.h"

struct options;
struct world;

struct cluster_config {
    bool enabled;                      /* else one rank, whatever launched this process */
    const char *partition, *interface; /* or NULL */
    const char *transport;             /* "auto", "mpi", "nccl"; NULL: "auto" */
    enum partition_objective objective;
    uint32_t slack, edge_depth;
    double startup_timeout_s, liveness_timeout_s, stall_timeout_s;
    uint32_t spin_us;
};
/* Of options_cluster. Strings are borrowed. */
struct cluster_config cluster_config_from_options(const struct options *options);

/* One rank, as it says; rank 0 is one of them. */
struct cluster_rank {
    char name[96]; /* "rank 1 (HOST)" */
    int64_t pid;
    struct inventory inventory;
    uint32_t n_local, local_rank;  /* ranks on its host, its number among them */
    struct rank_settings settings; /* its own; once the model is shared with budget and threads */
    struct options *kept;          /* texts of settings, or NULL */
    bool pin;                      /* it has its host for itself */
    char device_name[96], device_uuid[40]; /* "" if it has no device open */
    uint64_t vram_bytes;                   /* of it that the rank may use */
    uint32_t layer_begin, layer_end;
    /* of a rank but 0 that is ready */
    uint32_t n_expert_slot; /* experts in memory; 0: all */
    uint32_t n_thread;
    uint64_t weight_bytes, kv_bytes, scratch_bytes; /* that it takes at most */
    char kernels[16];
    char device[24];                      /* "cpu" if none */
    uint32_t device_begin, n_device_slot; /* n_device_slot: experts on it; 0: all */
    bool fast;                            /* its device's numerics */
    struct link_offer offer;
    bool nccl; /* its edge from the rank before is, once they are linked */
};

struct cluster;

/* Joins the job. *out NULL: there is one rank. LM_E_UNSUPPORTED: a rank runs another program. */
enum lm_status cluster_open(struct cluster **out, const struct cluster_config *config,
                            struct lm_error *err);
/* Ends the ranks in order, if the pipeline has not done so, and leaves the job. NULL is legal. */
void cluster_close(struct cluster *cluster);

uint32_t cluster_n_rank(const struct cluster *cluster);
const struct cluster_rank *cluster_rank(const struct cluster *cluster, uint32_t rank);
struct world *cluster_world(const struct cluster *cluster);
struct transport_edge *cluster_edge(const struct cluster *cluster); /* to rank 1 */

/* How each rank is to run: own, but for what options say of it alone; NULL: nothing. Ranks without
 * a budget or a number of threads share what the others on their host leave, once it is known. */
enum lm_status cluster_settle(struct cluster *cluster, const struct rank_settings *own,
                              const struct options *options, struct lm_error *err);
/* Every rank, this one too, opens its device. own: this rank's, its model open; path: of it.
 * LM_E_FORMAT: a rank has another file there. Errors of device_open, device_share. */
enum lm_status cluster_share_model(struct cluster *cluster, struct model_part *own,
                                   const char *path, struct lm_error *err);
/* Which layers each rank gets. request: of the whole, its sizes settled. device_slot_bytes_min: as
 * of struct partition_model. */
enum lm_status cluster_cut(struct cluster *cluster, const struct gguf_file *file,
                           const struct hparams *hp, const struct memory_request *request,
                           uint64_t device_slot_bytes_min, struct lm_error *err);
/* trace: the ranks tell how tokens are routed. */
enum lm_status cluster_send_setup(struct cluster *cluster, const struct run_sizes *sizes,
                                  bool trace, struct lm_error *err);
enum lm_status cluster_wait_ready(struct cluster *cluster, struct lm_error *err);
/* Opens what edges there are between devices, of all ranks. own: this rank's, loaded; closed before
 * the cluster. LM_E_UNSUPPORTED, LM_E_FAIL: --transport nccl cannot be had. */
enum lm_status cluster_link(struct cluster *cluster, struct model_part *own, struct lm_error *err);
/* "mpi", "nccl", or "mixed" */
const char *cluster_transport(const struct cluster *cluster);
/* The pipeline has ended the ranks. */
void cluster_drained(struct cluster *cluster);

/* All that a rank but 0 does: from joining the job to its end. The error is one that rank 0 cannot
 * tell of, LM_E_RANK_LOST. */
enum lm_status cluster_run_rank(const struct cluster_config *config, struct lm_error *err);

#endif
