/* lean help, and the --help of every command: printed from the tables. */
#include <stdio.h>
#include <string.h>

#include "launch/command.h"

enum { HELP_COLUMN = 30, HELP_WIDTH = 96 };

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

static void print_option(const struct option_spec *spec)
{
    char left[128], help[512];
    const bool shown_off = spec->kind == OPTION_FLAG && spec->def && !strcmp(spec->def, "on");
    const bool flag = spec->kind == OPTION_FLAG;
    const char letter[] = {'-', spec->letter, ',', ' ', '\0'};
    int at = snprintf(left, sizeof(left), "  %s--%s%s%s%s", spec->letter ? letter : "    ",
                      shown_off ? "no-" : "", spec->name, flag ? "" : " ",
                      flag            ? ""
                      : spec->metavar ? spec->metavar
                                      : "VALUE");
    fputs(left, stdout);
    if (at >= HELP_COLUMN) {
        putchar('\n');
        at = 0;
    }
    printf("%*s", HELP_COLUMN - at, "");
    const bool shows_default = spec->def && !flag;
    snprintf(help, sizeof(help), "%s%s%s%s%s", spec->help, shows_default ? " [" : "",
             shows_default ? spec->def : "", shows_default ? "]" : "",
             spec->repeat && !flag ? " (repeatable)" : "");
    print_wrapped(help, HELP_COLUMN, HELP_COLUMN);
}

static void print_table(const char *title, const struct option_spec *table)
{
    printf("\n%s:\n", title);
    for (; table->name; table++)
        print_option(table);
}

void help_print_command(const struct command *command)
{
    printf("usage: lean %s [options]%s%s\n\n", command->name, *command->usage ? " " : "",
           command->usage);
    print_wrapped(command->summary, 0, 0);
    if (command->alias) printf("alias: %s\n", command->alias);
    if (command->details) printf("\n%s\n", command->details);
    for (size_t i = 0; command->options && command->options[i]; i++) {
        const struct option_spec *table = command->options[i];
        const char *title = table == options_engine     ? "engine options"
                            : table == options_sampling ? "sampling options"
                                                        : "options";
        print_table(title, table);
    }
    print_table("common options", options_common);
}

void help_print_overview(void)
{
    printf("usage: lean COMMAND [options] [arguments]\n\n"
           "Exact, fast inference for mixture-of-experts models.\n\ncommands:\n");
    for (size_t i = 0; commands[i]; i++)
        printf("  %-12s %s\n", commands[i]->name, commands[i]->summary);
    printf("\n`lean help COMMAND` tells more.\n");
}

static enum lm_status run_help(struct options *options, struct lm_error *err)
{
    const struct command *command;
    if (options_n_arg(options) == 0) {
        help_print_overview();
        return LM_OK;
    }
    const enum lm_status status = command_find(&command, options_arg(options, 0), err);
    if (status == LM_OK) help_print_command(command);
    return status;
}

const struct command command_help = {
    .name = "help",
    .usage = "[COMMAND]",
    .n_arg_max = 1,
    .summary = "explain a command",
    .run = run_help,
};
