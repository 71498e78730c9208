/* lean completion: shell completion scripts, printed from the commands and their option tables. */
#include <stdio.h>
#include <string.h>

#include "launch/command.h"

typedef void (*visit_fn)(const struct command *command, const struct option_spec *spec);

/* Calls visit for every option of a command, the common ones too. */
static void each_option(const struct command *command, visit_fn visit)
{
    for (size_t i = 0; command->options && command->options[i]; i++)
        for (const struct option_spec *spec = command->options[i]; spec->name; spec++)
            visit(command, spec);
    for (const struct option_spec *spec = options_common; spec->name; spec++)
        visit(command, spec);
}

static bool is_flag(const struct option_spec *spec)
{
    return spec->kind == OPTION_FLAG;
}

/* A flag that is on by default is completed as --no-NAME. */
static const char *negation(const struct option_spec *spec)
{
    return is_flag(spec) && spec->def && !strcmp(spec->def, "on") ? "no-" : "";
}

/* Prints "a|b" as "a b", between two texts. */
static void print_words_as(const char *words, const char *before, const char *after)
{
    fputs(before, stdout);
    for (; *words; words++)
        putchar(*words == '|' ? ' ' : *words);
    fputs(after, stdout);
}

/* ---- bash ---- */

static void bash_name(const struct command *command, const struct option_spec *spec)
{
    (void)command;
    printf(" --%s%s", negation(spec), spec->name);
}

/* A case branch for what follows an option that takes a value. */
static void bash_value(const struct command *command, const struct option_spec *spec)
{
    (void)command;
    if (is_flag(spec)) return;
    printf("                --%s) ", spec->name);
    if (spec->kind == OPTION_ENUM) {
        print_words_as(spec->metavar, "words=\"", "\" ;;\n");
    } else {
        puts(spec->kind == OPTION_PATH ? "files=1 ;;" : "return ;;");
    }
}

static void print_bash(void)
{
    puts("# bash completion for lean: source <(lean completion bash)\n"
         "_lean() {\n"
         "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words= files= "
         "options=\n"
         "    COMPREPLY=()\n"
         "    # --name=value arrives as three words.\n"
         "    if [ \"$cur\" = = ]; then cur=; elif [ \"$prev\" = = ]; then "
         "prev=${COMP_WORDS[COMP_CWORD-2]}; fi");
    printf("    local commands=\"");
    for (size_t i = 0; commands[i]; i++)
        printf("%s%s", i ? " " : "", commands[i]->name);
    puts("\"\n"
         "    if [ \"$COMP_CWORD\" = 1 ]; then\n"
         "        words=$commands\n"
         "    else\n"
         "        case ${COMP_WORDS[1]} in");
    for (size_t i = 0; commands[i]; i++) {
        const struct command *command = commands[i];
        printf("        %s%s%s)\n            options=\"", command->name, command->alias ? "|" : "",
               command->alias ? command->alias : "");
        each_option(command, bash_name);
        puts("\"\n            case $prev in");
        each_option(command, bash_value);
        printf("                *) ");
        if (!strcmp(command->name, "help"))
            printf("words=$commands");
        else if (command->words)
            print_words_as(command->words, "words=\"", "\"");
        else
            printf("files=1");
        puts(" ;;\n            esac ;;");
    }
    puts("        esac\n"
         "    fi\n"
         "    if [[ $cur == -* ]]; then\n"
         "        COMPREPLY=($(compgen -W \"$options\" -- \"$cur\"))\n"
         "    elif [ -n \"$words\" ]; then\n"
         "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
         "    elif [ -n \"$files\" ]; then\n"
         "        compopt -o filenames 2>/dev/null\n"
         "        mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n"
         "    fi\n"
         "}\n"
         "complete -F _lean lean");
}

/* ---- zsh ---- */

/* Text inside a single-quoted word of _arguments: quotes, brackets and colons escaped. */
static void zsh_quote(const char *text)
{
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else if (strchr("[]:\\", *text))
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static void zsh_option(const struct command *command, const struct option_spec *spec)
{
    (void)command;
    printf("            '%s--%s%s%s[", spec->repeat ? "*" : "", negation(spec), spec->name,
           is_flag(spec) ? "" : "=");
    zsh_quote(spec->help);
    putchar(']');
    if (!is_flag(spec)) {
        putchar(':');
        zsh_quote(spec->kind == OPTION_ENUM || !spec->metavar ? spec->name : spec->metavar);
        putchar(':');
        if (spec->kind == OPTION_PATH) fputs("_files", stdout);
        if (spec->kind == OPTION_ENUM) print_words_as(spec->metavar, "(", ")");
    }
    puts("' \\");
}

static void print_zsh(void)
{
    puts("#compdef lean\n"
         "# zsh completion for lean: lean completion zsh > \"${fpath[1]}/_lean\"\n"
         "_lean() {\n"
         "    local -a commands=(");
    for (size_t i = 0; commands[i]; i++) {
        printf("        '%s:", commands[i]->name);
        zsh_quote(commands[i]->summary);
        puts("'");
    }
    puts("    )\n"
         "    if (( CURRENT == 2 )); then\n"
         "        _describe command commands\n"
         "        return\n"
         "    fi\n"
         "    local command=$words[2]\n"
         "    shift words\n"
         "    (( CURRENT-- ))\n"
         "    case $command in");
    for (size_t i = 0; commands[i]; i++) {
        const struct command *command = commands[i];
        printf("    %s%s%s)\n        _arguments \\\n", command->name, command->alias ? "|" : "",
               command->alias ? command->alias : "");
        each_option(command, zsh_option);
        printf("            '*:argument:");
        if (!strcmp(command->name, "help"))
            printf("( ${commands%%%%:*} )");
        else if (command->words)
            print_words_as(command->words, "(", ")");
        else
            printf("_files");
        puts("' ;;");
    }
    puts("    esac\n"
         "}\n"
         "# Loaded through fpath, this file is the function's first call; sourced, it only "
         "declares.\n"
         "if [ \"$funcstack[1]\" = _lean ]; then _lean \"$@\"; else compdef _lean lean; fi");
}

/* ---- fish ---- */

static void fish_quote(const char *text)
{
    putchar('\'');
    for (; *text; text++) {
        if (*text == '\'' || *text == '\\') putchar('\\');
        putchar(*text);
    }
    putchar('\'');
}

static void fish_option(const struct command *command, const struct option_spec *spec)
{
    printf("complete -c lean -n '__fish_seen_subcommand_from %s' -l %s%s", command->name,
           negation(spec), spec->name);
    if (spec->letter) printf(" -s %c", spec->letter);
    if (spec->kind == OPTION_PATH) printf(" -rF");
    if (spec->kind == OPTION_ENUM) {
        print_words_as(spec->metavar, " -xa '", "'");
    } else if (!is_flag(spec) && spec->kind != OPTION_PATH) {
        printf(" -x");
    }
    printf(" -d ");
    fish_quote(spec->help);
    putchar('\n');
}

static void print_fish(void)
{
    puts("# fish completion for lean: lean completion fish | source");
    for (size_t i = 0; commands[i]; i++) {
        const struct command *command = commands[i];
        printf("complete -c lean -n __fish_use_subcommand -fa %s -d ", command->name);
        fish_quote(command->summary);
        putchar('\n');
        each_option(command, fish_option);
        if (!command->words) continue;
        printf("complete -c lean -n '__fish_seen_subcommand_from %s'", command->name);
        print_words_as(command->words, " -fa '", "'\n");
    }
}

static enum lm_status run_completion(struct options *options, struct lm_error *err)
{
    static const struct {
        const char *shell;
        void (*print)(void);
    } shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};
    const char *shell = options_arg(options, 0);
    for (size_t i = 0; i < sizeof(shells) / sizeof(shells[0]); i++)
        if (!strcmp(shell, shells[i].shell)) {
            shells[i].print();
            return LM_OK;
        }
    return lm_fail(err, LM_E_USAGE, "unknown shell '%.80s': bash, zsh or fish", shell);
}

const struct command command_completion = {
    .name = "completion",
    .usage = "bash|zsh|fish",
    .n_arg_min = 1,
    .n_arg_max = 1,
    .words = "bash|zsh|fish",
    .summary = "print a shell completion script",
    .details = "  bash   source <(lean completion bash)\n"
               "  zsh    lean completion zsh > \"${fpath[1]}/_lean\"\n"
               "  fish   lean completion fish | source",
    .run = run_completion,
};
