/* Option tables: parsing, checks by kind, values by name. */
#include "launch/options.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/engine.h"

#include "launch/config.h"
#include "launch/value_list.h"
#include "proto/base/nearest.h"
#include "proto/base/units.h"

const struct option_spec options_common[] = {
    {"help", 'h', OPTION_FLAG, .help = "show this help"},
    {"json", 0, OPTION_FLAG, .help = "print JSON, and nothing else, on stdout"},
    {"quiet", 'q', OPTION_FLAG, .help = "print errors only"},
    {"verbose", 'v', OPTION_FLAG, .help = "say more; -vv for debugging", .repeat = true},
    {"progress", 0, OPTION_ENUM, "auto|tty|plain|none", .def = "auto",
     .help = "how progress is shown on stderr"},
    {"color", 0, OPTION_ENUM, "auto|always|never", .def = "auto",
     .help = "colours; auto: on a terminal, unless NO_COLOR is set or TERM is dumb"},
    {"config", 0, OPTION_PATH, "FILE", .help = "configuration file to read (or LEAN_CONFIG)"},
    {0},
};

const struct option_spec options_lists[] = {{0}};

const struct option_spec options_engine[] = {
    {"ctx", 'c', OPTION_INT, "N", .key = "model.ctx", .min = 1, .max = ENGINE_N_CTX_MAX,
     .help = "context of one sequence in tokens; default: what fits, at most the trained context"},
    {"parallel", 0, OPTION_INT, "N", .key = "serve.parallel", .min = 1, .max = 64,
     .help = "sequences held at once; default: 1, of a server what memory allows"},
    {"threads", 't', OPTION_INT, "N", .key = "compute.threads", .min = 1, .max = 1024,
     .help = "compute threads; default: the physical cores"},
    {"kernels", 0, OPTION_ENUM, "auto|ref|avx2|avx512", .def = "auto", .key = "compute.kernels",
     .help = "CPU kernels; all give the same bits"},
    {"kv-type", 0, OPTION_ENUM, "f16|bf16|f32|q8_0", .def = "f16", .key = "compute.kv_type",
     .help = "element type of the KV cache"},
    {"prefill-chunk", 0, OPTION_INT, "N|auto", .def = "auto", .key = "schedule.prefill_chunk",
     .min = 1, .max = 65536, .help = "prompt tokens computed in one step"},
    {"prompt-lookup", 0, OPTION_ENUM, "auto|on|off", .def = "auto", .key = "schedule.prompt_lookup",
     .help = "draft what followed when the last tokens occurred before, and verify that: the same "
             "output; auto: while it is faster"},
    {"mtp", 0, OPTION_ENUM, "auto|on|off", .def = "auto", .key = "schedule.mtp",
     .help =
         "drafts by the model's own layer for multi-token prediction, verified: the same output; "
         "auto: once that was faster, if no expert is paged for it"},
    {"draft-max", 0, OPTION_INT, "N", .def = "8", .key = "schedule.draft_max", .min = 1,
     .max = STEP_DRAFT_MAX, .help = "tokens that are drafted at once"},
    {"ram", 0, OPTION_SIZE, "SIZE", .key = "tiers.ram.size",
     .help = "memory budget, of each rank; default: what is free but a reserve"},
    {"expert-slots", 0, OPTION_STRING, "N|P%|min", .key = "tiers.expert_slots",
     .help = "experts kept in memory: a number, a share, or the fewest that run; default: what "
             "the budget holds"},
    {"policy", 0, OPTION_ENUM, "lfru|lru|static", .def = "lfru", .key = "tiers.policy",
     .help = "which experts stay in memory"},
    {"prefetch", 0, OPTION_ENUM, "auto|on|off", .def = "auto", .key = "tiers.prefetch",
     .help = "read experts before they are needed; auto: while it pays"},
    {"profile", 0, OPTION_PATH, "FILE|none", .key = "tiers.profile",
     .help = "routing profile for the start; default: the model's own, kept from run to run"},
    {"io", 0, OPTION_ENUM, "auto|uring|pread|buffered", .def = "auto", .key = "tiers.ssd.io",
     .help = "how experts are read"},
    {"device", 0, OPTION_STRING, "cpu|cuda[:N]|emu", .key = "compute.device",
     .help = "where layers are computed; default: CUDA where there is a device, else the CPU; emu: "
             "CUDA kernels compiled for the host"},
    {"gpu-layers", 0, OPTION_INT, "N", .key = "compute.gpu_layers", .min = 0, .max = 65536,
     .help = "the last N layers on the device, the others on the CPU; default: as many as fit"},
    {"numerics", 0, OPTION_ENUM, "exact|fast", .def = "exact", .key = "compute.numerics",
     .help = "fast: prompts by cuBLAS and floating-point tensor cores where layers are on a GPU; "
             "the output then depends on how they are cut into steps"},
    {"devices", 0, OPTION_STRING, "LIST", .key = "cluster.devices",
     .help = "which devices of a host its ranks take, by number or UUID, as 0,1,2; default: all"},
    {"share-gpu", 0, OPTION_FLAG, .key = "cluster.share_gpu",
     .help = "more ranks on a host than it has devices may share them"},
    {"vram", 0, OPTION_SIZE, "SIZE", .key = "tiers.vram.size",
     .help = "budget of each device's memory; default: what is free but a reserve"},
    {"miss", 0, OPTION_ENUM, "auto|gpu|cpu|hybrid", .def = "auto", .key = "tiers.vram.miss",
     .help = "experts that are not in the device's memory are copied there (gpu), computed on the "
             "CPU (cpu), or some of each (hybrid); auto: what is faster"},
    {"tuned", 0, OPTION_FLAG, .def = "on", .key = "compute.tuned",
     .help = "leave out what lean bench tune has kept for the model on this machine"},
    {"trace", 0, OPTION_PATH, "FILE",
     .help = "record the routing of every token and layer; nothing is drafted then"},
    {0},
};

const struct option_spec options_cluster[] = {
    {"ranks", 0, OPTION_INT, "N", .key = "cluster.ranks", .min = 1, .max = 1024,
     .help = "processes that hold the layers together, each some of them; default: 1, with hosts "
             "their slots"},
    {"hosts", 0, OPTION_STRING, "LIST", .key = "cluster.hosts",
     .help = "where the ranks run: a,b:2 is one on host a and two on b; rank 0 on the first"},
    {"hostfile", 0, OPTION_PATH, "FILE", .key = "cluster.hostfile",
     .help = "the same from a file, a line for each host: NAME [slots=N]"},
    {"partition", 0, OPTION_STRING, "N,N,...", .key = "cluster.partition.layers",
     .help = "layers of each rank; default: as what each can do suggests"},
    {"partition-objective", 0, OPTION_ENUM, "throughput|latency", .def = "throughput",
     .key = "cluster.partition.objective",
     .help = "what the layers are shared out for: many sequences at once, or one"},
    {"transport", 0, OPTION_ENUM, "auto|mpi|nccl", .def = "auto", .key = "cluster.transport",
     .help = "what carries activations from rank to rank; auto: NCCL between GPUs, else MPI"},
    {"slack", 0, OPTION_INT, "N", .def = "1", .key = "schedule.slack", .min = 0, .max = 8,
     .help = "steps under way beyond one for each rank, for where one waits for its disk"},
    {"edge-depth", 0, OPTION_INT, "N", .def = "3", .key = "cluster.edge_depth", .min = 2, .max = 7,
     .help = "buffers of a rank for what it receives, computes and sends"},
    {"restart", 0, OPTION_FLAG, .key = "cluster.restart",
     .help = "start again when a rank or a link was lost"},
    {"hold-port", 0, OPTION_FLAG, .key = "cluster.hold_port",
     .help = "of a server with --restart: answer 503 on its port while it starts again"},
    {"allow-root", 0, OPTION_FLAG, .help = "let mpirun start ranks as root"},
    {"interface", 0, OPTION_STRING, "NET", .key = "cluster.interface",
     .help = "network between hosts, as 10.0.0.0/24 or eth0; default: any that reaches them"},
    {"startup-timeout", 0, OPTION_TIME, "T", .def = "300s", .key = "cluster.startup_timeout",
     .help = "how long all ranks may take until they are ready"},
    {"liveness-timeout", 0, OPTION_TIME, "T", .def = "5s", .key = "cluster.liveness_timeout",
     .help = "a rank that is silent for so long is lost"},
    {"stall-timeout", 0, OPTION_TIME, "T", .def = "60s", .key = "cluster.stall_timeout",
     .help = "a step that stands still for so long ends the job; 0s: it never does"},
    {"spin-us", 0, OPTION_INT, "N", .def = "200", .key = "cluster.spin_us", .min = 0,
     .max = 1000000, .help = "microseconds that a rank tests for messages before it sleeps"},
    {0},
};

const struct option_spec options_sampling[] = {
    {"temperature", 0, OPTION_FLOAT, "T", .key = "model.sampling.temperature", .min = 0, .max = 100,
     .help = "0: always the likeliest token; default: the model's own, else 1"},
    {"top-p", 0, OPTION_FLOAT, "P", .key = "model.sampling.top_p", .min = 0, .max = 1,
     .help = "smallest set of tokens of this probability; 1: off, 0: greedy"},
    {"top-k", 0, OPTION_INT, "K", .key = "model.sampling.top_k", .min = -1, .max = INT32_MAX,
     .help = "the K likeliest tokens; 0 or -1: off"},
    {"min-p", 0, OPTION_FLOAT, "P", .key = "model.sampling.min_p", .min = 0, .max = 1,
     .help = "tokens at least this likely relative to the top one; 0: off"},
    {"typical-p", 0, OPTION_FLOAT, "P", .key = "model.sampling.typical_p", .min = 0, .max = 1,
     .help = "locally typical tokens of this probability; 1: off"},
    {"presence-penalty", 0, OPTION_FLOAT, "X", .key = "model.sampling.presence_penalty", .min = -2,
     .max = 2, .help = "subtracted from tokens already generated"},
    {"frequency-penalty", 0, OPTION_FLOAT, "X", .key = "model.sampling.frequency_penalty",
     .min = -2, .max = 2, .help = "the same, times how often"},
    {"repetition-penalty", 0, OPTION_FLOAT, "X", .key = "model.sampling.repetition_penalty",
     .min = 0, .max = 2, .help = "divides the logits of recent tokens; 1: off"},
    {"repeat-last-n", 0, OPTION_INT, "N", .key = "model.sampling.repeat_last_n", .min = -1,
     .max = INT32_MAX, .help = "tokens that the repetition penalty looks back on; -1: all"},
    {"dry-multiplier", 0, OPTION_FLOAT, "X", .key = "model.sampling.dry_multiplier", .min = 0,
     .max = 100, .help = "strength of the penalty on repeated sequences (DRY); 0: off"},
    {"dry-base", 0, OPTION_FLOAT, "X", .key = "model.sampling.dry_base", .min = 1, .max = 100,
     .help = "its growth per repeated token"},
    {"dry-allowed-length", 0, OPTION_INT, "N", .key = "model.sampling.dry_allowed_length", .min = 0,
     .max = INT32_MAX, .help = "longest repetition that is not penalized"},
    {"dry-penalty-last-n", 0, OPTION_INT, "N", .key = "model.sampling.dry_penalty_last_n",
     .min = -1, .max = INT32_MAX, .help = "tokens that DRY looks back on; -1: all"},
    {"logit-bias", 0, OPTION_STRING, "ID=X", .repeat = true,
     .help = "add X (-100 to 100) to the logit of a token; -100 forbids it"},
    {"seed", 0, OPTION_INT, "N", .help = "same seed, prompt and settings: same answer"},
    {"max-tokens", 'n', OPTION_INT, "N", .key = "model.sampling.max_tokens", .min = -1,
     .max = INT32_MAX, .help = "longest answer; -1: to the end of the context"},
    {"min-tokens", 0, OPTION_INT, "N", .min = 0, .max = INT32_MAX,
     .help = "end tokens and stop strings do not act before"},
    {"stop", 0, OPTION_STRING, "S", .repeat = true, .help = "end the answer before this text"},
    {"ignore-eos", 0, OPTION_FLAG, .help = "go on after end tokens"},
    {0},
};

struct slot {
    const struct option_spec *spec;
    const char **values; /* [n_value], borrowed from argv, or owned */
    size_t n_value;
    bool owned;
    bool configured; /* the configuration gave them */
    bool takes_list;
};

struct options {
    struct slot *slots; /* [n_slot], one per option of the tables */
    size_t n_slot;
    const char **args; /* [n_arg] positional */
    size_t n_arg;
    const struct config *config; /* borrowed */
};

/* ---- values by kind ---- */

static bool read_int(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    if (end == text || *end || isspace((unsigned char)*text) || errno) return false;
    *out = value;
    return true;
}

static bool read_float(const char *text, double *out)
{
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || isspace((unsigned char)*text) || !isfinite(value)) return false;
    *out = value;
    return true;
}

static bool takes_auto(const struct option_spec *spec)
{
    return spec->kind == OPTION_INT && spec->metavar && strstr(spec->metavar, "|auto");
}

/* Whether text is one of the words of "a|b|c". */
static bool is_word_of(const char *words, const char *text)
{
    const size_t n = strlen(text);
    while (*words) {
        const size_t length = strcspn(words, "|");
        if (length == n && !memcmp(words, text, n)) return true;
        words += length + (words[length] == '|');
    }
    return false;
}

static enum lm_status check_bounds(const struct option_spec *spec, const char *name, double value,
                                   struct lm_error *err)
{
    if (spec->min == 0 && spec->max == 0) return LM_OK;
    if (value >= spec->min && value <= spec->max) return LM_OK;
    if (value < spec->min)
        return lm_fail(err, LM_E_USAGE, "%s must be at least %.10g, got %.10g", name, spec->min,
                       value);
    return lm_fail(err, LM_E_USAGE, "%s must be at most %.10g, got %.10g", name, spec->max, value);
}

enum lm_status option_check(const struct option_spec *spec, const char *name, const char *text,
                            struct lm_error *err)
{
    static const char *const kind_names[] = {
        [OPTION_FLAG] = "on or off",          [OPTION_INT] = "an integer",
        [OPTION_FLOAT] = "a number",          [OPTION_SIZE] = "a size such as 64M or 1.5GiB",
        [OPTION_TIME] = "a time such as 30s", [OPTION_ENUM] = "one of",
    };
    int64_t whole;
    uint64_t n_bytes;
    double number = 0;
    bool good = true;
    if (!*text) return LM_OK;
    switch (spec->kind) {
    case OPTION_FLAG:
        good = is_word_of("on|off", text);
        break;
    case OPTION_INT:
        if (takes_auto(spec) && !strcmp(text, "auto")) return LM_OK;
        good = read_int(text, &whole);
        if (good) return check_bounds(spec, name, (double)whole, err);
        break;
    case OPTION_FLOAT:
        good = read_float(text, &number);
        if (good) return check_bounds(spec, name, number, err);
        break;
    case OPTION_SIZE:
        good = units_parse_bytes(text, &n_bytes);
        break;
    case OPTION_TIME:
        good = units_parse_seconds(text, &number);
        break;
    case OPTION_ENUM:
        good = is_word_of(spec->metavar, text);
        break;
    case OPTION_STRING:
    case OPTION_PATH:
        break;
    }
    if (good) return LM_OK;
    return lm_fail(err, LM_E_USAGE, "%s must be %s%s%s, got '%.80s'", name, kind_names[spec->kind],
                   spec->kind == OPTION_ENUM ? " " : "",
                   spec->kind == OPTION_ENUM ? spec->metavar
                   : takes_auto(spec)        ? " or auto"
                                             : "",
                   text);
}

/* ---- parsing ---- */

static struct slot *find_slot(const struct options *options, const char *name, size_t n)
{
    for (size_t i = 0; i < options->n_slot; i++) {
        const char *known = options->slots[i].spec->name;
        if (strlen(known) == n && !memcmp(known, name, n)) return &options->slots[i];
    }
    return NULL;
}

static struct slot *find_letter(const struct options *options, char letter)
{
    for (size_t i = 0; i < options->n_slot; i++)
        if (options->slots[i].spec->letter == letter) return &options->slots[i];
    return NULL;
}

/* Names of hosts, layers of ranks and paths hold commas of their own. */
static bool may_take_list(const struct option_spec *spec)
{
    switch (spec->kind) {
    case OPTION_FLAG:
        return false;
    case OPTION_STRING:
    case OPTION_PATH:
        return strchr(spec->metavar, '|') != NULL;
    default:
        return true;
    }
}

static enum lm_status check_list(const struct option_spec *spec, const char *name, const char *text,
                                 struct lm_error *err)
{
    struct value_list list;
    if (!*text) return LM_OK;
    const enum lm_status status = value_list_parse(&list, spec, name, text, err);
    if (status == LM_OK) value_list_fini(&list);
    return status;
}

static enum lm_status add_value(struct slot *slot, const char *text, struct lm_error *err)
{
    char name[80];
    snprintf(name, sizeof(name), "--%s", slot->spec->name);
    const enum lm_status status = slot->takes_list ? check_list(slot->spec, name, text, err)
                                                   : option_check(slot->spec, name, text, err);
    if (status != LM_OK) return status;
    const size_t n_kept = slot->spec->repeat ? slot->n_value : 0;
    const char **values = realloc(slot->values, (n_kept + 1) * sizeof(*values));
    if (!values) return lm_fail(err, LM_E_NO_MEM, "no memory for options");
    slot->values = values;
    slot->values[n_kept] = text;
    slot->n_value = n_kept + 1;
    return LM_OK;
}

static enum lm_status fail_unknown(const struct options *options, const char *word,
                                   struct lm_error *err)
{
    const size_t n = strcspn(word, "=");
    char name[80];
    snprintf(name, sizeof(name), "%.*s", (int)(n < 79 ? n : 79), word);
    struct nearest nearest = {.word = name + strspn(name, "-")};
    for (size_t i = 0; i < options->n_slot; i++)
        nearest_offer(&nearest, options->slots[i].spec->name);
    lm_fail(err, LM_E_USAGE, "unknown option %s", name);
    if (nearest_name(&nearest) && err) {
        const size_t used = strlen(err->message);
        snprintf(err->message + used, sizeof(err->message) - used, ", did you mean --%s?",
                 nearest_name(&nearest));
    }
    return LM_E_USAGE;
}

/* The value of an option that needs one: attached to its word, or the next word. */
static enum lm_status take_value(struct slot *slot, const char *attached, int argc,
                                 char *const *argv, int *i, struct lm_error *err)
{
    if (attached) return add_value(slot, attached, err);
    if (*i + 1 >= argc)
        return lm_fail(err, LM_E_USAGE, "--%s needs a value (%s)", slot->spec->name,
                       slot->spec->metavar ? slot->spec->metavar : "VALUE");
    return add_value(slot, argv[++*i], err);
}

static enum lm_status parse_long(struct options *options, int argc, char *const *argv, int *i,
                                 struct lm_error *err)
{
    const char *name = argv[*i] + (argv[*i][1] == '-' ? 2 : 1);
    const size_t n = strcspn(name, "=");
    const char *attached = name[n] ? name + n + 1 : NULL;
    struct slot *slot = find_slot(options, name, n);
    const char *flag_value = "on";
    if (!slot && n > 3 && !strncmp(name, "no-", 3)) {
        slot = find_slot(options, name + 3, n - 3);
        if (slot && slot->spec->kind != OPTION_FLAG) slot = NULL;
        flag_value = "off";
    }
    if (!slot) return fail_unknown(options, argv[*i], err);
    if (slot->spec->kind != OPTION_FLAG) return take_value(slot, attached, argc, argv, i, err);
    if (attached)
        return lm_fail(err, LM_E_USAGE, "--%s takes no value; --no-%s turns it off",
                       slot->spec->name, slot->spec->name);
    return add_value(slot, flag_value, err);
}

/* A word such as -pg: the name of an option of two letters. */
static bool is_short_name(const struct options *options, const char *word)
{
    const size_t n = strcspn(word + 1, "=");
    return n == 2 && find_slot(options, word + 1, n);
}

/* A word such as -vv, -n5 or -n: letters of flags until one that takes the rest as its value. */
static enum lm_status parse_letters(struct options *options, int argc, char *const *argv, int *i,
                                    struct lm_error *err)
{
    for (const char *letter = argv[*i] + 1; *letter; letter++) {
        struct slot *slot = find_letter(options, *letter);
        if (!slot) return fail_unknown(options, argv[*i], err);
        if (slot->spec->kind != OPTION_FLAG)
            return take_value(slot, letter[1] ? letter + 1 : NULL, argc, argv, i, err);
        const enum lm_status status = add_value(slot, "on", err);
        if (status != LM_OK) return status;
    }
    return LM_OK;
}

static enum lm_status parse_words(struct options *options, int argc, char *const *argv,
                                  struct lm_error *err)
{
    enum lm_status status = LM_OK;
    bool ended = false;
    for (int i = 0; i < argc && status == LM_OK; i++) {
        const char *word = argv[i];
        if (ended || word[0] != '-' || !word[1])
            options->args[options->n_arg++] = word;
        else if (!strcmp(word, "--"))
            ended = true;
        else if (word[1] == '-' || is_short_name(options, word))
            status = parse_long(options, argc, argv, &i, err);
        else
            status = parse_letters(options, argc, argv, &i, err);
    }
    return status;
}

static size_t table_length(const struct option_spec *table)
{
    size_t n = 0;
    while (table[n].name)
        n++;
    return n;
}

static void add_table(struct options *options, const struct option_spec *table, bool takes_lists)
{
    for (; table->name; table++) {
        assert(!find_slot(options, table->name, strlen(table->name)));
        assert(!table->letter || !find_letter(options, table->letter));
        options->slots[options->n_slot].takes_list = takes_lists && may_take_list(table);
        options->slots[options->n_slot++].spec = table;
    }
}

enum lm_status options_parse(struct options **out, const struct option_spec *const *tables,
                             int argc, char *const *argv, struct lm_error *err)
{
    static const struct option_spec *const no_tables[] = {NULL};
    if (!tables) tables = no_tables;
    size_t n_slot = table_length(options_common);
    for (size_t i = 0; tables[i]; i++)
        n_slot += table_length(tables[i]);

    struct options *options = calloc(1, sizeof(*options));
    if (options) {
        options->slots = calloc(n_slot, sizeof(*options->slots));
        options->args = calloc((size_t)argc + 1, sizeof(*options->args));
    }
    if (!options || !options->slots || !options->args) {
        options_destroy(options);
        return lm_fail(err, LM_E_NO_MEM, "no memory for options");
    }
    bool takes_lists = false;
    for (size_t i = 0; tables[i]; i++) {
        takes_lists |= tables[i] == options_lists;
        add_table(options, tables[i], takes_lists);
    }
    add_table(options, options_common, false);

    const enum lm_status status = parse_words(options, argc, argv, err);
    if (status != LM_OK) {
        options_destroy(options);
        return status;
    }
    *out = options;
    return LM_OK;
}

static void clear_slot(struct slot *slot)
{
    for (size_t v = 0; slot->owned && v < slot->n_value; v++)
        free((char *)slot->values[v]);
    slot->n_value = 0;
    slot->configured = false;
}

/* As add_value, of malloc'ed text that the slot then owns. */
static enum lm_status add_owned(struct slot *slot, char *text, struct lm_error *err)
{
    const enum lm_status status =
        text ? add_value(slot, text, err) : lm_fail(err, LM_E_NO_MEM, "no memory for options");
    if (status != LM_OK) free(text);
    return status;
}

enum lm_status options_fill(struct options *options, const struct config *config,
                            struct lm_error *err)
{
    enum lm_status status = LM_OK;
    options->config = config;
    for (size_t s = 0; s < options->n_slot && status == LM_OK; s++) {
        struct slot *slot = &options->slots[s];
        if (!slot->spec->key || slot->n_value) continue;
        slot->owned = slot->configured = true;
        char *text;
        for (size_t i = 0; status == LM_OK; i++) {
            status = config_get(config, slot->spec->key, i, &text, err);
            if (status != LM_OK || !text) break;
            status = add_owned(slot, text, err);
        }
    }
    return status;
}

/* The slot of the same option in another set, borrowing its values. */
static enum lm_status copy_slot(struct slot *to, const struct slot *from, struct lm_error *err)
{
    to->spec = from->spec;
    if (from->configured || !from->n_value) return LM_OK;
    to->values = malloc(from->n_value * sizeof(*to->values));
    if (!to->values) return lm_fail(err, LM_E_NO_MEM, "no memory for options");
    memcpy(to->values, from->values, from->n_value * sizeof(*to->values));
    to->n_value = from->n_value;
    return LM_OK;
}

enum lm_status options_refill(struct options **out, const struct options *options,
                              const struct config *config, struct lm_error *err)
{
    struct options *copy = calloc(1, sizeof(*copy));
    if (copy) copy->slots = calloc(options->n_slot, sizeof(*copy->slots));
    enum lm_status status = LM_OK;
    if (!copy || !copy->slots) status = lm_fail(err, LM_E_NO_MEM, "no memory for options");
    for (size_t i = 0; i < options->n_slot && status == LM_OK; i++, copy->n_slot++)
        status = copy_slot(&copy->slots[i], &options->slots[i], err);
    if (status == LM_OK) status = options_fill(copy, config, err);
    if (status != LM_OK) {
        options_destroy(copy);
        return status;
    }
    copy->config = NULL;
    *out = copy;
    return LM_OK;
}

const struct config *options_config(const struct options *options)
{
    return options->config;
}

enum lm_status options_set(struct options *options, const struct option_spec *table,
                           const char *name, const char *text, struct lm_error *err)
{
    struct nearest nearest = {.word = name};
    const struct option_spec *spec = table;
    for (; spec->name && strcmp(spec->name, name); spec++)
        nearest_offer(&nearest, spec->name);
    if (!spec->name) {
        const char *near = nearest_name(&nearest);
        return lm_fail(err, LM_E_USAGE, "unknown setting '%.80s'%s%s%s", name,
                       near ? ", did you mean " : "", near ? near : "", near ? "?" : "");
    }
    struct slot *slot = find_slot(options, name, strlen(name));
    assert(slot && "table is one of the command's");
    enum lm_status status = text ? option_check(spec, name, text, err) : LM_OK;
    if (status != LM_OK) return status;
    /* A repeated option that is set adds to what was set before, as on the command line. */
    if (!text || !spec->repeat || !slot->owned) clear_slot(slot);
    slot->owned = true;
    return text ? add_owned(slot, strdup(text), err) : LM_OK;
}

void options_destroy(struct options *options)
{
    if (!options) return;
    for (size_t i = 0; i < options->n_slot; i++) {
        clear_slot(&options->slots[i]);
        free(options->slots[i].values);
    }
    free(options->slots);
    free(options->args);
    free(options);
}

/* ---- values by name ---- */

static const struct slot *known_slot(const struct options *options, const char *name)
{
    const struct slot *slot = find_slot(options, name, strlen(name));
    assert(slot && "an option of the command's tables");
    return slot;
}

/* The text that counts: the last one given, unless it is empty, else the default; may be NULL. */
static const char *effective_text(const struct options *options, const char *name)
{
    const struct slot *slot = known_slot(options, name);
    const char *given = slot->n_value ? slot->values[slot->n_value - 1] : NULL;
    return given && *given ? given : slot->spec->def;
}

bool options_given(const struct options *options, const char *name)
{
    return known_slot(options, name)->n_value > 0;
}

bool options_said(const struct options *options, const char *name)
{
    const struct slot *slot = known_slot(options, name);
    return slot->n_value > 0 && !slot->configured;
}

bool options_flag(const struct options *options, const char *name)
{
    const char *text = effective_text(options, name);
    return text && !strcmp(text, "on");
}

int64_t options_int(const struct options *options, const char *name)
{
    const char *text = effective_text(options, name);
    int64_t value = 0;
    return text && read_int(text, &value) ? value : 0;
}

double options_float(const struct options *options, const char *name)
{
    const bool is_time = known_slot(options, name)->spec->kind == OPTION_TIME;
    const char *text = effective_text(options, name);
    double value;
    if (!text || !(is_time ? units_parse_seconds(text, &value) : read_float(text, &value)))
        return NAN;
    return value;
}

uint64_t options_size(const struct options *options, const char *name)
{
    const char *text = effective_text(options, name);
    uint64_t n_bytes = 0;
    return text && units_parse_bytes(text, &n_bytes) ? n_bytes : 0;
}

const char *options_string(const struct options *options, const char *name)
{
    return effective_text(options, name);
}

size_t options_count(const struct options *options, const char *name)
{
    return known_slot(options, name)->n_value;
}

const char *options_string_at(const struct options *options, const char *name, size_t i)
{
    const struct slot *slot = known_slot(options, name);
    assert(i < slot->n_value);
    return slot->values[i];
}

enum lm_status options_list(const struct options *options, const char *name, struct value_list *out,
                            struct lm_error *err)
{
    const struct slot *slot = known_slot(options, name);
    const char *text = effective_text(options, name);
    char dashed[80];
    snprintf(dashed, sizeof(dashed), "--%s", name);
    *out = (struct value_list){0};
    if (!text) return LM_OK;
    if (slot->takes_list) return value_list_parse(out, slot->spec, dashed, text, err);
    out->text = calloc(1, sizeof(char *));
    if (out->text && (out->text[0] = strdup(text))) out->n = 1;
    if (out->n) return LM_OK;
    value_list_fini(out);
    return lm_fail(err, LM_E_NO_MEM, "%s: no memory", dashed);
}

size_t options_n_arg(const struct options *options)
{
    return options->n_arg;
}

const char *options_arg(const struct options *options, size_t i)
{
    assert(i < options->n_arg);
    return options->args[i];
}
