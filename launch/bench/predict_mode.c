/* lean bench predict MODEL [QUANT]: how fast a model would be here, without having it: its bytes
 * from its shape and the recipe of the quantization, the rates from this machine or from what the
 * command line says of another. */
#include <ctype.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/plan/cost_model.h"
#include "coordinator/plan/memory_plan.h"
#include "launch/bench/kernel_probe.h"
#include "launch/bench/modes.h"
#include "launch/hub_names.h"
#include "launch/inventory.h"
#include "launch/value_list.h"
#include "proto/base/log.h"
#include "proto/base/units.h"
#include "proto/model/hparams.h"
#include "worker/pack/synth_shape.h"

const struct option_spec options_bench_predict[] = {
    {"memory-gbps", 0, OPTION_FLOAT, "X", .min = 0.001, .max = 1e6,
     .help = "GB/s at which processors compute with weights in memory; default: measured"},
    {"disk-gbps", 0, OPTION_FLOAT, "X", .min = 0.001, .max = 1e6,
     .help = "GB/s of the disk; default: measured"},
    {"vram-gbps", 0, OPTION_FLOAT, "X", .min = 0.001, .max = 1e6,
     .help = "with --vram: nominal GB/s of the device's memory, as its data sheet has it"},
    {"link-gbps", 0, OPTION_FLOAT, "X", .def = "24", .min = 0.001, .max = 1e6,
     .help = "with --vram: GB/s from memory to the device; PCIe 4.0 x16 gives 24"},
    {0},
};

/* What is left of the memory for context, scratch and the program. */
static const uint64_t reserve_bytes = UINT64_C(1) << 30;
/* What is left of a device's memory, besides the context. */
static const uint64_t device_reserve_bytes = 1500000000;
enum { DEVICE_CTX = 32768 };

struct model_bytes {
    uint64_t dense, bank, embedding; /* the last is read by rows, and stays in the file */
    uint64_t dense_of[TENSOR_TYPE_COUNT], bank_of[TENSOR_TYPE_COUNT];
    uint64_t context; /* of DEVICE_CTX tokens */
};

struct subject {
    struct synth_shape shape;
    const struct recipe *recipe;
    struct model_bytes bytes;
};

/* ---- names -------------------------------------------------------------------------------- */

/* OWNER/Qwen3.5-122B-A10B-GGUF is of the shape qwen3.5-122b-a10b. */
static void shape_of_repository(const char *repository, char *out, size_t size)
{
    const char *slash = strrchr(repository, '/');
    snprintf(out, size, "%s", slash ? slash + 1 : repository);
    for (char *at = out; *at; at++)
        *at = (char)tolower((unsigned char)*at);
    char *suffix = strstr(out, "-gguf");
    if (suffix) *suffix = 0;
}

/* "122b" or "122b:Q6_K" for lean-agent-122b: the last part of a name. False: there is no such name.
 */
static bool find_by_size(const struct hub_registry *registry, const char *text, struct hub_ref *out)
{
    const char *name;
    const size_t n = strcspn(text, ":");
    for (size_t i = 0; n && (name = hub_registry_name(registry, i, NULL)); i++) {
        char full[300];
        const char *last = strrchr(name, '-');
        if (!last || strlen(last + 1) != n || strncasecmp(last + 1, text, n)) continue;
        snprintf(full, sizeof(full), "%s%s", name, text + n);
        return hub_registry_find(registry, full, out, NULL);
    }
    return false;
}

/* A name of `lean synth`, of the registry, or the last part of one. quant: of the variant, unless
 * it was said. */
static enum lm_status find_shape(const char *text, struct synth_shape *out, char *quant,
                                 size_t size, struct lm_error *err)
{
    struct hub_registry *registry;
    struct hub_ref ref;
    char name[300];
    enum lm_status status = synth_shape_find(text, out, err);
    if (status == LM_OK) return status;
    const enum lm_status opened = hub_names_open(&registry, err);
    if (opened != LM_OK) return opened;
    const bool found =
        hub_registry_find(registry, text, &ref, NULL) || find_by_size(registry, text, &ref);
    hub_registry_destroy(registry);
    if (!found) {
        (void)synth_shape_find(text, out, err); /* its message once more */
        return lm_hint(err, "or a name of lean list --available, or its end, such as 122b");
    }
    if (!*quant) snprintf(quant, size, "%s", ref.variant);
    shape_of_repository(ref.repo, name, sizeof(name));
    status = synth_shape_find(name, out, err);
    if (status != LM_OK)
        return lm_fail(err, LM_E_UNSUPPORTED, "the shape of %s is not known here", ref.repo);
    return status;
}

/* ---- bytes -------------------------------------------------------------------------------- */

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
        if (strstr(tensor->name, "_exps"))
            out->bank_of[tensor->type] += n_byte;
        else if (is_embedding && !shape->tied)
            out->embedding += n_byte;
        else
            out->dense_of[tensor->type] += n_byte;
    }
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++) {
        out->dense += out->dense_of[type];
        out->bank += out->bank_of[type];
    }
    free(infos);
    return status;
}

/* Keys, values and recurrent state of one long sequence. */
static uint64_t context_bytes(const struct synth_shape *shape)
{
    struct hparams hp;
    const struct memory_request request = {.n_ctx = DEVICE_CTX, .n_slot = 1, .kv_type = TENSOR_F16};
    synth_hparams(&hp, shape, false);
    return DEVICE_CTX * memory_plan_position_bytes(&request, &hp) +
           memory_plan_state_bytes(&request, &hp);
}

static enum lm_status read_subject(struct subject *out, const struct options *options,
                                   struct lm_error *err)
{
    const size_t n_arg = options_n_arg(options);
    char quant[80] = "";
    if (n_arg != 2 && n_arg != 3)
        return lm_fail(err, LM_E_USAGE, "bench predict takes a MODEL and a QUANT");
    if (n_arg == 3) snprintf(quant, sizeof(quant), "%s", options_arg(options, 2));
    enum lm_status status =
        find_shape(options_arg(options, 1), &out->shape, quant, sizeof(quant), err);
    if (status == LM_OK && !*quant)
        return lm_fail(err, LM_E_USAGE, "which QUANT of %s? Q4_K_M is a usual one",
                       out->shape.name);
    if (status == LM_OK) status = recipe_find(quant, &out->recipe, err);
    if (status == LM_OK) status = count_bytes(&out->shape, out->recipe, &out->bytes, err);
    if (status == LM_OK) out->bytes.context = context_bytes(&out->shape);
    return status;
}

/* ---- rates -------------------------------------------------------------------------------- */

static double rate_of(const struct kernel_rates *rates, const uint64_t bytes[TENSOR_TYPE_COUNT])
{
    double n = 0;
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
        n += (double)bytes[type];
    return n > 0 ? n / kernel_rates_seconds(rates, bytes) : 0;
}

static enum lm_status measure_kernels(struct cost_machine *out, const struct options *options,
                                      const struct model_bytes *bytes, struct lm_error *err)
{
    uint64_t all[TENSOR_TYPE_COUNT];
    struct kernel_rates rates;
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++)
        all[type] = bytes->dense_of[type] + bytes->bank_of[type];
    const struct kernel_probe_config config = {.n_thread =
                                                   (uint32_t)options_int(options, "threads"),
                                               .kernels = options_string(options, "kernels"),
                                               .afresh = true,
                                               .bytes = all};
    const enum lm_status status = kernel_probe_run(&rates, &config, err);
    if (status != LM_OK) return status;
    out->dense_bytes_s = rate_of(&rates, bytes->dense_of);
    out->expert_bytes_s = rate_of(&rates, bytes->bank_of);
    out->layer_s = COST_OPS_PER_LAYER * rates.op_s;
    return LM_OK;
}

/* Of processors; what of a device differs comes with each of its budgets. */
static enum lm_status take_rates(struct cost_machine *out, const struct options *options,
                                 const struct model_bytes *bytes, struct lm_error *err)
{
    struct inventory machine;
    *out = (struct cost_machine){.disk_bytes_s = options_float(options, "disk-gbps") * 1e9};
    if (options_given(options, "memory-gbps")) {
        out->dense_bytes_s = out->expert_bytes_s = options_float(options, "memory-gbps") * 1e9;
    } else {
        const enum lm_status status = measure_kernels(out, options, bytes, err);
        if (status != LM_OK) return status;
    }
    if (options_given(options, "disk-gbps")) return LM_OK;
    inventory_measure(&machine, "/proc/self/exe", (uint32_t)options_int(options, "threads"));
    out->disk_bytes_s = machine.disk_bytes_s;
    return LM_OK;
}

/* ---- predictions -------------------------------------------------------------------------- */

struct prediction {
    uint64_t ram_bytes, vram_bytes; /* vram_bytes 0: no device */
    struct cost_weights weights;
    struct cost_hits hits;
    struct cost_estimate estimate;
    bool fits; /* the weights that every token reads */
};

static double room(uint64_t budget_bytes, uint64_t fixed_bytes)
{
    return budget_bytes > fixed_bytes ? (double)(budget_bytes - fixed_bytes) : 0;
}

static double share(double part, uint64_t whole)
{
    return !whole || part >= (double)whole ? 1 : part / (double)whole;
}

static void add_device(struct cost_machine *rates, const struct options *options)
{
    rates->vram_bytes_s = COST_VRAM_SHARE * options_float(options, "vram-gbps") * 1e9;
    rates->link_bytes_s = options_float(options, "link-gbps") * 1e9;
    rates->layer_s = COST_DEVICE_LAYER_S;
    rates->token_s = COST_DEVICE_TOKEN_S;
}

static struct prediction predict(const struct subject *subject, struct cost_machine rates,
                                 const struct options *options, uint64_t ram_bytes,
                                 uint64_t vram_bytes)
{
    const struct model_bytes *bytes = &subject->bytes;
    const struct synth_shape *shape = &subject->shape;
    struct prediction out = {.ram_bytes = ram_bytes, .vram_bytes = vram_bytes};
    const uint64_t device_fixed = device_reserve_bytes + bytes->dense + bytes->context;
    const uint64_t host_fixed = reserve_bytes + (vram_bytes ? 0 : bytes->dense);
    const double in_vram = room(vram_bytes, device_fixed), in_ram = room(ram_bytes, host_fixed);
    if (vram_bytes) add_device(&rates, options);
    out.fits = ram_bytes >= host_fixed && (!vram_bytes || vram_bytes >= device_fixed);
    out.weights = (struct cost_weights){
        .dense_bytes = (double)bytes->dense,
        .bank_bytes = (double)bytes->bank,
        .used_share = shape->n_expert ? (double)shape->n_expert_used / shape->n_expert : 0,
        .vram_share = share(in_vram, bytes->bank),
        .resident_share = share(in_vram + in_ram, bytes->bank),
        .n_layer = shape->n_layer};
    out.hits = cost_model_hits(&out.weights);
    out.estimate = cost_model_estimate(&rates, &out.weights, &out.hits);
    return out;
}

/* ---- output ------------------------------------------------------------------------------- */

static void print_budget(const struct prediction *of)
{
    char ram[24], vram[24];
    if (of->vram_bytes) printf("| %9s ", log_format_bytes(of->vram_bytes, vram));
    printf("| %9s ", log_format_bytes(of->ram_bytes, ram));
}

static void print_prediction(const struct prediction *of)
{
    const struct cost_estimate *estimate = &of->estimate;
    print_budget(of);
    if (!of->fits)
        puts("| does not fit: what every token reads must be in memory |");
    else if (of->vram_bytes)
        printf("| %12.1f%% | %5.1f%% | %8.1f%% | %5.1f%% | %12.3g | %15.3g | %12.3g |\n",
               100 * of->weights.vram_share, 100 * of->hits.vram, 100 * of->weights.resident_share,
               100 * of->hits.resident, estimate->link_tok_s, estimate->serial_tok_s,
               estimate->ideal_tok_s);
    else
        printf("| %12.1f%% | %5.1f%% | %7.3g to %-7.3g |\n", 100 * of->weights.resident_share,
               100 * of->hits.resident, estimate->serial_tok_s, estimate->ideal_tok_s);
}

static void print_text(const struct subject *subject, const struct cost_machine *rates,
                       const struct options *options, const struct prediction *list, size_t n)
{
    const struct model_bytes *bytes = &subject->bytes;
    char all[24], dense[24], bank[24];
    printf("%s %s: %s, of which every token reads %s, experts are %s\n", subject->shape.name,
           recipe_name(subject->recipe),
           log_format_bytes(bytes->dense + bytes->bank + bytes->embedding, all),
           log_format_bytes(bytes->dense, dense), log_format_bytes(bytes->bank, bank));
    printf("processors compute with weights in memory at %.1f GB/s, the disk reads at %.2f GB/s\n",
           rates->dense_bytes_s / 1e9, rates->disk_bytes_s / 1e9);
    if (list->vram_bytes)
        printf("the device's memory has %g GB/s, of which kernels are taken to use %.0f%%; the "
               "link %g GB/s\n",
               options_float(options, "vram-gbps"), 100 * COST_VRAM_SHARE,
               options_float(options, "link-gbps"));
    puts(
        list->vram_bytes
            ? "\n|      VRAM |    memory | experts there |   hits | in either |   hits | device "
              "alone | with processors | ideal, tok/s |\n| --------: | --------: | ------------: | "
              "-----: | --------: | -----: | -----------: | --------------: | -----------: |"
            : "\n|    memory | experts in it |   hits |     decode, tok/s  |\n"
              "| --------: | ------------: | -----: | -----------------: |");
    for (size_t i = 0; i < n; i++)
        print_prediction(&list[i]);
    puts(list->vram_bytes
             ? "\nThe device alone computes all, and what it lacks comes to it; with processors "
               "misses are\ncomputed where they are; ideal: all is foreseen, and all works at "
               "once."
             : "\nFrom reading one after the other to a disk that works all the time beside the "
               "arithmetic.");
    puts("Good to about a quarter. Hits are those of published models with warm caches.");
}

static struct json_object *prediction_json(const struct prediction *of)
{
    struct json_object *json = json_object_new_object();
    const bool device = of->vram_bytes > 0;
    const struct {
        const char *key;
        double value;
        bool shown;
    } numbers[] = {{"vram_share", of->weights.vram_share, device},
                   {"vram_hit_rate", of->hits.vram, device},
                   {"resident_share", of->weights.resident_share, true},
                   {"hit_rate", of->hits.resident, true},
                   {"link_tok_s", of->estimate.link_tok_s, device},
                   {"serial_tok_s", of->estimate.serial_tok_s, true},
                   {"ideal_tok_s", of->estimate.ideal_tok_s, true}};
    if (device) json_object_object_add(json, "vram_bytes", json_object_new_uint64(of->vram_bytes));
    json_object_object_add(json, "ram_bytes", json_object_new_uint64(of->ram_bytes));
    json_object_object_add(json, "fits", json_object_new_boolean(of->fits));
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (numbers[i].shown)
            json_object_object_add(json, numbers[i].key, json_object_new_double(numbers[i].value));
    return json;
}

static void print_json(const struct subject *subject, const struct cost_machine *rates,
                       const struct prediction *list, size_t n)
{
    const struct model_bytes *bytes = &subject->bytes;
    struct json_object *json = json_object_new_object(), *rows = json_object_new_array();
    json_object_object_add(json, "model", json_object_new_string(subject->shape.name));
    json_object_object_add(json, "quantization",
                           json_object_new_string(recipe_name(subject->recipe)));
    json_object_object_add(json, "dense_bytes", json_object_new_uint64(bytes->dense));
    json_object_object_add(json, "expert_bytes", json_object_new_uint64(bytes->bank));
    json_object_object_add(json, "embedding_bytes", json_object_new_uint64(bytes->embedding));
    json_object_object_add(json, "dense_bytes_s", json_object_new_double(rates->dense_bytes_s));
    json_object_object_add(json, "expert_bytes_s", json_object_new_double(rates->expert_bytes_s));
    json_object_object_add(json, "disk_bytes_s", json_object_new_double(rates->disk_bytes_s));
    json_object_object_add(json, "layer_s", json_object_new_double(rates->layer_s));
    for (size_t i = 0; i < n; i++)
        json_object_array_add(rows, prediction_json(&list[i]));
    json_object_object_add(json, "predictions", rows);
    puts(json_object_to_json_string_ext(json, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    json_object_put(json);
}

/* ---- the command -------------------------------------------------------------------------- */

/* Sizes of an option; `usual` if it is not given. */
static enum lm_status read_budgets(const struct options *options, const char *name, uint64_t usual,
                                   uint64_t out[VALUE_LIST_MAX], size_t *n, struct lm_error *err)
{
    struct value_list list;
    const enum lm_status status = options_list(options, name, &list, err);
    if (status != LM_OK) return status;
    *n = list.n;
    for (size_t i = 0; i < list.n; i++)
        units_parse_bytes(list.text[i], &out[i]);
    value_list_fini(&list);
    if (!*n) out[(*n)++] = usual;
    return LM_OK;
}

enum lm_status bench_predict(struct options *options, struct lm_error *err)
{
    struct subject subject;
    struct cost_machine rates;
    struct prediction list[VALUE_LIST_MAX];
    uint64_t ram[VALUE_LIST_MAX], vram[VALUE_LIST_MAX];
    size_t n_ram, n_vram, n = 0;
    enum lm_status status = read_subject(&subject, options, err);
    if (status == LM_OK)
        status = read_budgets(options, "ram", host_memory_available(), ram, &n_ram, err);
    if (status == LM_OK) status = read_budgets(options, "vram", 0, vram, &n_vram, err);
    if (status == LM_OK && vram[0] && !options_given(options, "vram-gbps")) {
        lm_fail(err, LM_E_USAGE, "--vram needs --vram-gbps, the rate of the device's memory");
        return lm_hint(err, "data sheets have it: 360 for a card of 12 GB, 936 for one of 24, say");
    }
    if (status == LM_OK && n_ram * n_vram > VALUE_LIST_MAX)
        status = lm_fail(err, LM_E_USAGE, "more than %d combinations", VALUE_LIST_MAX);
    if (status == LM_OK) status = take_rates(&rates, options, &subject.bytes, err);
    if (status != LM_OK) return status;
    for (size_t v = 0; v < n_vram; v++)
        for (size_t r = 0; r < n_ram; r++)
            list[n++] = predict(&subject, rates, options, ram[r], vram[v]);
    if (options_flag(options, "json"))
        print_json(&subject, &rates, list, n);
    else
        print_text(&subject, &rates, options, list, n);
    return LM_OK;
}
