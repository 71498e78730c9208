/* Existing files, signals, and the result line. */
#include "launch/write_job.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "launch/options.h"
#include "launch/terminal/interrupt.h"
#include "proto/base/log.h"

static volatile sig_atomic_t interrupted;

static void interrupt(void *context)
{
    (void)context;
    interrupted = 1;
}

enum lm_status write_job_check(const struct options *options, const char *path,
                               struct lm_error *err)
{
    if (options_flag(options, "force") || access(path, F_OK)) return LM_OK;
    lm_fail(err, LM_E_USAGE, "%s: exists", path);
    return lm_hint(err, "--force replaces it");
}

enum lm_status write_job_catch_signals(const volatile sig_atomic_t **is_interrupted,
                                       struct lm_error *err)
{
    *is_interrupted = &interrupted;
    return interrupt_begin(interrupt, NULL, err);
}

void write_job_print(const struct options *options, const char *path, uint64_t n_bytes,
                     double seconds)
{
    char size[24], time_text[24];
    if (!options_flag(options, "json")) {
        printf("%s%s%s", path ? path : "", path ? "  " : "", log_format_bytes(n_bytes, size));
        /* as publishers state it */
        if (n_bytes >= 100000000) printf(" (%.1f GB)", (double)n_bytes * 1e-9);
        if (path) printf("  %s", log_format_seconds(seconds, time_text));
        putchar('\n');
        return;
    }
    struct json_object *event = json_object_new_object();
    json_object_object_add(event, "event", json_object_new_string("result"));
    json_object_object_add(event, "time", json_object_new_int64(time(NULL)));
    if (path) json_object_object_add(event, "path", json_object_new_string(path));
    json_object_object_add(event, "bytes", json_object_new_uint64(n_bytes));
    if (path) json_object_object_add(event, "seconds", json_object_new_double(seconds));
    puts(json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN));
    json_object_put(event);
}
