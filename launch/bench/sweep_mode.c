/* lean bench sweep FILE -o DIR: every combination of a sweep, each a run of the program. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <xxhash.h>

#include "launch/bench/child.h"
#include "launch/bench/machine.h"
#include "launch/bench/modes.h"
#include "launch/bench/result_log.h"
#include "launch/bench/write_file.h"
#include "launch/engine.h"
#include "proto/base/log.h"
#include "proto/base/nearest.h"
#include "proto/base/read_all.h"
#include "proto/bench.pb-c.h"
#include "proto/text/textproto.h"

enum { MAX_SWEEP_BYTES = 1 << 20, MAX_CASES = 100000, MESSAGE_BYTES = 1000 };

struct sweep {
    const char *path, *folder;
    Lean__SweepConfig *config;
    char *base;                             /* path, or NULL */
    XXH64_hash_t base_hash;                 /* of what is in it */
    const struct option_spec **axis_option; /* [n_axis]; NULL: model.ref */
    uint64_t n_case;
    const struct options *options;
    struct result_log *log;
};

/* ---- the file ----------------------------------------------------------------------------- */

/* The option with this key; NULL: there is none. */
static const struct option_spec *find_key(const char *key, struct nearest *nearest)
{
    static const struct option_spec *const tables[] = {options_engine, options_cluster};
    for (size_t t = 0; t < 2; t++)
        for (const struct option_spec *spec = tables[t]; spec->name; spec++) {
            if (!spec->key) continue;
            if (!strcmp(spec->key, key)) return spec;
            nearest_offer(nearest, spec->key);
        }
    return NULL;
}

static enum lm_status check_axis(struct sweep *sweep, size_t i, struct lm_error *err)
{
    const Lean__SweepAxis *axis = sweep->config->axis[i];
    const char *field = axis->field ? axis->field : "";
    struct nearest nearest = {.word = field};
    nearest_offer(&nearest, "model.ref");
    if (!axis->n_value)
        return lm_fail(err, LM_E_USAGE, "%s: axis %s has no values", sweep->path, field);
    for (size_t k = 0; k < i; k++)
        if (!strcmp(sweep->config->axis[k]->field, field))
            return lm_fail(err, LM_E_USAGE, "%s: two axes of %s", sweep->path, field);
    if (!strcmp(field, "model.ref")) return LM_OK;
    const struct option_spec *spec = find_key(field, &nearest);
    if (!spec) {
        const char *near = nearest_name(&nearest);
        return lm_fail(err, LM_E_USAGE, "%s: axis '%.80s' is no setting of the engine%s%s%s",
                       sweep->path, field, near ? ", did you mean " : "", near ? near : "",
                       near ? "?" : "");
    }
    sweep->axis_option[i] = spec;
    for (size_t k = 0; k < axis->n_value; k++) {
        const enum lm_status status = option_check(spec, field, axis->value[k], err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}

/* A relative path of the base is one beside the sweep. */
static enum lm_status find_base(struct sweep *sweep, struct lm_error *err)
{
    const char *base = sweep->config->base, *slash = strrchr(sweep->path, '/');
    char *bytes;
    size_t n;
    if (!base) return LM_OK;
    const int prefix = *base == '/' || !slash ? 0 : (int)(slash + 1 - sweep->path);
    if (asprintf(&sweep->base, "%.*s%s", prefix, sweep->path, base) < 0) {
        sweep->base = NULL;
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", sweep->path);
    }
    const enum lm_status status = read_all_path(sweep->base, MAX_SWEEP_BYTES, &bytes, &n, err);
    if (status != LM_OK) return status;
    sweep->base_hash = XXH3_64bits(bytes, n);
    free(bytes);
    return LM_OK;
}

static enum lm_status read_sweep(struct sweep *sweep, struct lm_error *err)
{
    char *text;
    size_t n;
    enum lm_status status = read_all_path(sweep->path, MAX_SWEEP_BYTES, &text, &n, err);
    if (status != LM_OK) return status;
    sweep->config = (Lean__SweepConfig *)textproto_create(&lean__sweep_config__descriptor);
    status = sweep->config
                 ? textproto_merge(&sweep->config->message, sweep->path, text, n, NULL, NULL, err)
                 : lm_fail(err, LM_E_NO_MEM, "%s: no memory", sweep->path);
    free(text);
    if (status == LM_OK) {
        sweep->axis_option = calloc(sweep->config->n_axis + 1, sizeof(*sweep->axis_option));
        if (!sweep->axis_option) status = lm_fail(err, LM_E_NO_MEM, "%s: no memory", sweep->path);
    }
    sweep->n_case = 1;
    for (size_t i = 0; status == LM_OK && i < sweep->config->n_axis; i++) {
        status = check_axis(sweep, i, err);
        if (status != LM_OK) break;
        sweep->n_case *= sweep->config->axis[i]->n_value;
        if (sweep->n_case > MAX_CASES)
            status = lm_fail(err, LM_E_USAGE, "%s: more than %d cases", sweep->path, MAX_CASES);
    }
    return status == LM_OK ? find_base(sweep, err) : status;
}

static void fini(struct sweep *sweep)
{
    result_log_close(sweep->log);
    if (sweep->config) lean__sweep_config__free_unpacked(sweep->config, NULL);
    free(sweep->axis_option);
    free(sweep->base);
}

/* ---- one case ----------------------------------------------------------------------------- */

/* The value of an axis in a case; the last axis turns fastest. */
static const char *axis_value(const struct sweep *sweep, uint64_t number, size_t axis)
{
    uint64_t left = number;
    for (size_t i = sweep->config->n_axis; i-- > axis + 1;)
        left /= sweep->config->axis[i]->n_value;
    return sweep->config->axis[axis]->value[left % sweep->config->axis[axis]->n_value];
}

static enum lm_status add_numbers(struct child_words *words, const char *option,
                                  const uint32_t *value, size_t n, struct lm_error *err)
{
    char list[1000];
    size_t used = 0;
    if (!n) return LM_OK;
    for (size_t i = 0; i < n; i++) {
        used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%u", i ? "," : "", value[i]);
        if (used >= sizeof(list)) return lm_fail(err, LM_E_USAGE, "%s: too many values", option);
    }
    return child_words_add(words, err, "%s=%s", option, list);
}

static enum lm_status add_tests(struct child_words *words, const Lean__SweepConfig *config,
                                struct lm_error *err)
{
    const Lean__SweepTest *test = config->test;
    enum lm_status status = child_words_add(words, err, "--repetitions=%u", config->repeat);
    if (status == LM_OK) status = child_words_add(words, err, "--warmup=%u", config->warmup);
    if (status == LM_OK) status = child_words_add(words, err, "--prompts=%s", config->prompts);
    if (status == LM_OK) status = child_words_add(words, err, "--seed=%u", config->seed);
    if (!test || status != LM_OK) return status;
    status = add_numbers(words, "--n-prompt", test->n_prompt, test->n_n_prompt, err);
    if (status == LM_OK) status = add_numbers(words, "--n-gen", test->n_gen, test->n_n_gen, err);
    if (status == LM_OK)
        status = add_numbers(words, "--n-depth", test->n_depth, test->n_n_depth, err);
    if (status == LM_OK) status = add_numbers(words, "--n-seq", test->n_seq, test->n_n_seq, err);
    for (size_t i = 0; i < test->n_pg && status == LM_OK; i++)
        status = child_words_add(words, err, "--pg=%s", test->pg[i]);
    return status;
}

/* The command line of a case. What was said of the engine on ours holds for all of them. */
static enum lm_status case_words(struct child_words *words, const struct sweep *sweep,
                                 uint64_t number, struct lm_error *err)
{
    static const struct option_spec *const tables[] = {options_engine, options_cluster};
    const Lean__SweepConfig *config = sweep->config;
    const char *model = NULL;
    enum lm_status status = child_words_add(words, err, "bench");
    if (status == LM_OK && sweep->base)
        status = child_words_add(words, err, "--config=%s", sweep->base);
    for (size_t t = 0; t < 2; t++)
        for (const struct option_spec *spec = tables[t]; spec->name && status == LM_OK; spec++)
            status = child_words_add_option(words, sweep->options, spec, err);
    for (size_t i = 0; i < config->n_axis && status == LM_OK; i++) {
        const struct option_spec *spec = sweep->axis_option[i];
        const char *value = axis_value(sweep, number, i);
        if (!spec)
            model = value;
        else if (spec->kind == OPTION_FLAG)
            status =
                child_words_add(words, err, "--%s%s", strcmp(value, "on") ? "no-" : "", spec->name);
        else
            status = child_words_add(words, err, "--%s=%s", spec->name, value);
    }
    if (status == LM_OK) status = add_tests(words, config, err);
    if (status == LM_OK) status = child_words_add(words, err, "--output=jsonl");
    if (status == LM_OK) status = child_words_add(words, err, "--progress=none");
    if (status == LM_OK && model) {
        status = child_words_add(words, err, "--");
        if (status == LM_OK) status = child_words_add(words, err, "%s", model);
    }
    return status;
}

/* Cases are known by what they are, not by their place: a sweep may grow. */
static void case_hash(const struct sweep *sweep, const struct child_words *words, char out[20])
{
    XXH64_hash_t hash = sweep->base_hash;
    for (size_t i = 0; i < words->n; i++)
        hash = XXH3_64bits_withSeed(words->word[i], strlen(words->word[i]), hash);
    snprintf(out, 20, "%016llx", (unsigned long long)hash);
}

static struct json_object *case_axes(const struct sweep *sweep, uint64_t number, char *name,
                                     size_t size)
{
    struct json_object *axes = json_object_new_object();
    size_t used = 0;
    *name = 0;
    for (size_t i = 0; i < sweep->config->n_axis; i++) {
        const char *field = sweep->config->axis[i]->field, *value = axis_value(sweep, number, i);
        json_object_object_add(axes, field, json_object_new_string(value));
        if (used < size)
            used +=
                (size_t)snprintf(name + used, size - used, "%s%s=%s", i ? " " : "", field, value);
    }
    return axes;
}

/* The last error that a run has told in the log, behind `from`. */
static void read_message(const char *path, long from, char message[MESSAGE_BYTES])
{
    static const char mark[] = "lean: error: ";
    char *line = NULL;
    size_t size = 0;
    FILE *file = fopen(path, "re");
    *message = 0;
    if (!file) return;
    fseek(file, from, SEEK_SET);
    while (getline(&line, &size, file) > 0) {
        const char *found = strstr(line, mark);
        if (!found) continue;
        snprintf(message, MESSAGE_BYTES, "%s", found + sizeof(mark) - 1);
        message[strcspn(message, "\n")] = 0;
    }
    free(line);
    fclose(file);
}

static long file_length(const char *path)
{
    FILE *file = fopen(path, "re");
    long n = 0;
    if (!file) return 0;
    if (!fseek(file, 0, SEEK_END)) n = ftell(file);
    fclose(file);
    return n;
}

static enum lm_status parse_rows(char *lines, struct json_object *rows, struct lm_error *err)
{
    char *state = NULL;
    for (char *line = strtok_r(lines, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        struct json_object *row = json_tokener_parse(line);
        if (!row) return lm_fail(err, LM_E_FORMAT, "a run printed what is no row: %.80s", line);
        json_object_array_add(rows, row);
    }
    return LM_OK;
}

/* Rows of a run that failed: one, which tells why. What it measured before does not count, so that
 * a case is never there in part. */
static void replace_by_failure(struct json_object *rows, int exit_code, const char *message)
{
    struct json_object *row = json_object_new_object();
    json_object_array_del_idx(rows, 0, json_object_array_length(rows));
    json_object_object_add(row, "status", json_object_new_string("failed"));
    json_object_object_add(row, "exit_code", json_object_new_int(exit_code));
    json_object_object_add(row, "message", json_object_new_string(message));
    json_object_object_add(row, "time", machine_time());
    json_object_array_add(rows, row);
}

/* failed: the case itself, which does not end the sweep. */
static enum lm_status run_case(struct sweep *sweep, uint64_t number,
                               const struct child_words *words, const char *hash, bool *failed,
                               struct lm_error *err)
{
    char log_path[4096], name[400], message[MESSAGE_BYTES];
    struct child_result result;
    struct json_object *rows = json_object_new_array();
    struct json_object *axes = case_axes(sweep, number, name, sizeof(name));
    snprintf(log_path, sizeof(log_path), "%.4000s/log.txt", sweep->folder);
    const long log_from = file_length(log_path);
    enum lm_status status = child_run(words, log_path, 0, &result, err);
    if (status == LM_OK) {
        status = parse_rows(result.out, rows, err);
        *failed = result.exit_code != 0 || !json_object_array_length(rows);
        if (status == LM_OK && *failed) {
            read_message(log_path, log_from, message);
            replace_by_failure(rows, result.exit_code, message);
            log_warning("%s: exit code %d: %s", name, result.exit_code, message);
        }
        child_result_fini(&result);
    }
    for (size_t i = 0; i < json_object_array_length(rows); i++) {
        struct json_object *row = json_object_array_get_idx(rows, i);
        json_object_object_add(row, "axes", json_object_get(axes));
        if (!*failed) json_object_object_add(row, "status", json_object_new_string("ok"));
    }
    if (status == LM_OK) status = result_log_add(sweep->log, hash, rows, err);
    json_object_put(axes);
    json_object_put(rows);
    return status;
}

/* ---- the sweep ---------------------------------------------------------------------------- */

/* Of the first time; a sweep that goes on elsewhere is told so. */
static enum lm_status note_environment(const struct sweep *sweep, struct lm_error *err)
{
    char path[4096], *bytes;
    size_t n;
    struct json_object *now = json_object_new_object(), *then = NULL;
    json_object_object_add(now, "host", machine_host());
    json_object_object_add(now, "build", machine_build());
    json_object_object_add(now, "sweep", json_object_new_string(sweep->path));
    enum lm_status status = LM_OK;
    snprintf(path, sizeof(path), "%.4000s/environment.json", sweep->folder);
    if (access(path, F_OK)) {
        char *text = textproto_write(&sweep->config->message, NULL, NULL);
        json_object_object_add(now, "begun", machine_time());
        json_object_object_add(now, "config", text ? json_object_new_string(text) : NULL);
        free(text);
        text = (char *)json_object_to_json_string_ext(now, JSON_C_TO_STRING_PRETTY |
                                                               JSON_C_TO_STRING_NOSLASHESCAPE);
        status = write_file(path, text, strlen(text), err);
    } else if ((status = read_all_path(path, MAX_SWEEP_BYTES, &bytes, &n, err)) == LM_OK) {
        then = json_tokener_parse(bytes);
        free(bytes);
        for (int i = 0; i < 2; i++) {
            const char *const key = i ? "build" : "host";
            if (!json_object_equal(json_object_object_get(now, key),
                                   json_object_object_get(then, key)))
                log_warning("%s: was begun on another %s", sweep->folder, key);
        }
    }
    json_object_put(then);
    json_object_put(now);
    return status;
}

static enum lm_status run_cases(struct sweep *sweep, struct lm_error *err)
{
    uint64_t n_failed = 0, n_done = 0;
    enum lm_status status = LM_OK;
    for (uint64_t i = 0; i < sweep->n_case && status == LM_OK; i++) {
        struct child_words words = {0};
        char hash[20];
        bool failed = false;
        status = case_words(&words, sweep, i, err);
        if (status == LM_OK) {
            case_hash(sweep, &words, hash);
            if (result_log_has(sweep->log, hash)) {
                n_done++;
            } else {
                log_info("case %llu of %llu", (unsigned long long)i + 1,
                         (unsigned long long)sweep->n_case);
                status = run_case(sweep, i, &words, hash, &failed, err);
                n_failed += status == LM_OK && failed;
                if (status == LM_OK) status = result_log_write_csv(sweep->log, err);
            }
        }
        child_words_fini(&words);
    }
    if (n_done) log_info("%llu cases were done before", (unsigned long long)n_done);
    if (status == LM_OK)
        printf("%s: %llu cases, %llu could not be measured\n", sweep->folder,
               (unsigned long long)sweep->n_case, (unsigned long long)n_failed);
    return status;
}

enum lm_status bench_sweep(struct options *options, struct lm_error *err)
{
    struct sweep sweep = {.options = options, .folder = options_string(options, "output")};
    if (options_n_arg(options) != 2 || !sweep.folder)
        return lm_fail(err, LM_E_USAGE, "bench sweep takes one FILE and -o DIR");
    sweep.path = options_arg(options, 1);
    enum lm_status status = child_check_alone(err);
    if (status == LM_OK) status = read_sweep(&sweep, err);
    if (status == LM_OK) status = result_log_open(&sweep.log, sweep.folder, err);
    if (status == LM_OK) status = note_environment(&sweep, err);
    if (status == LM_OK) status = run_cases(&sweep, err);
    fini(&sweep);
    return status;
}
