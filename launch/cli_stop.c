/* lean stop: ends servers, when what they do has ended or at once. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <json-c/json.h>

#include "launch/command.h"
#include "launch/registry.h"
#include "proto/base/log.h"

static const struct option_spec stop_options[] = {
    {"all", 0, OPTION_FLAG, .help = "every server of this user"},
    {"now", 0, OPTION_FLAG, .help = "without waiting for what runs"},
    {"timeout", 0, OPTION_TIME, "TIME", .def = "60s", .help = "how long to wait for the end"},
    {0},
};
static const struct option_spec *const stop_tables[] = {stop_options, NULL};

static bool is_called(const struct registry_entry *entry, const char *name)
{
    struct json_object *value;
    char *end;
    const long pid = strtol(name, &end, 10);
    if (*name && !*end && pid == entry->pid) return true;
    return json_object_object_get_ex(entry->facts, "name", &value) &&
           !strcmp(json_object_get_string(value), name);
}

static bool is_wanted(const struct options *options, const struct registry_entry *entry, size_t n)
{
    const size_t n_arg = options_n_arg(options);
    if (options_flag(options, "all") || (!n_arg && n == 1)) return true;
    for (size_t i = 0; i < n_arg; i++)
        if (is_called(entry, options_arg(options, i))) return true;
    return false;
}

/* Every name has to be some server's. */
static enum lm_status check_names(const struct options *options,
                                  const struct registry_entry *entries, size_t n,
                                  struct lm_error *err)
{
    const size_t n_arg = options_n_arg(options);
    if (!n) return lm_fail(err, LM_E_NOT_FOUND, "no server runs");
    if (!n_arg && n > 1 && !options_flag(options, "all")) {
        lm_fail(err, LM_E_USAGE, "%zu servers run", n);
        return lm_hint(err, "name one of them, as lean ps lists them, or say --all");
    }
    for (size_t i = 0; i < n_arg; i++) {
        bool found = false;
        for (size_t e = 0; e < n && !found; e++)
            found = is_called(&entries[e], options_arg(options, i));
        if (!found)
            return lm_fail(err, LM_E_NOT_FOUND, "no server '%.80s' runs", options_arg(options, i));
    }
    return LM_OK;
}

/* The first signal drains, the second ends at once. */
static void send_signals(pid_t pid, bool now)
{
    const struct timespec pause = {.tv_nsec = 100 * 1000 * 1000};
    kill(pid, SIGTERM);
    if (!now) return;
    nanosleep(&pause, NULL); /* two that wait at the same time are one */
    if (registry_lives(pid)) kill(pid, SIGTERM);
}

static bool wait_for_end(pid_t pid, double until_s)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    while (registry_lives(pid)) {
        if (log_now_s() > until_s) return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

static enum lm_status run_stop(struct options *options, struct lm_error *err)
{
    struct registry_entry *entries;
    size_t n, n_left = 0;
    enum lm_status status = registry_list(&entries, &n, err);
    if (status != LM_OK) return status;
    status = check_names(options, entries, n, err);
    const double until_s = log_now_s() + options_float(options, "timeout");
    for (size_t i = 0; status == LM_OK && i < n; i++)
        if (is_wanted(options, &entries[i], n))
            send_signals(entries[i].pid, options_flag(options, "now"));
    for (size_t i = 0; status == LM_OK && i < n; i++)
        if (is_wanted(options, &entries[i], n)) n_left += !wait_for_end(entries[i].pid, until_s);
    if (n_left)
        status = lm_fail(err, LM_E_FAIL, "%zu server%s did not end in %g s", n_left,
                         n_left == 1 ? "" : "s", options_float(options, "timeout"));
    registry_free_list(entries, n);
    return status;
}

const struct command command_stop = {
    .name = "stop",
    .usage = "[NAME|PID...]",
    .n_arg_max = SIZE_MAX,
    .words = "",
    .summary = "end a server",
    .details = "Without a name the one server that runs. It finishes what it does first, see\n"
               "`lean serve --drain-timeout`.",
    .options = stop_tables,
    .run = run_stop,
};
