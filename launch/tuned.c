/* One small file for each model. */
#include "launch/tuned.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "launch/bench/machine.h"
#include "launch/bench/write_file.h"
#include "launch/config.h"
#include "launch/engine.h"
#include "launch/options.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/gguf/gguf_write.h"
#include "proto/machine.pb-c.h"
#include "proto/text/textproto.h"

enum { MAX_FILE_BYTES = 1 << 16 };

struct tuned {
    char *value[TUNED_COUNT]; /* or NULL */
    double gain[TUNED_COUNT];
};

const struct option_spec *tuned_option(size_t i)
{
    static const char *const names[TUNED_COUNT] = {
        [TUNED_THREADS] = "threads",   [TUNED_IO] = "io",
        [TUNED_PREFETCH] = "prefetch", [TUNED_POLICY] = "policy",
        [TUNED_MISS] = "miss",         [TUNED_PREFILL_CHUNK] = "prefill-chunk"};
    const struct option_spec *spec = options_engine;
    if (i >= TUNED_COUNT) return NULL;
    while (strcmp(spec->name, names[i]))
        spec++;
    return spec;
}

struct tuned *tuned_create(void)
{
    return calloc(1, sizeof(struct tuned));
}

void tuned_destroy(struct tuned *tuned)
{
    for (size_t i = 0; tuned && i < TUNED_COUNT; i++)
        free(tuned->value[i]);
    free(tuned);
}

const char *tuned_value(const struct tuned *tuned, size_t i)
{
    return tuned->value[i];
}

double tuned_gain(const struct tuned *tuned, size_t i)
{
    return tuned->gain[i];
}

enum lm_status tuned_set(struct tuned *tuned, size_t i, const char *value, double gain,
                         struct lm_error *err)
{
    char *const copy = strdup(value);
    if (!copy) return lm_fail(err, LM_E_NO_MEM, "no memory for settings");
    free(tuned->value[i]);
    tuned->value[i] = copy;
    tuned->gain[i] = gain;
    return LM_OK;
}

/* ---- the file ----------------------------------------------------------------------------- */

/* Malloc'ed; NULL: there is nowhere to keep it, or the model has no fingerprint. */
static char *kept_path(const struct gguf_file *file)
{
    char host[65] = "localhost", suffix[160];
    uint64_t fingerprint;
    if (gguf_fingerprint(file, &fingerprint, NULL) != LM_OK) return NULL;
    (void)!gethostname(host, sizeof(host) - 1);
    snprintf(suffix, sizeof(suffix), "lean/machines/%s-%016llx.tuned.textproto", host,
             (unsigned long long)fingerprint);
    return config_user_path("XDG_CACHE_HOME", ".cache", suffix);
}

/* The processor's name, "" if it has none, and how many there are. */
static uint32_t read_processor(char cpu[200])
{
    struct json_object *host = machine_host(), *name = NULL, *cores = NULL;
    json_object_object_get_ex(host, "cpu", &name);
    json_object_object_get_ex(host, "cores", &cores);
    snprintf(cpu, 200, "%s", name ? json_object_get_string(name) : "");
    const uint32_t n = (uint32_t)json_object_get_int64(cores);
    json_object_put(host);
    return n;
}

static bool is_of_this_machine(const Lean__Tuned *kept)
{
    char cpu[200];
    const uint32_t n_core = read_processor(cpu);
    return kept->cpu && !strcmp(kept->cpu, cpu) && kept->cores == n_core;
}

/* A setting that no option of this version has, or not with this value, is left out. */
static void take_setting(struct tuned *tuned, const Lean__TunedSetting *setting)
{
    const struct option_spec *spec;
    if (!setting->key || !setting->value) return;
    for (size_t i = 0; (spec = tuned_option(i)); i++)
        if (!strcmp(spec->key, setting->key) &&
            option_check(spec, spec->name, setting->value, NULL) == LM_OK)
            (void)tuned_set(tuned, i, setting->value, setting->gain, NULL);
}

struct tuned *tuned_find(const struct gguf_file *file)
{
    struct tuned *tuned = NULL;
    char *path = kept_path(file), *text = NULL;
    size_t n;
    Lean__Tuned *kept = (Lean__Tuned *)textproto_create(&lean__tuned__descriptor);
    const bool found = path && kept &&
                       read_all_path(path, MAX_FILE_BYTES, &text, &n, NULL) == LM_OK &&
                       textproto_merge(&kept->base, path, text, n, NULL, NULL, NULL) == LM_OK;
    if (found && is_of_this_machine(kept)) tuned = tuned_create();
    for (size_t i = 0; tuned && i < kept->n_setting; i++)
        take_setting(tuned, kept->setting[i]);
    if (kept) lean__tuned__free_unpacked(kept, NULL);
    free(text);
    free(path);
    return tuned;
}

enum lm_status tuned_keep(const struct tuned *tuned, const struct gguf_file *file,
                          struct lm_error *err)
{
    Lean__TunedSetting setting[TUNED_COUNT], *list[TUNED_COUNT];
    Lean__Tuned kept = LEAN__TUNED__INIT;
    char cpu[200], *path = kept_path(file);
    if (!path) return lm_fail(err, LM_E_NOT_FOUND, "no home directory: settings cannot be kept");
    kept.has_cores = kept.has_time = true;
    kept.cores = read_processor(cpu);
    kept.cpu = cpu;
    kept.time = (int64_t)time(NULL);
    kept.setting = list;
    for (size_t i = 0; i < TUNED_COUNT; i++) {
        if (!tuned->value[i]) continue;
        Lean__TunedSetting *const to = list[kept.n_setting] = &setting[kept.n_setting];
        *to = (Lean__TunedSetting)LEAN__TUNED_SETTING__INIT;
        to->key = (char *)tuned_option(i)->key;
        to->value = tuned->value[i];
        to->has_gain = true;
        to->gain = tuned->gain[i];
        kept.n_setting++;
    }
    char *text = textproto_write(&kept.base, NULL, NULL);
    config_make_parents(path);
    const enum lm_status status = text ? write_file(path, text, strlen(text), err)
                                       : lm_fail(err, LM_E_NO_MEM, "no memory for settings");
    free(text);
    free(path);
    return status;
}

enum lm_status tuned_forget(const struct gguf_file *file, bool *found, struct lm_error *err)
{
    char *path = kept_path(file);
    enum lm_status status = LM_OK;
    *found = path && unlink(path) == 0;
    if (path && !*found && errno != ENOENT) status = lm_fail_errno(err, "%s: remove", path);
    free(path);
    return status;
}

/* ---- what counts -------------------------------------------------------------------------- */

static void take(struct engine_config *config, size_t i, const char *value)
{
    const uint32_t number = (uint32_t)strtoul(value, NULL, 10);
    switch (i) {
    case TUNED_THREADS:
        config->own.n_thread = number;
        break;
    case TUNED_IO:
        config->own.io = value;
        break;
    case TUNED_PREFETCH:
        config->own.prefetch = value;
        break;
    case TUNED_POLICY:
        config->own.policy = value;
        break;
    case TUNED_MISS:
        config->own.miss = value;
        break;
    case TUNED_PREFILL_CHUNK:
        config->prefill_chunk = number;
        break;
    }
}

void tuned_apply(const struct tuned *tuned, struct engine_config *config, char *text, size_t size)
{
    size_t used = 0;
    *text = 0;
    if (!config->options || !options_flag(config->options, "tuned")) return;
    for (size_t i = 0; i < TUNED_COUNT; i++) {
        const char *name = tuned_option(i)->name;
        if (!tuned->value[i] || options_given(config->options, name)) continue;
        take(config, i, tuned->value[i]);
        if (used < size)
            used += (size_t)snprintf(text + used, size - used, "%s%s %s", used ? ", " : "", name,
                                     tuned->value[i]);
    }
}
