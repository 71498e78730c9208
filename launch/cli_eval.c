/* lean eval: teacher-forced evaluation: logits, their hash, perplexity, comparison with a file. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <json-c/json.h>
#include <xxhash.h>

#include "coordinator/text/tokenizer.h"
#include "kernels/backend_cuda.h"
#include "launch/command.h"
#include "launch/engine.h"
#include "launch/model_ref.h"
#include "launch/pager_report.h"
#include "launch/terminal/interrupt.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/model/hparams.h"
#include "worker/pager/pager_snapshot.h"
#include "worker/sampling/softmax.h"

enum { MAX_INPUT_BYTES = 1 << 30, MAX_BESIDE = 15 };

static const struct option_spec eval_options[] = {
    {"ids", 0, OPTION_STRING, "1,2,3", .help = "the tokens to evaluate"},
    {"ids-file", 0, OPTION_PATH, "FILE", .help = "the same from a file"},
    {"text", 0, OPTION_PATH, "FILE",
     .help = "evaluate a text; one longer than the context is cut into pieces"},
    {"logits", 0, OPTION_PATH, "OUT", .help = "write them: little-endian F32 [n_tokens][n_vocab]"},
    {"compare", 0, OPTION_PATH, "LOGITS", .help = "compare with such a file"},
    {"generate", 'n', OPTION_INT, "N", .def = "0", .min = 0, .max = INT32_MAX,
     .help = "continue greedily by N tokens"},
    {"reference", 0, OPTION_FLAG, .help = "decode weights to F32 and do not quantize activations"},
    {"beside", 0, OPTION_INT, "N", .def = "0", .min = 0, .max = MAX_BESIDE,
     .help = "compute N other sequences in the same steps; changes no bit"},
    {0},
};

/* What is made of the logits as they come. */
struct evaluation {
    const int32_t *ids; /* [n_ids] */
    size_t n_ids;
    size_t n_done; /* rows so far */

    XXH3_state_t *hash;
    struct engine *engine;
    FILE *logits;  /* NULL: not written */
    FILE *compare; /* NULL: not compared */
    float *other;  /* [n_vocab] a row of it */
    int io_errno;  /* of the first write or read of these two that failed; 0: none */
    FILE *io_file; /* that one */

    double nll_sum; /* of the tokens that were predicted */
    size_t n_nll;
    size_t piece_end; /* no row predicts a token of the next piece */
    double diff_max, diff_sum, kl_sum;
    size_t n_agree;

    int32_t *generated;             /* [n_generated] */
    size_t n_generated, n_generate; /* so far; in the end */

    struct log_bar bar; /* over the rows */
};

/* ln of the sum of e^x, less the maximum, which is returned too. */
static double log_sum(const float *x, uint32_t n, float *max)
{
    *max = x[0];
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > *max) *max = x[i];
    return log(softmax_sum(x, n, *max, 1));
}

static uint32_t arg_max(const float *x, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Nothing that is still to come can be of use. */
static void fail_io(struct evaluation *eval, FILE *file)
{
    if (!eval->io_file) {
        eval->io_errno = errno ? errno : EIO;
        eval->io_file = file;
    }
    engine_cancel(eval->engine);
}

static void compare_row(struct evaluation *eval, const float *logits, uint32_t n_vocab)
{
    float max, other_max;
    if (fread(eval->other, sizeof(float), n_vocab, eval->compare) != n_vocab) {
        fail_io(eval, eval->compare);
        return;
    }
    const double sum = log_sum(logits, n_vocab, &max);
    const double other_sum = log_sum(eval->other, n_vocab, &other_max);
    double diff_sum = 0, kl = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        /* A token that both forbid, with -infinity, differs in nothing. */
        if (logits[i] == eval->other[i] && isinf(logits[i])) continue;
        const double diff = fabs((double)logits[i] - (double)eval->other[i]);
        const double other_log = (double)eval->other[i] - (double)other_max - other_sum;
        const double this_log = (double)logits[i] - (double)max - sum;
        if (diff > eval->diff_max) eval->diff_max = diff;
        diff_sum += diff;
        if (!isinf(other_log)) kl += exp(other_log) * (other_log - this_log);
    }
    eval->diff_sum += diff_sum / n_vocab;
    eval->kl_sum += kl;
    eval->n_agree += arg_max(logits, n_vocab) == arg_max(eval->other, n_vocab);
}

static void on_logits(void *context, uint32_t pos, const float *logits, uint32_t n_vocab)
{
    struct evaluation *eval = context;
    const size_t row = eval->n_done++;
    (void)pos;
    XXH3_64bits_update(eval->hash, logits, n_vocab * sizeof(float));
    errno = 0;
    if (eval->logits && fwrite(logits, sizeof(float), n_vocab, eval->logits) != n_vocab)
        fail_io(eval, eval->logits);
    if (eval->compare) compare_row(eval, logits, n_vocab);
    if (row + 1 < eval->piece_end) {
        float max;
        const double sum = log_sum(logits, n_vocab, &max);
        eval->nll_sum -= (double)logits[eval->ids[row + 1]] - (double)max - sum;
        eval->n_nll++;
    }
    log_bar_update(&eval->bar, eval->n_done);
}

static bool on_token(void *context, const struct sampled_token *token)
{
    struct evaluation *eval = context;
    eval->generated[eval->n_generated++] = token->id;
    return true;
}

/* They stop when the sequence that is evaluated is complete. */
static bool on_token_beside(void *context, const struct sampled_token *token)
{
    const struct evaluation *eval = context;
    (void)token;
    return eval->n_done < eval->piece_end || eval->n_generated < eval->n_generate;
}

/* ---- input -------------------------------------------------------------------------------- */

/* Numbers between commas and white space. */
static enum lm_status parse_ids(const char *text, const char *name, int32_t **ids, size_t *n,
                                struct lm_error *err)
{
    int32_t *list = malloc((strlen(text) / 2 + 1) * sizeof(*list));
    if (!list) return lm_fail(err, LM_E_NO_MEM, "%s: no memory for the ids", name);
    *n = 0;
    for (const char *at = text + strspn(text, ", \t\r\n"); *at; at += strspn(at, ", \t\r\n")) {
        char *end;
        const long id = strtol(at, &end, 10);
        if (end == at || id < 0 || id > INT32_MAX || (*end && !strchr(", \t\r\n", *end))) {
            free(list);
            return lm_fail(err, LM_E_USAGE, "%s: '%.20s' is not a token id", name, at);
        }
        list[(*n)++] = (int32_t)id;
        at = end;
    }
    *ids = list;
    return LM_OK;
}

static enum lm_status read_input(const struct engine *engine, const struct options *options,
                                 int32_t **ids, size_t *n, struct lm_error *err)
{
    const char *path = options_string(options, "ids-file"), *text = options_string(options, "text");
    const char *list = options_string(options, "ids");
    char *bytes;
    size_t n_bytes;
    if (!!list + !!path + !!text != 1)
        return lm_fail(err, LM_E_USAGE, "eval takes one of --ids, --ids-file and --text");
    if (list) return parse_ids(list, "--ids", ids, n, err);
    enum lm_status status =
        read_all_path(path ? path : text, MAX_INPUT_BYTES, &bytes, &n_bytes, err);
    if (status != LM_OK) return status;
    if (path)
        status = parse_ids(bytes, path, ids, n, err);
    else
        status =
            tokenizer_encode(engine_tokenizer(engine), bytes, n_bytes, false, true, ids, n, err);
    free(bytes);
    return status;
}

static enum lm_status open_files(struct evaluation *eval, const struct options *options,
                                 uint32_t n_vocab, struct lm_error *err)
{
    const char *out = options_string(options, "logits"), *in = options_string(options, "compare");
    const uint64_t n_bytes = (uint64_t)eval->n_ids * n_vocab * sizeof(float);
    struct stat info;
    if (in) {
        eval->compare = fopen(in, "rbe");
        if (!eval->compare || fstat(fileno(eval->compare), &info) != 0)
            return lm_fail_errno(err, "%s: open", in);
        if ((uint64_t)info.st_size != n_bytes)
            return lm_fail(
                err, LM_E_FORMAT, "%s: %lld bytes, must be %llu: %zu tokens of %u logits", in,
                (long long)info.st_size, (unsigned long long)n_bytes, eval->n_ids, n_vocab);
        eval->other = malloc(n_vocab * sizeof(float));
        if (!eval->other) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", in);
    }
    if (out) {
        eval->logits = fopen(out, "wbe");
        if (!eval->logits) return lm_fail_errno(err, "%s: open", out);
    }
    return LM_OK;
}

/* ---- running ------------------------------------------------------------------------------ */

/* Evaluates one piece, with the sequences beside it: short prompts, so that they generate while the
 * piece is read. */
static enum lm_status run_piece(struct engine *engine, struct evaluation *eval, size_t n,
                                uint32_t n_generate, uint32_t n_beside, struct lm_error *err)
{
    enum { N_BESIDE_PROMPT = 8 };
    struct generate_request requests[MAX_BESIDE + 1];
    struct generate_result results[MAX_BESIDE + 1];
    int32_t prompts[MAX_BESIDE][N_BESIDE_PROMPT];
    const uint32_t n_vocab = engine_hparams(engine)->n_vocab;
    for (uint32_t i = 0; i < n_beside; i++) {
        for (uint32_t k = 0; k < N_BESIDE_PROMPT; k++)
            prompts[i][k] = (int32_t)((i * 37 + k * 11 + 5) % n_vocab);
        requests[i] = (struct generate_request){.prompt = prompts[i],
                                                .n_prompt = 1 + i % N_BESIDE_PROMPT,
                                                .sampling = sampling_params_default(),
                                                .n_max = (uint32_t)n + n_generate + MAX_BESIDE,
                                                .ignore_end = true,
                                                .on_token = on_token_beside,
                                                .context = eval};
    }
    requests[n_beside] = (struct generate_request){.prompt = eval->ids + eval->n_done,
                                                   .n_prompt = n,
                                                   .sampling = sampling_params_default(),
                                                   .n_max = n_generate,
                                                   .ignore_end = true,
                                                   .on_token = on_token,
                                                   .on_logits = on_logits,
                                                   .context = eval};
    eval->piece_end = eval->n_done + n;
    eval->n_generate = n_generate;
    return engine_generate_many(engine, requests, results, n_beside + 1, err);
}

/* What ended a piece early. */
static enum lm_status check_progress(const struct evaluation *eval, const struct options *options,
                                     struct lm_error *err)
{
    if (interrupt_pending(INTERRUPT_STOP) || interrupt_pending(INTERRUPT_END))
        return lm_fail(err, LM_E_INTERRUPTED, "interrupted");
    if (!eval->io_file) return LM_OK;
    errno = eval->io_errno;
    return eval->io_file == eval->logits
               ? lm_fail_errno(err, "%s: write", options_string(options, "logits"))
               : lm_fail_errno(err, "%s: read", options_string(options, "compare"));
}

static enum lm_status run_pieces(struct engine *engine, struct evaluation *eval,
                                 const struct options *options, struct lm_error *err)
{
    const uint32_t n_beside = (uint32_t)options_int(options, "beside");
    const size_t n_ctx = engine_n_ctx(engine);
    const size_t n_asked = (size_t)options_int(options, "generate");
    const uint32_t n_generate = (uint32_t)(n_asked < n_ctx ? n_asked : n_ctx); /* more cannot be */
    if (!eval->n_ids) return lm_fail(err, LM_E_USAGE, "there are no tokens to evaluate");
    if (eval->n_ids > n_ctx && !options_string(options, "text"))
        return lm_fail(err, LM_E_LIMIT, "%zu tokens do not fit the context of %zu", eval->n_ids,
                       n_ctx);
    eval->generated = malloc((n_generate + 1) * sizeof(*eval->generated));
    if (!eval->generated) return lm_fail(err, LM_E_NO_MEM, "no memory for %u tokens", n_generate);
    while (eval->n_done < eval->n_ids) {
        const size_t left = eval->n_ids - eval->n_done, n = left < n_ctx ? left : n_ctx;
        enum lm_status status =
            run_piece(engine, eval, n, n == left ? n_generate : 0, n_beside, err);
        if (status == LM_OK) status = check_progress(eval, options, err);
        if (status != LM_OK) return status;
    }
    if (eval->logits && fflush(eval->logits) != 0) fail_io(eval, eval->logits);
    return check_progress(eval, options, err);
}

/* ---- output ------------------------------------------------------------------------------- */

static double perplexity(const struct evaluation *eval)
{
    return exp(eval->nll_sum / (double)eval->n_nll);
}

static void add(struct json_object *object, const char *key, struct json_object *value)
{
    json_object_object_add(object, key, value);
}

/* JSON has no infinities: null. */
static struct json_object *real_json(double value)
{
    return isfinite(value) ? json_object_new_double(value) : NULL;
}

static struct json_object *ids_json(const int32_t *ids, size_t n)
{
    struct json_object *list = json_object_new_array_ext((int)n);
    for (size_t i = 0; i < n; i++)
        json_object_array_add(list, json_object_new_int(ids[i]));
    return list;
}

/* The first and the last of some layers. */
static struct json_object *range_json(uint32_t begin, uint32_t end)
{
    struct json_object *range = json_object_new_array_ext(2);
    json_object_array_add(range, json_object_new_int((int)begin));
    json_object_array_add(range, json_object_new_int((int)end - 1));
    return range;
}

/* What this rank's device was given to do. */
static struct json_object *device_json(const struct backend_cuda_counters *device)
{
    struct json_object *json = json_object_new_object();
    add(json, "launches", json_object_new_uint64(device->n_launch));
    add(json, "flushes", json_object_new_uint64(device->n_flush));
    add(json, "captures", json_object_new_uint64(device->n_capture));
    add(json, "replays", json_object_new_uint64(device->n_replay));
    add(json, "allocations", json_object_new_uint64(device->n_alloc));
    add(json, "cublas_products", json_object_new_uint64(device->n_product));
    return json;
}

static struct json_object *ranks_json(const struct engine *engine)
{
    struct json_object *ranks = json_object_new_array();
    struct pager_snapshot told;
    struct edges_stats edges;
    for (uint32_t i = 0; i < engine_n_rank(engine); i++) {
        const struct engine_rank rank = engine_rank(engine, i);
        struct json_object *json = json_object_new_object();
        add(json, "pid", json_object_new_int64(rank.pid));
        add(json, "layers", range_json(rank.layer_begin, rank.layer_end));
        add(json, "device", json_object_new_string(rank.device));
        add(json, "numerics", json_object_new_string(rank.numerics));
        if (rank.device_begin < rank.layer_end)
            add(json, "device_layers", range_json(rank.device_begin, rank.layer_end));
        if (rank.n_device_slot)
            add(json, "device_slots", json_object_new_int((int)rank.n_device_slot));
        add(json, "threads", json_object_new_int((int)rank.n_thread));
        add(json, "kernels", json_object_new_string(rank.kernels));
        add(json, "ram", json_object_new_uint64(rank.ram_bytes));
        if (rank.n_expert_slot)
            add(json, "expert_slots", json_object_new_int((int)rank.n_expert_slot));
        if (rank.transport) {
            engine_rank_told(engine, i, &told, &edges);
            add(json, "transport", json_object_new_string(rank.transport));
            add(json, "received_bytes", json_object_new_uint64(edges.received_bytes));
            add(json, "received_device_bytes", json_object_new_uint64(edges.received_device_bytes));
        }
        if (rank.host) add(json, "host", json_object_new_string(rank.host));
        json_object_array_add(ranks, json);
    }
    return ranks;
}

/* What really ran. */
static struct json_object *effective_json(const struct engine *engine,
                                          const struct pager_snapshot *experts)
{
    const struct engine_stats stats = engine_stats(engine);
    const struct expert_pager_stats *pager = &experts->total;
    const uint64_t n_lookup = pager->decode.n_lookup + pager->prefill.n_lookup;
    const uint64_t n_hit = pager->decode.n_hit + pager->prefill.n_hit;
    struct json_object *effective = json_object_new_object();
    add(effective, "threads", json_object_new_int((int)stats.n_thread));
    add(effective, "kernels", json_object_new_string(stats.kernels));
    add(effective, "prefill_chunk", json_object_new_int((int)stats.prefill_chunk));
    add(effective, "ranks", ranks_json(engine));
    add(effective, "steps_ahead", json_object_new_int((int)stats.n_ahead));
    if (stats.transport) add(effective, "transport", json_object_new_string(stats.transport));
    if (stats.device) add(effective, "device", device_json(stats.device));
    add(effective, "expert_lookups", json_object_new_uint64(n_lookup));
    add(effective, "expert_misses", json_object_new_uint64(n_lookup - n_hit));
    add(effective, "bytes_read", json_object_new_uint64(pager_report_read_bytes(pager)));
    add(effective, "experts", pager_report_json(experts));
    add(effective, "drafts_accepted", json_object_new_uint64(stats.n_draft_accepted));
    add(effective, "max_batch", json_object_new_int((int)stats.n_seq_max));
    return effective;
}

static void print_json(const struct evaluation *eval, const struct engine *engine,
                       const struct pager_snapshot *experts, const char *model)
{
    struct json_object *result = json_object_new_object();
    char hash[24];
    snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)XXH3_64bits_digest(eval->hash));
    add(result, "model", json_object_new_string(model));
    add(result, "n_tokens", json_object_new_int64((int64_t)eval->n_ids));
    add(result, "ids", ids_json(eval->ids, eval->n_ids));
    add(result, "generated", ids_json(eval->generated, eval->n_generated));
    add(result, "perplexity", eval->n_nll ? real_json(perplexity(eval)) : NULL);
    add(result, "logits_xxh3", json_object_new_string(hash));
    if (eval->compare) {
        struct json_object *compare = json_object_new_object();
        add(compare, "max_difference", real_json(eval->diff_max));
        add(compare, "mean_difference", real_json(eval->diff_sum / (double)eval->n_ids));
        add(compare, "kl_divergence", real_json(eval->kl_sum / (double)eval->n_ids));
        add(compare, "top1_agreement",
            json_object_new_double((double)eval->n_agree / (double)eval->n_ids));
        add(result, "compare", compare);
    }
    add(result, "effective", effective_json(engine, experts));
    puts(json_object_to_json_string_ext(result, JSON_C_TO_STRING_PLAIN));
    json_object_put(result);
}

static void print_text(const struct evaluation *eval)
{
    printf("tokens:          %zu\n", eval->n_ids);
    if (eval->n_nll) printf("perplexity:      %.6f\n", perplexity(eval));
    printf("logits xxh3:     %016llx\n", (unsigned long long)XXH3_64bits_digest(eval->hash));
    if (eval->compare) {
        printf("max difference:  %.9g\n", eval->diff_max);
        printf("mean difference: %.9g\n", eval->diff_sum / (double)eval->n_ids);
        printf("KL divergence:   %.9g\n", eval->kl_sum / (double)eval->n_ids);
        printf("top-1 agreement: %zu of %zu\n", eval->n_agree, eval->n_ids);
    }
    if (eval->n_generated) printf("generated:      ");
    for (size_t i = 0; i < eval->n_generated; i++)
        printf("%c%d", i ? ',' : ' ', eval->generated[i]);
    if (eval->n_generated) putchar('\n');
}

/* A part of the logits would be taken for all of them. */
static void close_logits(struct evaluation *eval, const struct options *options,
                         enum lm_status status)
{
    struct stat info;
    if (status != LM_OK && !fstat(fileno(eval->logits), &info) && S_ISREG(info.st_mode))
        unlink(options_string(options, "logits"));
    fclose(eval->logits);
}

static enum lm_status evaluate(struct engine *engine, const struct options *options,
                               struct evaluation *eval, struct lm_error *err)
{
    int32_t *ids = NULL;
    enum lm_status status = read_input(engine, options, &ids, &eval->n_ids, err);
    if (status != LM_OK) return status;
    eval->ids = ids;
    eval->hash = XXH3_createState();
    if (!eval->hash)
        status = lm_fail(err, LM_E_NO_MEM, "no memory for the hash");
    else
        XXH3_64bits_reset(eval->hash);
    if (status == LM_OK) status = open_files(eval, options, engine_hparams(engine)->n_vocab, err);
    log_bar_begin(&eval->bar, "evaluating", "tok", eval->n_ids);
    if (status == LM_OK) status = run_pieces(engine, eval, options, err);
    log_bar_end(&eval->bar);
    if (status == LM_OK && options_flag(options, "json")) {
        struct pager_snapshot experts;
        status = engine_experts(engine, &experts, err);
        if (status == LM_OK) print_json(eval, engine, &experts, options_arg(options, 0));
    } else if (status == LM_OK) {
        print_text(eval);
    }
    free(eval->generated);
    free(eval->other);
    if (eval->logits) close_logits(eval, options, status);
    if (eval->compare) fclose(eval->compare);
    XXH3_freeState(eval->hash);
    free(ids);
    return status;
}

static void cancel(void *engine)
{
    engine_cancel(engine);
}

static enum lm_status run_eval(struct options *options, struct lm_error *err)
{
    struct engine_config config;
    enum lm_status status = engine_config_from_options(&config, options, err);
    if (status != LM_OK) return status;
    char *path;
    bool is_demo;
    status = model_ref_resolve(options, options_arg(options, 0), &path, &is_demo, err);
    if (status != LM_OK) return status;
    config.cluster = cluster_config_from_options(options);
    config.model_path = path;
    config.reference = options_flag(options, "reference");
    config.n_slot = 1 + (uint32_t)options_int(options, "beside");
    config.n_snapshot = 0;
    struct engine *engine;
    status = engine_open(&engine, &config, err);
    free(path);
    if (status != LM_OK) return status;
    struct evaluation eval = {.engine = engine};
    status = interrupt_begin(cancel, engine, err);
    if (status == LM_OK) {
        status = evaluate(engine, options, &eval, err);
        interrupt_end();
    }
    const enum lm_status closed = engine_close(engine, status == LM_OK ? err : NULL);
    return status == LM_OK ? closed : status;
}

const struct command command_eval = {
    .name = "eval",
    .usage = "MODEL",
    .n_arg_min = 1,
    .n_arg_max = 1,
    .summary = "logits of given tokens: hash, perplexity, comparison",
    .details =
        "Reads tokens, computes the logits behind each of them and prints their hash and the\n"
        "perplexity of the tokens. With --json also what really ran (\"effective\"): threads,\n"
        "kernels, ranks with their first and last layer, expert lookups, the largest batch.",
    .options =
        (const struct option_spec *const[]){eval_options, options_engine, options_cluster, NULL},
    .reads_config = true,
    .takes_ranks = true,
    .run = run_eval,
};
