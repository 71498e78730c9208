/* Command-line options from declarative tables.
 *
 * An option stands anywhere after the command: --name value, --name=value, --flag, --no-flag,
 * single letters for those that declare one (-n 5, -n5, -vv), names of two letters also behind one
 * dash (-pg 8,4); `--` ends options. A value is checked
 * by kind when it is parsed; of several, the last counts unless the option repeats. An empty value
 * (--ctx=) unsets: the default applies, whatever the configuration says. An option with a key is
 * also a setting of the configuration (launch/config.h), and its value, when not given, comes from
 * there: command line, LEAN_* environment, files, default. */
#ifndef LEAN_LAUNCH_OPTIONS_H
#define LEAN_LAUNCH_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

enum option_kind {
    OPTION_FLAG, /* --x, --no-x; def "on" makes help show --no-x */
    OPTION_INT,  /* decimal integer; with metavar "N|auto" also the word auto, which gives 0 */
    OPTION_FLOAT,
    OPTION_STRING,
    OPTION_PATH, /* a string that completion treats as a file */
    OPTION_SIZE, /* 64M, 1.5GiB: bytes, binary units */
    OPTION_TIME, /* 30s, 5m, 150ms: seconds as a float */
    OPTION_ENUM  /* one of values, "a|b|c" */
};

struct option_spec {
    const char *name; /* without dashes; NULL ends a table */
    char letter;      /* or 0 */
    enum option_kind kind;
    const char *metavar; /* "N", "FILE"; for OPTION_ENUM the values "f16|bf16" */
    const char *def;     /* default as text, or NULL: none */
    const char *key;     /* configuration key "compute.threads", or NULL */
    const char *help;
    double min, max; /* bounds for INT and FLOAT, both 0: none */
    bool repeat;     /* may be given several times */
};

extern const struct option_spec options_common[]; /* --json, --quiet, ...: every command has them */
extern const struct option_spec options_engine[]; /* threads, kernels, kv-type, ctx, ... */
extern const struct option_spec options_cluster[];  /* ranks, hosts, ... */
extern const struct option_spec options_sampling[]; /* temperature, top-p, ... */
extern const struct option_spec options_serve[];    /* listen, max-queue, api-key, ... */
/* Empty. What the tables behind it in a command's list declare with a value that is checked, or a
 * choice of words, takes lists and ranges of values (value_list.h): options_list. */
extern const struct option_spec options_lists[];

struct options;
struct config;

/* Parses the words after the command's name. tables: NULL-terminated list of the command's tables,
 * options_common is added to them. argv and the tables are borrowed and must outlive *out.
 * LM_E_USAGE: unknown option (the message names the nearest), value missing or of another kind. */
enum lm_status options_parse(struct options **out, const struct option_spec *const *tables,
                             int argc, char *const *argv, struct lm_error *err);
void options_destroy(struct options *options);

/* Gives each option with a key that the command line left out its value from the configuration,
 * where there is one. config must outlive options. */
enum lm_status options_fill(struct options *options, const struct config *config,
                            struct lm_error *err);
/* What the command line gave, filled from another configuration, which need not outlive it. *out is
 * destroyed before options. */
enum lm_status options_refill(struct options **out, const struct options *options,
                              const struct config *config, struct lm_error *err);
/* The configuration that options were filled from, or NULL. */
const struct config *options_config(const struct options *options);

/* Sets an option as the command line would, or takes its values away again. LM_E_USAGE: no such
 * option in the table (the message names the nearest), or not a value of its kind. */
enum lm_status options_set(struct options *options, const struct option_spec *table,
                           const char *name, const char *text, struct lm_error *err);

/* Checks text as a value of spec's kind, bounds included; empty text passes. name: what messages
 * call it, "--threads". LM_E_USAGE: it is not one. */
enum lm_status option_check(const struct option_spec *spec, const char *name, const char *text,
                            struct lm_error *err);

/* Given on the command line or through the configuration (a default does not count). */
bool options_given(const struct options *options, const char *name);
/* Given on the command line or by options_set. */
bool options_said(const struct options *options, const char *name);

/* Values by name. The name must be in one of the command's tables (asserted). Absent without a
 * default: false, 0, NaN, NULL. Strings live as long as options. */
bool options_flag(const struct options *options, const char *name);
int64_t options_int(const struct options *options, const char *name);
double options_float(const struct options *options, const char *name);
uint64_t options_size(const struct options *options, const char *name);
const char *options_string(const struct options *options, const char *name);
size_t options_count(const struct options *options, const char *name); /* of a repeated option */
const char *options_string_at(const struct options *options, const char *name, size_t i);

/* All values of an option; none if it has none. value_list_fini frees them. */
struct value_list;
enum lm_status options_list(const struct options *options, const char *name, struct value_list *out,
                            struct lm_error *err);

/* Positional arguments. */
size_t options_n_arg(const struct options *options);
const char *options_arg(const struct options *options, size_t i);

#endif
