/* lean bench predict MODEL QUANT: how fast a model would be here, without having it: its bytes from
 * its shape and the recipe of the quantization, the rates from this machine. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/plan/cost_model.h"
#include "coordinator/plan/memory_plan.h"
#include "launch/bench/modes.h"
#include "launch/inventory.h"
#include "launch/value_list.h"
#include "proto/base/log.h"
#include "proto/base/units.h"
#include "worker/pack/synth_shape.h"

/* What is left of the memory for context, scratch and the program. */
static const uint64_t reserve_bytes = UINT64_C(1) << 30;

struct model_bytes {
    uint64_t dense, bank, embedding; /* the last is read by rows, and stays in the file */
};

static enum lm_status count_bytes(const struct synth_shape *shape, const struct recipe *recipe,
                                  struct model_bytes *out, struct lm_error *err)
{
    struct synth_tensor *tensors;
    size_t n;
    enum lm_status status = synth_tensors(shape, false, &tensors, &n, err);
    if (status != LM_OK) return status;
    struct recipe_tensor *const infos = calloc(n, sizeof(*infos));
    for (size_t i = 0; infos && i < n; i++)
        infos[i] = tensors[i].info;
    free(tensors);
    status = infos ? recipe_assign(recipe, infos, n, shape->n_layer, shape->n_expert, err)
                   : lm_fail(err, LM_E_NO_MEM, "no memory for %zu tensors", n);
    *out = (struct model_bytes){.dense = 0};
    for (size_t i = 0; status == LM_OK && i < n; i++) {
        const struct recipe_tensor *tensor = &infos[i];
        const uint64_t n_byte = tensor_row_bytes(tensor->type, tensor->ne[0]) * tensor->ne[1] *
                                tensor->ne[2] * tensor->ne[3];
        const bool is_embedding = !strcmp(tensor->name, "token_embd.weight");
        *(strstr(tensor->name, "_exps")  ? &out->bank
          : is_embedding && !shape->tied ? &out->embedding
                                         : &out->dense) += n_byte;
    }
    free(infos);
    return status;
}

struct prediction {
    uint64_t ram_bytes;
    double resident_share;
    struct cost_hits hits;
    struct cost_estimate estimate;
    bool fits; /* the weights that every token reads */
};

static struct prediction predict(const struct synth_shape *shape, const struct model_bytes *bytes,
                                 const struct inventory *machine, uint64_t ram_bytes)
{
    const uint64_t fixed = bytes->dense + reserve_bytes;
    const double left = ram_bytes > fixed ? (double)(ram_bytes - fixed) : 0;
    const struct cost_machine rates = {.dense_bytes_s = machine->memory_bytes_s,
                                       .expert_bytes_s = machine->memory_bytes_s,
                                       .disk_bytes_s = machine->disk_bytes_s};
    struct cost_weights weights = {.dense_bytes = (double)bytes->dense,
                                   .bank_bytes = (double)bytes->bank,
                                   .resident_share = 1,
                                   .n_layer = shape->n_layer};
    if (shape->n_expert) weights.used_share = (double)shape->n_expert_used / shape->n_expert;
    if (bytes->bank && left < (double)bytes->bank)
        weights.resident_share = left / (double)bytes->bank;
    const struct cost_hits hits = cost_model_hits(&weights);
    return (struct prediction){.ram_bytes = ram_bytes,
                               .resident_share = weights.resident_share,
                               .hits = hits,
                               .estimate = cost_model_estimate(&rates, &weights, &hits),
                               .fits = ram_bytes >= fixed};
}

static void print_prediction(const struct prediction *of)
{
    char ram[24];
    if (!of->fits) {
        printf("| %9s | does not fit: what every token reads must be in memory |\n",
               log_format_bytes(of->ram_bytes, ram));
        return;
    }
    printf("| %9s | %12.1f%% | %5.1f%% | %7.3g to %-7.3g |\n", log_format_bytes(of->ram_bytes, ram),
           100 * of->resident_share, 100 * of->hits.resident, of->estimate.serial_tok_s,
           of->estimate.ideal_tok_s);
}

static struct json_object *prediction_json(const struct prediction *of)
{
    struct json_object *json = json_object_new_object();
    json_object_object_add(json, "ram_bytes", json_object_new_uint64(of->ram_bytes));
    json_object_object_add(json, "fits", json_object_new_boolean(of->fits));
    json_object_object_add(json, "resident_share", json_object_new_double(of->resident_share));
    json_object_object_add(json, "hit_rate", json_object_new_double(of->hits.resident));
    json_object_object_add(json, "serial_tok_s", json_object_new_double(of->estimate.serial_tok_s));
    json_object_object_add(json, "ideal_tok_s", json_object_new_double(of->estimate.ideal_tok_s));
    return json;
}

static void print_text(const char *name, const char *quant, const struct model_bytes *bytes,
                       const struct inventory *machine, const struct prediction *list, size_t n)
{
    char all[24], dense[24], bank[24];
    printf("%s %s: %s, of which every token reads %s, experts are %s\n", name, quant,
           log_format_bytes(bytes->dense + bytes->bank + bytes->embedding, all),
           log_format_bytes(bytes->dense, dense), log_format_bytes(bytes->bank, bank));
    printf("memory reads at %.1f GB/s with %u threads, the disk at %.2f GB/s\n\n",
           machine->memory_bytes_s / 1e9, machine->n_thread, machine->disk_bytes_s / 1e9);
    puts("|    memory | experts in it |   hits |     decode, tok/s  |\n"
         "| --------: | ------------: | -----: | -----------------: |");
    for (size_t i = 0; i < n; i++)
        print_prediction(&list[i]);
    puts("\nFrom reading one after the other to a disk that works all the time beside the "
         "arithmetic,\nwhich takes no time here: an upper bound. Hits are those of published "
         "models with warm caches.");
}

static void print_json(const char *name, const char *quant, const struct model_bytes *bytes,
                       const struct inventory *machine, const struct prediction *list, size_t n)
{
    struct json_object *json = json_object_new_object(), *rows = json_object_new_array();
    json_object_object_add(json, "model", json_object_new_string(name));
    json_object_object_add(json, "quantization", json_object_new_string(quant));
    json_object_object_add(json, "dense_bytes", json_object_new_uint64(bytes->dense));
    json_object_object_add(json, "expert_bytes", json_object_new_uint64(bytes->bank));
    json_object_object_add(json, "embedding_bytes", json_object_new_uint64(bytes->embedding));
    json_object_object_add(json, "memory_bytes_s", json_object_new_double(machine->memory_bytes_s));
    json_object_object_add(json, "disk_bytes_s", json_object_new_double(machine->disk_bytes_s));
    for (size_t i = 0; i < n; i++)
        json_object_array_add(rows, prediction_json(&list[i]));
    json_object_object_add(json, "predictions", rows);
    puts(json_object_to_json_string_ext(json, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    json_object_put(json);
}

enum lm_status bench_predict(struct options *options, struct lm_error *err)
{
    struct synth_shape shape;
    const struct recipe *recipe;
    struct model_bytes bytes;
    struct inventory machine;
    struct value_list budgets;
    struct prediction list[VALUE_LIST_MAX];
    if (options_n_arg(options) != 3)
        return lm_fail(err, LM_E_USAGE, "bench predict takes a MODEL and a QUANT");
    const char *name = options_arg(options, 1), *quant = options_arg(options, 2);
    enum lm_status status = synth_shape_find(name, &shape, err);
    if (status == LM_OK) status = recipe_find(quant, &recipe, err);
    if (status == LM_OK) status = count_bytes(&shape, recipe, &bytes, err);
    if (status == LM_OK) status = options_list(options, "ram", &budgets, err);
    if (status != LM_OK) return status;
    inventory_measure(&machine, "/proc/self/exe", (uint32_t)options_int(options, "threads"));
    size_t n = 0;
    for (; n < budgets.n; n++) {
        uint64_t ram_bytes = 0;
        units_parse_bytes(budgets.text[n], &ram_bytes);
        list[n] = predict(&shape, &bytes, &machine, ram_bytes);
    }
    if (!n) list[n++] = predict(&shape, &bytes, &machine, host_memory_available());
    value_list_fini(&budgets);
    (options_flag(options, "json") ? print_json : print_text)(shape.name, recipe_name(recipe),
                                                              &bytes, &machine, list, n);
    return LM_OK;
}
