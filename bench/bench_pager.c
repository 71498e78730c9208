/* Replays routing traces (lean eval --trace, lean run --trace) through the policies of the expert
 * cache at several budgets and prints what each would have hit, beside the bound that knows the
 * future and an LRU as is usual elsewhere. No model is run.
 *
 *   bench_pager [options] TRACE...      several traces: one after the other, the cache is kept
 *     --share 6.25,12.5,25,50,75   budgets, percent of all experts [6.25,12.5,25,37.5,50,75]
 *     --slots 60,20                one budget instead: slots of each size class
 *     --policy lru,lfru,static     [all]
 *     --classes 0,0,1              size class of each layer, from 0 [one class]
 *     --by-token                   every row of prefill is a step of its own, as if generated
 *     --warm-up N                  tokens that are not counted [0]
 *     --preload TRACE              begin full, with what this trace used most
 *     --profile FILE               the same by a routing profile
 *     --half-life N                of heat, in tokens, instead of the default
 *     --label TEXT                 names the traces in the output
 *     --tsv                        tab-separated, one row a policy and budget
 *     --speed                      time per decision instead, 60 layers of 512 experts */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "worker/pager/expert_cache.h"
#include "worker/pager/heat_profile.h"
#include "worker/pager/policy.h"
#include "worker/pager/replay.h"

enum { MAX_TRACE = 64, MAX_LAYER = 4096, MAX_CLASS = 8, MAX_SHARE = 32 };

struct settings {
    const char *trace[MAX_TRACE], *preload, *profile, *label, *policies;
    size_t n_trace;
    double share[MAX_SHARE]; /* 0 to 1 */
    size_t n_share;
    uint32_t slot_of_class[MAX_CLASS], n_slot_class; /* 0: by shares */
    uint32_t class_of[MAX_LAYER], n_class;
    double half_life;
    bool by_token, tsv, speed;
    uint64_t n_warm_up;
};

static void fail(const char *message, const char *detail)
{
    fprintf(stderr, "bench_pager: %s%s\n", message, detail);
    exit(1);
}

static double number(const char *text, const char **end)
{
    char *stop;
    const double value = strtod(text, &stop);
    if (stop == text || !(value >= 0) || (*stop && *stop != ',')) fail("not a number: ", text);
    *end = *stop ? stop + 1 : stop;
    return value;
}

static void parse_shares(struct settings *settings, const char *text)
{
    for (settings->n_share = 0; *text; settings->n_share++) {
        if (settings->n_share == MAX_SHARE) fail("too many budgets", "");
        settings->share[settings->n_share] = number(text, &text) / 100;
    }
}

static void parse_slots(struct settings *settings, const char *text)
{
    for (settings->n_slot_class = 0; *text; settings->n_slot_class++) {
        if (settings->n_slot_class == MAX_CLASS) fail("too many classes", "");
        settings->slot_of_class[settings->n_slot_class] = (uint32_t)number(text, &text);
    }
}

static void parse_classes(struct settings *settings, const char *text)
{
    for (uint32_t il = 0; *text; il++) {
        if (il == MAX_LAYER) fail("too many layers", "");
        settings->class_of[il] = (uint32_t)number(text, &text);
        if (settings->class_of[il] >= MAX_CLASS) fail("too many classes", "");
        if (settings->class_of[il] >= settings->n_class)
            settings->n_class = settings->class_of[il] + 1;
    }
}

static void parse(struct settings *settings, int argc, char **argv)
{
    const char *end;
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        const int first = i++; /* options with a value come first */
        if (!strcmp(name, "--share"))
            parse_shares(settings, value);
        else if (!strcmp(name, "--slots"))
            parse_slots(settings, value);
        else if (!strcmp(name, "--policy"))
            settings->policies = value;
        else if (!strcmp(name, "--classes"))
            parse_classes(settings, value);
        else if (!strcmp(name, "--warm-up"))
            settings->n_warm_up = (uint64_t)number(value, &end);
        else if (!strcmp(name, "--preload"))
            settings->preload = value;
        else if (!strcmp(name, "--profile"))
            settings->profile = value;
        else if (!strcmp(name, "--half-life"))
            settings->half_life = number(value, &end);
        else if (!strcmp(name, "--label"))
            settings->label = value;
        else {
            i = first;
            if (!strcmp(name, "--by-token"))
                settings->by_token = true;
            else if (!strcmp(name, "--tsv"))
                settings->tsv = true;
            else if (!strcmp(name, "--speed"))
                settings->speed = true;
            else if (name[0] == '-')
                fail("unknown option ", name);
            else if (settings->n_trace == MAX_TRACE)
                fail("too many traces", "");
            else
                settings->trace[settings->n_trace++] = name;
        }
    }
}

/* ---- replay ------------------------------------------------------------------------------- */

struct bench {
    const struct settings *settings;
    struct replay_config config;
    uint32_t n_layer_of[MAX_CLASS], slot_of_class[MAX_CLASS];
};

static struct route_log *read_trace(const char *path)
{
    struct lm_error err;
    struct route_log *log;
    if (route_log_read(&log, path, &err) != LM_OK) fail(err.message, "");
    if (log->cut_off) fprintf(stderr, "bench_pager: %s: is cut off\n", path);
    return log;
}

static double percent(uint64_t n, uint64_t of)
{
    return of ? 100.0 * (double)n / (double)of : 0;
}

static bool is_wanted(const struct settings *settings, const char *name)
{
    const size_t n = strlen(name);
    const char *at = settings->policies;
    if (!at) return true;
    for (; (at = strstr(at, name)); at += n)
        if ((at == settings->policies || at[-1] == ',') && (!at[n] || at[n] == ',')) return true;
    return false;
}

static void print_row(const struct bench *bench, double share, const char *policy,
                      const struct replay_result *result)
{
    const double n_token = result->n_token ? (double)result->n_token : 1;
    const bool tsv = bench->settings->tsv;
    uint32_t n_slot = 0;
    for (uint32_t i = 0; i < bench->config.n_class; i++)
        n_slot += bench->slot_of_class[i];
    printf(tsv ? "%s\t%g\t%u\t%s\t%llu\t%.2f\t%.2f\t%.3f\t%.3f\t%.3f\n"
               : "%-12s %6g%% %6u  %-10s %9llu %8.2f %8.2f %10.3f %10.3f %10.3f\n",
           bench->settings->label, 100 * share, n_slot, policy,
           (unsigned long long)result->decode.n_lookup,
           percent(result->decode.n_hit, result->decode.n_lookup),
           percent(result->prefill.n_hit, result->prefill.n_lookup),
           (double)(result->decode.n_lookup - result->decode.n_hit) / n_token,
           (double)result->n_evicted / n_token, (double)result->n_remiss / n_token);
}

static void print_header(bool tsv)
{
    printf(tsv ? "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n"
               : "%-12s %7s %6s  %-10s %9s %8s %8s %10s %10s %10s\n",
           "traces", "share", "slots", "policy", "lookups", "decode%", "prefill%", "misses/tok",
           "evict/tok", "remiss/tok");
}

typedef enum lm_status (*replay_fn)(const struct replay_config *config, struct replay_result *out,
                                    struct lm_error *err);

static void run_method(const struct bench *bench, double share, const char *name, replay_fn method)
{
    struct replay_result result;
    struct lm_error err;
    if (!is_wanted(bench->settings, name)) return;
    if (method(&bench->config, &result, &err) != LM_OK) fail(err.message, "");
    print_row(bench, share, name, &result);
}

static void run_policy(const struct bench *bench, double share, const struct cache_policy *policy)
{
    struct replay_result result;
    struct lm_error err;
    if (!is_wanted(bench->settings, policy->name)) return;
    if (replay_policy(&bench->config, policy, &result, &err) != LM_OK) fail(err.message, "");
    print_row(bench, share, policy->name, &result);
}

static void share_slots(struct bench *bench, double share)
{
    for (uint32_t i = 0; i < bench->config.n_class; i++) {
        const double n = share * bench->n_layer_of[i] * bench->config.log[0]->n_expert;
        bench->slot_of_class[i] = n < 1 ? 1 : (uint32_t)lround(n);
    }
}

/* Returns the share that the slots are of all experts. */
static double take_slots(struct bench *bench)
{
    uint32_t n_slot = 0, n_layer = 0;
    if (bench->settings->n_slot_class != bench->config.n_class)
        fail("--slots needs a number for each class", "");
    for (uint32_t i = 0; i < bench->config.n_class; i++) {
        n_slot += bench->slot_of_class[i] = bench->settings->slot_of_class[i];
        n_layer += bench->n_layer_of[i];
    }
    return (double)n_slot / (n_layer * bench->config.log[0]->n_expert);
}

static void run_budget(struct bench *bench, double share)
{
    struct cache_policy lfu = policy_lfru;
    lfu.name = "lfu"; /* uses since the beginning */
    run_method(bench, share, "bound", replay_bound);
    run_method(bench, share, "plain-lru", replay_plain_lru);
    run_policy(bench, share, &policy_lru);
    run_policy(bench, share, &policy_static);
    run_policy(bench, share, &policy_lfru);
    bench->config.half_life = INFINITY;
    run_policy(bench, share, &lfu);
    bench->config.half_life = bench->settings->half_life;
}

/* Which layers have experts is in the trace. */
static void find_layers(struct bench *bench, struct settings *settings)
{
    const struct route_log *log = bench->config.log[0];
    bool has_experts[MAX_LAYER] = {false};
    if (log->n_layer > MAX_LAYER) fail("too many layers", "");
    for (size_t i = 0; i < log->n_step; i++)
        for (uint32_t k = 0; k < log->step[i].n_layer; k++)
            has_experts[log->step[i].layer[k].layer] = true;
    for (uint32_t il = 0; il < log->n_layer; il++)
        if (has_experts[il])
            bench->n_layer_of[settings->class_of[il]]++;
        else
            settings->class_of[il] = UINT32_MAX;
}

/* Uses per token of every expert in a trace. */
static float *count_rates(const struct route_log *log)
{
    float *rate = calloc((size_t)log->n_layer * log->n_expert, sizeof(*rate));
    uint64_t n_row = 1;
    if (!rate) fail("no memory", "");
    for (size_t i = 0; i < log->n_step; i++)
        n_row += log->step[i].n_row;
    for (size_t i = 0; i < log->n_step; i++)
        for (uint32_t k = 0; k < log->step[i].n_layer; k++) {
            const struct route_choice *choice = &log->step[i].layer[k];
            for (size_t c = 0; c < (size_t)choice->n_row * log->n_expert_used; c++)
                rate[(size_t)choice->layer * log->n_expert + choice->expert[c]] += 1 / (float)n_row;
        }
    return rate;
}

/* The same of a profile, which has the layers for prediction too. */
static float *read_rates(const char *path, const struct route_log *log)
{
    struct lm_error err;
    struct heat_profile *profile;
    float *rate = calloc((size_t)log->n_layer * log->n_expert, sizeof(*rate));
    double *layer_rate = calloc(log->n_expert, sizeof(*layer_rate));
    if (!rate || !layer_rate) fail("no memory", "");
    if (heat_profile_read(&profile, path, &err) != LM_OK) fail(err.message, "");
    if (profile->n_layer < log->n_layer || profile->n_expert != log->n_expert)
        fail("of another model: ", path);
    for (uint32_t il = 0; il < log->n_layer; il++) {
        heat_profile_rates(profile, il, layer_rate);
        for (uint32_t ie = 0; ie < log->n_expert; ie++)
            rate[(size_t)il * log->n_expert + ie] = (float)layer_rate[ie];
    }
    heat_profile_destroy(profile);
    free(layer_rate);
    return rate;
}

static void run_replay(struct settings *settings)
{
    struct route_log *log[MAX_TRACE], *preload = NULL;
    struct replay_recall recall;
    struct lm_error err;
    float *rate = NULL;
    for (size_t i = 0; i < settings->n_trace; i++) {
        log[i] = read_trace(settings->trace[i]);
        if (log[i]->n_layer != log[0]->n_layer || log[i]->n_expert != log[0]->n_expert ||
            log[i]->n_expert_used != log[0]->n_expert_used)
            fail("of another model: ", settings->trace[i]);
    }
    if (settings->preload) {
        preload = read_trace(settings->preload);
        if (preload->n_layer != log[0]->n_layer || preload->n_expert != log[0]->n_expert)
            fail("of another model: ", settings->preload);
        rate = count_rates(preload);
    }
    if (settings->profile && rate) fail("--preload or --profile, not both", "");
    if (settings->profile) rate = read_rates(settings->profile, log[0]);
    struct bench bench = {.settings = settings,
                          .config = {.log = (const struct route_log *const *)log,
                                     .n_log = settings->n_trace,
                                     .class_of = settings->class_of,
                                     .n_class = settings->n_class,
                                     .floor = log[0]->n_expert_used,
                                     .half_life = settings->half_life,
                                     .by_token = settings->by_token,
                                     .n_warm_up = settings->n_warm_up,
                                     .rate = rate}};
    bench.config.slot_of_class = bench.slot_of_class;
    find_layers(&bench, settings);
    if (replay_recall(&bench.config, &recall, &err) != LM_OK) fail(err.message, "");
    fprintf(stderr,
            "%s: %s, %u layers, %u of %u experts; recall of the previous token %.1f%%, of a "
            "static list of %u from the first half %.1f%%\n",
            settings->label, log[0]->architecture, log[0]->n_layer, log[0]->n_expert_used,
            log[0]->n_expert, percent(recall.n_previous, recall.n_choice), log[0]->n_expert_used,
            percent(recall.n_hot, recall.n_hot_choice));
    print_header(settings->tsv);
    if (settings->n_slot_class) run_budget(&bench, take_slots(&bench));
    for (size_t i = 0; i < settings->n_share && !settings->n_slot_class; i++) {
        share_slots(&bench, settings->share[i]);
        run_budget(&bench, settings->share[i]);
    }
    free(rate);
    route_log_destroy(preload);
    for (size_t i = 0; i < settings->n_trace; i++)
        route_log_destroy(log[i]);
}

/* ---- speed -------------------------------------------------------------------------------- */

static void run_speed(const struct cache_policy *policy)
{
    enum {
        N_LAYER = 60,
        N_EXPERT = 512,
        N_USED = 10,
        N_SLOT = N_LAYER * N_EXPERT / 4,
        N_STEP = 4000
    };
    static uint32_t class_of[N_LAYER];
    const uint32_t n_slot = N_SLOT;
    const struct expert_cache_config config = {.n_layer = N_LAYER,
                                               .n_expert = N_EXPERT,
                                               .class_of = class_of,
                                               .slot_of_class = &n_slot,
                                               .n_class = 1,
                                               .floor = N_USED,
                                               .policy = policy};
    struct lm_error err;
    struct expert_cache *cache;
    uint64_t random = 1, n_miss = 0, n_lookup = 0;
    double use_s = 0, place_s = 0;
    if (expert_cache_create(&cache, &config, &err) != LM_OK) fail(err.message, "");
    for (uint32_t step = 0; step < N_STEP; step++) {
        if (step == N_STEP / 2) use_s = place_s = 0, n_miss = n_lookup = 0; /* it is full now */
        expert_cache_advance(cache, 1, false);
        for (uint32_t il = 0; il < N_LAYER; il++) {
            struct expert_key key[N_USED], missed[N_USED];
            int32_t pinned[N_USED];
            uint32_t n_pinned = 0, n_missed = 0;
            for (uint32_t k = 0; k < N_USED; k++) { /* low numbers more often, distinct */
                random = random * 6364136223846793005u + 1442695040888963407u;
                const double u = (double)(random >> 11) * 0x1p-53;
                key[k] =
                    (struct expert_key){il, (uint32_t)(u * u * (N_EXPERT / N_USED)) * N_USED + k};
            }
            const double begin_s = log_now_s();
            for (uint32_t k = 0; k < N_USED; k++)
                expert_cache_use(cache, key[k], 1);
            for (uint32_t k = 0; k < N_USED; k++) {
                const int32_t slot = expert_cache_find(cache, key[k]);
                if (slot == EXPERT_NO_SLOT) {
                    missed[n_missed++] = key[k];
                } else {
                    expert_cache_pin(cache, slot);
                    pinned[n_pinned++] = slot;
                }
            }
            const double found_s = log_now_s();
            for (uint32_t k = 0; k < n_missed; k++)
                pinned[n_pinned++] = expert_cache_place(cache, missed[k], PLACE_DEMAND).slot;
            const double placed_s = log_now_s();
            while (n_pinned)
                expert_cache_unpin(cache, pinned[--n_pinned]);
            use_s += found_s - begin_s + log_now_s() - placed_s;
            place_s += placed_s - found_s;
            n_lookup += N_USED;
            n_miss += n_missed;
        }
    }
    printf("%-8s %u experts, %u slots: use, find, pin and unpin %.0f ns a lookup, place %.0f ns a "
           "miss, %.1f%% missed\n",
           policy->name, N_LAYER * N_EXPERT, N_SLOT, 1e9 * use_s / (double)n_lookup,
           1e9 * place_s / (double)n_miss, percent(n_miss, n_lookup));
    expert_cache_destroy(cache);
}

int main(int argc, char **argv)
{
    static struct settings settings = {.n_class = 1, .label = "traces"};
    parse_shares(&settings, "6.25,12.5,25,37.5,50,75");
    parse(&settings, argc, argv);
    if (settings.speed) {
        run_speed(&policy_lru);
        run_speed(&policy_lfru);
        run_speed(&policy_static);
        return 0;
    }
    if (!settings.n_trace) fail("no trace given; bench/bench_pager.c says how", "");
    run_replay(&settings);
    return 0;
}
