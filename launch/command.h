/* What every cli_<command>.c hands to main: one struct command. options.h parses for it.
 *
 * Options are declared in tables. From the same tables come parsing, --help, shell completion and
 * `lean config`. A command is added in two places: its own file, and the list in command.c. */
#ifndef LEAN_LAUNCH_COMMAND_H
#define LEAN_LAUNCH_COMMAND_H

#include "launch/options.h"

struct command {
    const char *name;                         /* "tokenize" */
    const char *alias;                        /* another name, or NULL */
    const char *usage;                        /* arguments after the options: "MODEL [TEXT]" */
    size_t n_arg_min, n_arg_max;              /* how many of them there may be */
    const char *words;                        /* what arguments can be, "show|get"; NULL: files */
    const char *summary;                      /* one line for `lean help` */
    const char *details;                      /* paragraphs for --help, or NULL */
    const struct option_spec *const *options; /* NULL-terminated list of the command's own tables;
                                                 NULL: none. options_common is always added */
    bool reads_config; /* files and environment fill in what the command line leaves out */
    bool takes_ranks;  /* has options_cluster, and becomes a job of several ranks by them */
    bool drains;       /* a server: signals end it in order */
    /* Whether a call with these options is no job of several ranks, whatever they say; NULL: never.
     */
    bool (*stays_here)(const struct options *options);
    enum lm_status (*run)(struct options *options, struct lm_error *err);
};

extern const struct command *const commands[]; /* NULL-terminated, in the order of `lean help` */

/* By name or alias. LM_E_USAGE: there is none; the message names the nearest. */
enum lm_status command_find(const struct command **out, const char *name, struct lm_error *err);

/* `lean help` and `lean help COMMAND` on stdout. */
void help_print_overview(void);
void help_print_command(const struct command *command);

#endif
