/* lean bench tune MODEL: what the machine gives, and which settings make this model faster on it.
 *
 * Each candidate runs in processes of its own, in turn with what counted before it, on the same
 * tokens: decode, and prefill where the setting is about prompts. It is kept if it was faster in
 * every round and by more than 3% in the median. What the user has set is not tried. */
#include <json-c/json.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "launch/bench/child.h"
#include "launch/bench/disk_probe.h"
#include "launch/bench/kernel_probe.h"
#include "launch/bench/modes.h"
#include "launch/bench/statistics.h"
#include "launch/device.h"
#include "launch/inventory.h"
#include "launch/model_ref.h"
#include "launch/rank_settings.h"
#include "launch/tuned.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"

const struct option_spec options_bench_tune[] = {
    {"time", 0, OPTION_TIME, "T", .def = "300s",
     .help = "of tune: it ends before; what there is no time for is not tried"},
    {"forget", 0, OPTION_FLAG, .help = "of tune: measure nothing, forget what was kept"},
    {0},
};

enum { N_ROUND = 3, CANDIDATE_MAX = 4, FIRST_TOKENS = 16, TOKENS_MIN = 16, TOKENS_MAX = 256 };
/* A candidate that is faster by less may be so by chance. */
#define LEAST_GAIN 1.03
/* Of decoding, in one run; less, and the start of the process would be most of it. */
#define RUN_S 1.0
/* After a round or two a candidate this slow is given up. */
#define HOPELESS 0.97

struct tune {
    const struct options *options;
    struct gguf_file *file;
    struct tuned *kept;
    struct json_object *machine, *settings; /* what is told */
    double begin_s, end_s;
    uint32_t n_ctx_train, n_gen, n_prompt;
    double run_s, prompt_run_s; /* of one run, the start of the process included */
    struct json_object *base;   /* the row of a run with what counts now */
    struct log_bar bar;
};

static double left_s(const struct tune *tune)
{
    return tune->end_s - log_now_s();
}

static struct json_object *field(struct json_object *row, const char *object, const char *key)
{
    struct json_object *in = row, *value = NULL;
    if (object && !json_object_object_get_ex(row, object, &in)) return NULL;
    return json_object_object_get_ex(in, key, &value) ? value : NULL;
}

/* ---- the machine -------------------------------------------------------------------------- */

static void note(struct tune *tune, const char *key, double bytes_s)
{
    json_object_object_add(tune->machine, key, json_object_new_double(bytes_s));
}

static void count_types(const struct gguf_file *file, uint64_t bytes[TENSOR_TYPE_COUNT])
{
    memset(bytes, 0, TENSOR_TYPE_COUNT * sizeof(*bytes));
    for (size_t i = 0; i < gguf_n_tensor(file); i++)
        bytes[gguf_tensor_at(file, i)->type] += gguf_tensor_at(file, i)->n_bytes;
}

static enum lm_status measure_memory(struct tune *tune, struct lm_error *err)
{
    uint64_t bytes[TENSOR_TYPE_COUNT];
    struct inventory inventory;
    struct kernel_rates rates;
    struct kernel_overlap overlap;
    count_types(tune->file, bytes);
    const struct kernel_probe_config config = {.n_thread =
                                                   (uint32_t)options_int(tune->options, "threads"),
                                               .kernels = options_string(tune->options, "kernels"),
                                               .afresh = true,
                                               .bytes = bytes,
                                               .overlap = &overlap};
    inventory_measure(&inventory, gguf_path(tune->file), config.n_thread);
    note(tune, "memory_bytes_s", inventory.memory_bytes_s);
    const enum lm_status status = kernel_probe_run(&rates, &config, err);
    if (status != LM_OK) return status;
    struct json_object *kernels = json_object_new_object();
    for (uint32_t i = 0; i < TENSOR_TYPE_COUNT; i++)
        if (rates.bytes_s[i] > 0)
            json_object_object_add(kernels, tensor_type_info(i)->name,
                                   json_object_new_double(rates.bytes_s[i]));
    json_object_object_add(tune->machine, "kernels_bytes_s", kernels);
    note(tune, "kernels_beside_copy_bytes_s", overlap.beside_bytes_s);
    note(tune, "copy_beside_kernels_bytes_s", overlap.copy_bytes_s);
    return LM_OK;
}

static enum lm_status measure_disk(struct tune *tune, struct lm_error *err)
{
    struct disk_rate rate[DISK_RATE_MAX];
    size_t n;
    const enum lm_status status = disk_probe_run(rate, &n, gguf_path(tune->file), err);
    if (status != LM_OK) return status;
    struct json_object *list = json_object_new_array();
    for (size_t i = 0; i < n; i++) {
        struct json_object *one = json_object_new_object();
        json_object_object_add(one, "io", json_object_new_string(rate[i].io));
        json_object_object_add(one, "depth", json_object_new_int64(rate[i].depth));
        json_object_object_add(one, "bytes_s", json_object_new_double(rate[i].bytes_s));
        json_object_array_add(list, one);
    }
    json_object_object_add(tune->machine, "disk", list);
    return LM_OK;
}

/* From page-locked memory to the device, as experts come; nothing where there is none. */
static enum lm_status measure_link(struct tune *tune, struct lm_error *err)
{
    enum { PIECE_BYTES = 16 << 20, N_PIECE = 16 };
    const struct rank_settings settings = rank_settings_from_options(tune->options);
    struct device device;
    enum lm_status status = device_open(&device, &settings, (struct local_rank){0, 1}, err);
    json_object_object_add(tune->machine, "link_bytes_s", NULL);
    if (status != LM_OK || !device.backend) return status;
    struct backend *const backend = device.backend;
    const struct backend_ops *ops = backend->ops;
    double begin_s = 0;
    void *from = aligned_alloc(4096, PIECE_BYTES), *to = ops->alloc(backend, PIECE_BYTES, err);
    if (!from || !to) status = lm_fail(err, LM_E_NO_MEM, "no memory to measure the link");
    if (status == LM_OK) memset(from, 1, PIECE_BYTES);
    const bool pinned = status == LM_OK && ops->pin(backend, from, PIECE_BYTES, err) == LM_OK;
    for (int i = -1; status == LM_OK && i < N_PIECE; i++) { /* the first is not counted */
        if (i == 0) status = ops->sync(backend, err);
        if (i == 0) begin_s = log_now_s();
        const uint64_t ticket = ops->fetch(backend, to, from, PIECE_BYTES, 0, COPY_DEMAND);
        ops->await(backend, ticket);
    }
    if (status == LM_OK) status = ops->sync(backend, err);
    if (status == LM_OK)
        note(tune, "link_bytes_s", (double)N_PIECE * PIECE_BYTES / (log_now_s() - begin_s));
    if (pinned) ops->unpin(backend, from);
    if (to) ops->free(backend, to);
    free(from);
    device_close(&device);
    return status;
}

/* ---- one run ------------------------------------------------------------------------------ */

/* A setting under test; value NULL: what counts now. */
struct trial {
    size_t setting;
    const char *value;
};

static bool is_about_prompts(size_t setting)
{
    return setting == TUNED_PREFILL_CHUNK;
}

static enum lm_status trial_words(struct child_words *words, const struct tune *tune,
                                  const struct trial *trial, struct lm_error *err)
{
    const struct option_spec *option;
    const bool prompts = is_about_prompts(trial->setting);
    enum lm_status status = child_words_add(words, err, "bench");
    for (option = options_engine; option->name && status == LM_OK; option++)
        status = child_words_add_option(words, tune->options, option, err);
    if (status == LM_OK && options_string(tune->options, "config"))
        status =
            child_words_add(words, err, "--config=%s", options_string(tune->options, "config"));
    for (size_t i = 0; status == LM_OK && (option = tuned_option(i)); i++)
        if (tuned_value(tune->kept, i))
            status =
                child_words_add(words, err, "--%s=%s", option->name, tuned_value(tune->kept, i));
    if (status == LM_OK && trial->value)
        status = child_words_add(words, err, "--%s=%s", tuned_option(trial->setting)->name,
                                 trial->value);
    if (status == LM_OK)
        status = child_words_add(words, err, "--n-prompt=%u", prompts ? tune->n_prompt : 0);
    if (status == LM_OK)
        status = child_words_add(words, err, "--n-gen=%u", prompts ? 0 : tune->n_gen);
    if (status == LM_OK) status = child_words_add(words, err, "--warmup=%d", !prompts);
    static const char *const fixed[] = {"--no-tuned",      "--repetitions=1", "--output=jsonl",
                                        "--progress=none", "--quiet",         "--"};
    for (size_t i = 0; status == LM_OK && i < sizeof(fixed) / sizeof(fixed[0]); i++)
        status = child_words_add(words, err, "%s", fixed[i]);
    return status == LM_OK ? child_words_add(words, err, "%s", gguf_path(tune->file)) : status;
}

/* *row: NULL if the run failed or took too long, which is no error of ours. */
static enum lm_status run_trial(struct tune *tune, const struct trial *trial,
                                struct json_object **row, struct lm_error *err)
{
    struct child_words words = {0};
    struct child_result result = {0};
    const unsigned limit_s = left_s(tune) > 1 ? (unsigned)left_s(tune) : 1;
    enum lm_status status = trial_words(&words, tune, trial, err);
    *row = NULL;
    if (status == LM_OK) status = child_run(&words, NULL, limit_s, &result, err);
    if (status == LM_OK && !result.exit_code) *row = json_tokener_parse(result.out);
    child_result_fini(&result);
    child_words_fini(&words);
    log_bar_update(&tune->bar, (uint64_t)(log_now_s() - tune->begin_s));
    return status;
}

static double speed(struct json_object *row)
{
    return row ? json_object_get_double(field(row, NULL, "mean_tok_s")) : 0;
}

/* How long runs take, and how many tokens make one. */
static enum lm_status find_sizes(struct tune *tune, struct lm_error *err)
{
    const struct trial none = {TUNED_THREADS, NULL};
    tune->n_gen = FIRST_TOKENS;
    const double begin_s = log_now_s();
    enum lm_status status = run_trial(tune, &none, &tune->base, err);
    const double run_s = log_now_s() - begin_s;
    if (status != LM_OK) return status;
    if (!tune->base && left_s(tune) < 1) return LM_OK; /* it was ended: nothing is tried */
    if (!tune->base) return lm_fail(err, LM_E_FAIL, "%s could not be run", gguf_path(tune->file));
    const double rate = speed(tune->base), n = fmin(fmax(RUN_S * rate, TOKENS_MIN), TOKENS_MAX);
    tune->n_gen = (uint32_t)n;
    tune->run_s = run_s + (n - FIRST_TOKENS) / rate;
    /* prompts are read several times as fast as text is written */
    tune->n_prompt = 2048;
    while (tune->n_prompt > 512 && tune->n_prompt / (4 * rate) > 5 * RUN_S)
        tune->n_prompt /= 2;
    while (tune->n_prompt > tune->n_ctx_train)
        tune->n_prompt /= 2;
    tune->prompt_run_s = run_s + tune->n_prompt / (4 * rate);
    return LM_OK;
}

/* ---- one setting -------------------------------------------------------------------------- */

struct candidates {
    size_t setting;
    char value[CANDIDATE_MAX][16];
    size_t n;
    double ratio[CANDIDATE_MAX][N_ROUND]; /* to what counted in the same round */
    double tok_s[CANDIDATE_MAX];          /* of the last round */
    uint32_t n_round[CANDIDATE_MAX];
    bool given_up[CANDIDATE_MAX];
};

static double median(const double *ratio, uint32_t n)
{
    double sorted[N_ROUND];
    memcpy(sorted, ratio, n * sizeof(*ratio));
    return statistics_of(sorted, n).median;
}

static double lowest(const double *ratio, uint32_t n)
{
    double least = INFINITY;
    for (uint32_t i = 0; i < n; i++)
        least = fmin(least, ratio[i]);
    return least;
}

/* One run of what counts and one of each candidate that is left; *done: none is. */
static enum lm_status run_round(struct tune *tune, struct candidates *c, bool *done,
                                struct lm_error *err)
{
    struct json_object *base, *row;
    const struct trial none = {c->setting, NULL};
    enum lm_status status = run_trial(tune, &none, &base, err);
    const double base_tok_s = speed(base);
    json_object_put(base);
    *done = true;
    for (size_t i = 0; i < c->n && status == LM_OK && base_tok_s > 0; i++) {
        if (c->given_up[i]) continue;
        const struct trial trial = {c->setting, c->value[i]};
        status = run_trial(tune, &trial, &row, err);
        c->tok_s[i] = speed(row);
        json_object_put(row);
        const double ratio = c->tok_s[i] / base_tok_s;
        c->ratio[i][c->n_round[i]++] = ratio;
        c->given_up[i] = ratio < HOPELESS || (c->n_round[i] > 1 && ratio < 1);
        *done &= c->given_up[i];
    }
    return status;
}

static void tell(struct tune *tune, const struct candidates *c, size_t i, const char *verdict)
{
    struct json_object *one = json_object_new_object(), *ratios = json_object_new_array();
    const char *name = tuned_option(c->setting)->name;
    for (uint32_t k = 0; k < c->n_round[i]; k++)
        json_object_array_add(ratios, json_object_new_double(c->ratio[i][k]));
    json_object_object_add(one, "setting", json_object_new_string(name));
    json_object_object_add(one, "value", json_object_new_string(c->value[i]));
    json_object_object_add(
        one, "of", json_object_new_string(is_about_prompts(c->setting) ? "prefill" : "decode"));
    json_object_object_add(one, "tok_s", json_object_new_double(c->tok_s[i]));
    json_object_object_add(one, "ratios", ratios);
    json_object_object_add(one, "verdict", json_object_new_string(verdict));
    json_object_array_add(tune->settings, one);
}

static void tell_untried(struct tune *tune, const struct candidates *c, const char *why)
{
    for (size_t i = 0; i < c->n; i++)
        tell(tune, c, i, why);
}

static enum lm_status try_setting(struct tune *tune, struct candidates *c, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    bool done = false;
    size_t best = SIZE_MAX;
    if (!c->n) return LM_OK;
    if (options_given(tune->options, tuned_option(c->setting)->name)) {
        tell_untried(tune, c, "not tried: it was said");
        return LM_OK;
    }
    const double round_s =
        (double)(c->n + 1) * (is_about_prompts(c->setting) ? tune->prompt_run_s : tune->run_s);
    if (left_s(tune) < N_ROUND * round_s) {
        tell_untried(tune, c, "not tried: no time is left");
        return LM_OK;
    }
    for (uint32_t round = 0; round < N_ROUND && !done && status == LM_OK; round++)
        status = run_round(tune, c, &done, err);
    if (status != LM_OK) return status;
    for (size_t i = 0; i < c->n; i++) {
        const bool faster = c->n_round[i] == N_ROUND && lowest(c->ratio[i], N_ROUND) > 1 &&
                            median(c->ratio[i], N_ROUND) > LEAST_GAIN;
        if (faster &&
            (best == SIZE_MAX || median(c->ratio[i], N_ROUND) > median(c->ratio[best], N_ROUND)))
            best = i;
    }
    for (size_t i = 0; i < c->n; i++)
        tell(tune, c, i,
             i == best       ? "kept"
             : c->n_round[i] ? "dropped"
                             : "not tried: what counts now could not be run");
    return best == SIZE_MAX ? LM_OK
                            : tuned_set(tune->kept, c->setting, c->value[best],
                                        median(c->ratio[best], N_ROUND) - 1, err);
}

/* ---- all settings ------------------------------------------------------------------------- */

static void add(struct candidates *c, const char *format, ...) LM_PRINTF(2, 3);

static void add(struct candidates *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(c->value[c->n], sizeof(c->value[0]), format, args);
    va_end(args);
    for (size_t i = 0; i < c->n; i++)
        if (!strcmp(c->value[i], c->value[c->n])) return;
    c->n++;
}

static void add_threads(struct tune *tune, struct candidates *c)
{
    const int64_t n = json_object_get_int64(field(tune->base, "effective", "threads"));
    const long n_processor = sysconf(_SC_NPROCESSORS_ONLN);
    if (n_processor > n) add(c, "%ld", n_processor);
    if (n > 1) add(c, "%lld", (long long)n - 1);
    if (n > 3) add(c, "%lld", (long long)n / 2);
}

/* All but what it chooses by itself. */
static void add_io(struct tune *tune, struct candidates *c)
{
    struct json_object *io = field(tune->base, "experts", "io");
    const bool direct = json_object_get_boolean(field(tune->base, "experts", "direct"));
    const char *now = !io || !direct                                    ? "buffered"
                      : !strcmp(json_object_get_string(io), "io_uring") ? "uring"
                                                                        : "pread";
    static const char *const all[] = {"uring", "pread", "buffered"};
    for (size_t i = 0; i < 3; i++)
        if (strcmp(now, all[i])) add(c, "%s", all[i]);
}

/* Prompts that are as long as the longest chunk; where reading them takes too long, shorter ones.
 */
static void add_chunks(struct tune *tune, struct candidates *c)
{
    for (uint32_t n = 256; n <= tune->n_prompt; n *= 2)
        if (n != 512) add(c, "%u", n); /* what auto chooses where nothing speaks against it */
}

static enum lm_status try_all(struct tune *tune, struct lm_error *err)
{
    static const char *const ways[] = {"gpu", "cpu", "hybrid"};
    const bool paged = field(tune->base, NULL, "experts") != NULL;
    const bool lacks = field(tune->base, "experts", "device") != NULL;
    enum lm_status status = LM_OK;
    for (size_t setting = 0; setting < TUNED_COUNT && status == LM_OK; setting++) {
        struct candidates c = {.setting = setting};
        switch (setting) {
        case TUNED_THREADS:
            add_threads(tune, &c);
            break;
        case TUNED_IO:
            if (paged) add_io(tune, &c);
            break;
        case TUNED_PREFETCH:
            if (paged) add(&c, "on");
            if (paged) add(&c, "off");
            break;
        case TUNED_POLICY:
            if (paged) add(&c, "lru");
            if (paged) add(&c, "static");
            break;
        case TUNED_MISS: /* of experts that a device lacks */
            for (size_t i = 0; lacks && i < 3; i++)
                add(&c, "%s", ways[i]);
            break;
        case TUNED_PREFILL_CHUNK:
            add_chunks(tune, &c);
            break;
        }
        status = try_setting(tune, &c, err);
    }
    return status;
}

/* ---- what is told ------------------------------------------------------------------------- */

static void print_rate(const char *name, struct json_object *value)
{
    if (value)
        printf("%-28s %7.2f GB/s\n", name, json_object_get_double(value) / 1e9);
    else
        printf("%-28s no device\n", name);
}

static void print_machine(struct json_object *machine)
{
    print_rate("memory, read", field(machine, NULL, "memory_bytes_s"));
    struct json_object *kernels = field(machine, NULL, "kernels_bytes_s");
    json_object_object_foreach(kernels, type, rate)
    {
        char name[40];
        snprintf(name, sizeof(name), "memory, %s kernels", type);
        print_rate(name, rate);
    }
    print_rate("the same beside a copy", field(machine, NULL, "kernels_beside_copy_bytes_s"));
    print_rate("the copy beside kernels", field(machine, NULL, "copy_beside_kernels_bytes_s"));
    struct json_object *disk = field(machine, NULL, "disk");
    for (size_t i = 0; i < json_object_array_length(disk); i++) {
        struct json_object *one = json_object_array_get_idx(disk, i);
        char name[40];
        snprintf(name, sizeof(name), "disk, %s, %s at once",
                 json_object_get_string(field(one, NULL, "io")),
                 json_object_get_string(field(one, NULL, "depth")));
        print_rate(name, field(one, NULL, "bytes_s"));
    }
    print_rate("link to the device", field(machine, NULL, "link_bytes_s"));
}

static void print_text(const struct tune *tune)
{
    print_machine(tune->machine);
    printf("\n%-14s %-9s %-8s %9s  %-22s %s\n", "setting", "value", "of", "tok/s", "ratios", "");
    for (size_t i = 0; i < json_object_array_length(tune->settings); i++) {
        struct json_object *one = json_object_array_get_idx(tune->settings, i);
        struct json_object *ratios = field(one, NULL, "ratios");
        char list[80] = "";
        for (size_t k = 0; k < json_object_array_length(ratios); k++)
            snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%.3f", k ? " " : "",
                     json_object_get_double(json_object_array_get_idx(ratios, k)));
        printf("%-14s %-9s %-8s %9.2f  %-22s %s\n",
               json_object_get_string(field(one, NULL, "setting")),
               json_object_get_string(field(one, NULL, "value")),
               json_object_get_string(field(one, NULL, "of")),
               json_object_get_double(field(one, NULL, "tok_s")), list,
               json_object_get_string(field(one, NULL, "verdict")));
    }
    puts("\nKept is what was faster in every round and by more than 3% in the median: a default\n"
         "from now on where nothing is said. --no-tuned leaves it out, --forget forgets it.");
}

static void print_result(const struct tune *tune)
{
    if (!options_flag(tune->options, "json")) {
        print_text(tune);
        return;
    }
    struct json_object *json = json_object_new_object();
    json_object_object_add(json, "model", json_object_new_string(gguf_path(tune->file)));
    json_object_object_add(json, "seconds", json_object_new_double(log_now_s() - tune->begin_s));
    json_object_object_add(json, "machine", json_object_get(tune->machine));
    json_object_object_add(json, "settings", json_object_get(tune->settings));
    puts(json_object_to_json_string_ext(json, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    json_object_put(json);
}

/* ---- the command -------------------------------------------------------------------------- */

static enum lm_status tune_model(struct tune *tune, struct lm_error *err)
{
    char limit[24];
    const double time_s = options_float(tune->options, "time");
    tune->begin_s = log_now_s();
    tune->end_s = tune->begin_s + time_s;
    log_info("at most %s", log_format_seconds(time_s, limit));
    struct hparams hp;
    enum lm_status status = hparams_read(&hp, tune->file, err);
    if (status != LM_OK) return status;
    tune->n_ctx_train = hp.n_ctx_train ? hp.n_ctx_train : UINT32_MAX;
    status = measure_memory(tune, err);
    if (status == LM_OK) status = measure_disk(tune, err);
    if (status == LM_OK) status = measure_link(tune, err);
    if (status != LM_OK) return status;
    log_bar_begin(&tune->bar, "tuning", "s", (uint64_t)time_s);
    status = find_sizes(tune, err);
    if (status == LM_OK && tune->base) status = try_all(tune, err);
    log_bar_end(&tune->bar);
    if (status == LM_OK && !tune->base)
        return lm_fail(err, LM_E_LIMIT, "no time for a run: more than %s is needed", limit);
    if (status == LM_OK) status = tuned_keep(tune->kept, tune->file, err);
    if (status == LM_OK) print_result(tune);
    return status;
}

static enum lm_status forget(const struct tune *tune, struct lm_error *err)
{
    bool found;
    const enum lm_status status = tuned_forget(tune->file, &found, err);
    if (status == LM_OK)
        printf("%s: %s\n", gguf_path(tune->file), found ? "forgotten" : "nothing was kept");
    return status;
}

enum lm_status bench_tune(struct options *options, struct lm_error *err)
{
    struct tune tune = {.options = options,
                        .kept = tuned_create(),
                        .machine = json_object_new_object(),
                        .settings = json_object_new_array()};
    enum lm_status status =
        tune.kept ? child_check_alone(err) : lm_fail(err, LM_E_NO_MEM, "no memory for settings");
    if (status == LM_OK)
        status = model_ref_open(
            options, options_n_arg(options) > 1 ? options_arg(options, 1) : NULL, &tune.file, err);
    if (status == LM_OK)
        status = options_flag(options, "forget") ? forget(&tune, err) : tune_model(&tune, err);
    json_object_put(tune.base);
    json_object_put(tune.machine);
    json_object_put(tune.settings);
    tuned_destroy(tune.kept);
    gguf_close(tune.file);
    return status;
}
