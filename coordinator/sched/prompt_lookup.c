/* Positions by the hash of the tokens that end there. */
#include "coordinator/sched/prompt_lookup.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Occurrences that are looked at, and how far back each is compared: a bound for texts that repeat
 * one token. */
enum { N_TRIED = 32, N_COMPARED = 64, NONE = UINT32_MAX };

struct prompt_lookup {
    uint32_t n_ctx, n_bucket; /* n_bucket: a power of 2 */
    uint32_t *last;           /* [n_bucket] the latest end with that hash, or NONE */
    uint32_t *before;         /* [n_ctx] the one before it */
    uint32_t n;               /* tokens that are indexed as ends */
};

enum lm_status prompt_lookup_create(struct prompt_lookup **out, uint32_t n_ctx,
                                    struct lm_error *err)
{
    struct prompt_lookup *lookup = calloc(1, sizeof(*lookup));
    if (!lookup) return lm_fail(err, LM_E_NO_MEM, "prompt lookup: no memory");
    lookup->n_ctx = n_ctx;
    lookup->n_bucket = 1;
    while (lookup->n_bucket < n_ctx)
        lookup->n_bucket *= 2;
    lookup->last = malloc(lookup->n_bucket * sizeof(*lookup->last));
    lookup->before = malloc(n_ctx * sizeof(*lookup->before));
    if (!lookup->last || !lookup->before) {
        prompt_lookup_destroy(lookup);
        return lm_fail(err, LM_E_NO_MEM, "prompt lookup: no memory for %u tokens", n_ctx);
    }
    prompt_lookup_reset(lookup);
    *out = lookup;
    return LM_OK;
}

void prompt_lookup_destroy(struct prompt_lookup *lookup)
{
    if (!lookup) return;
    free(lookup->before);
    free(lookup->last);
    free(lookup);
}

void prompt_lookup_reset(struct prompt_lookup *lookup)
{
    memset(lookup->last, 0xff, lookup->n_bucket * sizeof(*lookup->last));
    lookup->n = 0;
}

/* Of the PROMPT_LOOKUP_MIN tokens that end at `end`. */
static uint32_t bucket_of(const struct prompt_lookup *lookup, const int32_t *ids, uint32_t end)
{
    uint64_t hash = 0;
    for (uint32_t i = 0; i < PROMPT_LOOKUP_MIN; i++)
        hash = (hash ^ (uint32_t)ids[end - i]) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(hash >> 32) & (lookup->n_bucket - 1);
}

static uint32_t common_length(const int32_t *ids, uint32_t end, uint32_t other)
{
    uint32_t n = 0;
    while (n < N_COMPARED && n <= other && ids[end - n] == ids[other - n])
        n++;
    return n;
}

uint32_t prompt_lookup_find(struct prompt_lookup *lookup, const int32_t *ids, uint32_t n,
                            int32_t *drafts, uint32_t n_max)
{
    assert(n <= lookup->n_ctx);
    if (n <= PROMPT_LOOKUP_MIN) return 0;
    if (lookup->n < PROMPT_LOOKUP_MIN - 1) lookup->n = PROMPT_LOOKUP_MIN - 1;
    for (; lookup->n + 1 < n; lookup->n++) { /* not the end itself */
        uint32_t *const last = &lookup->last[bucket_of(lookup, ids, lookup->n)];
        lookup->before[lookup->n] = *last;
        *last = lookup->n;
    }
    uint32_t best = NONE, n_best = PROMPT_LOOKUP_MIN - 1;
    uint32_t at = lookup->last[bucket_of(lookup, ids, n - 1)];
    for (uint32_t i = 0; i < N_TRIED && at != NONE; i++, at = lookup->before[at]) {
        const uint32_t n_common = common_length(ids, n - 1, at);
        if (n_common > n_best) best = at, n_best = n_common;
    }
    if (best == NONE) return 0;
    /* behind the end the drafts themselves go on: a repetition that has just begun */
    for (uint32_t i = 0; i < n_max; i++)
        drafts[i] = best + 1 + i < n ? ids[best + 1 + i] : drafts[best + 1 + i - n];
    return n_max;
}
