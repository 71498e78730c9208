/* lean template: renders a chat template with the variables of a JSON object. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/text/chat_template.h"
#include "coordinator/text/conversation.h"
#include "launch/command.h"
#include "launch/model_ref.h"
#include "proto/base/read_all.h"

enum { MAX_TEMPLATE_BYTES = 4 << 20, MAX_VARIABLES_BYTES = 256 << 20 };

static const struct option_spec template_options[] = {
    {.name = "name",
     .kind = OPTION_STRING,
     .metavar = "NAME",
     .help = "one of the model's further templates, as tool_use"},
    {.name = "now",
     .kind = OPTION_STRING,
     .metavar = "TIME",
     .help = "the clock that the template sees, as 2026-01-02T03:04:05"},
    {0},
};

static enum lm_status read_clock(const char *text, struct tm *now, struct lm_error *err)
{
    if (!text) {
        const time_t seconds = time(NULL);
        localtime_r(&seconds, now);
        return LM_OK;
    }
    memset(now, 0, sizeof(*now));
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", now);
    const struct tm given = *now;
    if (end && !*end) timegm(now); /* a day that the month lacks would move to the next month */
    if (!end || *end || given.tm_mday != now->tm_mday)
        return lm_fail(err, LM_E_USAGE, "--now %.80s: not a time as 2026-01-02T03:04:05", text);
    return LM_OK;
}

/* A template and what it came from. file or text is NULL. */
struct source {
    struct gguf_file *file;
    char *text;
    struct gguf_string view;
};

/* Whether path is a file or a pipe that holds a template. What is read from a pipe to find out
 * would be gone, so a pipe is taken for one. */
static bool is_template(const char *path)
{
    char magic[4] = "";
    struct stat info;
    if (stat(path, &info) || S_ISDIR(info.st_mode)) return false;
    if (!S_ISREG(info.st_mode)) return true;
    FILE *file = fopen(path, "rb");
    const bool is_model = file && fread(magic, 1, 4, file) == 4 && !memcmp(magic, "GGUF", 4);
    if (file) fclose(file);
    return !is_model;
}

static enum lm_status open_source(struct source *source, const struct options *options,
                                  struct lm_error *err)
{
    const char *path = options_arg(options, 0), *name = options_string(options, "name");
    enum lm_status status;
    if (is_template(path)) {
        if (name) return lm_fail(err, LM_E_USAGE, "--name: %.200s is not a GGUF file", path);
        status = read_all_path(path, MAX_TEMPLATE_BYTES, &source->text, &source->view.n, err);
        source->view.data = source->text;
        return status;
    }
    status = model_ref_open(options, path, &source->file, err);
    if (status != LM_OK) return status;
    return model_template_source(source->file, name, &source->view, err);
}

static void close_source(struct source *source)
{
    gguf_close(source->file);
    free(source->text);
}

static enum lm_status read_variables(struct json_object **out, struct lm_error *err)
{
    char *text;
    size_t n;
    enum lm_status status =
        read_all(STDIN_FILENO, "standard input", MAX_VARIABLES_BYTES, &text, &n, err);
    if (status != LM_OK) return status;
    status = chat_template_read_variables(out, text, n, err);
    free(text);
    return status;
}

static enum lm_status render(const struct source *source, const struct tm *now,
                             struct json_object *variables, struct lm_error *err)
{
    struct chat_template *tmpl;
    char *text;
    size_t n;
    enum lm_status status = chat_template_compile(&tmpl, source->view.data, source->view.n, err);
    if (status != LM_OK) return status;
    status = chat_template_render(tmpl, variables, now, &text, &n, err);
    chat_template_destroy(tmpl);
    if (status != LM_OK) return status;
    fwrite(text, 1, n, stdout);
    free(text);
    return LM_OK;
}

static enum lm_status run_template(struct options *options, struct lm_error *err)
{
    struct source source = {0};
    struct json_object *variables = NULL;
    struct tm now;
    enum lm_status status = read_clock(options_string(options, "now"), &now, err);
    if (status != LM_OK) return status;
    status = open_source(&source, options, err);
    if (status == LM_OK) status = read_variables(&variables, err);
    if (status == LM_OK) {
        if (source.file) model_template_tokens(source.file, variables);
        status = render(&source, &now, variables, err);
    }
    json_object_put(variables);
    close_source(&source);
    return status;
}

const struct command command_template = {
    .name = "template",
    .usage = "MODEL|FILE.jinja",
    .n_arg_min = 1,
    .n_arg_max = 1,
    .summary = "render a chat template",
    .details =
        "Renders the chat template of a GGUF model, or of a file, with the variables of the JSON\n"
        "object on standard input (messages, tools, add_generation_prompt, ...) and prints "
        "exactly\n"
        "the text. A model's bos_token and eos_token need not be given.\n"
        "\n"
        "Exit code 2: the template refused with raise_exception, and the message is its own.\n"
        "5: the template or the JSON is malformed, or an operation in the template failed.",
    .options = (const struct option_spec *const[]){template_options, NULL},
    .reads_config = true,
    .run = run_template,
};
