/* The interactive half of `lean run`: messages from the line editor, commands that begin with a
 * slash, answers wrapped to the terminal. */
#include <ctype.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <json-c/json.h>

#include "coordinator/text/tokenizer.h"
#include "launch/config.h"
#include "launch/loading_view.h"
#include "launch/options.h"
#include "launch/run.h"
#include "launch/terminal/history.h"
#include "launch/terminal/interrupt.h"
#include "launch/terminal/line_editor.h"
#include "launch/terminal/text_width.h"
#include "launch/terminal/word_wrap.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"

enum { MAX_FILE_BYTES = 16 << 20 };

/* An answer on its way to the terminal. */
struct display {
    struct word_wrap wrap;
    struct chat_answer *answer; /* being filled */
    bool show_thinking, thinking;
    bool at_line_start; /* nothing printed, or a line break last */
    bool progress_shown;
    double started_s;
    bool paged; /* there is more to show than a line of progress */
    struct loading_view view;
};

struct repl {
    struct run *run;
    struct line_editor *editor;
    struct history *history;
    char *initial;           /* what the next message starts from, or NULL */
    struct chat_answer last; /* for /show stats */
    bool has_last;
    bool leaving;
};

static void show_error(const struct lm_error *err)
{
    char shown[4 * sizeof(err->message)];
    log_line(LOG_ERROR, "%s",
             log_printable(err->message, strlen(err->message), shown, sizeof(shown)));
    if (*err->hint)
        fprintf(stderr, "hint: %s\n",
                log_printable(err->hint, strlen(err->hint), shown, sizeof(shown)));
}

/* ---- display ---- */

static const char *dim(void)
{
    return log_color() ? "\x1b[2m" : "";
}

static const char *normal(void)
{
    return log_color() ? "\x1b[0m" : "";
}

static void clear_progress(struct display *display)
{
    if (display->progress_shown) fputs("\r\x1b[K", stdout);
    display->progress_shown = false;
    if (display->paged) loading_view_end(&display->view);
}

static void on_prefill(void *context, size_t n_done, size_t n_total)
{
    struct display *display = context;
    const double elapsed_s = log_now_s() - display->started_s;
    if (display->paged) {
        loading_view_prompt(&display->view, n_done, n_total);
        return;
    }
    if (elapsed_s < 0.3 || n_done >= n_total || !isatty(STDOUT_FILENO)) return;
    printf("\r\x1b[K%sreading prompt %zu%% %.0f tok/s%s", dim(), 100 * n_done / n_total,
           (double)n_done / elapsed_s, normal());
    fflush(stdout);
    display->progress_shown = true;
}

/* Text without control characters, wrapped. */
static void show_text(struct display *display, const char *text, size_t n)
{
    char *shown = malloc(4 * n + 1);
    if (!shown) return;
    log_printable(text, n, shown, 4 * n + 1);
    word_wrap_push(&display->wrap, shown, strlen(shown), stdout);
    free(shown);
    display->at_line_start = text[n - 1] == '\n';
}

static void end_line(struct display *display)
{
    word_wrap_flush(&display->wrap, stdout);
    if (!display->at_line_start) putchar('\n');
    word_wrap_init(&display->wrap, display->wrap.n_column);
    display->at_line_start = true;
}

static void begin_thinking(struct display *display)
{
    printf("%sthinking…\n", dim());
    display->thinking = true;
}

static void end_thinking(struct display *display)
{
    if (!display->thinking) return;
    end_line(display);
    printf("done thinking (%zu tokens, %.1fs)%s\n", display->answer->n_reasoning,
           display->answer->reasoning_s, normal());
    display->thinking = false;
}

static bool on_text(void *context, enum chat_part part, const char *text, size_t n)
{
    struct display *display = context;
    clear_progress(display);
    if (part == CHAT_REASONING && !display->show_thinking) return true;
    if (part == CHAT_REASONING && !display->thinking) begin_thinking(display);
    if (part == CHAT_CONTENT) end_thinking(display);
    show_text(display, text, n);
    return !fflush(stdout);
}

/* ---- answers ---- */

enum answer_kind { ANSWER_REPLY, ANSWER_CONTINUE, ANSWER_RAW };

static enum lm_status generate(struct repl *repl, enum answer_kind kind, const char *raw,
                               const struct chat_sink *sink, struct chat_answer *answer,
                               struct lm_error *err)
{
    struct chat *chat = repl->run->chat;
    if (kind == ANSWER_RAW) return chat_complete(chat, raw, strlen(raw), sink, answer, err);
    return kind == ANSWER_REPLY ? chat_reply(chat, sink, answer, err)
                                : chat_continue(chat, sink, answer, err);
}

/* Shows an answer while it is generated. False: there is none, and the reason was printed. */
static bool show_answer(struct repl *repl, enum answer_kind kind, const char *raw)
{
    struct lm_error err = {0};
    struct chat_answer answer = {0};
    struct display display = {.answer = &answer, .at_line_start = true, .started_s = log_now_s()};
    const struct chat_sink sink = {
        .on_text = on_text, .on_prefill = on_prefill, .context = &display};
    const bool wraps = options_flag(repl->run->options, "wrap") && isatty(STDOUT_FILENO);
    display.show_thinking = run_shows_thinking(repl->run, true);
    word_wrap_init(&display.wrap, wraps ? terminal_columns(STDOUT_FILENO, NULL) : 0);

    interrupt_take(INTERRUPT_STOP);
    /* of several ranks another thread runs the pager */
    display.paged = engine_stats(repl->run->engine).paged;
    if (display.paged) {
        fflush(stdout); /* the view goes below what was printed */
        loading_view_begin(&display.view, repl->run->engine);
    }
    const enum lm_status status = generate(repl, kind, raw, &sink, &answer, &err);
    clear_progress(&display);
    end_thinking(&display);
    if (status != LM_OK) {
        end_line(&display);
        show_error(&err);
        return false;
    }
    word_wrap_flush(&display.wrap, stdout);
    if (answer.finish == CHAT_INTERRUPTED) {
        printf("%s [stopped]%s", dim(), normal());
        display.at_line_start = false;
    }
    end_line(&display);
    if (repl->run->verbose) run_print_timings(stdout, repl->run->engine, &answer);
    putchar('\n');
    fflush(stdout);
    if (repl->has_last) chat_answer_fini(&repl->last);
    repl->last = answer;
    repl->has_last = true;
    return true;
}

static void send(struct repl *repl, const char *message)
{
    struct lm_error err = {0};
    if (repl->run->raw) {
        show_answer(repl, ANSWER_RAW, message);
        return;
    }
    if (chat_add_user(repl->run->chat, message, &err) != LM_OK)
        show_error(&err);
    else if (!show_answer(repl, ANSWER_REPLY, NULL))
        chat_remove_last(repl->run->chat); /* an unanswered message would spoil the next ones */
}

/* ---- commands ---- */

/* The commands get what follows their name, without the spaces around it; "" for nothing. */

static void command_help(struct repl *repl, const char *argument);

static void command_set(struct repl *repl, const char *argument)
{
    struct lm_error err = {0};
    char name[64];
    const size_t n = strcspn(argument, " ");
    const char *value = argument + n + strspn(argument + n, " ");
    snprintf(name, sizeof(name), "%.*s", (int)n, argument);
    for (char *c = name; *c; c++)
        if (*c == '_') *c = '-';
    if (!*value)
        printf("usage: /set NAME VALUE, for instance /set temperature 0.7\n");
    else if (options_set(repl->run->options, options_sampling, name, value, &err) != LM_OK)
        show_error(&err);
}

static void command_unset(struct repl *repl, const char *argument)
{
    struct lm_error err = {0};
    if (options_set(repl->run->options, options_sampling, argument, NULL, &err) != LM_OK)
        show_error(&err);
}

static void show_model(const struct repl *repl)
{
    const struct engine *engine = repl->run->engine;
    const struct engine_stats stats = engine_stats(engine);
    struct gguf_string name = {0}, architecture = {0};
    char shown[512];
    gguf_get_string(engine_file(engine), "general.name", &name, NULL, NULL);
    gguf_get_string(engine_file(engine), "general.architecture", &architecture, NULL, NULL);
    printf("file          %s\n", gguf_path(engine_file(engine)));
    if (name.n)
        printf("name          %s\n", log_printable(name.data, name.n, shown, sizeof(shown)));
    printf("architecture  %s\n",
           log_printable(architecture.data, architecture.n, shown, sizeof(shown)));
    printf("layers        %u\ncontext       %u tokens\n", stats.n_layer, engine_n_ctx(engine));
    printf("threads       %u, kernels %s\n", stats.n_thread, stats.kernels);
}

static void show_params(const struct repl *repl)
{
    const struct options *options = repl->run->options;
    for (const struct option_spec *spec = options_sampling; spec->name; spec++) {
        const char *value = options_string(options, spec->name);
        printf("%-20s %s\n", spec->name, value ? value : "(the model's, or the default)");
    }
}

static void show_template(const struct repl *repl)
{
    struct gguf_string source = {0};
    gguf_get_string(engine_file(repl->run->engine), "tokenizer.chat_template", &source, NULL, NULL);
    char *shown = malloc(4 * source.n + 1);
    if (shown) puts(log_printable(source.data, source.n, shown, 4 * source.n + 1));
    free(shown);
}

static void show_stats(const struct repl *repl)
{
    const struct chat_answer *last = &repl->last;
    if (!repl->has_last) {
        printf("nothing was answered yet\n");
        return;
    }
    run_print_timings(stdout, repl->run->engine, last);
    printf("context  %zu of %u tokens used, %zu messages\n",
           last->counts.n_prompt + last->counts.n_generated, engine_n_ctx(repl->run->engine),
           json_object_array_length(chat_messages(repl->run->chat)));
}

static void command_show(struct repl *repl, const char *argument)
{
    const char *system = chat_system(repl->run->chat);
    if (!*argument || !strcmp(argument, "model"))
        show_model(repl);
    else if (!strcmp(argument, "params"))
        show_params(repl);
    else if (!strcmp(argument, "system"))
        printf("%s\n", system ? system : "(none)");
    else if (!strcmp(argument, "template"))
        show_template(repl);
    else if (!strcmp(argument, "stats"))
        show_stats(repl);
    else
        printf("usage: /show [model|params|system|template|stats]\n");
}

static void command_system(struct repl *repl, const char *argument)
{
    struct lm_error err = {0};
    if (!*argument)
        command_show(repl, "system");
    else if (chat_set_system(repl->run->chat, argument, &err) != LM_OK)
        show_error(&err);
}

static void command_think(struct repl *repl, const char *argument)
{
    struct lm_error err = {0};
    const char *value = options_string(repl->run->options, "think");
    if (!*argument)
        printf("%s\n", value && *value ? value : "as the template has it");
    else if (options_set(repl->run->options, chat_options, "think", argument, &err) != LM_OK)
        show_error(&err);
}

static void command_format(struct repl *repl, const char *argument)
{
    struct options *options = repl->run->options;
    struct lm_error err = {0};
    const char *now = options_string(options, "format");
    if (!*argument) {
        printf("%s\n", chat_has_format(options) ? now : "off");
        return;
    }
    char *before = strdup(now ? now : "off");
    enum lm_status status = options_set(options, chat_options, "format", argument, &err);
    if (status == LM_OK) status = chat_check_format(options, &err);
    if (status != LM_OK) {
        show_error(&err);
        options_set(options, chat_options, "format", before ? before : "off", NULL);
    }
    free(before);
}

static void command_verbose(struct repl *repl, const char *argument)
{
    repl->run->verbose = *argument ? !strcmp(argument, "on") : !repl->run->verbose;
    printf("verbose %s\n", repl->run->verbose ? "on" : "off");
}

/* Removes the last message if role wrote it. */
static bool remove_last(struct repl *repl, const char *role)
{
    char *content = chat_last_content(repl->run->chat, role);
    if (content) chat_remove_last(repl->run->chat);
    free(content);
    return content != NULL;
}

static void command_clear(struct repl *repl, const char *argument)
{
    (void)argument;
    while (remove_last(repl, "user") || remove_last(repl, "assistant"))
        ;
    printf("the conversation is empty\n");
}

static void command_undo(struct repl *repl, const char *argument)
{
    (void)argument;
    remove_last(repl, "assistant");
    printf(remove_last(repl, "user") ? "the last exchange is removed\n" : "nothing to undo\n");
}

static void command_retry(struct repl *repl, const char *argument)
{
    (void)argument;
    remove_last(repl, "assistant");
    char *message = chat_last_content(repl->run->chat, "user");
    if (message)
        show_answer(repl, ANSWER_REPLY, NULL);
    else
        printf("nothing to answer\n");
    free(message);
}

static void command_edit(struct repl *repl, const char *argument)
{
    (void)argument;
    remove_last(repl, "assistant");
    char *message = chat_last_content(repl->run->chat, "user");
    if (message)
        chat_remove_last(repl->run->chat);
    else
        printf("nothing to edit\n");
    free(repl->initial);
    repl->initial = message;
}

static void command_continue(struct repl *repl, const char *argument)
{
    (void)argument;
    show_answer(repl, ANSWER_CONTINUE, NULL);
}

static void command_read(struct repl *repl, const char *argument)
{
    struct lm_error err = {0};
    char *text;
    size_t n;
    if (read_all_path(argument, MAX_FILE_BYTES, &text, &n, &err) != LM_OK) {
        show_error(&err);
        return;
    }
    if (!n)
        printf("%s is empty\n", argument);
    else if (strlen(text) < n)
        printf("%s holds bytes that are no text\n", argument);
    else
        send(repl, text);
    free(text);
}

static enum lm_status save_messages(const struct repl *repl, const char *path, struct lm_error *err)
{
    struct json_object *object = json_object_new_object();
    json_object_object_add(object, "messages", json_object_get(chat_messages(repl->run->chat)));
    const int flags = JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE;
    const char *text = json_object_to_json_string_ext(object, flags);
    /* Written beside it and renamed: what was saved before is not lost to a full disk. What is no
     * regular file is written to as it is. */
    struct stat info;
    const bool beside = lstat(path, &info) || S_ISREG(info.st_mode);
    char *target = NULL;
    enum lm_status status = LM_OK;
    if (asprintf(&target, "%s%s", path, beside ? ".partial" : "") < 0) {
        json_object_put(object);
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    }
    FILE *file = fopen(target, "we");
    const bool written = file && fputs(text, file) >= 0 && fputc('\n', file) >= 0;
    if (!file || (fclose(file) | !written) || (beside && rename(target, path))) {
        status = lm_fail_errno(err, "%s", path);
        if (beside) unlink(target);
    }
    free(target);
    json_object_put(object);
    return status;
}

static enum lm_status load_messages(struct repl *repl, const char *path, struct lm_error *err)
{
    char *text;
    size_t n;
    enum lm_status status = read_all_path(path, MAX_FILE_BYTES, &text, &n, err);
    if (status != LM_OK) return status;
    struct json_object *object = json_tokener_parse(text), *messages = NULL;
    if (json_object_is_type(object, json_type_object))
        json_object_object_get_ex(object, "messages", &messages);
    status = chat_set_messages(repl->run->chat, messages, err);
    if (status != LM_OK) lm_fail(err, status, "%s: no saved conversation", path);
    json_object_put(object);
    free(text);
    return status;
}

static void command_save(struct repl *repl, const char *argument)
{
    struct lm_error err = {0};
    if (save_messages(repl, argument, &err) != LM_OK) show_error(&err);
}

static void command_load(struct repl *repl, const char *argument)
{
    struct lm_error err = {0};
    if (load_messages(repl, argument, &err) != LM_OK)
        show_error(&err);
    else
        printf("%zu messages\n", json_object_array_length(chat_messages(repl->run->chat)));
}

static void command_tokens(struct repl *repl, const char *argument)
{
    struct lm_error err = {0};
    int32_t *ids;
    size_t n;
    if (tokenizer_encode(engine_tokenizer(repl->run->engine), argument, strlen(argument), true,
                         false, &ids, &n, &err) != LM_OK) {
        show_error(&err);
        return;
    }
    printf("%zu tokens:", n);
    for (size_t i = 0; i < n; i++)
        printf(" %d", ids[i]);
    putchar('\n');
    free(ids);
}

static void command_bye(struct repl *repl, const char *argument)
{
    (void)argument;
    repl->leaving = true;
}

static const struct slash_command {
    const char *name;
    void (*run)(struct repl *repl, const char *argument);
    bool needs_argument;
    const char *usage, *help;
} slash_commands[] = {
    {"help", command_help, false, "", "this list"},
    {"set", command_set, true, "NAME VALUE", "set a sampling option, as /set temperature 0.7"},
    {"unset", command_unset, true, "NAME", "back to the model's value"},
    {"show", command_show, false, "[model|params|system|template|stats]", "show what is in force"},
    {"system", command_system, false, "[TEXT]", "set or show the system message"},
    {"think", command_think, false, "[on|off|low|...]", "whether, or how much, it reasons first"},
    {"format", command_format, false, "[json|@FILE|off]", "the form of answers"},
    {"clear", command_clear, false, "", "forget the conversation, but for the system message"},
    {"undo", command_undo, false, "", "remove the last exchange"},
    {"retry", command_retry, false, "", "answer the last message again"},
    {"edit", command_edit, false, "", "change the last message and send it again"},
    {"continue", command_continue, false, "", "go on with an answer that was cut"},
    {"read", command_read, true, "FILE", "send the text of a file"},
    {"save", command_save, true, "FILE", "save the conversation"},
    {"load", command_load, true, "FILE", "take a saved conversation up"},
    {"tokens", command_tokens, true, "TEXT", "the tokens of a text"},
    {"verbose", command_verbose, false, "on|off", "timings after each answer"},
    {"bye", command_bye, false, "", "leave, as /exit, /quit and Ctrl-D do"},
    {"exit", command_bye, false, NULL, NULL},
    {"quit", command_bye, false, NULL, NULL},
};
enum { N_SLASH_COMMAND = sizeof(slash_commands) / sizeof(slash_commands[0]) };

static void command_help(struct repl *repl, const char *argument)
{
    (void)repl;
    (void)argument;
    for (size_t i = 0; i < N_SLASH_COMMAND; i++) {
        const struct slash_command *command = &slash_commands[i];
        if (!command->help) continue;
        const int column = printf("/%s %s", command->name, command->usage);
        printf("%*s%s\n", column < 20 ? 20 - column : 1, "", command->help);
    }
    printf(
        "\nEnter sends; Alt-Enter, Ctrl-J or a \\ at the end of a line begins a new one; \"\"\" "
        "begins\n"
        "and ends a block of lines. Ctrl-C stops an answer, Ctrl-R searches the history, Ctrl-G\n"
        "opens an editor. // at the beginning sends a message that begins with a slash.\n");
}

/* line: what was entered, beginning with a slash. */
static void run_slash_command(struct repl *repl, char *line)
{
    char *end = line + strlen(line);
    while (end > line && isspace((unsigned char)end[-1]))
        *--end = '\0';
    const char *name = line + 1;
    const size_t n = strcspn(name, " \n");
    const char *argument = name + n + strspn(name + n, " \n");
    for (size_t i = 0; i < N_SLASH_COMMAND; i++) {
        const struct slash_command *command = &slash_commands[i];
        if (strlen(command->name) != n || strncmp(command->name, name, n)) continue;
        if (command->needs_argument && !*argument)
            printf("usage: /%s %s\n", command->name, command->usage);
        else
            command->run(repl, argument);
        return;
    }
    char shown[200];
    log_printable(line, strlen(line) < 40 ? strlen(line) : 40, shown, sizeof(shown));
    printf("unknown command %s; /help lists them, // sends a message that begins with a slash\n",
           shown);
}

/* ---- completion ---- */

/* Offers the files that text[start..] begins. */
static void complete_file(const char *text, size_t start, size_t cursor,
                          struct completion *completion)
{
    char prefix[512], folder[512], word[1024];
    snprintf(prefix, sizeof(prefix), "%.*s", (int)(cursor - start), text + start);
    char *slash = strrchr(prefix, '/');
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - prefix) + 1 : 0, prefix);
    const char *name = slash ? slash + 1 : prefix;
    DIR *stream = opendir(*folder ? folder : ".");
    if (!stream) return;
    for (struct dirent *entry; (entry = readdir(stream));) {
        if (strncmp(entry->d_name, name, strlen(name)) || (entry->d_name[0] == '.' && !*name))
            continue;
        struct stat info;
        const bool fits =
            snprintf(word, sizeof(word), "%s%s", folder, entry->d_name) < (int)sizeof(word) - 1;
        if (fits && !stat(word, &info) && S_ISDIR(info.st_mode)) strcat(word, "/");
        completion_offer(completion, start, word);
    }
    closedir(stream);
}

static bool begins(const char *text, size_t cursor, const char *command)
{
    const size_t n = strlen(command);
    return cursor >= n && !strncmp(text, command, n);
}

static void complete(void *context, const char *text, size_t cursor, struct completion *completion)
{
    static const char *const file_commands[] = {"/read ", "/save ", "/load "};
    char word[80];
    (void)context;
    size_t start = cursor;
    while (start > 0 && !isspace((unsigned char)text[start - 1]))
        start--;
    if (text[0] == '/' && start == 0) {
        for (size_t i = 0; i < N_SLASH_COMMAND; i++) {
            snprintf(word, sizeof(word), "/%s", slash_commands[i].name);
            if (!strncmp(word, text, cursor)) completion_offer(completion, 0, word);
        }
        return;
    }
    for (size_t i = 0; i < 3; i++)
        if (begins(text, cursor, file_commands[i])) {
            complete_file(text, strlen(file_commands[i]), cursor, completion);
            return;
        }
    if (begins(text, cursor, "/set ") || begins(text, cursor, "/unset ")) {
        for (const struct option_spec *spec = options_sampling; spec->name; spec++)
            if (!strncmp(spec->name, text + start, cursor - start))
                completion_offer(completion, start, spec->name);
    } else if (start < cursor && text[start] == '@') {
        complete_file(text, start + 1, cursor, completion);
    }
}

/* ---- the loop ---- */

static void handle_message(struct repl *repl, char *message)
{
    if (repl->history) history_add(repl->history, message);
    if (message[0] == '/' && message[1] != '/') {
        run_slash_command(repl, message);
        return;
    }
    line_editor_unquote(message);
    const char *text = message[0] == '/' ? message + 1 : message;
    if (text[strspn(text, " \n\t")]) send(repl, text);
}

static enum lm_status loop(struct repl *repl, struct lm_error *err)
{
    while (!repl->leaving) {
        enum line_event event;
        char *message = NULL, *initial = repl->initial;
        repl->initial = NULL;
        const enum lm_status status =
            line_editor_read(repl->editor, initial, &event, &message, err);
        free(initial);
        if (status != LM_OK) return status;
        if (event == LINE_MESSAGE) handle_message(repl, message);
        if (event == LINE_INTERRUPT) printf("Ctrl-D or /bye to leave\n");
        free(message);
        if (event == LINE_END) break;
        if (event == LINE_TERMINATED || interrupt_pending(INTERRUPT_END))
            return lm_fail(err, LM_E_INTERRUPTED, "interrupted");
        fflush(stdout);
    }
    return LM_OK;
}

static enum lm_status open_history(struct repl *repl, struct lm_error *err)
{
    const bool kept =
        options_flag(repl->run->options, "history") && !config_environment("LEAN_NOHISTORY");
    char *path = kept ? config_user_path("XDG_STATE_HOME", ".local/state", "lean/history") : NULL;
    const enum lm_status status = history_open(&repl->history, path, err);
    free(path);
    return status;
}

static enum lm_status chat_on_terminal(struct repl *repl, struct lm_error *err)
{
    const char *session = options_string(repl->run->options, "session");
    const char *visual = config_environment("VISUAL");
    const struct line_editor_config config = {
        .in_fd = STDIN_FILENO,
        .out_fd = isatty(STDOUT_FILENO) ? STDOUT_FILENO : STDERR_FILENO,
        .prompt = ">>> ",
        .continuation = "... ",
        .external_editor = visual ? visual : config_environment("EDITOR"),
        .history = repl->history,
        .complete = complete,
        .context = repl,
    };
    enum lm_status status = line_editor_create(&repl->editor, &config, err);
    if (status == LM_OK && session && access(session, F_OK) == 0)
        status = load_messages(repl, session, err);
    if (status != LM_OK) return status;
    status = loop(repl, err);
    const bool ended = status == LM_OK || status == LM_E_INTERRUPTED;
    if (session && ended) {
        const enum lm_status saved = save_messages(repl, session, err);
        if (saved != LM_OK) status = saved;
    }
    return status;
}

enum lm_status repl_run(struct run *run, struct lm_error *err)
{
    struct repl repl = {.run = run};
    text_width_init();
    enum lm_status status = open_history(&repl, err);
    if (status != LM_OK) return status;
    status = chat_on_terminal(&repl, err);
    line_editor_destroy(repl.editor);
    history_close(repl.history);
    free(repl.initial);
    if (repl.has_last) chat_answer_fini(&repl.last);
    return status;
}
