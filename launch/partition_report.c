/* Parsing the option, printing the table. */
#include "launch/partition_report.h"

#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launch/options.h"
#include "proto/base/log.h"

enum lm_status partition_parse(uint32_t *n_layer, uint32_t n_rank, const char *text,
                               struct lm_error *err)
{
    const char *at = text;
    uint32_t n = 0;
    for (;; at++) {
        char *end;
        const unsigned long value = *at >= '0' && *at <= '9' ? strtoul(at, &end, 10) : 0;
        if (!value || value > HPARAMS_MAX_LAYER)
            return lm_fail(err, LM_E_USAGE,
                           "--partition: '%s' is no list of layers for each rank, as 12,14,11,11",
                           text);
        if (n < n_rank) n_layer[n] = (uint32_t)value;
        n++;
        at = end;
        if (*at != ',') break;
    }
    if (*at) return lm_fail(err, LM_E_USAGE, "--partition: unexpected '%s' in '%s'", at, text);
    if (n != n_rank)
        return lm_fail(err, LM_E_USAGE, "--partition %s is for %u ranks, there are %u", text, n,
                       n_rank);
    return LM_OK;
}

enum partition_objective partition_objective_from_options(const struct options *options)
{
    return strcmp(options_string(options, "partition-objective"), "latency") ? PARTITION_THROUGHPUT
                                                                             : PARTITION_LATENCY;
}

static uint32_t slowest(const struct partition_stage *stages, uint32_t n_rank)
{
    uint32_t rank = 0;
    for (uint32_t i = 1; i < n_rank; i++)
        if (stages[i].token_s > stages[rank].token_s) rank = i;
    return rank;
}

static double sum_s(const struct partition_stage *stages, uint32_t n_rank)
{
    double sum = 0;
    for (uint32_t i = 0; i < n_rank; i++)
        sum += stages[i].token_s;
    return sum;
}

void partition_print(FILE *out, const struct partition_stage *stages, const char *const *hosts,
                     uint32_t n_rank)
{
    const uint32_t worst = slowest(stages, n_rank);
    const double total_s = sum_s(stages, n_rank);
    fprintf(out, "rank  layers     fixed       experts     in memory   hits   ms/token%s\n",
            hosts ? "  host" : "");
    for (uint32_t i = 0; i < n_rank; i++) {
        const struct partition_stage *stage = &stages[i];
        char layers[24], fixed[24], experts[24], slots[24], ms[24] = "does not fit";
        snprintf(layers, sizeof(layers), "%u..%u", stage->layer_begin, stage->layer_end - 1);
        if (!isinf(stage->token_s)) snprintf(ms, sizeof(ms), "%.2f", 1e3 * stage->token_s);
        fprintf(out, "%4u  %-9s  %-10s  %-10s  %-10s  %3.0f%%  %9s%s%s%s\n", i, layers,
                log_format_bytes(stage->fixed_bytes, fixed),
                log_format_bytes(stage->expert_bytes, experts),
                log_format_bytes(stage->slot_bytes, slots), 100 * stage->hit_rate, ms,
                i == worst && n_rank > 1 ? " <"
                : hosts                  ? "  "
                                         : "",
                hosts ? "  " : "", hosts ? hosts[i] : "");
        if (stage->device_begin == stage->layer_end) continue;
        fprintf(out, "      %u..%u on its device: %s, and %s of %s of experts, %.0f%% hits\n",
                stage->device_begin, stage->layer_end - 1,
                log_format_bytes(stage->device_fixed_bytes, fixed),
                log_format_bytes(stage->device_slot_bytes, slots),
                log_format_bytes(stage->device_expert_bytes, experts),
                100 * stage->device_hit_rate);
    }
    if (isinf(total_s)) return;
    fprintf(out,
            "predicted from measured rates: one sequence %.2f tok/s, many %.2f steps/s (rank %u "
            "sets the pace)\n",
            1 / total_s, 1 / stages[worst].token_s, worst);
}

static struct json_object *device_json(const struct partition_stage *stage)
{
    struct json_object *object = json_object_new_object();
    json_object_object_add(object, "layer_begin", json_object_new_uint64(stage->device_begin));
    json_object_object_add(object, "fixed_bytes",
                           json_object_new_uint64(stage->device_fixed_bytes));
    json_object_object_add(object, "expert_bytes",
                           json_object_new_uint64(stage->device_expert_bytes));
    json_object_object_add(object, "slot_bytes", json_object_new_uint64(stage->device_slot_bytes));
    json_object_object_add(object, "hit_rate", json_object_new_double(stage->device_hit_rate));
    return object;
}

struct json_object *partition_json(const struct partition_stage *stages, uint32_t n_rank)
{
    struct json_object *list = json_object_new_array();
    for (uint32_t i = 0; i < n_rank; i++) {
        const struct partition_stage *stage = &stages[i];
        struct json_object *object = json_object_new_object();
        const struct {
            const char *name;
            uint64_t value;
        } numbers[] = {{"rank", i},
                       {"layer_begin", stage->layer_begin},
                       {"layer_end", stage->layer_end},
                       {"fixed_bytes", stage->fixed_bytes},
                       {"expert_bytes", stage->expert_bytes},
                       {"slot_bytes", stage->slot_bytes}};
        for (size_t k = 0; k < sizeof(numbers) / sizeof(numbers[0]); k++)
            json_object_object_add(object, numbers[k].name,
                                   json_object_new_int64((int64_t)numbers[k].value));
        json_object_object_add(object, "hit_rate", json_object_new_double(stage->hit_rate));
        if (stage->device_begin < stage->layer_end)
            json_object_object_add(object, "device", device_json(stage));
        const bool fits = !isinf(stage->token_s);
        json_object_object_add(object, "fits", json_object_new_boolean(fits));
        if (fits)
            json_object_object_add(object, "ms_per_token",
                                   json_object_new_double(1e3 * stage->token_s));
        json_object_array_add(list, object);
    }
    return list;
}
