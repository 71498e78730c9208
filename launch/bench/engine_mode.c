/* lean bench REF: the tests, the arms, and the tables.
 *
 * An arm is one choice of a value for each engine option. With one arm this process runs it; of
 * several each is a run of the program, so that one that fails or does not fit ends alone. */
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launch/bench/child.h"
#include "launch/bench/engine_rows.h"
#include "launch/bench/modes.h"
#include "launch/bench/result_table.h"
#include "launch/value_list.h"
#include "proto/base/log.h"

enum { MAX_TESTS = 1000, MAX_COLUMNS = 64 };

const struct option_spec options_bench[] = {
    {"pg", 0, OPTION_STRING, "P,N", .repeat = true,
     .help = "also -pg: a prompt of P tokens and N tokens behind it in one test"},
    {"repetitions", 'r', OPTION_INT, "N", .def = "5", .min = 1, .max = 100000,
     .help = "runs of each test"},
    {"warmup", 0, OPTION_INT, "N", .def = "1", .min = 0, .max = 1000,
     .help = "runs before that are not counted; they generate 16 tokens at most"},
    {"delay", 0, OPTION_TIME, "T", .def = "0s", .help = "pause before each run"},
    {"prompts", 0, OPTION_STRING, "random|text|@FILE", .def = "text",
     .help = "where tokens come from; speed depends on them where experts are routed. text: the "
             "beginning of Alice's Adventures in Wonderland"},
    {"seed", 0, OPTION_INT, "N", .def = "1", .min = 0, .max = INT32_MAX,
     .help = "where in the text, or which random tokens"},
    {"greedy", 0, OPTION_FLAG,
     .help = "generate the model's own likeliest tokens, so that drafts can be right"},
    {"output", 'o', OPTION_STRING, "FORMAT",
     .help = "md|csv|json|jsonl|sql, of a server text|json|csv|md"},
    {"oe", 0, OPTION_STRING, "FORMAT", .help = "also -oe: a second format, to stderr"},
    {0},
};

const struct option_spec options_bench_tests[] = {
    {"n-prompt", 'p', OPTION_INT, "N", .def = "512", .min = 0, .max = 1 << 24,
     .help = "prompt tokens; 0: no such test"},
    {"n-gen", 'n', OPTION_INT, "N", .def = "128", .min = 0, .max = 1 << 24,
     .help = "tokens to generate; 0: no such test"},
    {"n-depth", 'd', OPTION_INT, "N", .def = "0", .min = 0, .max = 1 << 24,
     .help = "tokens in the context before the clock starts"},
    {"n-seq", 'b', OPTION_INT, "N", .def = "1", .min = 1, .max = 64, .help = "sequences at once"},
    {0},
};

static const struct option_spec *const engine_tables[] = {options_engine, options_cluster, NULL};

/* ---- tests -------------------------------------------------------------------------------- */

struct numbers {
    uint32_t value[VALUE_LIST_MAX];
    size_t n;
};

static enum lm_status read_numbers(const struct options *options, const char *name,
                                   struct numbers *out, struct lm_error *err)
{
    struct value_list list;
    const enum lm_status status = options_list(options, name, &list, err);
    if (status != LM_OK) return status;
    out->n = 0;
    for (size_t i = 0; i < list.n; i++)
        out->value[out->n++] = (uint32_t)strtoul(list.text[i], NULL, 10);
    value_list_fini(&list);
    return LM_OK;
}

struct tests {
    struct engine_test test[MAX_TESTS];
    size_t n;
    struct numbers n_prompt, n_gen, n_depth, n_seq;
};

static enum lm_status add_test(struct tests *tests, struct engine_test test, struct lm_error *err)
{
    if (!test.n_prompt && !test.n_gen) return LM_OK;
    if (tests->n == MAX_TESTS) return lm_fail(err, LM_E_USAGE, "more than %d tests", MAX_TESTS);
    tests->test[tests->n++] = test;
    return LM_OK;
}

static enum lm_status add_pairs(struct tests *tests, const struct options *options,
                                struct engine_test test, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < options_count(options, "pg") && status == LM_OK; i++) {
        char rest;
        const char *text = options_string_at(options, "pg", i);
        if (sscanf(text, "%u,%u%c", &test.n_prompt, &test.n_gen, &rest) != 2 || !test.n_prompt ||
            !test.n_gen || test.n_prompt > 1 << 24 || test.n_gen > 1 << 24)
            return lm_fail(err, LM_E_USAGE, "-pg must be two numbers such as 512,128, got '%.80s'",
                           text);
        status = add_test(tests, test, err);
    }
    return status;
}

/* Tests of one depth and number of sequences. */
static enum lm_status add_tests(struct tests *tests, const struct options *options,
                                struct engine_test test, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < tests->n_prompt.n && status == LM_OK; i++) {
        test.n_prompt = tests->n_prompt.value[i];
        status = add_test(tests, test, err);
    }
    test.n_prompt = 0;
    for (size_t i = 0; i < tests->n_gen.n && status == LM_OK; i++) {
        test.n_gen = tests->n_gen.value[i];
        status = add_test(tests, test, err);
    }
    return status == LM_OK ? add_pairs(tests, options, test, err) : status;
}

static enum lm_status read_tests(struct tests *tests, const struct options *options,
                                 struct lm_error *err)
{
    enum lm_status status = read_numbers(options, "n-prompt", &tests->n_prompt, err);
    if (status == LM_OK) status = read_numbers(options, "n-gen", &tests->n_gen, err);
    if (status == LM_OK) status = read_numbers(options, "n-depth", &tests->n_depth, err);
    if (status == LM_OK) status = read_numbers(options, "n-seq", &tests->n_seq, err);
    for (size_t d = 0; d < tests->n_depth.n && status == LM_OK; d++)
        for (size_t b = 0; b < tests->n_seq.n && status == LM_OK; b++)
            status = add_tests(tests, options,
                               (struct engine_test){.n_depth = tests->n_depth.value[d],
                                                    .n_seq = tests->n_seq.value[b],
                                                    .greedy = options_flag(options, "greedy")},
                               err);
    if (status == LM_OK && !tests->n) return lm_fail(err, LM_E_USAGE, "there is nothing to test");
    return status;
}

/* ---- tables ------------------------------------------------------------------------------- */

static struct json_object *field(struct json_object *row, const char *object, const char *key)
{
    struct json_object *in = row, *value = NULL;
    if (object && !json_object_object_get_ex(row, object, &in)) return NULL;
    return json_object_object_get_ex(in, key, &value) ? value : NULL;
}

static char *text_cell(const struct result_column *column, struct json_object *row)
{
    struct json_object *value = field(row, NULL, column->key);
    return strdup(value ? json_object_get_string(value) : "");
}

static char *setting_cell(const struct result_column *column, struct json_object *row)
{
    struct json_object *value = field(row, "settings", column->key);
    return strdup(value ? json_object_get_string(value) : "");
}

static char *name_cell(const struct result_column *column, struct json_object *row)
{
    return strdup(json_object_get_string(field(row, "model", column->key)));
}

static char *bytes_cell(const struct result_column *column, struct json_object *row)
{
    char text[24];
    const int64_t n_bytes = json_object_get_int64(field(row, "model", column->key));
    return strdup(log_format_bytes((uint64_t)n_bytes, text));
}

static char *count_cell(const struct result_column *column, struct json_object *row)
{
    char *text = NULL;
    const double n = json_object_get_double(field(row, "model", column->key));
    const bool millions = n < 999.5e6;
    const double scaled = n / (millions ? 1e6 : 1e9);
    const int digits = scaled < 9.995 ? 2 : scaled < 99.95 ? 1 : 0;
    return asprintf(&text, "%.*f %c", digits, scaled, millions ? 'M' : 'B') < 0 ? NULL : text;
}

static char *rate_cell(const struct result_column *column, struct json_object *row)
{
    char *text = NULL;
    (void)column;
    return asprintf(&text, "%.2f ± %.2f", json_object_get_double(field(row, NULL, "mean_tok_s")),
                    json_object_get_double(field(row, NULL, "stddev_tok_s"))) < 0
               ? NULL
               : text;
}

static char *share_cell(const struct result_column *column, struct json_object *row)
{
    char *text = NULL;
    struct json_object *value = field(row, "experts", column->key);
    if (!value) return strdup("");
    return asprintf(&text, "%.1f%%", 100 * json_object_get_double(value)) < 0 ? NULL : text;
}

static char *device_share_cell(const struct result_column *column, struct json_object *row)
{
    char *text = NULL;
    struct json_object *device = field(row, "experts", "device"), *value;
    if (!device || !json_object_object_get_ex(device, column->key, &value) || !value)
        return strdup("");
    return asprintf(&text, "%.1f%%", 100 * json_object_get_double(value)) < 0 ? NULL : text;
}

static char *disk_cell(const struct result_column *column, struct json_object *row)
{
    char *text = NULL;
    struct json_object *value = field(row, "experts", column->key);
    if (!value) return strdup("");
    return asprintf(&text, "%.2f", json_object_get_double(value) / 1e9) < 0 ? NULL : text;
}

/* Accepted of those that were verified. */
static char *drafts_cell(const struct result_column *column, struct json_object *row)
{
    char *text = NULL;
    struct json_object *drafted = field(row, "drafts", "drafted");
    (void)column;
    if (!drafted) return strdup("");
    return asprintf(&text, "%s of %s", json_object_get_string(field(row, "drafts", "accepted")),
                    json_object_get_string(drafted)) < 0
               ? NULL
               : text;
}

/* Whether rows differ in a setting, or it is not what it is by default. */
static bool is_shown(struct json_object *rows, const struct option_spec *spec, const char *key)
{
    const char *usual = !strcmp(spec->name, "ranks") ? "1" : spec->def;
    for (size_t i = 0; i < json_object_array_length(rows); i++) {
        struct json_object *value = field(json_object_array_get_idx(rows, i), "settings", key);
        const char *text = value ? json_object_get_string(value) : NULL;
        if (!text != !usual || (text && strcmp(text, usual))) return true;
    }
    return false;
}

static bool has_experts(struct json_object *rows)
{
    for (size_t i = 0; i < json_object_array_length(rows); i++)
        if (field(json_object_array_get_idx(rows, i), NULL, "experts")) return true;
    return false;
}

static bool has_drafts(struct json_object *rows)
{
    for (size_t i = 0; i < json_object_array_length(rows); i++)
        if (field(json_object_array_get_idx(rows, i), NULL, "drafts")) return true;
    return false;
}

static bool has_device_experts(struct json_object *rows)
{
    for (size_t i = 0; i < json_object_array_length(rows); i++)
        if (field(json_object_array_get_idx(rows, i), "experts", "device")) return true;
    return false;
}

static void put(struct result_column *columns, size_t *n, const char *title, const char *key,
                bool right, char *(*cell)(const struct result_column *, struct json_object *))
{
    if (*n == MAX_COLUMNS) return;
    struct result_column *column = &columns[(*n)++];
    *column = (struct result_column){.right = right, .cell = cell};
    snprintf(column->title, sizeof(column->title), "%s", title);
    snprintf(column->key, sizeof(column->key), "%s", key);
}

/* The cache's type is always told, since results depend on it; how the network is set up never. */
static void put_settings(struct result_column *columns, size_t *n, struct json_object *rows)
{
    put(columns, n, "ranks", "ranks", true, setting_cell);
    if (!is_shown(rows, &(const struct option_spec){.name = "ranks"}, "ranks")) (*n)--;
    for (const struct option_spec *spec = options_engine; spec->name; spec++) {
        char key[80];
        const bool is_cache = !strcmp(spec->name, "kv-type");
        const bool is_number = spec->kind == OPTION_INT || spec->kind == OPTION_SIZE;
        engine_rows_key(spec->name, key, sizeof(key));
        if (is_cache || is_shown(rows, spec, key))
            put(columns, n, is_cache ? "ctk" : spec->name, key, is_number, setting_cell);
    }
}

static enum lm_status print_rows(FILE *out, enum result_format format, struct json_object *rows,
                                 struct lm_error *err)
{
    struct result_column columns[MAX_COLUMNS];
    size_t n = 0;
    put(columns, &n, "model", "name", false, name_cell);
    put(columns, &n, "size", "size_bytes", true, bytes_cell);
    put(columns, &n, "params", "n_params", true, count_cell);
    put_settings(columns, &n, rows);
    if (has_device_experts(rows)) {
        put(columns, &n, "VRAM hits", "hit_rate", true, device_share_cell);
        put(columns, &n, "misses on CPU", "cpu_share", true, device_share_cell);
    }
    if (has_experts(rows)) {
        put(columns, &n, "resident", "resident_share", true, share_cell);
        put(columns, &n, "hits", "hit_rate", true, share_cell);
        put(columns, &n, "recall", "prefetch_recall", true, share_cell);
        put(columns, &n, "precision", "prefetch_precision", true, share_cell);
        put(columns, &n, "waiting", "wait_share", true, share_cell);
        put(columns, &n, "disk GB/s", "disk_bytes_s", true, disk_cell);
    }
    if (has_drafts(rows)) put(columns, &n, "drafts right", "", true, drafts_cell);
    put(columns, &n, "test", "test", true, text_cell);
    put(columns, &n, "t/s", "", true, rate_cell);
    const enum lm_status status = result_table_print(out, format, rows, columns, n, err);
    if (status == LM_OK && format == RESULT_MD)
        fprintf(out, "\nTimed are %s.\n",
                json_object_get_string(field(json_object_array_get_idx(rows, 0), NULL, "timed")));
    return status;
}

struct formats {
    enum result_format out, also;
    bool has_also;
};

static enum lm_status read_formats(struct formats *formats, const struct options *options,
                                   struct lm_error *err)
{
    const char *out = options_string(options, "output"), *also = options_string(options, "oe");
    const char *usual = options_flag(options, "json") ? "json" : "md";
    formats->has_also = also != NULL;
    const enum lm_status status = result_format_parse(&formats->out, "-o", out ? out : usual, err);
    return status == LM_OK && also ? result_format_parse(&formats->also, "-oe", also, err) : status;
}

static enum lm_status print_all(const struct formats *formats, struct json_object *rows,
                                struct lm_error *err)
{
    enum lm_status status = LM_OK;
    if (!json_object_array_length(rows)) return LM_OK;
    if (formats->has_also) status = print_rows(stderr, formats->also, rows, err);
    return status == LM_OK ? print_rows(stdout, formats->out, rows, err) : status;
}

/* ---- arms --------------------------------------------------------------------------------- */

enum { MAX_AXES = 16 };

struct axis {
    const struct option_spec *table, *spec;
    struct value_list values;
};

struct arms {
    struct axis axis[MAX_AXES];
    size_t n;
    uint64_t n_arm;
};

static void arms_fini(struct arms *arms)
{
    for (size_t i = 0; i < arms->n; i++)
        value_list_fini(&arms->axis[i].values);
    arms->n = 0;
}

/* The options with several values. */
static enum lm_status find_arms(struct arms *arms, const struct options *options,
                                struct lm_error *err)
{
    enum lm_status status = LM_OK;
    *arms = (struct arms){.n_arm = 1};
    for (size_t t = 0; engine_tables[t] && status == LM_OK; t++)
        for (const struct option_spec *spec = engine_tables[t]; spec->name; spec++) {
            struct value_list values;
            status = options_list(options, spec->name, &values, err);
            if (status != LM_OK) break;
            if (values.n < 2) {
                value_list_fini(&values);
                continue;
            }
            if (arms->n == MAX_AXES || arms->n_arm * values.n > MAX_TESTS) {
                value_list_fini(&values);
                status = lm_fail(err, LM_E_USAGE, "more than %d combinations", MAX_TESTS);
                break;
            }
            arms->n_arm *= values.n;
            arms->axis[arms->n++] =
                (struct axis){.table = engine_tables[t], .spec = spec, .values = values};
        }
    if (status != LM_OK) arms_fini(arms);
    return status;
}

bool bench_engine_has_arms(const struct options *options)
{
    struct arms arms;
    const bool several = find_arms(&arms, options, NULL) == LM_OK && arms.n_arm > 1;
    arms_fini(&arms);
    return several;
}

/* Gives each option the value of arm number i; the last axis turns fastest. name: of the arm. */
static enum lm_status choose_arm(struct options *options, const struct arms *arms, uint64_t i,
                                 char *name, size_t size, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    size_t used = 0;
    uint64_t left = arms->n_arm;
    *name = 0;
    for (size_t a = 0; a < arms->n && status == LM_OK; a++) {
        const struct axis *axis = &arms->axis[a];
        left /= axis->values.n;
        const char *text = axis->values.text[i / left % axis->values.n];
        status = options_set(options, axis->table, axis->spec->name, text, err);
        if (used < size)
            used += (size_t)snprintf(name + used, size - used, "%s--%s %s", a ? " " : "",
                                     axis->spec->name, text);
    }
    return status;
}

/* The words of this command, with the values of the arm; its results as lines of JSON. */
static enum lm_status arm_words(struct child_words *words, const struct options *options,
                                struct lm_error *err)
{
    static const struct option_spec *const tables[] = {
        options_bench, options_bench_tests, options_engine, options_cluster, options_common, NULL};
    enum lm_status status = child_words_add(words, err, "bench");
    for (size_t t = 0; tables[t] && status == LM_OK; t++)
        for (const struct option_spec *spec = tables[t]; spec->name && status == LM_OK; spec++)
            if (strcmp(spec->name, "output") && strcmp(spec->name, "oe") &&
                strcmp(spec->name, "json"))
                status = child_words_add_option(words, options, spec, err);
    if (status == LM_OK) status = child_words_add(words, err, "--output=jsonl");
    if (status == LM_OK && options_n_arg(options)) {
        status = child_words_add(words, err, "--");
        if (status == LM_OK) status = child_words_add(words, err, "%s", options_arg(options, 0));
    }
    return status;
}

static enum lm_status append_lines(struct json_object *rows, char *lines, struct lm_error *err)
{
    char *state = NULL;
    for (char *line = strtok_r(lines, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        struct json_object *row = json_tokener_parse(line);
        if (!row) return lm_fail(err, LM_E_FORMAT, "an arm printed what is no row: %.80s", line);
        json_object_array_add(rows, row);
    }
    return LM_OK;
}

/* failed: an arm's own failure, which does not end the others. */
static enum lm_status run_arm(struct options *options, const char *name, struct json_object *rows,
                              enum lm_status *failed, struct lm_error *err)
{
    struct child_words words = {0};
    struct child_result result = {0};
    enum lm_status status = arm_words(&words, options, err);
    if (status == LM_OK) status = child_run(&words, NULL, 0, &result, err);
    if (status == LM_OK && result.exit_code) {
        log_warning("%s: ended with exit code %d", name, result.exit_code);
        if (*failed == LM_OK) *failed = child_status(result.exit_code);
    }
    if (status == LM_OK) status = append_lines(rows, result.out, err);
    child_result_fini(&result);
    child_words_fini(&words);
    return status;
}

static enum lm_status run_arms(struct options *options, struct json_object *rows,
                               struct lm_error *err)
{
    struct arms arms;
    char name[400];
    enum lm_status failed = LM_OK, status = find_arms(&arms, options, err);
    const uint64_t n_arm = arms.n_arm;
    for (uint64_t i = 0; i < n_arm && status == LM_OK; i++) {
        status = choose_arm(options, &arms, i, name, sizeof(name), err);
        if (status == LM_OK) log_verbose("%s", name);
        if (status == LM_OK) status = run_arm(options, name, rows, &failed, err);
    }
    arms_fini(&arms);
    if (status == LM_OK && failed != LM_OK)
        status = lm_fail(err, failed, "not all of %llu combinations could be measured",
                         (unsigned long long)n_arm);
    return status;
}

enum lm_status bench_engine(struct options *options, struct lm_error *err)
{
    struct formats formats;
    struct tests *const tests = calloc(1, sizeof(*tests));
    struct json_object *rows = json_object_new_array();
    enum lm_status status = tests && rows ? read_formats(&formats, options, err)
                                          : lm_fail(err, LM_E_NO_MEM, "no memory for tests");
    if (status == LM_OK) status = read_tests(tests, options, err);
    if (status == LM_OK && bench_engine_has_arms(options)) {
        status = child_check_alone(err);
        if (status == LM_OK) status = run_arms(options, rows, err);
    } else if (status == LM_OK) {
        const struct engine_plan plan = {.test = tests->test,
                                         .n_test = tests->n,
                                         .n_repeat = (uint32_t)options_int(options, "repetitions"),
                                         .n_warmup = (uint32_t)options_int(options, "warmup"),
                                         .delay_s = options_float(options, "delay"),
                                         .prompts = options_string(options, "prompts"),
                                         .seed = (uint64_t)options_int(options, "seed"),
                                         .tables = engine_tables};
        status = engine_rows_measure(rows, options, &plan, err);
    }
    /* what was measured before something failed is told all the same */
    struct lm_error unprinted;
    const enum lm_status printed =
        tests && tests->n ? print_all(&formats, rows, status == LM_OK ? err : &unprinted) : LM_OK;
    json_object_put(rows);
    free(tests);
    return status == LM_OK ? printed : status;
}
