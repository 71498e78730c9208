/* The configuration: settings from files and the environment, each with its origin.
 *
 * Precedence, highest first: command line (options.h), LEAN_<SECTION>_<KEY> variables, the file of
 * --config or LEAN_CONFIG, the user's file, the installation's file, built-in defaults. Files are
 * text format of the message lean.Config (proto/config.proto); an override block ranks just above
 * the file that holds it and counts for the rank and the host that it names; this process is rank
 * 0.
 *
 * A setting is an option_spec with a key: kind, bounds, default and help stand there once.
 *
 * Threads: immutable after config_load. */
#ifndef LEAN_LAUNCH_CONFIG_H
#define LEAN_LAUNCH_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct option_spec;
struct config;

/* Reads all layers. path: the file of --config, or NULL. A file that was named must exist; the
 * user's and the system's need not. LM_E_USAGE: a mistake in a file (with line and column) or in a
 * variable. A LEAN_* variable that is no setting gives a warning. */
enum lm_status config_load(struct config **out, const char *path, struct lm_error *err);
/* The same layers as they count for another rank, on a host of that name. */
enum lm_status config_load_for_rank(struct config **out, const struct config *config, uint32_t rank,
                                    const char *host, struct lm_error *err);
/* From variables only: for a rank but 0, whose host may have other files. */
enum lm_status config_load_variables(struct config **out, struct lm_error *err);
void config_destroy(struct config *config);

/* The variable that sets a key: LEAN_COMPUTE_KV_TYPE of compute.kv_type. */
void config_variable_name(const char *key, char *name, size_t size);

/* The i-th value of a key as the command line spells it: *text is malloc'ed, NULL when nothing
 * sets it (built-in defaults do not count). */
enum lm_status config_get(const struct config *config, const char *key, size_t i, char **text,
                          struct lm_error *err);

/* Gives a setting that nothing has set a value, from `origin`; *used: whether it was. LM_E_USAGE:
 * no value of its kind. */
enum lm_status config_suggest(struct config *config, const char *key, const char *text,
                              const char *origin, bool *used, struct lm_error *err);

/* What set the key: a path, a variable, "built-in default"; NULL: nothing. */
const char *config_origin(const struct config *config, const char *key);

/* All effective values, built-in defaults included, as text format; origins as comments.
 * Malloc'ed; NULL: no memory. */
char *config_write(const struct config *config, bool with_origins);

/* The settings, in the order of the options; NULL after the last. */
const struct option_spec *config_setting_at(size_t i);
/* LM_E_USAGE: no such key; the message names the nearest. */
enum lm_status config_find_setting(const struct option_spec **out, const char *key,
                                   struct lm_error *err);

/* The files that config_load would read, highest precedence first; i-th, NULL after the last.
 * Malloc'ed. */
char *config_file_at(const char *path, size_t i);

/* Reads one file and checks its values, without the other layers. */
enum lm_status config_check_file(const char *path, struct lm_error *err);

/* An environment variable; one that is empty counts as unset: NULL. All of the program's reading
 * of the environment goes through here. */
const char *config_environment(const char *name);

/* SUFFIX below the directory of an XDG variable or, without it, below FALLBACK in the home
 * directory: config_user_path("XDG_STATE_HOME", ".local/state", "lean/history"). Malloc'ed; NULL:
 * no home directory, or no memory. */
char *config_user_path(const char *variable, const char *fallback, const char *suffix);

/* Makes the directories above path, as far as that is possible; path is as before behind it. */
void config_make_parents(char *path);

#endif
