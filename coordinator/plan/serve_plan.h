/* What a server takes of memory where nobody said: how many sequences, how long a context, and how
 * much for the states of prompts that may come again.
 *
 *   budget = weights + scratch + program + n_slot * (context + state) + cache
 *
 * The cache gets an eighth of what the weights leave, at most SERVE_PLAN_CACHE_MAX. Then come as
 * many sequences of SERVE_PLAN_CTX tokens as fit, a power of two up to SERVE_PLAN_SLOT_MAX, and
 * what is left makes the context longer: the largest power of two times 1024 up to the trained one.
 * Experts that fit stay in memory before anything else. Where they are paged, sequences and cache
 * together take at most an eighth of the room that experts could have, the cache half of that.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_PLAN_SERVE_PLAN_H
#define LEAN_COORDINATOR_PLAN_SERVE_PLAN_H

#include "coordinator/plan/memory_plan.h"

enum { SERVE_PLAN_CTX = 32768, SERVE_PLAN_SLOT_MAX = 64, SERVE_PLAN_STATE_MAX = 512 };
enum { SERVE_PLAN_LOGPROB_SHARE = 16 }; /* of the cache is for log-probabilities of prompts */
#define SERVE_PLAN_CACHE_MAX (4ull << 30)
#define SERVE_PLAN_CACHE_AUTO UINT64_MAX

/* Settles n_slot and n_ctx of a request where they are 0, and its n_snapshot, n_cache_position and
 * logprob_bytes from the cache's bytes or SERVE_PLAN_CACHE_AUTO. Whether it all fits is
 * memory_plan's to say. Returns the cache's bytes. */
uint64_t serve_plan_settle(struct memory_request *request, uint64_t cache_bytes,
                           const struct gguf_file *file, const struct hparams *hp);

#endif
