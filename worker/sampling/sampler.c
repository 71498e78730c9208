#include "worker/sampling/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/exact_math.h"
#include "proto/base/half.h"
#include "worker/sampling/philox.h"
#include "worker/sampling/softmax.h"

enum {
    N_HEAP_MAX = 1024, /* up to here the best are picked with a heap, beyond all are sorted */
    N_FIRST = 256,     /* ranked at first where a filter may need any number */
};

struct sampler {
    uint32_t n_vocab;
    float *adjusted; /* [n_vocab] logits with bias and penalties */
    float *final;    /* [n_vocab] what was sampled from, of_processed */
    uint32_t *mark;  /* [n_vocab] per token, zero between uses */
    /* Candidates by rank: [0, n_ranked) are in order. A rank key is the logit, turned so that
     * larger ones come first, above the id: keys in rising order are candidates in rank order. */
    uint64_t *ranked; /* [n_vocab] */
    uint64_t *spare;  /* [n_vocab] the other side of the sort */
    size_t n_ranked;
    uint32_t *repeat; /* [n_repeat_max] DRY's match lengths */
    size_t n_repeat_max;
};

/* What the filters have left: the first n in rank order. whole: nothing has been taken away. */
struct selection {
    const float *logits;
    float max;
    size_t n;
    bool whole;
};

enum lm_status sampler_create(struct sampler **out, uint32_t n_vocab, struct lm_error *err)
{
    struct sampler *sampler = calloc(1, sizeof(*sampler));
    if (!sampler) goto no_memory;
    sampler->n_vocab = n_vocab;
    sampler->adjusted = malloc((size_t)n_vocab * sizeof(*sampler->adjusted));
    sampler->final = malloc((size_t)n_vocab * sizeof(*sampler->final));
    sampler->mark = calloc(n_vocab, sizeof(*sampler->mark));
    sampler->ranked = malloc((size_t)n_vocab * sizeof(*sampler->ranked));
    sampler->spare = malloc((size_t)n_vocab * sizeof(*sampler->spare));
    if (!sampler->adjusted || !sampler->final || !sampler->mark || !sampler->ranked ||
        !sampler->spare)
        goto no_memory;
    *out = sampler;
    return LM_OK;

no_memory:
    sampler_destroy(sampler);
    return lm_fail(err, LM_E_NO_MEM, "no memory to sample from %u tokens", n_vocab);
}

void sampler_destroy(struct sampler *sampler)
{
    if (!sampler) return;
    free(sampler->repeat);
    free(sampler->spare);
    free(sampler->ranked);
    free(sampler->mark);
    free(sampler->adjusted);
    free(sampler->final);
    free(sampler);
}

/* Logits as they come. */

/* The largest logit, which must be a number below infinity and above minus infinity. */
static enum lm_status find_max(const float *logits, size_t n, float *max, struct lm_error *err)
{
    float best[16];
    uint32_t nan[16] = {0};
    for (size_t lane = 0; lane < 16; lane++)
        best[lane] = -INFINITY;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t lane = 0; lane < 16; lane++) {
            const float logit = logits[i + lane];
            best[lane] = logit > best[lane] ? logit : best[lane];
            nan[lane] |= logit != logit;
        }
    for (size_t lane = 0; i < n; i++, lane++) {
        best[lane] = logits[i] > best[lane] ? logits[i] : best[lane];
        nan[lane] |= logits[i] != logits[i];
    }
    bool any_nan = false;
    *max = -INFINITY;
    for (size_t lane = 0; lane < 16; lane++) {
        *max = best[lane] > *max ? best[lane] : *max;
        any_nan |= nan[lane];
    }
    if (!any_nan && isfinite(*max)) return LM_OK;
    for (i = 0; i < n; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return lm_fail(err, LM_E_FAIL, "logit of token %zu is %s", i,
                           isnan(logits[i]) ? "not a number" : "infinite");
    return lm_fail(err, LM_E_FAIL, "no token is allowed: all %zu logits are minus infinity", n);
}

static int32_t find_first(const float *logits, float value)
{
    int32_t id = 0;
    while (logits[id] != value)
        id++;
    return id;
}

/* Bias and penalties, on the sampler's own copy of the logits. */

static enum lm_status apply_bias(struct sampler *sampler, const struct sampling_params *params,
                                 struct lm_error *err)
{
    for (size_t i = 0; i < params->n_bias; i++) {
        const int32_t token = params->bias[i].token;
        if (token < 0 || (uint32_t)token >= sampler->n_vocab)
            return lm_fail(err, LM_E_USAGE, "bias for token %d, the vocabulary has %u tokens",
                           token, sampler->n_vocab);
        sampler->adjusted[token] += params->bias[i].bias;
    }
    return LM_OK;
}

/* Each token of the window once: a positive logit is divided, another one multiplied. */
static void apply_repetition(struct sampler *sampler, float penalty, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float *const logit = &sampler->adjusted[ids[i]];
        if (!sampler->mark[ids[i]]++) *logit = *logit > 0 ? *logit / penalty : *logit * penalty;
    }
    for (size_t i = 0; i < n; i++)
        sampler->mark[ids[i]] = 0;
}

static void apply_presence(struct sampler *sampler, const struct sampling_params *params,
                           const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sampler->mark[ids[i]]++;
    for (size_t i = 0; i < n; i++) {
        if (!sampler->mark[ids[i]]) continue;
        sampler->adjusted[ids[i]] -=
            (float)sampler->mark[ids[i]] * params->frequency_penalty + params->presence_penalty;
        sampler->mark[ids[i]] = 0;
    }
}

/* How far a penalty looks back: n tokens, -1 all. */
static size_t window_size(int32_t last_n, size_t n_history)
{
    return last_n < 0 || (size_t)last_n > n_history ? n_history : (size_t)last_n;
}

static bool is_breaker(const struct sampling_params *params, int32_t id)
{
    for (size_t i = 0; i < params->n_dry_breaker; i++)
        if (params->dry_breakers[i] == id) return true;
    return false;
}

/* x^n by squaring, at most 1e30 so that a logit stays a number. */
static double power_clamped(double x, uint32_t n)
{
    double result = 1;
    for (; n; n /= 2, x = x * x < 1e30 ? x * x : 1e30) {
        if (n & 1) result *= x;
        if (result > 1e30) return 1e30;
    }
    return result;
}

/* "Don't repeat yourself": if the last l tokens occurred before, the token that followed them then
 * loses multiplier * base^(l - allowed_length) for the longest such l >= allowed_length. A breaker
 * ends a run and is never penalised.
 *
 * With the window reversed, a run's length at distance i is what the text from i on has in common
 * with the text from 0 on: the Z function, computed in linear time. */
static enum lm_status apply_dry(struct sampler *sampler, const struct sampling_params *params,
                                const struct sampler_history *history, struct lm_error *err)
{
    const size_t n = window_size(params->dry_penalty_last_n, history->n);
    const uint32_t n_allowed =
        params->dry_allowed_length > 1 ? (uint32_t)params->dry_allowed_length : 1;
    if (n <= n_allowed) return LM_OK;
    if (n > UINT32_MAX)
        return lm_fail(err, LM_E_LIMIT, "DRY over %zu tokens, at most %u", n, UINT32_MAX);
    if (n > sampler->n_repeat_max) {
        uint32_t *repeat = realloc(sampler->repeat, 2 * n * sizeof(*repeat));
        if (!repeat) return lm_fail(err, LM_E_NO_MEM, "no memory for DRY over %zu tokens", n);
        sampler->repeat = repeat;
        sampler->n_repeat_max = 2 * n;
    }
    const int32_t *const last = history->ids + history->n - 1; /* reversed token i is last[-i] */
    uint32_t n_run_max = 0;
    while (n_run_max < n && !is_breaker(params, *(last - n_run_max)))
        n_run_max++;

    uint32_t *const repeat = sampler->repeat;
    size_t from = 0, to = 0; /* the match that reaches furthest: [from, to) equals [0, to - from) */
    for (size_t i = 1; i < n; i++) {
        size_t length = 0;
        if (i < to) length = repeat[i - from] < to - i ? repeat[i - from] : to - i;
        while (i + length < n && *(last - length) == *(last - (i + length)))
            length++;
        repeat[i] = (uint32_t)length;
        if (i + length > to) {
            from = i;
            to = i + length;
        }
        const uint32_t run = length < n_run_max ? (uint32_t)length : n_run_max;
        uint32_t *const longest = &sampler->mark[*(last - (i - 1))];
        if (run >= n_allowed && run > *longest) *longest = run;
    }
    for (size_t i = 0; i < n; i++) {
        const int32_t id = *(last - i);
        if (sampler->mark[id] && !is_breaker(params, id))
            sampler->adjusted[id] -=
                (float)(params->dry_multiplier *
                        power_clamped(params->dry_base, sampler->mark[id] - n_allowed));
        sampler->mark[id] = 0;
    }
    return LM_OK;
}

/* Whether a token is left. */
static bool any_allowed(const struct sampler *sampler)
{
    for (uint32_t id = 0; id < sampler->n_vocab; id++)
        if (sampler->adjusted[id] != -INFINITY) return true;
    return false;
}

static void forbid_others(struct sampler *sampler, const uint32_t *allowed)
{
    for (uint32_t first = 0; first < sampler->n_vocab; first += 32) {
        const uint32_t word = allowed[first / 32];
        const uint32_t n = sampler->n_vocab - first < 32 ? sampler->n_vocab - first : 32;
        if (word == UINT32_MAX) continue; /* inside strings nearly all words are */
        for (uint32_t i = 0; i < n; i++)
            if (!(word >> i & 1)) sampler->adjusted[first + i] = -INFINITY;
    }
}

/* The logits that the filters see: the given ones, or the adjusted copy. */
static enum lm_status adjust_logits(struct sampler *sampler, const float **logits,
                                    const struct sampling_params *params,
                                    const struct sampler_history *history, struct lm_error *err)
{
    const bool repetition = params->repeat_penalty != 1 && params->repeat_last_n;
    const bool presence = params->presence_penalty != 0 || params->frequency_penalty != 0;
    const bool dry = params->dry_multiplier != 0;
    if (!params->n_bias && !params->allowed && !repetition && !presence && !dry) return LM_OK;

    const float *const raw = *logits;
    memcpy(sampler->adjusted, raw, sampler->n_vocab * sizeof(*raw));
    *logits = sampler->adjusted;
    const enum lm_status status = apply_bias(sampler, params, err);
    if (status != LM_OK) return status;
    if (params->allowed) forbid_others(sampler, params->allowed);
    if (params->allowed && params->n_bias && !any_allowed(sampler)) {
        memcpy(sampler->adjusted, raw, sampler->n_vocab * sizeof(*raw));
        forbid_others(sampler, params->allowed);
    }
    if (repetition) {
        const size_t n = window_size(params->repeat_last_n, history->n);
        apply_repetition(sampler, params->repeat_penalty, history->ids + history->n - n, n);
    }
    if (presence)
        apply_presence(sampler, params, history->ids + history->n_prompt,
                       history->n - history->n_prompt);
    return dry ? apply_dry(sampler, params, history, err) : LM_OK;
}

/* Ranking. */

static uint64_t rank_key(float logit, uint32_t id)
{
    uint32_t bits = f32_to_bits(logit + 0.0f); /* -0 ties with 0 */
    bits = bits >> 31 ? bits : ~bits & 0x7fffffffu;
    return (uint64_t)bits << 32 | id;
}

static uint32_t rank_id(uint64_t key)
{
    return (uint32_t)key;
}

static void sift_down(uint64_t *heap, size_t n, size_t at)
{
    const uint64_t key = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= key) break;
        heap[at] = heap[child];
    }
    heap[at] = key;
}

/* The best k of all, in order: a heap with the worst of them on top. */
static void rank_best(struct sampler *sampler, const float *logits, size_t k)
{
    uint64_t *const heap = sampler->ranked;
    for (uint32_t id = 0; id < k; id++)
        heap[id] = rank_key(logits[id], id);
    for (size_t at = k / 2; at-- > 0;)
        sift_down(heap, k, at);
    float worst = logits[rank_id(heap[0])];
    for (uint32_t id = (uint32_t)k; id < sampler->n_vocab; id++) {
        if (!(logits[id] > worst)) continue; /* of equals the earlier id stays */
        heap[0] = rank_key(logits[id], id);
        sift_down(heap, k, 0);
        worst = logits[rank_id(heap[0])];
    }
    for (size_t n = k; n > 1;) {
        const uint64_t key = heap[0];
        heap[0] = heap[--n];
        sift_down(heap, n, 0);
        heap[n] = key;
    }
    sampler->n_ranked = k;
}

/* Sorts the first n keys by the bits from first_bit up, stably: counting passes of 11 bits. */
static void sort_ranked(struct sampler *sampler, size_t n, unsigned first_bit)
{
    for (unsigned shift = first_bit; shift < 64; shift += 11) {
        uint32_t place[2048] = {0};
        for (size_t i = 0; i < n; i++)
            place[sampler->ranked[i] >> shift & 2047]++;
        uint32_t sum = 0;
        for (size_t bin = 0; bin < 2048; bin++) {
            const uint32_t count = place[bin];
            place[bin] = sum;
            sum += count;
        }
        for (size_t i = 0; i < n; i++)
            sampler->spare[place[sampler->ranked[i] >> shift & 2047]++] = sampler->ranked[i];
        uint64_t *const sorted = sampler->spare;
        sampler->spare = sampler->ranked;
        sampler->ranked = sorted;
    }
}

static void rank_all(struct sampler *sampler, const float *logits)
{
    for (uint32_t id = 0; id < sampler->n_vocab; id++)
        sampler->ranked[id] = rank_key(logits[id], id);
    sort_ranked(sampler, sampler->n_vocab, 32); /* ids rise already */
    sampler->n_ranked = sampler->n_vocab;
}

static void rank(struct sampler *sampler, const float *logits, size_t n)
{
    if (n <= N_HEAP_MAX && n < sampler->n_vocab)
        rank_best(sampler, logits, n);
    else
        rank_all(sampler, logits);
}

/* The candidate of rank i. Most filters stop early, so few are ranked until more are asked for. */
static uint32_t candidate(struct sampler *sampler, const struct selection *selection, size_t i)
{
    assert(i < selection->n);
    if (i >= sampler->n_ranked) {
        if (i < N_FIRST && N_FIRST < sampler->n_vocab)
            rank_best(sampler, selection->logits, N_FIRST);
        else
            rank_all(sampler, selection->logits);
    }
    return rank_id(sampler->ranked[i]);
}

/* Filters. */

/* A candidate's probability times the selection's total, at temperature 1 / scale. */
static double weight(const struct selection *selection, uint32_t id, double scale)
{
    return softmax_exp(((double)selection->logits[id] - (double)selection->max) * scale);
}

/* The sum of all weights: of the whole vocabulary in id order, else in rank order. */
static double total_weight(struct sampler *sampler, const struct selection *selection, double scale)
{
    if (selection->whole)
        return softmax_sum(selection->logits, sampler->n_vocab, selection->max, scale);
    double total = 0;
    for (size_t i = 0; i < selection->n; i++)
        total += weight(selection, candidate(sampler, selection, i), scale);
    return total;
}

static void keep_top_k(struct sampler *sampler, struct selection *selection, size_t k)
{
    rank(sampler, selection->logits, k);
    selection->n = k;
    selection->whole = false;
}

/* Keeps the tokens whose surprise -log p is nearest to the distribution's entropy, as many as reach
 * the probability p together. Nearness is compared in binary32, ties by rank. */
static void keep_typical(struct sampler *sampler, struct selection *selection, double p)
{
    if (selection->whole) rank_all(sampler, selection->logits);
    selection->whole = false;
    const double total = total_weight(sampler, selection, 1);
    const double log_total = exact_log_f64(total);
    double entropy = 0;
    for (size_t i = 0; i < selection->n; i++) {
        const uint32_t id = rank_id(sampler->ranked[i]);
        const double share = weight(selection, id, 1) / total;
        const double log_share = (double)selection->logits[id] - (double)selection->max - log_total;
        if (share > 0) entropy -= share * log_share;
    }
    for (size_t i = 0; i < selection->n; i++) {
        const uint32_t id = rank_id(sampler->ranked[i]);
        const double surprise =
            log_total - ((double)selection->logits[id] - (double)selection->max);
        const uint32_t distance = f32_to_bits((float)fabs(surprise - entropy));
        sampler->ranked[i] = (uint64_t)distance << 32 | id;
    }
    sort_ranked(sampler, selection->n, 32);
    double sum = 0;
    size_t n_kept = 0;
    while (n_kept < selection->n && (!n_kept || sum < p * total)) {
        const uint32_t id = rank_id(sampler->ranked[n_kept]);
        sum += weight(selection, id, 1);
        sampler->ranked[n_kept++] = rank_key(selection->logits[id], id);
    }
    sort_ranked(sampler, n_kept, 0); /* back into rank order */
    selection->n = sampler->n_ranked = n_kept;
    selection->max = selection->logits[rank_id(sampler->ranked[0])];
}

/* The smallest beginning that has the probability p. */
static void keep_top_p(struct sampler *sampler, struct selection *selection, double p)
{
    const double target = p * total_weight(sampler, selection, 1);
    double sum = 0;
    size_t n_kept = 0;
    while (n_kept < selection->n && (!n_kept || sum < target))
        sum += weight(selection, candidate(sampler, selection, n_kept++), 1);
    selection->whole = selection->whole && n_kept == selection->n;
    selection->n = n_kept;
}

/* Those with at least the share p of the best one's probability. */
static void keep_min_p(struct sampler *sampler, struct selection *selection, double p)
{
    size_t n_kept = 1;
    while (n_kept < selection->n &&
           weight(selection, candidate(sampler, selection, n_kept), 1) >= p)
        n_kept++;
    selection->whole = selection->whole && n_kept == selection->n;
    selection->n = n_kept;
}

/* The first candidate at which the running sum of weights passes u times their total. */
static int32_t draw(struct sampler *sampler, const struct selection *selection, double scale,
                    double u)
{
    const double target = u * total_weight(sampler, selection, scale);
    double sum = 0;
    uint32_t last = candidate(sampler, selection, 0);
    for (size_t i = 0; i < selection->n; i++) {
        const uint32_t id = candidate(sampler, selection, i);
        const double share = weight(selection, id, scale);
        if (share == 0) break; /* nor has any after it a share */
        sum += share;
        last = id;
        if (sum > target) break;
    }
    return (
        int32_t)last; /* rounding may leave the sum short of the target: the last with a share */
}

/* The logits of a distribution: of what is selected, divided by the temperature; the others have no
 * share. */
static void keep_final(struct sampler *sampler, const struct selection *selection, double scale)
{
    for (uint32_t id = 0; id < sampler->n_vocab; id++)
        sampler->final[id] = selection->whole
                                 ? (float)(((double)selection->logits[id] - selection->max) * scale)
                                 : -INFINITY;
    for (size_t i = 0; !selection->whole && i < selection->n; i++) {
        const uint32_t id = candidate(sampler, selection, i);
        sampler->final[id] = (float)(((double)selection->logits[id] - selection->max) * scale);
    }
}

static enum lm_status choose(struct sampler *sampler, const float *logits,
                             const struct sampling_params *params, uint64_t position, int32_t *id,
                             struct lm_error *err)
{
    struct selection selection = {.logits = logits, .n = sampler->n_vocab, .whole = true};
    const enum lm_status status = find_max(logits, sampler->n_vocab, &selection.max, err);
    if (status != LM_OK) return status;
    if (params->temperature <= 0 || params->top_p <= 0) {
        *id = find_first(logits, selection.max);
        for (uint32_t i = 0; params->of_processed && i < sampler->n_vocab; i++)
            sampler->final[i] = i == (uint32_t)*id ? 0 : -INFINITY;
        return LM_OK;
    }
    sampler->n_ranked = 0;
    if (params->top_k > 0 && (uint32_t)params->top_k < sampler->n_vocab)
        keep_top_k(sampler, &selection, (size_t)params->top_k);
    if (params->typical_p < 1) keep_typical(sampler, &selection, params->typical_p);
    if (params->top_p < 1) keep_top_p(sampler, &selection, params->top_p);
    if (params->min_p > 0) keep_min_p(sampler, &selection, params->min_p);
    const double scale = 1 / (double)params->temperature;
    *id = draw(sampler, &selection, scale, philox_uniform(params->seed, position));
    if (params->of_processed) keep_final(sampler, &selection, scale);
    return LM_OK;
}

enum lm_status sampler_logprob(struct sampler *sampler, const float *logits, int32_t id,
                               int32_t n_top, struct sampled_token *out, struct lm_error *err)
{
    assert(id >= 0 && (uint32_t)id < sampler->n_vocab);
    assert(n_top >= 0 && n_top <= SAMPLING_MAX_LOGPROB);
    float max;
    const enum lm_status status = find_max(logits, sampler->n_vocab, &max, err);
    if (status != LM_OK) return status;
    const double log_total = exact_log_f64(softmax_sum(logits, sampler->n_vocab, max, 1));
    out->id = id;
    out->logprob = (float)((double)logits[id] - (double)max - log_total);
    out->n_top = (uint32_t)n_top < sampler->n_vocab ? n_top : (int32_t)sampler->n_vocab;
    if (out->n_top) rank(sampler, logits, (size_t)out->n_top);
    for (int32_t i = 0; i < out->n_top; i++) {
        out->top_id[i] = (int32_t)rank_id(sampler->ranked[i]);
        out->top_logprob[i] = (float)((double)logits[out->top_id[i]] - (double)max - log_total);
    }
    return LM_OK;
}

enum lm_status sampler_sample(struct sampler *sampler, const float *logits,
                              const struct sampling_params *params,
                              const struct sampler_history *history, uint64_t position,
                              struct sampled_token *out, struct lm_error *err)
{
    const float *adjusted = logits;
    int32_t id;
    if (params->is_forced) {
        *out = (struct sampled_token){.id = params->forced_id};
        return LM_OK;
    }
    enum lm_status status = adjust_logits(sampler, &adjusted, params, history, err);
    if (status == LM_OK) status = choose(sampler, adjusted, params, position, &id, err);
    if (status != LM_OK) return status;
    if (params->n_logprob >= 0)
        return sampler_logprob(sampler, params->of_processed ? sampler->final : logits, id,
                               params->n_logprob, out, err);
    *out = (struct sampled_token){.id = id};
    return LM_OK;
}
