/* lean tokenize: text to token ids. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/text/tokenizer.h"
#include "launch/command.h"
#include "launch/model_ref.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/gguf/gguf.h"

enum { MAX_TEXT_BYTES = 1 << 30 };

static const struct option_spec tokenize_options[] = {
    {.name = "special",
     .kind = OPTION_FLAG,
     .def = "on",
     .help = "take control tokens in the text for ordinary text"},
    {.name = "add-special",
     .kind = OPTION_FLAG,
     .help = "add the begin and end tokens that the vocabulary asks for"},
    {0},
};

static void print_json(const int32_t *ids, size_t n)
{
    fputs("{\"ids\":[", stdout);
    for (size_t i = 0; i < n; i++)
        printf("%s%d", i ? "," : "", ids[i]);
    puts("]}");
}

/* One line per token: the id and its text, in which whatever would break the line or disturb the
 * terminal is escaped. */
static void print_list(const struct tokenizer *tokenizer, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t n_bytes;
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], true, &n_bytes);
        char shown[1000];
        log_printable(bytes, n_bytes, shown, sizeof(shown));
        printf("%6d -> '", ids[i]);
        for (const char *at = shown; *at; at++) {
            if (*at == '\n')
                fputs("\\n", stdout);
            else if (*at == '\t')
                fputs("\\t", stdout);
            else
                putchar(*at);
        }
        puts("'");
    }
}

static enum lm_status tokenize(const struct tokenizer *tokenizer, const struct options *options,
                               const char *text, size_t n_text, struct lm_error *err)
{
    int32_t *ids;
    size_t n_ids;
    const enum lm_status status =
        tokenizer_encode(tokenizer, text, n_text, options_flag(options, "special"),
                         options_flag(options, "add-special"), &ids, &n_ids, err);
    if (status != LM_OK) return status;
    if (options_flag(options, "json"))
        print_json(ids, n_ids);
    else
        print_list(tokenizer, ids, n_ids);
    free(ids);
    return LM_OK;
}

static enum lm_status run_tokenize(struct options *options, struct lm_error *err)
{
    const size_t n_arg = options_n_arg(options);
    struct gguf_file *file;
    enum lm_status status = model_ref_open(options, options_arg(options, 0), &file, err);
    if (status != LM_OK) return status;
    struct tokenizer *tokenizer = NULL;
    status = tokenizer_create(&tokenizer, file, err);
    gguf_close(file);
    if (status != LM_OK) return status;

    if (n_arg == 2) {
        const char *text = options_arg(options, 1);
        status = tokenize(tokenizer, options, text, strlen(text), err);
    } else {
        char *text;
        size_t n_text;
        status = read_all(STDIN_FILENO, "standard input", MAX_TEXT_BYTES, &text, &n_text, err);
        if (status == LM_OK) {
            status = tokenize(tokenizer, options, text, n_text, err);
            free(text);
        }
    }
    tokenizer_destroy(tokenizer);
    return status;
}

const struct command command_tokenize = {
    .name = "tokenize",
    .usage = "MODEL [TEXT]",
    .n_arg_min = 1,
    .n_arg_max = 2,
    .summary = "text to token ids",
    .details =
        "Reads TEXT, or the bytes of standard input, and prints one line per token, or with\n"
        "--json {\"ids\":[...]}. MODEL is a GGUF file; vocabulary-only files will do.",
    .options = (const struct option_spec *const[]){tokenize_options, NULL},
    .reads_config = true,
    .run = run_tokenize,
};
