/* Replays routing traces through the expert cache, without a model and without bytes: the hits that
 * a policy has, or would have had, and what the best possible could have had.
 *
 * Steps of several tokens of one sequence are prefill, all others decode; each is counted apart. A
 * lookup is one expert of one layer and step, however many rows chose it. Cold misses count.
 *
 * Bound: Belady's choice, with bypass, per class of slots. It knows the future, may leave any
 * expert out of the cache, needs no slot for what it computes with, and what prefill reads it may
 * keep for nothing; of all of which it makes the largest possible number of hits in decode.
 * No policy can have more. */
#ifndef LEAN_WORKER_PAGER_REPLAY_H
#define LEAN_WORKER_PAGER_REPLAY_H

#include "worker/pager/route_log.h"

struct cache_policy;

struct replay_config {
    const struct route_log *const *log; /* [n_log], all of one model; one after the other */
    size_t n_log;
    const uint32_t *class_of;      /* [n_layer] as in struct expert_cache_config */
    const uint32_t *slot_of_class; /* [n_class] */
    uint32_t n_class, floor;
    double half_life;   /* of heat, as in struct expert_cache_config */
    bool by_token;      /* every row is a step of its own, as if it had been generated */
    uint64_t n_warm_up; /* tokens that are not counted, at the beginning */
    const float *rate;  /* [n_layer][n_expert] uses per token; the cache begins full with the
                           hottest.  NULL: it begins empty */
};

struct replay_counts {
    uint64_t n_lookup, n_hit;
};

struct replay_result {
    struct replay_counts decode, prefill;
    uint64_t n_token;    /* of decode */
    uint64_t n_evicted;  /* in decode */
    uint64_t n_remiss;   /* in decode: misses less than EXPERT_REMISS_TOKENS after eviction */
    uint64_t n_admitted; /* of the misses in decode */
};

enum lm_status replay_policy(const struct replay_config *config, const struct cache_policy *policy,
                             struct replay_result *out, struct lm_error *err);
/* Least recently used over all layers of a class, no floor: what is usual elsewhere. */
enum lm_status replay_plain_lru(const struct replay_config *config, struct replay_result *out,
                                struct lm_error *err);
/* The bound. Begins empty. */
enum lm_status replay_bound(const struct replay_config *config, struct replay_result *out,
                            struct lm_error *err);

/* Of the experts that a token chose, the share named before by one that does not know the token. */
struct replay_recall {
    uint64_t n_choice;            /* of tokens that have a token before them in their sequence */
    uint64_t n_previous;          /* chosen by the token before it too */
    uint64_t n_hot_choice, n_hot; /* in the second half: among the n_expert_used most chosen of the
                                     layer in the first half */
};

enum lm_status replay_recall(const struct replay_config *config, struct replay_recall *out,
                             struct lm_error *err);

#endif
