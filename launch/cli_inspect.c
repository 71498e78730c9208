/* lean inspect MODEL: what a model is, from the headers of its files. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "coordinator/plan/weight_census.h"
#include "coordinator/text/template_traits.h"
#include "coordinator/text/tokenizer.h"
#include "launch/command.h"
#include "launch/config.h"
#include "launch/engine.h"
#include "launch/inspect_memory.h"
#include "launch/model_ref.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/lmpack/lmpack.h"
#include "proto/model/hparams.h"

/* Everything that is known, collected before anything is printed. */
struct inspection {
    struct gguf_file *file;
    struct lmpack *pack; /* that the file is the dense part of, or NULL */
    struct hparams *hp;  /* NULL: not a model that runs here; why says the reason */
    struct lm_error why;
    struct weight_census census;
    struct gguf_string arch, name, chat_template;
    struct tokenizer *tokenizer; /* NULL: the file has none that we know */
    struct lm_error why_no_tokenizer;
    struct inspect_memory memory; /* if asked for, and hp */
};

static enum lm_status collect(struct inspection *in, const struct options *options,
                              struct lm_error *err)
{
    const enum lm_status packed = lmpack_open_around(&in->pack, in->file, err);
    if (packed != LM_OK) return packed;
    gguf_get_string(in->file, "general.architecture", &in->arch, NULL, NULL);
    gguf_get_string(in->file, "general.name", &in->name, NULL, NULL);
    gguf_get_string(in->file, "tokenizer.chat_template", &in->chat_template, NULL, NULL);
    in->hp = malloc(sizeof(*in->hp));
    if (!in->hp) return lm_fail(err, LM_E_NO_MEM, "no memory for hyperparameters");
    if (hparams_read(in->hp, in->file, &in->why) != LM_OK) {
        free(in->hp);
        in->hp = NULL;
    }
    if (tokenizer_create(&in->tokenizer, in->file, &in->why_no_tokenizer) != LM_OK) {
        in->tokenizer = NULL;
        /* says nothing about the model */
        if (in->why_no_tokenizer.status == LM_E_NO_MEM) {
            *err = in->why_no_tokenizer;
            return LM_E_NO_MEM;
        }
    }
    weight_census_take(&in->census, in->file, in->hp);
    if (!in->hp || (!options_flag(options, "memory") && !options_flag(options, "check")))
        return LM_OK;
    return inspect_memory_make(&in->memory, in->file, in->hp, options, err);
}

static void discard(struct inspection *in)
{
    inspect_memory_fini(&in->memory);
    tokenizer_destroy(in->tokenizer);
    free(in->hp);
    lmpack_close(in->pack);
    gguf_close(in->file);
}

static size_t n_file(const struct inspection *in)
{
    return gguf_n_shard(in->file) + (in->pack ? 1 + lmpack_manifest(in->pack)->n_moe : 0);
}

/* Without the manifest of a pack. */
static uint64_t file_bytes(const struct inspection *in)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < gguf_n_shard(in->file); i++)
        n_bytes += gguf_shard_at(in->file, i)->n_bytes;
    const struct lmpack_manifest *manifest = in->pack ? lmpack_manifest(in->pack) : NULL;
    for (uint32_t i = 0; manifest && i < manifest->n_moe; i++)
        n_bytes += lmpack_file_bytes(&manifest->layer[i], manifest->n_expert);
    return n_bytes;
}

/* Sizes of an expert's extent over the layers of a pack. */
struct extents {
    uint64_t min_bytes, max_bytes;
};

static struct extents extents_of(const struct lmpack_manifest *manifest)
{
    struct extents out = {manifest->n_moe ? UINT64_MAX : 0, 0};
    for (uint32_t i = 0; i < manifest->n_moe; i++) {
        const uint64_t n_bytes = manifest->layer[i].extent_bytes;
        out.min_bytes = n_bytes < out.min_bytes ? n_bytes : out.min_bytes;
        out.max_bytes = n_bytes > out.max_bytes ? n_bytes : out.max_bytes;
    }
    return out;
}

static bool has_profile(const struct lmpack *pack)
{
    char *path;
    if (asprintf(&path, "%s/" LMPACK_PROFILE_NAME, lmpack_folder(pack)) < 0) return false;
    const bool has = !access(path, F_OK);
    free(path);
    return has;
}

static uint32_t count_recurrent(const struct hparams *hp)
{
    uint32_t n = 0;
    for (uint32_t il = 0; il < hp->n_layer; il++)
        n += hp->layer[il].recurrent;
    return n;
}

static uint32_t count_window(const struct hparams *hp)
{
    uint32_t n = 0;
    for (uint32_t il = 0; il < hp->n_layer; il++)
        n += hp->layer[il].window != 0;
    return n;
}

static uint32_t largest_window(const struct hparams *hp)
{
    uint32_t window = 0;
    for (uint32_t il = 0; il < hp->n_layer; il++)
        window = hp->layer[il].window > window ? hp->layer[il].window : window;
    return window;
}

/* ---- text ---- */

/* Text of the file, safe for a terminal. */
static const char *show(struct gguf_string text, char out[256])
{
    return log_printable(text.data, text.n, out, 256);
}

/* 34.7 B, 135 M, 512. */
static const char *format_count(uint64_t n, char text[24])
{
    const double value = (double)n;
    if (value >= 1e9)
        snprintf(text, 24, "%.*f B", value < 1e10 ? 2 : 1, value * 1e-9);
    else if (value >= 1e6)
        snprintf(text, 24, "%.*f M", value < 1e7 ? 2 : 1, value * 1e-6);
    else
        snprintf(text, 24, "%" PRIu64, n);
    return text;
}

/* "Q4_K 60, Q6_K 20" */
static const char *format_types(const struct weight_count *count, char text[200])
{
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t type = 0; type < TENSOR_TYPE_COUNT; type++)
        if (count->n_of_type[type] && used < 180)
            used += (size_t)snprintf(text + used, 200 - used, "%s%s %zu", used ? ", " : "",
                                     tensor_type_info(type)->name, count->n_of_type[type]);
    return text;
}

static void print_layers(const struct hparams *hp)
{
    const uint32_t n_recurrent = count_recurrent(hp), n_window = count_window(hp);
    const uint32_t n_full = hp->n_layer - n_recurrent - n_window;
    printf("layers        %u:", hp->n_layer);
    if (n_recurrent) printf(" %u gated delta net,", n_recurrent);
    if (n_window) printf(" %u attention over %u tokens,", n_window, largest_window(hp));
    printf(" %u attention over all", n_full);
    if (hp->n_layer_mtp) printf("; %u for multi-token prediction", hp->n_layer_mtp);
    const uint32_t il = n_recurrent ? hp->n_layer - 1 : 0;
    printf("\nattention     %u heads, %u for keys and values, of %u\n", hp->layer[il].n_head,
           hp->layer[il].n_head_kv, hp->head_dim);
    if (n_recurrent)
        printf("delta net     %u key heads, %u value heads, state %u x %u each\n", hp->n_head_k,
               hp->n_head_v, hp->dim_v, hp->dim_k);
    if (hp->n_expert)
        printf("experts       %u in a layer, %u per token%s\n", hp->n_expert, hp->n_expert_used,
               hp->n_ff_shexp ? ", and a shared one" : "");
}

static void print_pack(const struct lmpack *pack)
{
    const struct lmpack_manifest *manifest = lmpack_manifest(pack);
    const struct extents extents = extents_of(manifest);
    char smallest[24], largest[24];
    printf("pack          of model %016" PRIx64 ", %s routing profile\n", manifest->fingerprint,
           has_profile(pack) ? "with a" : "no");
    if (manifest->n_moe)
        printf("              %u layers of %u experts, each one read of %s to %s\n",
               manifest->n_moe, manifest->n_expert, log_format_bytes(extents.min_bytes, smallest),
               log_format_bytes(extents.max_bytes, largest));
}

static void print_model(const struct inspection *in)
{
    char text[256], total[24], active[24];
    printf("file          %s\n", gguf_path(in->file));
    printf("format        %s version %u, %zu file%s, %s\n", in->pack ? "pack" : "GGUF",
           in->pack ? LMPACK_VERSION : gguf_version(in->file), n_file(in),
           n_file(in) == 1 ? "" : "s", log_format_bytes(file_bytes(in), total));
    if (in->pack) print_pack(in->pack);
    if (in->name.n) printf("name          %s\n", show(in->name, text));
    if (in->arch.n) printf("architecture  %s\n", show(in->arch, text));
    if (!in->hp) {
        printf("runs here     no: %s\n",
               log_printable(in->why.message, strlen(in->why.message), text, sizeof(text)));
        return;
    }
    print_layers(in->hp);
    printf("parameters    %s, %s used per token\n", format_count(in->census.n_param, total),
           format_count(in->census.n_param_active, active));
    printf("width         %u\n", in->hp->n_embd);
    printf("context       %u tokens\n", in->hp->n_ctx_train);
    printf("vocabulary    %u tokens%s\n", in->hp->n_vocab,
           in->hp->tied ? ", embedding and output in one" : "");
}

static void print_weights(const struct inspection *in)
{
    if (!gguf_n_tensor(in->file)) return;
    printf("\n%-15s %8s %10s %10s  %s\n", "weights", "tensors", "params", "size", "types");
    for (int i = 0; i < WEIGHT_GROUP_COUNT; i++) {
        const struct weight_count *count = &in->census.group[i];
        char params[24], size[24], types[200];
        if (!count->n_tensor) continue;
        printf("%-15s %8zu %10s %10s  %s\n", weight_group_name((enum weight_group)i),
               count->n_tensor, format_count(count->n_param, params),
               log_format_bytes(count->n_bytes, size), format_types(count, types));
    }
}

static void print_token(const struct tokenizer *tokenizer, const char *what, int32_t id)
{
    size_t n;
    char text[256];
    if (id < 0) return;
    const char *bytes = tokenizer_token_bytes(tokenizer, id, true, &n);
    printf("%-15s %d %s\n", what, id, show((struct gguf_string){bytes, n}, text));
}

static void print_tokenizer(const struct inspection *in, bool all)
{
    printf("\n");
    if (!in->tokenizer) {
        printf("tokenizer     none: %s\n", in->why_no_tokenizer.message);
        return;
    }
    const int32_t n_vocab = (int32_t)tokenizer_n_vocab(in->tokenizer);
    printf("tokenizer     byte-level BPE, pre-tokenizer %s, %d tokens\n",
           tokenizer_pre_name(in->tokenizer), n_vocab);
    if (!all) return;
    print_token(in->tokenizer, "begin", tokenizer_bos(in->tokenizer));
    print_token(in->tokenizer, "end", tokenizer_eos(in->tokenizer));
    for (int32_t id = 0; id < n_vocab; id++) {
        const enum token_kind kind = tokenizer_token_kind(in->tokenizer, id);
        if (tokenizer_is_end(in->tokenizer, id))
            print_token(in->tokenizer, "ends an answer", id);
        else if (kind == TOKEN_CONTROL || kind == TOKEN_USER_DEFINED)
            print_token(in->tokenizer, kind == TOKEN_CONTROL ? "control" : "special", id);
    }
}

static void print_template_traits(const struct inspection *in)
{
    if (!in->chat_template.n) {
        printf("template      none\n");
        return;
    }
    const struct template_traits traits =
        template_traits(in->chat_template.data, in->chat_template.n);
    printf("template      %zu bytes; tools %s; reasoning %s\n", in->chat_template.n,
           traits.tools ? tool_format_name(traits.tool_format) : "no",
           !traits.reasoning         ? "no"
           : traits.reasoning_switch ? "yes, can be switched"
                                     : "yes");
}

static void print_tensors(const struct gguf_file *file)
{
    printf("\n%-40s %-8s %-28s %12s %5s %14s\n", "tensor", "type", "shape", "bytes", "file",
           "offset");
    for (size_t i = 0; i < gguf_n_tensor(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        char name[256], shape[100];
        size_t used = 0;
        for (uint32_t d = 0; d < tensor->n_dims; d++)
            used += (size_t)snprintf(shape + used, sizeof(shape) - used, "%s%" PRIu64,
                                     d ? " x " : "", tensor->ne[d]);
        printf("%-40s %-8s %-28s %12" PRIu64 " %5u %14" PRIu64 "\n", show(tensor->name, name),
               tensor_type_info(tensor->type)->name, shape, tensor->n_bytes, tensor->shard,
               tensor->file_offset);
    }
}

static void print_text(const struct inspection *in, const struct options *options)
{
    print_model(in);
    print_weights(in);
    print_tokenizer(in, options_flag(options, "tokenizer"));
    print_template_traits(in);
    if (options_flag(options, "memory") && in->hp) inspect_memory_print(&in->memory);
    if (options_flag(options, "tensors")) print_tensors(in->file);
}

/* ---- JSON ---- */

/* The text of a file may be any bytes; JSON is UTF-8. */
static struct json_object *json_text(struct gguf_string text)
{
    char *printable = malloc(4 * text.n + 1);
    if (!printable) return NULL;
    log_printable(text.data, text.n, printable, 4 * text.n + 1);
    struct json_object *string = json_object_new_string(printable);
    free(printable);
    return string;
}

static void add_number(struct json_object *object, const char *key, uint64_t value)
{
    json_object_object_add(object, key, json_object_new_uint64(value));
}

static struct json_object *json_model(const struct hparams *hp)
{
    struct json_object *model = json_object_new_object();
    add_number(model, "layers", hp->n_layer);
    add_number(model, "layers_recurrent", count_recurrent(hp));
    add_number(model, "layers_window", count_window(hp));
    add_number(model, "layers_mtp", hp->n_layer_mtp);
    add_number(model, "window", largest_window(hp));
    add_number(model, "n_embd", hp->n_embd);
    add_number(model, "head_dim", hp->head_dim);
    add_number(model, "n_head", hp->layer[hp->n_layer - 1].n_head);
    add_number(model, "n_head_kv", hp->layer[hp->n_layer - 1].n_head_kv);
    add_number(model, "n_expert", hp->n_expert);
    add_number(model, "n_expert_used", hp->n_expert_used);
    add_number(model, "n_expert_shared", hp->n_ff_shexp != 0);
    add_number(model, "n_vocab", hp->n_vocab);
    add_number(model, "n_ctx_train", hp->n_ctx_train);
    return model;
}

static struct json_object *json_weights(const struct weight_census *census)
{
    struct json_object *groups = json_object_new_array();
    for (int i = 0; i < WEIGHT_GROUP_COUNT; i++) {
        const struct weight_count *count = &census->group[i];
        if (!count->n_tensor) continue;
        struct json_object *group = json_object_new_object();
        struct json_object *types = json_object_new_object();
        json_object_object_add(group, "group",
                               json_object_new_string(weight_group_name((enum weight_group)i)));
        add_number(group, "tensors", count->n_tensor);
        add_number(group, "parameters", count->n_param);
        add_number(group, "bytes", count->n_bytes);
        for (uint32_t type = 0; type < TENSOR_TYPE_COUNT; type++)
            if (count->n_of_type[type])
                add_number(types, tensor_type_info(type)->name, count->n_of_type[type]);
        json_object_object_add(group, "types", types);
        json_object_array_add(groups, group);
    }
    return groups;
}

static struct json_object *json_tokenizer(const struct tokenizer *tokenizer)
{
    if (!tokenizer) return NULL;
    struct json_object *object = json_object_new_object();
    struct json_object *ends = json_object_new_array();
    const int32_t n_vocab = (int32_t)tokenizer_n_vocab(tokenizer);
    json_object_object_add(object, "kind", json_object_new_string("bpe"));
    json_object_object_add(object, "pre", json_object_new_string(tokenizer_pre_name(tokenizer)));
    json_object_object_add(object, "n_vocab", json_object_new_int(n_vocab));
    json_object_object_add(object, "bos", json_object_new_int(tokenizer_bos(tokenizer)));
    json_object_object_add(object, "eos", json_object_new_int(tokenizer_eos(tokenizer)));
    for (int32_t id = 0; id < n_vocab; id++)
        if (tokenizer_is_end(tokenizer, id)) json_object_array_add(ends, json_object_new_int(id));
    json_object_object_add(object, "ends", ends);
    return object;
}

static struct json_object *json_template(struct gguf_string source, bool with_source)
{
    if (!source.n) return NULL;
    const struct template_traits traits = template_traits(source.data, source.n);
    struct json_object *object = json_object_new_object();
    json_object_object_add(object, "tools", json_object_new_boolean(traits.tools));
    json_object_object_add(object, "tool_format",
                           json_object_new_string(tool_format_name(traits.tool_format)));
    json_object_object_add(object, "reasoning", json_object_new_boolean(traits.reasoning));
    json_object_object_add(object, "reasoning_switch",
                           json_object_new_boolean(traits.reasoning_switch));
    if (with_source) json_object_object_add(object, "source", json_text(source));
    return object;
}

static struct json_object *json_tensors(const struct gguf_file *file)
{
    struct json_object *list = json_object_new_array();
    for (size_t i = 0; i < gguf_n_tensor(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        struct json_object *object = json_object_new_object();
        struct json_object *shape = json_object_new_array();
        for (uint32_t d = 0; d < tensor->n_dims; d++)
            json_object_array_add(shape, json_object_new_uint64(tensor->ne[d]));
        json_object_object_add(object, "name", json_text(tensor->name));
        json_object_object_add(object, "type",
                               json_object_new_string(tensor_type_info(tensor->type)->name));
        json_object_object_add(object, "shape", shape);
        add_number(object, "bytes", tensor->n_bytes);
        add_number(object, "file", tensor->shard);
        add_number(object, "offset", tensor->file_offset);
        json_object_array_add(list, object);
    }
    return list;
}

static struct json_object *json_pack(const struct lmpack *pack)
{
    if (!pack) return NULL;
    const struct lmpack_manifest *manifest = lmpack_manifest(pack);
    const struct extents extents = extents_of(manifest);
    struct json_object *object = json_object_new_object();
    char fingerprint[17];
    snprintf(fingerprint, sizeof(fingerprint), "%016" PRIx64, manifest->fingerprint);
    add_number(object, "version", LMPACK_VERSION);
    add_number(object, "tile_layout", LMPACK_LAYOUT_ROWS);
    json_object_object_add(object, "fingerprint", json_object_new_string(fingerprint));
    add_number(object, "layers", manifest->n_moe);
    add_number(object, "n_expert", manifest->n_expert);
    add_number(object, "extent_bytes_min", extents.min_bytes);
    add_number(object, "extent_bytes_max", extents.max_bytes);
    json_object_object_add(object, "profile", json_object_new_boolean(has_profile(pack)));
    return object;
}

static void print_json(const struct inspection *in, const struct options *options)
{
    struct json_object *root = json_object_new_object();
    const struct gguf_string path = {gguf_path(in->file), strlen(gguf_path(in->file))};
    json_object_object_add(root, "path", json_text(path));
    add_number(root, "gguf_version", gguf_version(in->file));
    add_number(root, "files", n_file(in));
    add_number(root, "bytes", file_bytes(in));
    json_object_object_add(root, "pack", json_pack(in->pack));
    json_object_object_add(root, "name", in->name.n ? json_text(in->name) : NULL);
    json_object_object_add(root, "architecture", in->arch.n ? json_text(in->arch) : NULL);
    json_object_object_add(root, "runs", json_object_new_boolean(in->hp != NULL));
    if (in->hp) {
        json_object_object_add(root, "model", json_model(in->hp));
        add_number(root, "parameters", in->census.n_param);
        add_number(root, "parameters_active", in->census.n_param_active);
    } else {
        json_object_object_add(root, "reason", json_object_new_string(in->why.message));
    }
    json_object_object_add(root, "weights", json_weights(&in->census));
    json_object_object_add(root, "tokenizer", json_tokenizer(in->tokenizer));
    json_object_object_add(root, "template",
                           json_template(in->chat_template, options_flag(options, "template")));
    if (options_flag(options, "memory") && in->hp)
        json_object_object_add(root, "memory", inspect_memory_json(&in->memory));
    if (options_flag(options, "tensors"))
        json_object_object_add(root, "tensors", json_tensors(in->file));
    puts(json_object_to_json_string_ext(root,
                                        JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(root);
}

/* ---- command ---- */

static enum lm_status run_inspect(struct options *options, struct lm_error *err)
{
    struct inspection in = {0};
    enum lm_status status = model_ref_open(options, options_arg(options, 0), &in.file, err);
    if (status == LM_OK) status = collect(&in, options, err);
    if (status == LM_OK && options_flag(options, "json")) {
        print_json(&in, options);
    } else if (status == LM_OK && options_flag(options, "template")) {
        fwrite(in.chat_template.data, 1, in.chat_template.n, stdout);
    } else if (status == LM_OK) {
        print_text(&in, options);
    }
    if (status == LM_OK && options_flag(options, "check")) {
        status = in.hp ? inspect_memory_check(&in.memory, err) : in.why.status;
        if (!in.hp) *err = in.why;
    }
    discard(&in);
    return status;
}

static const struct option_spec options_inspect[] = {
    {"tensors", 0, OPTION_FLAG, .help = "list every tensor"},
    {"tokenizer", 0, OPTION_FLAG, .help = "list the special tokens"},
    {"template", 0, OPTION_FLAG, .help = "print the chat template and nothing else"},
    {"memory", 0, OPTION_FLAG, .help = "what memory is needed for what, and the context that fits"},
    {"check", 0, OPTION_FLAG,
     .help = "fail with exit code 9 if the model does not run or fit here"},
    {"ctx", 'c', OPTION_INT, "N", .key = "model.ctx", .min = 1, .max = ENGINE_N_CTX_MAX,
     .help = "context to plan for; default: what fits, at most the trained context"},
    {"parallel", 0, OPTION_INT, "N", .def = "1", .key = "serve.parallel", .min = 1, .max = 64,
     .help = "sequences to plan for"},
    {"kv-type", 0, OPTION_ENUM, "f16|bf16|f32|q8_0", .def = "f16", .key = "compute.kv_type",
     .help = "element type of the KV cache"},
    {"ram", 0, OPTION_SIZE, "SIZE", .key = "tiers.ram.size",
     .help = "memory budget, of each rank; default: what is free but a reserve"},
    {"device", 0, OPTION_STRING, "cpu|cuda[:N]|emu", .key = "compute.device",
     .help = "device to plan for; default: CUDA where there is one"},
    {"gpu-layers", 0, OPTION_INT, "N", .key = "compute.gpu_layers", .min = 0, .max = 65536,
     .help = "the last N layers on the device; default: as many as fit"},
    {"vram", 0, OPTION_SIZE, "SIZE", .key = "tiers.vram.size",
     .help = "budget of the device's memory, there or not; default: what is free but a reserve"},
    {"expert-slots", 0, OPTION_STRING, "N|P%|min", .key = "tiers.expert_slots",
     .help = "experts kept in memory; default: what the budget holds"},
    {"prefill-chunk", 0, OPTION_INT, "N|auto", .def = "auto", .key = "schedule.prefill_chunk",
     .min = 1, .max = 65536, .help = "prompt tokens computed in one step"},
    {"mtp", 0, OPTION_ENUM, "auto|on|off", .def = "auto", .key = "schedule.mtp",
     .help = "whether the layer for multi-token prediction drafts; auto: if that needs no paging"},
    {"vram-gbps", 0, OPTION_FLOAT, "X", .min = 0.001, .max = 1e6,
     .help = "with --memory: predict decoding by the nominal GB/s of the device's memory"},
    {"link-gbps", 0, OPTION_FLOAT, "X", .def = "24", .min = 0.001, .max = 1e6,
     .help = "with --vram-gbps: GB/s from memory to the device"},
    {"ram-gbps", 0, OPTION_FLOAT, "X", .min = 0.001, .max = 1e6,
     .help = "the same from memory to the processors; default: measured"},
    {"disk-gbps", 0, OPTION_FLOAT, "X", .min = 0.001, .max = 1e6,
     .help = "the same from the disk to memory; default: measured"},
    {"ranks", 0, OPTION_INT, "N", .def = "1", .key = "cluster.ranks", .min = 1, .max = 1024,
     .help = "with --memory: how N ranks on this machine would share the layers"},
    {"partition", 0, OPTION_STRING, "N,N,...", .key = "cluster.partition.layers",
     .help = "layers of each rank; default: as what each can do suggests"},
    {"partition-objective", 0, OPTION_ENUM, "throughput|latency", .def = "throughput",
     .key = "cluster.partition.objective",
     .help = "what the layers are shared out for: many sequences at once, or one"},
    {0},
};

const struct command command_inspect = {
    .name = "inspect",
    .usage = "MODEL",
    .n_arg_min = 1,
    .n_arg_max = 1,
    .summary = "what a model is, and what it needs",
    .details =
        "Reads the headers of a GGUF file and, if it is split, of its siblings, or the manifest\n"
        "of a pack; never the weights. --memory with --vram SIZE plans for a device of that size,\n"
        "whether there is one or not.",
    .options = (const struct option_spec *const[]){options_inspect, NULL},
    .reads_config = true,
    .run = run_inspect,
};
