/* lean run: one answer to a prompt, or a conversation on the terminal. */
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <json-c/json.h>

#include "launch/command.h"
#include "launch/job.h"
#include "launch/loading_view.h"
#include "launch/model_ref.h"
#include "launch/pager_report.h"
#include "launch/run.h"
#include "launch/terminal/interrupt.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "worker/pager/pager_snapshot.h"

enum { MAX_PROMPT_BYTES = 64 << 20 };

static const struct option_spec run_options[] = {
    {"raw", 0, OPTION_FLAG, .help = "continue the text as it is, without a chat template"},
    {"show-thinking", 0, OPTION_FLAG,
     .help = "show what the model reasons before it answers (interactively the default)"},
    {"hide-thinking", 0, OPTION_FLAG, .help = "do not show it"},
    {"wrap", 0, OPTION_FLAG, .def = "on", .help = "do not break lines at the terminal's width"},
    {"history", 0, OPTION_FLAG, .def = "on", .help = "keep no history of what is entered"},
    {"session", 0, OPTION_PATH, "FILE",
     .help = "interactive: take the conversation up from FILE, and leave it there"},
    {0},
};
static const struct option_spec *const run_tables[] = {
    run_options, chat_options, options_sampling, options_engine, options_cluster, NULL};

/* ---- the prompt ---- */

/* Whether something was piped in: a terminal or /dev/null was not. */
static bool stdin_is_piped(void)
{
    struct stat info;
    return !fstat(STDIN_FILENO, &info) && !S_ISCHR(info.st_mode);
}

/* Arguments after the model, joined by spaces; "-" stands for stdin. Then, after a blank line,
 * stdin if it is piped. */
static enum lm_status read_prompt(const struct run *run, char **text, size_t *n,
                                  struct lm_error *err)
{
    const size_t n_arg = options_n_arg(run->options);
    char *input = NULL;
    size_t n_input = 0;
    bool dash = false;
    for (size_t i = 1; i < n_arg; i++)
        dash |= !strcmp(options_arg(run->options, i), "-");
    if (dash || stdin_is_piped()) {
        const enum lm_status status =
            read_all(STDIN_FILENO, "standard input", MAX_PROMPT_BYTES, &input, &n_input, err);
        if (status != LM_OK) return status;
        /* What a shell pipes in ends in a line break that nobody meant to say. */
        if (!run->raw && n_input && input[n_input - 1] == '\n') n_input--;
    }
    FILE *out = open_memstream(text, n);
    if (!out) {
        free(input);
        return lm_fail(err, LM_E_NO_MEM, "no memory for the prompt");
    }
    for (size_t i = 1; i < n_arg; i++) {
        const char *word = options_arg(run->options, i);
        if (i > 1) fputc(' ', out);
        if (strcmp(word, "-"))
            fputs(word, out);
        else
            fwrite(input, 1, n_input, out);
    }
    if (!dash && n_input) {
        if (n_arg > 1) fputs("\n\n", out);
        fwrite(input, 1, n_input, out);
    }
    free(input);
    if (!fclose(out) && *text) return LM_OK;
    return lm_fail(err, LM_E_NO_MEM, "no memory for the prompt");
}

/* ---- one answer ---- */

struct output {
    bool quiet; /* --json: everything comes at the end */
    bool show_thinking;
    bool thinking;      /* in the dim part on stderr */
    bool ends_in_break; /* of what went to stdout */
    struct loading_view view;
};

static void on_prefill(void *context, size_t n_done, size_t n_total)
{
    struct output *output = context;
    loading_view_prompt(&output->view, n_done, n_total);
}

static void end_thinking(struct output *output)
{
    if (output->thinking) fputs(log_color() ? "\x1b[0m\n" : "\n", stderr);
    output->thinking = false;
}

static bool write_text(const char *text, size_t n, FILE *out)
{
    if (!isatty(fileno(out))) return fwrite(text, 1, n, out) == n && !fflush(out);
    char *shown = malloc(4 * n + 1);
    if (!shown) return false;
    fputs(log_printable(text, n, shown, 4 * n + 1), out);
    free(shown);
    return !fflush(out);
}

static bool on_text(void *context, enum chat_part part, const char *text, size_t n)
{
    struct output *output = context;
    loading_view_end(&output->view);
    if (output->quiet) return true;
    if (part == CHAT_REASONING) {
        if (!output->show_thinking) return true;
        if (!output->thinking && log_color()) fputs("\x1b[2m", stderr);
        output->thinking = true;
        return write_text(text, n, stderr);
    }
    end_thinking(output);
    output->ends_in_break = text[n - 1] == '\n';
    return write_text(text, n, stdout);
}

static struct json_object *usage_json(const struct chat_answer *answer)
{
    const struct generate_result *counts = &answer->counts;
    struct json_object *usage = json_object_new_object(), *prompt = json_object_new_object(),
                       *completion = json_object_new_object();
    json_object_object_add(usage, "prompt_tokens", json_object_new_uint64(counts->n_prompt));
    json_object_object_add(usage, "completion_tokens", json_object_new_uint64(counts->n_generated));
    json_object_object_add(usage, "total_tokens",
                           json_object_new_uint64(counts->n_prompt + counts->n_generated));
    json_object_object_add(prompt, "cached_tokens", json_object_new_uint64(counts->n_cached));
    json_object_object_add(completion, "reasoning_tokens",
                           json_object_new_uint64(answer->n_reasoning));
    json_object_object_add(usage, "prompt_tokens_details", prompt);
    json_object_object_add(usage, "completion_tokens_details", completion);
    return usage;
}

static double per_second(size_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

/* Seconds from the first generated token to the last. */
static double predicted_s(const struct generate_result *counts)
{
    return counts->n_generated ? counts->prefill_s + counts->decode_s - counts->first_token_s : 0;
}

/* paged: experts are looked up. */
static struct json_object *timings_json(const struct generate_result *counts, bool paged)
{
    struct json_object *timings = json_object_new_object();
    const size_t n_computed = counts->n_prompt - counts->n_cached;
    const size_t n_after_first = counts->n_generated ? counts->n_generated - 1 : 0;
    const struct {
        const char *name;
        double value;
    } numbers[] = {
        {"prompt_ms", counts->prefill_s * 1e3},
        {"prompt_per_second", per_second(n_computed, counts->prefill_s)},
        {"predicted_ms", predicted_s(counts) * 1e3},
        {"predicted_per_second", per_second(n_after_first, predicted_s(counts))},
        {"first_token_ms", counts->first_token_s * 1e3},
    };
    json_object_object_add(timings, "cache_n", json_object_new_uint64(counts->n_cached));
    json_object_object_add(timings, "prompt_n", json_object_new_uint64(n_computed));
    json_object_object_add(timings, "predicted_n", json_object_new_uint64(counts->n_generated));
    json_object_object_add(timings, "draft_n", json_object_new_uint64(counts->n_draft));
    json_object_object_add(timings, "draft_n_accepted",
                           json_object_new_uint64(counts->n_draft_accepted));
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        char text[32];
        snprintf(text, sizeof(text), "%.3f", numbers[i].value);
        json_object_object_add(timings, numbers[i].name,
                               json_object_new_double_s(numbers[i].value, text));
    }
    if (paged)
        json_object_object_add(timings, "experts", pager_report_usage_json(&counts->experts));
    return timings;
}

static void print_json(const struct engine *engine, const struct chat_answer *answer)
{
    static const char *const reasons[] = {"stop", "stop", "length", "abort"};
    struct json_object *object = json_object_new_object();
    struct pager_snapshot experts;
    const bool paged = engine_stats(engine).paged;
    json_object_object_add(object, "content", json_object_new_string(answer->content));
    json_object_object_add(object, "reasoning_content",
                           *answer->reasoning ? json_object_new_string(answer->reasoning) : NULL);
    json_object_object_add(object, "finish_reason",
                           json_object_new_string(reasons[answer->finish]));
    json_object_object_add(object, "usage", usage_json(answer));
    json_object_object_add(object, "timings", timings_json(&answer->counts, paged));
    if (engine_experts(engine, &experts, NULL) == LM_OK)
        json_object_object_add(object, "experts", pager_report_json(&experts));
    puts(json_object_to_json_string_ext(object,
                                        JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(object);
}

void run_print_timings(FILE *out, const struct engine *engine, const struct chat_answer *answer)
{
    static const char *const reasons[] = {"end of turn", "stop string", "length", "interrupted"};
    const struct generate_result *counts = &answer->counts;
    char cached[48] = "";
    if (counts->n_cached) snprintf(cached, sizeof(cached), " (%zu cached)", counts->n_cached);
    fprintf(out, "prompt %6zu tok%-16s %7.2fs %8.1f tok/s\n", counts->n_prompt, cached,
            counts->prefill_s, per_second(counts->n_prompt - counts->n_cached, counts->prefill_s));
    fprintf(out, "answer %6zu tok%-16s %7.2fs %8.1f tok/s   first token %.2fs   stop: %s\n",
            counts->n_generated, "", predicted_s(counts),
            per_second(counts->n_generated ? counts->n_generated - 1 : 0, predicted_s(counts)),
            counts->first_token_s, reasons[answer->finish]);
    if (counts->n_draft)
        fprintf(out, "drafts %6zu tok   %zu accepted\n", counts->n_draft, counts->n_draft_accepted);
    struct pager_snapshot experts;
    if (engine_experts(engine, &experts, NULL) == LM_OK)
        pager_report_print(out, &experts, &counts->experts);
}

bool run_shows_thinking(const struct run *run, bool by_default)
{
    if (options_flag(run->options, "hide-thinking")) return false;
    return by_default || options_flag(run->options, "show-thinking");
}

static enum lm_status answer_prompt(struct run *run, const char *prompt, size_t n,
                                    const struct chat_sink *sink, struct chat_answer *answer,
                                    struct lm_error *err)
{
    if (run->raw) return chat_complete(run->chat, prompt, n, sink, answer, err);
    const enum lm_status status = chat_add_user(run->chat, prompt, err);
    return status == LM_OK ? chat_reply(run->chat, sink, answer, err) : status;
}

/* Prints the answer as it comes, or as one JSON object. */
static enum lm_status run_once(struct run *run, struct lm_error *err)
{
    struct output output = {
        .quiet = options_flag(run->options, "json"),
        .show_thinking = run_shows_thinking(run, false),
    };
    const struct chat_sink sink = {
        .on_text = on_text, .on_prefill = on_prefill, .context = &output};
    struct chat_answer answer;
    char *prompt = NULL;
    size_t n = 0;
    enum lm_status status = read_prompt(run, &prompt, &n, err);
    if (status == LM_OK && !n) {
        status = lm_fail(err, LM_E_USAGE, "the prompt is empty");
        lm_hint(err, "lean run MODEL PROMPT, or pipe the prompt in");
    }
    loading_view_begin(&output.view, run->engine);
    if (status == LM_OK) status = answer_prompt(run, prompt, n, &sink, &answer, err);
    loading_view_end(&output.view);
    free(prompt);
    if (status != LM_OK) return status;

    end_thinking(&output);
    if (output.quiet)
        print_json(run->engine, &answer);
    else if (!output.ends_in_break)
        putchar('\n');
    fflush(stdout);
    if (run->verbose) run_print_timings(stderr, run->engine, &answer);
    const bool stopped = interrupt_pending(INTERRUPT_STOP) || interrupt_pending(INTERRUPT_END);
    const bool complete = answer.complete;
    chat_answer_fini(&answer);
    if (stopped) return lm_fail(err, LM_E_INTERRUPTED, "interrupted");
    if (complete) return LM_OK;
    lm_fail(err, LM_E_MISMATCH, "the answer was cut before its JSON document was complete");
    return lm_hint(err, "--max-tokens and --ctx give it more room");
}

/* ---- the command ---- */

static void cancel(void *engine)
{
    engine_cancel(engine);
}

/* On any thread. An answer under way fails by itself; who waits for the user is told by a signal.
 */
static void on_lost(void *context, const struct lm_error *err)
{
    struct run *run = context;
    run->lost = *err;
    atomic_store(&run->is_lost, true);
    if (run->interactive) kill(getpid(), SIGTERM);
}

static enum lm_status open_engine(struct run *run, struct lm_error *err)
{
    struct engine_config config;
    char *path = NULL;
    bool is_demo;
    const char *ref = options_n_arg(run->options) ? options_arg(run->options, 0) : NULL;
    enum lm_status status = model_ref_resolve(run->options, ref, &path, &is_demo, err);
    if (status == LM_OK) status = engine_config_from_options(&config, run->options, err);
    if (status == LM_OK) {
        if (is_demo)
            log_info("using the demonstration model %s, which is small and knows little; for a "
                     "real one: lean run MODEL.gguf, or lean pull (lean list --available)",
                     path);
        config.cluster = cluster_config_from_options(run->options);
        config.model_path = path;
        config.on_lost = on_lost;
        config.lost_context = run;
        status = engine_open(&run->engine, &config, err);
    }
    free(path);
    return status;
}

static enum lm_status run_chat(struct run *run, struct lm_error *err)
{
    enum lm_status status = chat_create(&run->chat, run->engine, run->options, err);
    if (status != LM_OK) return status;
    status = interrupt_begin(cancel, run->engine, err);
    if (status == LM_OK) {
        status = run->interactive ? repl_run(run, err) : run_once(run, err);
        interrupt_end();
    }
    chat_destroy(run->chat);
    return status;
}

static enum lm_status run_run(struct options *options, struct lm_error *err)
{
    struct run run = {
        .options = options,
        .raw = options_flag(options, "raw"),
        .verbose = options_flag(options, "verbose"),
        .interactive =
            options_n_arg(options) < 2 && isatty(STDIN_FILENO) && !options_flag(options, "json"),
    };
    enum lm_status status = open_engine(&run, err);
    if (status != LM_OK) return status;
    status = run_chat(&run, err);
    const enum lm_status closed = engine_close(run.engine, status == LM_OK ? err : NULL);
    if (status == LM_OK) status = closed;
    if (atomic_load(&run.is_lost)) {
        *err = run.lost;
        return LM_E_RANK_LOST;
    }
    /* Ended by SIGTERM or SIGHUP: as that signal ends a process, now that all is put away. */
    if (interrupt_end_signal()) {
        fflush(stdout);
        job_leave(-interrupt_end_signal());
        raise(interrupt_end_signal());
    }
    return status;
}

const struct command command_run = {
    .name = "run",
    .usage = "[MODEL] [PROMPT...]",
    .n_arg_max = SIZE_MAX,
    .summary = "answer a prompt, or chat",
    .details =
        "MODEL is a GGUF file (of a split one the first part), a name from the configuration,\n"
        "or `demo`; without it the configured model or a small demonstration model is used.\n\n"
        "With a PROMPT, or with one piped in, the answer goes to stdout and that is all; `-`\n"
        "in the prompt stands for stdin. Otherwise a conversation begins; /help explains it.\n\n"
        "While a prompt is read and experts come from disk, a terminal shows how full memory is,\n"
        "what the disk gives, and the share of hits of every layer; --verbose tells what it came\n"
        "to, --json with every layer.",
    .options = run_tables,
    .reads_config = true,
    .takes_ranks = true,
    .run = run_run,
};
