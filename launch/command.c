/* The list of commands. */
#include "launch/command.h"

#include <string.h>

#include "proto/base/nearest.h"

extern const struct command command_bench;
extern const struct command command_completion;
extern const struct command command_config;
extern const struct command command_doctor;
extern const struct command command_eval;
extern const struct command command_help;
extern const struct command command_inspect;
extern const struct command command_list;
extern const struct command command_pack;
extern const struct command command_profile;
extern const struct command command_ps;
extern const struct command command_pull;
extern const struct command command_quantize;
extern const struct command command_rm;
extern const struct command command_run;
extern const struct command command_serve;
extern const struct command command_stop;
extern const struct command command_synth;
extern const struct command command_template;
extern const struct command command_tokenize;
extern const struct command command_version;

/* One to a line, so that changes merge. */
const struct command *const commands[] = {
    // clang-format off
    &command_bench,
    &command_completion,
    &command_config,
    &command_doctor,
    &command_eval,
    &command_help,
    &command_inspect,
    &command_list,
    &command_pack,
    &command_profile,
    &command_ps,
    &command_pull,
    &command_quantize,
    &command_rm,
    &command_run,
    &command_serve,
    &command_stop,
    &command_synth,
    &command_template,
    &command_tokenize,
    &command_version,
    NULL,
    // clang-format on
};

enum lm_status command_find(const struct command **out, const char *name, struct lm_error *err)
{
    struct nearest nearest = {.word = name};
    for (size_t i = 0; commands[i]; i++) {
        const struct command *command = commands[i];
        if (!strcmp(command->name, name) || (command->alias && !strcmp(command->alias, name))) {
            *out = command;
            return LM_OK;
        }
        nearest_offer(&nearest, command->name);
    }
    const char *near = nearest_name(&nearest);
    lm_fail(err, LM_E_USAGE, "unknown command '%.80s'%s%s%s", name, near ? ", did you mean " : "",
            near ? near : "", near ? "?" : "");
    return lm_hint(err, "lean help lists the commands");
}
