/* From an engine and tests to rows. */
#include "launch/bench/engine_rows.h"

#include <ctype.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/plan/cost_model.h"
#include "coordinator/plan/weight_census.h"
#include "launch/bench/accelerator.h"
#include "launch/bench/kernel_probe.h"
#include "launch/bench/machine.h"
#include "launch/bench/statistics.h"
#include "launch/bench/token_source.h"
#include "launch/engine.h"
#include "launch/inventory.h"
#include "launch/model_ref.h"
#include "launch/options.h"
#include "launch/pager_report.h"
#include "launch/terminal/interrupt.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/model/hparams.h"
#include "proto/model/weights_sample.h"
#include "worker/pager/pager_snapshot.h"

enum { WARMUP_TOKENS = 16 };
/* Traces of warm-up runs come behind those of all repetitions. */
static const uint64_t WARMUP_TRACE = UINT64_C(1) << 32;

struct measurement {
    struct engine *engine;
    struct token_source *tokens;
    const struct engine_plan *plan;
    struct weight_census census;
    double load_s;
    double preload_bytes_s; /* 0: nothing was preloaded */
    struct inventory machine;
    struct cost_machine rates;
    uint64_t n_run; /* so far */
    struct log_bar bar;
};

static void add(struct json_object *object, const char *key, struct json_object *value)
{
    json_object_object_add(object, key, value);
}

static void add_number(struct json_object *object, const char *key, uint64_t value)
{
    add(object, key, json_object_new_uint64(value));
}

/* To three decimals: more is noise, and a table of it cannot be read. */
static struct json_object *number(double value)
{
    char text[40];
    snprintf(text, sizeof(text), "%.3f", value);
    return isfinite(value) ? json_object_new_double_s(value, text) : NULL;
}

/* ---- what is told of the model ------------------------------------------------------------ */

/* The type that most bytes of the weights have. */
static const char *main_type(const struct gguf_file *file)
{
    uint64_t n_bytes[TENSOR_TYPE_COUNT] = {0};
    uint32_t most = 0;
    for (size_t i = 0; i < gguf_n_tensor(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        n_bytes[tensor->type] += tensor->n_bytes;
    }
    for (uint32_t type = 1; type < TENSOR_TYPE_COUNT; type++)
        if (n_bytes[type] > n_bytes[most]) most = type;
    return tensor_type_info(most)->name;
}

/* "qwen3moe 30B.A3B q4_k": architecture, size, type of the weights. */
static struct json_object *model_name(const struct gguf_file *file, const struct hparams *hp,
                                      uint64_t n_param)
{
    char size[40], name[160];
    struct gguf_string label;
    bool found;
    if (gguf_get_string(file, "general.size_label", &label, &found, NULL) == LM_OK && found &&
        label.n > 0 && label.n < sizeof(size))
        log_printable(label.data, label.n, size, sizeof(size));
    else
        snprintf(size, sizeof(size), "%.3g%c", (double)n_param / (n_param < 999500000 ? 1e6 : 1e9),
                 n_param < 999500000 ? 'M' : 'B');
    for (char *at = size; *at; at++)
        if (*at == '-') *at = '.';
    const int n = snprintf(name, sizeof(name), "%s %s ", hp->arch->name, size);
    snprintf(name + n, sizeof(name) - (size_t)n, "%s", main_type(file));
    for (char *at = name + n; *at; at++)
        *at = (char)tolower((unsigned char)*at);
    return json_object_new_string(name);
}

static struct json_object *hex(uint64_t value)
{
    char text[24];
    snprintf(text, sizeof(text), "%016" PRIx64, value);
    return json_object_new_string(text);
}

static struct json_object *model_json(const struct measurement *of)
{
    const struct gguf_file *file = engine_file(of->engine);
    const struct hparams *hp = engine_hparams(of->engine);
    struct json_object *model = json_object_new_object();
    uint64_t value;
    add(model, "name", model_name(file, hp, of->census.n_param));
    add(model, "path", json_object_new_string(gguf_path(file)));
    add(model, "architecture", json_object_new_string(hp->arch->name));
    add(model, "type", json_object_new_string(main_type(file)));
    add_number(model, "size_bytes", of->census.n_bytes);
    add_number(model, "n_params", of->census.n_param);
    add_number(model, "n_params_active", of->census.n_param_active);
    add(model, "fingerprint", gguf_fingerprint(file, &value, NULL) == LM_OK ? hex(value) : NULL);
    add(model, "weights", weights_sample(file, &value, NULL) == LM_OK ? hex(value) : NULL);
    return model;
}

/* ---- what is told of the settings --------------------------------------------------------- */

void engine_rows_key(const char *name, char *out, size_t size)
{
    snprintf(out, size, "%s", name);
    for (char *at = out; *at; at++)
        if (*at == '-') *at = '_';
}

static struct json_object *settings_json(const struct measurement *of,
                                         const struct options *options)
{
    struct json_object *settings = json_object_new_object();
    for (size_t i = 0; of->plan->tables[i]; i++)
        for (const struct option_spec *spec = of->plan->tables[i]; spec->name; spec++) {
            char key[80];
            const char *text = options_string(options, spec->name);
            engine_rows_key(spec->name, key, sizeof(key));
            add(settings, key, text ? json_object_new_string(text) : NULL);
        }
    add(settings, "ranks", json_object_new_int64(engine_n_rank(of->engine)));
    return settings;
}

static struct json_object *effective_json(const struct measurement *of)
{
    const struct engine_stats stats = engine_stats(of->engine);
    struct json_object *effective = json_object_new_object(), *ranks = json_object_new_array();
    add_number(effective, "threads", stats.n_thread);
    add(effective, "kernels", json_object_new_string(stats.kernels));
    add_number(effective, "prefill_chunk", stats.prefill_chunk);
    add(effective, "tuned", stats.tuned ? json_object_new_string(stats.tuned) : NULL);
    add_number(effective, "n_ctx", engine_n_ctx(of->engine));
    add_number(effective, "n_slot", engine_n_slot(of->engine));
    for (uint32_t i = 0; i < engine_n_rank(of->engine); i++) {
        const struct engine_rank rank = engine_rank(of->engine, i);
        struct json_object *json = json_object_new_object();
        add(json, "host", rank.host ? json_object_new_string(rank.host) : NULL);
        add_number(json, "layer_begin", rank.layer_begin);
        add_number(json, "layer_end", rank.layer_end);
        add(json, "numerics", json_object_new_string(rank.numerics));
        json_object_array_add(ranks, json);
    }
    add(effective, "ranks", ranks);
    return effective;
}

/* ---- what came of the experts ------------------------------------------------------------- */

/* The counters that tell of a test, summed over its repetitions. */
struct expert_sums {
    struct expert_pager_stats last; /* for what is no sum */
    uint64_t n_lookup, n_hit, n_joined, n_miss, miss_bytes;
    uint64_t n_chosen, n_recalled, n_speculated, n_useful, n_evicted, read_bytes;
    double wait_s, busy_s;
    struct device_tier_stats
        device; /* the last run's; sums in decode and prefill, and of predictions */
};

static void add_counts(struct expert_sums *sums, const struct expert_pager_counts *now,
                       const struct expert_pager_counts *then)
{
    sums->n_lookup += now->n_lookup - then->n_lookup;
    sums->n_hit += now->n_hit - then->n_hit;
    sums->n_joined += now->n_joined - then->n_joined;
    sums->n_miss += now->n_miss - then->n_miss;
    sums->miss_bytes += now->miss_bytes - then->miss_bytes;
    sums->wait_s += now->wait_s - then->wait_s;
}

/* What has come since. */
static void add_device_counts(struct device_tier_counts *sum, const struct device_tier_counts *now,
                              const struct device_tier_counts *then)
{
    sum->n_lookup += now->n_lookup - then->n_lookup;
    sum->n_hit += now->n_hit - then->n_hit;
    sum->n_cpu += now->n_cpu - then->n_cpu;
    sum->n_copied += now->n_copied - then->n_copied;
    sum->copied_bytes += now->copied_bytes - then->copied_bytes;
    sum->wait_s += now->wait_s - then->wait_s;
    sum->cpu_s += now->cpu_s - then->cpu_s;
}

static void add_prediction(struct expert_pager_prediction *sum,
                           const struct expert_pager_prediction *now,
                           const struct expert_pager_prediction *then)
{
    sum->n_named += now->n_named - then->n_named;
    sum->n_chosen += now->n_chosen - then->n_chosen;
    sum->n_recalled += now->n_recalled - then->n_recalled;
    sum->n_read += now->n_read - then->n_read;
    sum->n_used += now->n_used - then->n_used;
    sum->n_in_time += now->n_in_time - then->n_in_time;
}

static void add_device_run(struct expert_sums *sums, const struct device_tier_stats *now,
                           const struct device_tier_stats *then)
{
    struct device_tier_stats sum = *now;
    sum.decode = sums->device.decode;
    sum.prefill = sums->device.prefill;
    add_device_counts(&sum.decode, &now->decode, &then->decode);
    add_device_counts(&sum.prefill, &now->prefill, &then->prefill);
    sum.prediction = sums->device.prediction;
    add_prediction(&sum.prediction, &now->prediction, &then->prediction);
    sum.predicted_bytes =
        sums->device.predicted_bytes + now->predicted_bytes - then->predicted_bytes;
    sum.useful_bytes = sums->device.useful_bytes + now->useful_bytes - then->useful_bytes;
    sum.written_back_bytes =
        sums->device.written_back_bytes + now->written_back_bytes - then->written_back_bytes;
    sums->device = sum;
}

static void add_run(struct expert_sums *sums, const struct expert_pager_stats *now,
                    const struct expert_pager_stats *then)
{
    add_counts(sums, &now->decode, &then->decode);
    add_counts(sums, &now->prefill, &then->prefill);
    sums->n_chosen += now->n_chosen - then->n_chosen;
    sums->n_recalled += now->n_recalled - then->n_recalled;
    sums->n_speculated += now->n_speculated - then->n_speculated;
    sums->n_useful += now->n_useful - then->n_useful;
    sums->n_evicted += now->n_evicted - then->n_evicted;
    sums->read_bytes += pager_report_read_bytes(now) - pager_report_read_bytes(then);
    sums->busy_s += now->disk.busy_s - then->disk.busy_s;
    sums->last = *now;
}

static struct json_object *ratio(double part, double whole)
{
    char text[40];
    if (!(whole > 0)) return NULL;
    snprintf(text, sizeof(text), "%.6f", part / whole);
    return json_object_new_double_s(part / whole, text);
}

/* Hits on a device are those of decode: a prompt is streamed past its slots. */
static struct json_object *device_experts_json(const struct device_tier_stats *of)
{
    const struct device_tier_counts *decode = &of->decode, *prefill = &of->prefill;
    if (!of->n_slot) return NULL;
    struct json_object *json = json_object_new_object();
    add_number(json, "slots", of->n_slot);
    add_number(json, "experts", of->n_expert);
    add_number(json, "slot_bytes", of->slot_bytes);
    add(json, "hit_rate", ratio((double)decode->n_hit, (double)decode->n_lookup));
    add(json, "cpu_share",
        ratio((double)decode->n_cpu, (double)(decode->n_cpu + decode->n_copied)));
    add(json, "prefill_hit_rate", ratio((double)prefill->n_hit, (double)prefill->n_lookup));
    add_number(json, "copied_bytes", decode->copied_bytes + prefill->copied_bytes);
    add(json, "exclusive", json_object_new_boolean(of->exclusive));
    add_number(json, "written_back_bytes", of->written_back_bytes);
    add(json, "wait_s", number(decode->wait_s + prefill->wait_s));
    add(json, "cpu_s", number(decode->cpu_s + prefill->cpu_s));
    add(json, "prefetch_recall",
        ratio((double)of->prediction.n_recalled, (double)of->prediction.n_chosen));
    add(json, "prefetch_precision",
        ratio((double)of->prediction.n_used, (double)of->prediction.n_read));
    add_number(json, "predicted_bytes", of->predicted_bytes);
    add_number(json, "predicted_useful_bytes", of->useful_bytes);
    add_number(json, "preloaded", of->n_preloaded);
    add(json, "preload_bytes_s", of->preload_bytes_s > 0 ? number(of->preload_bytes_s) : NULL);
    add_number(json, "warmed", of->n_warmed);
    add(json, "copy_bytes_s", of->copy_bytes_s > 0 ? number(of->copy_bytes_s) : NULL);
    add(json, "cpu_bytes_s", of->cpu_bytes_s > 0 ? number(of->cpu_bytes_s) : NULL);
    return json;
}

static struct json_object *experts_json(const struct measurement *of,
                                        const struct expert_sums *sums, double elapsed_s)
{
    const struct expert_pager_stats *last = &sums->last;
    if (!last->n_slot) return NULL;
    struct json_object *json = json_object_new_object();
    add_number(json, "slots", last->n_slot);
    add_number(json, "experts", last->n_expert);
    add_number(json, "slot_bytes", last->slot_bytes);
    add_number(json, "bank_bytes", last->bank_bytes);
    add(json, "resident_share", ratio(last->n_slot, last->n_expert));
    add_number(json, "lookups", sums->n_lookup);
    add_number(json, "hits", sums->n_hit);
    add_number(json, "joined", sums->n_joined);
    add_number(json, "misses", sums->n_miss);
    add_number(json, "miss_bytes", sums->miss_bytes);
    add(json, "hit_rate", ratio((double)sums->n_hit, (double)sums->n_lookup));
    add(json, "prefetch_recall", ratio((double)sums->n_recalled, (double)sums->n_chosen));
    add(json, "prefetch_precision", ratio((double)sums->n_useful, (double)sums->n_speculated));
    add(json, "wait_s", number(sums->wait_s));
    add(json, "wait_share", ratio(sums->wait_s, elapsed_s));
    add_number(json, "evicted", sums->n_evicted);
    add_number(json, "read_bytes", sums->read_bytes);
    add(json, "disk_busy_s", number(sums->busy_s));
    add(json, "disk_bytes_s", ratio((double)sums->read_bytes, sums->busy_s));
    add_number(json, "preloaded", last->n_preloaded);
    add(json, "preload_bytes_s", of->preload_bytes_s > 0 ? number(of->preload_bytes_s) : NULL);
    add(json, "policy", last->policy ? json_object_new_string(last->policy) : NULL);
    add(json, "io", last->disk.engine ? json_object_new_string(last->disk.engine) : NULL);
    add(json, "direct", json_object_new_boolean(last->disk.direct));
    add(json, "device", device_experts_json(&sums->device));
    return json;
}

/* Bytes of the weights that every token reads, by type. */
static void count_dense(const struct measurement *of, uint64_t bytes[TENSOR_TYPE_COUNT])
{
    const bool tied = engine_hparams(of->engine)->tied;
    memset(bytes, 0, TENSOR_TYPE_COUNT * sizeof(*bytes));
    for (int group = 0; group < WEIGHT_GROUP_COUNT; group++) {
        if (group == WEIGHTS_EXPERTS || group == WEIGHTS_MTP || group == WEIGHTS_OTHER) continue;
        if (group == WEIGHTS_EMBEDDING && !tied) continue; /* a row of it */
        for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
            bytes[type] += of->census.group[group].bytes_of_type[type];
    }
}

static double sum_bytes(const uint64_t bytes[TENSOR_TYPE_COUNT])
{
    double sum = 0;
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
        sum += (double)bytes[type];
    return sum;
}

static struct cost_weights cost_weights(const struct measurement *of,
                                        const struct expert_pager_stats *experts)
{
    uint64_t dense[TENSOR_TYPE_COUNT];
    const struct hparams *hp = engine_hparams(of->engine);
    count_dense(of, dense);
    return (struct cost_weights){
        .dense_bytes = sum_bytes(dense),
        .bank_bytes = (double)of->census.group[WEIGHTS_EXPERTS].n_bytes,
        .used_share = hp->n_expert ? (double)hp->n_expert_used / hp->n_expert : 0,
        .n_layer = hp->n_layer,
        .resident_share = experts->n_slot ? (double)experts->n_slot / experts->n_expert : 1};
}

static double rate_of(const struct kernel_rates *rates, const uint64_t bytes[TENSOR_TYPE_COUNT])
{
    const double n = sum_bytes(bytes);
    return n > 0 ? n / kernel_rates_seconds(rates, bytes) : 0;
}

/* Rates of the kernels that this run has. */
static enum lm_status probe_kernels(struct measurement *of, struct lm_error *err)
{
    const struct engine_stats stats = engine_stats(of->engine);
    const uint64_t *experts = of->census.group[WEIGHTS_EXPERTS].bytes_of_type;
    uint64_t dense[TENSOR_TYPE_COUNT], all[TENSOR_TYPE_COUNT];
    struct kernel_rates rates;
    count_dense(of, dense);
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
        all[type] = dense[type] + experts[type];
    const struct kernel_probe_config config = {
        .n_thread = stats.n_thread, .kernels = stats.kernels, .bytes = all};
    const enum lm_status status = kernel_probe_run(&rates, &config, err);
    if (status != LM_OK) return status;
    of->rates = (struct cost_machine){.dense_bytes_s = rate_of(&rates, dense),
                                      .expert_bytes_s = rate_of(&rates, experts),
                                      .disk_bytes_s = of->machine.disk_bytes_s,
                                      .layer_s = COST_OPS_PER_LAYER * rates.op_s};
    return LM_OK;
}

static void add_estimate(struct json_object *json, const struct measurement *of,
                         const struct cost_weights *weights, const struct cost_hits *hits)
{
    const struct cost_estimate estimate = cost_model_estimate(&of->rates, weights, hits);
    add(json, "hit_rate", number(hits->resident));
    add(json, "serial_tok_s", number(estimate.serial_tok_s));
    add(json, "ideal_tok_s", number(estimate.ideal_tok_s));
}

/* What decoding one sequence should give; of ranks each has a share of the bytes, one after the
 * other. With the hits that are expected, and with as many bytes from the disk as were read. */
static struct json_object *prediction_json(const struct measurement *of,
                                           const struct expert_sums *sums, double n_token)
{
    const struct cost_weights weights = cost_weights(of, &sums->last);
    const struct cost_hits expected = cost_model_hits(&weights);
    struct json_object *json = json_object_new_object(), *known = NULL;
    add_estimate(json, of, &weights, &expected);
    if (sums->last.n_slot) {
        const double chosen_bytes = weights.used_share * weights.bank_bytes * n_token;
        const struct cost_hits counted = {.resident = 1 - (double)sums->read_bytes / chosen_bytes};
        known = json_object_new_object();
        add_estimate(known, of, &weights, &counted);
    }
    add(json, "with_counted_reads", known);
    return json;
}

static struct json_object *machine_json(const struct measurement *of)
{
    const struct inventory *machine = &of->machine;
    struct json_object *json = json_object_new_object();
    add(json, "threads", json_object_new_int64(machine->n_thread));
    add(json, "memory_bytes_s", number(machine->memory_bytes_s));
    add(json, "disk_bytes_s", number(machine->disk_bytes_s));
    add(json, "dense_bytes_s",
        of->rates.dense_bytes_s > 0 ? number(of->rates.dense_bytes_s) : NULL);
    add(json, "expert_bytes_s",
        of->rates.expert_bytes_s > 0 ? number(of->rates.expert_bytes_s) : NULL);
    return json;
}

/* Weights that one token of decoding reads. */
static double active_bytes(const struct measurement *of)
{
    const struct cost_weights weights = cost_weights(of, &(struct expert_pager_stats){0});
    return weights.dense_bytes + weights.used_share * weights.bank_bytes;
}

/* ---- rows --------------------------------------------------------------------------------- */

static void add_statistics(struct json_object *row, const char *unit, double *values, size_t n)
{
    char key[40];
    struct json_object *samples = json_object_new_array();
    for (size_t i = 0; i < n; i++)
        json_object_array_add(samples, number(values[i]));
    snprintf(key, sizeof(key), "samples_%s", unit);
    add(row, key, samples);
    const struct statistics of = statistics_of(values, n);
    const struct {
        const char *name;
        double value;
    } parts[] = {{"mean", of.mean},
                 {"stddev", of.stddev},
                 {"min", of.min},
                 {"median", of.median},
                 {"max", of.max}};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        snprintf(key, sizeof(key), "%s_%s", parts[i].name, unit);
        add(row, key, number(parts[i].value));
    }
}

/* Of runs; negative: of one it could not be read. */
static double add_energy(double sum_j, double one_j)
{
    return sum_j < 0 || one_j < 0 ? -1 : sum_j + one_j;
}

/* Tokens drafted and verified, of all runs, and those of them that were right. */
static struct json_object *drafts_json(const struct engine_sample *samples, uint32_t n)
{
    uint64_t n_draft = 0, n_accepted = 0;
    struct json_object *json = json_object_new_object();
    for (uint32_t i = 0; i < n; i++) {
        n_draft += samples[i].n_draft;
        n_accepted += samples[i].n_draft_accepted;
    }
    add_number(json, "drafted", n_draft);
    add_number(json, "accepted", n_accepted);
    add(json, "accept_rate", ratio((double)n_accepted, (double)n_draft));
    return json;
}

/* samples: [n_repeat] */
static struct json_object *make_row(const struct measurement *of, const struct options *options,
                                    const struct engine_test *test,
                                    const struct engine_sample *samples,
                                    const struct expert_sums *sums, double *scratch)
{
    const struct engine_plan *plan = of->plan;
    const double n_token = (double)(test->n_prompt + test->n_gen) * test->n_seq;
    double elapsed_s = 0, energy_j = 0, device_j = 0;
    char name[ENGINE_TEST_NAME_BYTES];
    struct json_object *row = json_object_new_object(), *samples_ns = json_object_new_array();
    add(row, "test", json_object_new_string(engine_test_name(test, name)));
    add_number(row, "n_prompt", test->n_prompt);
    add_number(row, "n_gen", test->n_gen);
    add_number(row, "n_depth", test->n_depth);
    add_number(row, "n_seq", test->n_seq);
    add(row, "model", model_json(of));
    add(row, "settings", settings_json(of, options));
    add(row, "effective", effective_json(of));
    add_number(row, "repetitions", plan->n_repeat);
    add_number(row, "warmup", plan->n_warmup);
    add(row, "delay_s", number(plan->delay_s));
    add(row, "prompts", json_object_new_string(plan->prompts));
    add_number(row, "seed", plan->seed);
    add(row, "timed",
        json_object_new_string(test->greedy
                                   ? "steps of the model and greedy sampling; no tokenization"
                                   : "steps of the model; neither sampling nor tokenization"));
    for (uint32_t i = 0; i < plan->n_repeat; i++) {
        scratch[i] = (double)samples[i].elapsed_ns;
        elapsed_s += scratch[i] / 1e9;
        energy_j = add_energy(energy_j, samples[i].energy_j);
        device_j = add_energy(device_j, samples[i].accelerator_energy_j);
        json_object_array_add(samples_ns, json_object_new_uint64(samples[i].elapsed_ns));
    }
    add_statistics(row, "ns", scratch, plan->n_repeat);
    add(row, "samples_ns", samples_ns);
    for (uint32_t i = 0; i < plan->n_repeat; i++)
        scratch[i] = n_token * 1e9 / (double)samples[i].elapsed_ns;
    add_statistics(row, "tok_s", scratch, plan->n_repeat);
    add(row, "load_s", number(of->load_s));
    const bool is_decode = test->n_gen && !test->n_prompt && test->n_seq == 1;
    add(row, "token_bytes", number(active_bytes(of)));
    add(row, "weights_bytes_s",
        is_decode ? number(active_bytes(of) * test->n_gen * plan->n_repeat / elapsed_s) : NULL);
    add(row, "experts", experts_json(of, sums, elapsed_s));
    add(row, "drafts", test->greedy ? drafts_json(samples, plan->n_repeat) : NULL);
    add(row, "predicted",
        is_decode ? prediction_json(of, sums, (double)test->n_gen * plan->n_repeat) : NULL);
    add(row, "energy_j", energy_j < 0 ? NULL : number(energy_j / plan->n_repeat));
    add(row, "accelerator_energy_j", device_j < 0 ? NULL : number(device_j / plan->n_repeat));
    add(row, "accelerators", accelerator_list());
    add(row, "build", machine_build());
    add(row, "host", machine_host());
    add(row, "machine", machine_json(of));
    add(row, "time", machine_time());
    return row;
}

/* ---- running ------------------------------------------------------------------------------ */

static void wait_s(double seconds)
{
    struct timespec left = {.tv_sec = (time_t)seconds,
                            .tv_nsec = (long)((seconds - floor(seconds)) * 1e9)};
    while (nanosleep(&left, &left) && !interrupt_pending(INTERRUPT_STOP) &&
           !interrupt_pending(INTERRUPT_END))
        ;
}

static enum lm_status run_once(struct measurement *of, const struct engine_test *test,
                               uint64_t trace, struct engine_sample *out, struct lm_error *err)
{
    wait_s(of->plan->delay_s);
    const enum lm_status status =
        engine_test_run(test, of->engine, of->tokens, trace, of->n_run, out, err);
    log_bar_update(&of->bar, ++of->n_run);
    return status;
}

static enum lm_status warm_up(struct measurement *of, const struct engine_test *test,
                              struct lm_error *err)
{
    struct engine_test shorter = *test;
    struct engine_sample unused = {.first_s = NULL};
    enum lm_status status = LM_OK;
    if (shorter.n_gen > WARMUP_TOKENS) shorter.n_gen = WARMUP_TOKENS;
    for (uint32_t i = 0; i < of->plan->n_warmup && status == LM_OK; i++)
        status = run_once(of, &shorter, WARMUP_TRACE + i, &unused, err);
    return status;
}

/* What one test needs, in one piece: samples, times of tokens, scratch. */
struct test_room {
    struct engine_sample *sample; /* [n_repeat] */
    double *scratch;              /* [n_repeat] */
    double *first_s, *gap_s;      /* of all runs, one behind the other */
    size_t n_first, n_gap;
};

static bool make_room(struct test_room *room, const struct engine_test *test, uint32_t n_repeat)
{
    const size_t n_gap = engine_test_n_gap_max(test);
    *room = (struct test_room){.sample = calloc(n_repeat, sizeof(*room->sample)),
                               .scratch = calloc(n_repeat, sizeof(*room->scratch)),
                               .first_s = calloc(n_repeat * test->n_seq, sizeof(double)),
                               .gap_s = calloc(n_repeat * n_gap, sizeof(double))};
    return room->sample && room->scratch && room->first_s && room->gap_s;
}

static void free_room(struct test_room *room)
{
    free(room->sample);
    free(room->scratch);
    free(room->first_s);
    free(room->gap_s);
}

/* "ttft_ms" and "itl_ms": median and 99th percentile over all sequences and runs. */
static struct json_object *latency_json(double *seconds, size_t n)
{
    if (!n) return NULL;
    const struct statistics of = statistics_of(seconds, n);
    struct json_object *json = json_object_new_object();
    add(json, "mean", number(1e3 * of.mean));
    add(json, "p50", number(1e3 * of.median));
    add(json, "p99", number(1e3 * statistics_percentile(seconds, n, 99)));
    return json;
}

static enum lm_status measure_test(struct measurement *of, const struct options *options,
                                   const struct engine_test *test, struct json_object *rows,
                                   struct lm_error *err)
{
    const uint32_t n = of->plan->n_repeat;
    struct test_room room;
    struct expert_sums sums = {.n_lookup = 0};
    enum lm_status status = make_room(&room, test, n)
                                ? warm_up(of, test, err)
                                : lm_fail(err, LM_E_NO_MEM, "no memory for results");
    for (uint32_t i = 0; i < n && status == LM_OK; i++) {
        struct engine_sample *const sample = &room.sample[i];
        sample->first_s = room.first_s + room.n_first;
        sample->gap_s = room.gap_s + room.n_gap;
        status = run_once(of, test, i, sample, err);
        room.n_first += sample->n_first;
        room.n_gap += sample->n_gap;
        if (status != LM_OK) break;
        add_run(&sums, &sample->after, &sample->before);
        add_device_run(&sums, &sample->device_after, &sample->device_before);
    }
    if (status == LM_OK) {
        struct json_object *row = make_row(of, options, test, room.sample, &sums, room.scratch);
        add(row, "ttft_ms", latency_json(room.first_s, room.n_first));
        add(row, "itl_ms", latency_json(room.gap_s, room.n_gap));
        json_object_array_add(rows, row);
    }
    free_room(&room);
    return status;
}

/* How fast a profile's experts came into memory, as far as that has gone. */
static enum lm_status note_preload(struct measurement *of, struct lm_error *err)
{
    struct pager_snapshot *const now = malloc(sizeof(*now));
    if (!now) return lm_fail(err, LM_E_NO_MEM, "no memory for results");
    const enum lm_status status = engine_experts(of->engine, now, err);
    if (status == LM_OK && now->total.n_preloaded && now->total.disk.busy_s > 0)
        of->preload_bytes_s = (double)pager_report_read_bytes(&now->total) / now->total.disk.busy_s;
    free(now);
    return status;
}

static enum lm_status measure_all(struct measurement *of, const struct options *options,
                                  struct json_object *rows, struct lm_error *err)
{
    const struct engine_plan *plan = of->plan;
    enum lm_status status = token_source_create(&of->tokens, engine_tokenizer(of->engine),
                                                plan->prompts, plan->seed, err);
    if (status == LM_OK) status = note_preload(of, err);
    weight_census_take(&of->census, engine_file(of->engine), engine_hparams(of->engine));
    if (status == LM_OK) status = probe_kernels(of, err);
    log_bar_begin(&of->bar, "measuring", "runs", plan->n_test * (plan->n_repeat + plan->n_warmup));
    for (size_t i = 0; i < plan->n_test && status == LM_OK; i++)
        status = measure_test(of, options, &plan->test[i], rows, err);
    log_bar_end(&of->bar);
    token_source_destroy(of->tokens);
    return status;
}

/* Context and places for all tests. */
static enum lm_status fit_config(struct engine_config *config, const struct engine_plan *plan,
                                 struct lm_error *err)
{
    char name[ENGINE_TEST_NAME_BYTES];
    uint32_t n_ctx = 0;
    config->n_slot = 1;
    config->n_snapshot = 0;
    for (size_t i = 0; i < plan->n_test; i++) {
        const uint32_t needed = engine_test_n_ctx(&plan->test[i]);
        const uint32_t n_slot = engine_test_n_slot(&plan->test[i]);
        if (config->n_ctx && needed > config->n_ctx)
            return lm_fail(err, LM_E_LIMIT, "%s needs a context of %u tokens, --ctx is %u",
                           engine_test_name(&plan->test[i], name), needed, config->n_ctx);
        if (needed > n_ctx) n_ctx = needed;
        if (n_slot > config->n_slot) config->n_slot = n_slot;
    }
    if (!config->n_ctx) config->n_ctx = n_ctx;
    return LM_OK;
}

/* A test that is longer than what the model was trained for would give nonsense, after hours. */
static enum lm_status check_trained(const char *path, const struct engine_plan *plan,
                                    struct lm_error *err)
{
    char name[ENGINE_TEST_NAME_BYTES];
    struct gguf_file *file;
    struct hparams hp;
    enum lm_status status = gguf_open(&file, path, err);
    if (status != LM_OK) return status;
    status = hparams_read(&hp, file, err);
    for (size_t i = 0; i < plan->n_test && status == LM_OK; i++) {
        const uint32_t needed = engine_test_n_ctx(&plan->test[i]);
        if (hp.n_ctx_train && needed > hp.n_ctx_train)
            status =
                lm_fail(err, LM_E_LIMIT, "%s needs a context of %u tokens, %s was trained with %u",
                        engine_test_name(&plan->test[i], name), needed, path, hp.n_ctx_train);
    }
    gguf_close(file);
    return status;
}

enum lm_status engine_rows_measure(struct json_object *rows, const struct options *options,
                                   const struct engine_plan *plan, struct lm_error *err)
{
    struct engine_config config;
    struct measurement of = {.plan = plan};
    char *path;
    bool is_demo;
    enum lm_status status = engine_config_from_options(&config, options, err);
    if (status == LM_OK) status = fit_config(&config, plan, err);
    if (status == LM_OK)
        status = model_ref_resolve(options, options_n_arg(options) ? options_arg(options, 0) : NULL,
                                   &path, &is_demo, err);
    if (status != LM_OK) return status;
    status = check_trained(path, plan, err);
    if (status != LM_OK) {
        free(path);
        return status;
    }
    config.cluster = cluster_config_from_options(options);
    config.model_path = path;
    inventory_take(&of.machine, path, config.own.n_thread); /* while nothing else runs */
    const double begin_s = log_now_s();
    status = engine_open(&of.engine, &config, err);
    of.load_s = log_now_s() - begin_s;
    free(path);
    if (status != LM_OK) return status;
    status = interrupt_begin(NULL, NULL, err);
    if (status == LM_OK) {
        status = measure_all(&of, options, rows, err);
        interrupt_end();
    }
    const enum lm_status closed = engine_close(of.engine, status == LM_OK ? err : NULL);
    return status == LM_OK ? closed : status;
}
