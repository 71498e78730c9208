/* lean help, the --help of every command and the manual pages: printed from the tables. */
#include <stdio.h>
#include <string.h>

#include "launch/command.h"
#include "proto/base/status.h"

enum { HELP_COLUMN = 30, HELP_WIDTH = 96 };

static const char tagline[] = "Exact, fast inference for mixture-of-experts models.";

/* Prints text wrapped between the columns; the cursor stands at column `at` of the first line. */
static void print_wrapped(const char *text, int at, int indent)
{
    bool first = true;
    while (*text) {
        const int n = (int)strcspn(text, " ");
        if (!first && at + 1 + n > HELP_WIDTH) {
            printf("\n%*s", indent, "");
            at = indent;
        } else if (!first) {
            putchar(' ');
            at++;
        }
        printf("%.*s", n, text);
        at += n;
        text += n;
        text += strspn(text, " ");
        first = false;
    }
    putchar('\n');
}

/* ---- what help and manual page share ---- */

/* "no-" for a flag that is on by default: what one would type is its negation. */
static const char *shown_prefix(const struct option_spec *spec)
{
    return spec->kind == OPTION_FLAG && spec->def && !strcmp(spec->def, "on") ? "no-" : "";
}

/* "" for a flag, else what stands for its value. */
static const char *shown_value(const struct option_spec *spec)
{
    if (spec->kind == OPTION_FLAG) return "";
    return spec->metavar ? spec->metavar : "VALUE";
}

/* The help text with the default and whether the option repeats. */
static void describe(const struct option_spec *spec, char *text, size_t size)
{
    const bool flag = spec->kind == OPTION_FLAG, shows_default = spec->def && !flag;
    snprintf(text, size, "%s%s%s%s%s", spec->help, shows_default ? " [" : "",
             shows_default ? spec->def : "", shows_default ? "]" : "",
             spec->repeat && !flag ? " (repeatable)" : "");
}

/* Calls visit for every option of a command, under the titles of their tables. Neighbours of one
 * title are one list. */
static void each_table(const struct command *command, void (*print_title)(const char *title),
                       void (*visit)(const struct option_spec *spec))
{
    const char *last_title = "";
    for (size_t i = 0;; i++) {
        const struct option_spec *own = command->options ? command->options[i] : NULL;
        const struct option_spec *table = own ? own : options_common;
        const char *title = table == options_engine     ? "engine options"
                            : table == options_cluster  ? "options of several ranks"
                            : table == options_sampling ? "sampling options"
                            : table == options_common   ? "common options"
                                                        : "options";
        if (strcmp(title, last_title)) print_title(title);
        last_title = title;
        for (const struct option_spec *spec = table; spec->name; spec++)
            visit(spec);
        if (!own) break;
    }
}

/* ---- help ---- */

static void print_title(const char *title)
{
    printf("\n%s:\n", title);
}

static void print_option(const struct option_spec *spec)
{
    char left[128], help[512];
    const char letter[] = {'-', spec->letter, ',', ' ', '\0'};
    const char *value = shown_value(spec);
    int at = snprintf(left, sizeof(left), "  %s--%s%s%s%s", spec->letter ? letter : "    ",
                      shown_prefix(spec), spec->name, *value ? " " : "", value);
    fputs(left, stdout);
    if (at >= HELP_COLUMN) {
        putchar('\n');
        at = 0;
    }
    printf("%*s", HELP_COLUMN - at, "");
    describe(spec, help, sizeof(help));
    print_wrapped(help, HELP_COLUMN, HELP_COLUMN);
}

void help_print_command(const struct command *command)
{
    printf("usage: lean %s [options]%s%s\n\n", command->name, *command->usage ? " " : "",
           command->usage);
    print_wrapped(command->summary, 0, 0);
    if (command->alias) printf("alias: %s\n", command->alias);
    if (command->details) printf("\n%s\n", command->details);
    each_table(command, print_title, print_option);
}

void help_print_overview(void)
{
    printf("usage: lean COMMAND [options] [arguments]\n\n%s\n\ncommands:\n", tagline);
    for (size_t i = 0; commands[i]; i++)
        printf("  %-12s %s\n", commands[i]->name, commands[i]->summary);
    printf("\n`lean help COMMAND` tells more.\n");
}

/* ---- manual pages ---- */

/* Text in which nothing is a request or an escape to troff. */
static void man_text(const char *text)
{
    for (bool line_start = true; *text; text++) {
        if (line_start && (*text == '.' || *text == '\'')) fputs("\\&", stdout);
        if (*text == '-' || *text == '\\')
            fputs(*text == '-' ? "\\-" : "\\e", stdout);
        else
            putchar(*text);
        line_start = *text == '\n';
    }
}

static void man_line(const char *before, const char *text, const char *after)
{
    fputs(before, stdout);
    man_text(text);
    fputs(after, stdout);
}

static void man_title(const char *title)
{
    printf(".SS %s\n", title);
}

static void man_option(const struct option_spec *spec)
{
    char help[512];
    printf(".TP\n");
    if (spec->letter) printf("\\fB\\-%c\\fR, ", spec->letter);
    printf("\\fB\\-\\-");
    man_text(shown_prefix(spec));
    man_line("", spec->name, "\\fR");
    if (*shown_value(spec)) man_line(" \\fI", shown_value(spec), "\\fR");
    describe(spec, help, sizeof(help));
    man_line("\n", help, "\n");
}

static void man_print_command(const struct command *command)
{
    printf(".TH LEAN-%s 1 \"\" \"lean " LEAN_VERSION "\"\n.SH NAME\n", command->name);
    printf("lean\\-%s \\- ", command->name);
    man_line("", command->summary, "\n.SH SYNOPSIS\n");
    printf("\\fBlean %s\\fR [options] ", command->name);
    man_line("", command->usage, "\n");
    if (command->details) man_line(".SH DESCRIPTION\n.nf\n", command->details, "\n.fi\n");
    printf(".SH OPTIONS\n");
    each_table(command, man_title, man_option);
    printf(".SH SEE ALSO\n\\fBlean\\fR(1)\n");
}

/* The statuses that share an exit code, in one entry. */
static void man_exit_codes(void)
{
    printf(".SH EXIT STATUS\n");
    for (int code = 0; code < 256; code++) {
        bool found = false;
        for (int status = 0; status < LM_STATUS_COUNT; status++) {
            if (lm_exit_code((enum lm_status)status) != code) continue;
            if (!found) printf(".TP\n%d\n", code);
            man_line(found ? ", " : "", lm_status_name((enum lm_status)status), "");
            found = true;
        }
        if (found) putchar('\n');
    }
}

static void man_print_overview(void)
{
    printf(".TH LEAN 1 \"\" \"lean " LEAN_VERSION "\"\n.SH NAME\nlean \\- exact, fast inference\n"
           ".SH SYNOPSIS\n\\fBlean\\fR COMMAND [options] [arguments]\n.SH DESCRIPTION\n%s\n"
           ".SH COMMANDS\n",
           tagline);
    for (size_t i = 0; commands[i]; i++) {
        printf(".TP\n\\fBlean\\-%s\\fR(1)\n", commands[i]->name);
        man_line("", commands[i]->summary, "\n");
    }
    man_exit_codes();
    printf(".SH ENVIRONMENT\nEvery setting that `lean config show` lists has a variable: "
           "LEAN_<SECTION>_<KEY>. LEAN_CONFIG names a configuration file, LEAN_NOHISTORY=1 keeps\n"
           "no history, NO_COLOR turns colours off.\n"
           ".SH FILES\n`lean config path` lists the configuration files.\n");
}

/* ---- command ---- */

static enum lm_status run_help(struct options *options, struct lm_error *err)
{
    const struct command *command = NULL;
    const bool man = options_flag(options, "man");
    enum lm_status status = LM_OK;
    if (options_n_arg(options)) status = command_find(&command, options_arg(options, 0), err);
    if (status != LM_OK) return status;
    if (command)
        (man ? man_print_command : help_print_command)(command);
    else
        (man ? man_print_overview : help_print_overview)();
    return LM_OK;
}

static const struct option_spec help_options[] = {
    {"man", 0, OPTION_FLAG, .help = "print the manual page, in the form that man(1) reads"},
    {0},
};

const struct command command_help = {
    .name = "help",
    .usage = "[COMMAND]",
    .n_arg_max = 1,
    .summary = "explain a command",
    .options = (const struct option_spec *const[]){help_options, NULL},
    .run = run_help,
};
