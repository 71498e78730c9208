/* Model references. */
#include "launch/model_ref.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch/config.h"
#include "launch/hub_names.h"
#include "launch/hub_settings.h"
#include "launch/options.h"
#include "launch/pull_job.h"
#include "launch/pull_report.h"
#include "launch/share_path.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/lmpack/lmpack.h"

/* The first GGUF file of a folder by name, malloc'ed; NULL: there is none. */
static char *first_model(const char *folder)
{
    char first[NAME_MAX + 1] = "", *path = NULL;
    DIR *stream = opendir(folder);
    if (!stream) return NULL;
    for (const struct dirent *entry; (entry = readdir(stream));) {
        const char *suffix = strrchr(entry->d_name, '.');
        if (suffix && !strcmp(suffix, ".gguf") && (!*first || strcmp(entry->d_name, first) < 0))
            strcpy(first, entry->d_name);
    }
    closedir(stream);
    return *first && asprintf(&path, "%s/%s", folder, first) >= 0 ? path : NULL;
}

static char *find_demo(void)
{
    char *folder = share_path("demo"), *path = folder ? first_model(folder) : NULL;
    free(folder);
    return path;
}

/* Whether the configuration calls its model so. */
static bool is_configured_name(const struct config *config, const char *ref)
{
    bool same = false;
    char *name;
    if (config_get(config, "model.name", 0, &name, NULL) == LM_OK && name)
        same = !strcmp(name, ref);
    free(name);
    for (size_t i = 0; !same; i++) {
        if (config_get(config, "model.alias", i, &name, NULL) != LM_OK || !name) break;
        same = !strcmp(name, ref);
        free(name);
    }
    return same;
}

static enum lm_status use_demo(char **path, bool *is_demo, struct lm_error *err)
{
    *path = find_demo();
    *is_demo = *path != NULL;
    if (*path) return LM_OK;
    lm_fail(err, LM_E_NOT_FOUND, "no model given, and no demonstration model is installed");
    return lm_hint(err, "name a GGUF file: lean run /path/to/model.gguf");
}

static bool is_folder(const char *path)
{
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode);
}

/* Written by `lean pack`: the one kind of folder that is a model. */
static bool is_pack(const char *path)
{
    const int folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return false;
    const bool is = !faccessat(folder, LMPACK_MANIFEST_NAME, R_OK, 0);
    close(folder);
    return is;
}

/* Of a pack that is its dense part, from where the others are found. */
static enum lm_status use_pack(const char *folder, char **path, struct lm_error *err)
{
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/')
        n--;
    if (asprintf(path, "%.*s/" LMPACK_DENSE_NAME, (int)n, folder) < 0)
        return lm_fail(err, LM_E_NO_MEM, "no memory for a path");
    return LM_OK;
}

static enum lm_status use_path(const char *name, char **path, struct lm_error *err)
{
    struct stat info;
    if (stat(name, &info)) return lm_fail_errno(err, "model '%.400s'", name);
    if (is_pack(name)) return use_pack(name, path, err);
    if (!S_ISREG(info.st_mode)) {
        lm_fail(err, LM_E_USAGE, "model '%.400s': %s, not a file", name,
                S_ISDIR(info.st_mode) ? "a folder" : "a device or pipe");
        char *inside = S_ISDIR(info.st_mode) ? first_model(name) : NULL;
        if (inside) lm_hint(err, "name a file in it, as %.150s", inside);
        free(inside);
        return LM_E_USAGE;
    }
    *path = strdup(name);
    return *path ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a path");
}

/* ---- models of the hub ---- */

/* Whether somebody is there to be asked, and says yes. */
static bool wants_pull(const struct options *options, const char *name, const struct hub_need *need)
{
    char answer[16] = "", size[24] = "";
    if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO) || options_flag(options, "json"))
        return false;
    if (need->disk_bytes) log_format_bytes(need->disk_bytes, size);
    fprintf(stderr, "%s is not here. Download it%s%s? [Y/n] ", name, *size ? ", " : "", size);
    if (!fgets(answer, sizeof(answer), stdin)) return false;
    return answer[0] == '\n' || answer[0] == 'y' || answer[0] == 'Y';
}

static enum lm_status pull_missing(const struct options *options, const struct hub_ref *ref,
                                   const struct hub_need *need, const struct hub_settings *settings,
                                   struct pull_result *out, struct lm_error *err)
{
    struct pull_config config = pull_job_config(settings);
    const struct pull_job job = {.ref = *ref, .need = *need, .checks_need = true};
    struct pull_report *report =
        pull_report_create(&(struct pull_report_config){.quiet = options_flag(options, "quiet")});
    if (!report) return lm_fail(err, LM_E_NO_MEM, "no memory to report progress");
    const enum lm_status status = pull_job_run(&job, &config, report, out, err);
    pull_report_destroy(report);
    return status;
}

static enum lm_status find_or_pull(const struct options *options, const char *name,
                                   const struct hub_ref *ref, const struct hub_need *need,
                                   char **path, struct lm_error *err)
{
    struct hub_settings settings;
    struct pull_result found = {0};
    const struct hub_wish wish = {.variant = ref->variant};
    enum lm_status status = hub_settings_read(&settings, NULL, NULL, NULL, err);
    if (status != LM_OK) return status;
    status = pull_find(ref, settings.cache, &wish, &found, err);
    if (status == LM_E_NOT_FOUND && !settings.offline && wants_pull(options, name, need)) {
        status = pull_missing(options, ref, need, &settings, &found, err);
    } else if (status == LM_E_NOT_FOUND) {
        lm_fail(err, status, "model '%.200s' is not in the cache %.400s", name, settings.cache);
        lm_hint(err, "lean pull %.200s", name);
    }
    hub_settings_free(&settings);
    if (status == LM_OK && !found.main_path)
        status = lm_fail(err, LM_E_UNSUPPORTED,
                         "%s: is neither GGUF nor a pack, and does not run here", found.folder);
    if (status == LM_OK) *path = strdup(found.main_path);
    if (status == LM_OK && !*path) status = lm_fail(err, LM_E_NO_MEM, "no memory for a path");
    pull_result_free(&found);
    return status;
}

/* *is_name false: it is no name of a model of the hub, and nothing was done. */
static enum lm_status use_hub(const struct options *options, const char *name, char **path,
                              bool *is_name, struct lm_error *err)
{
    struct hub_registry *names;
    struct hub_ref ref;
    struct hub_need need;
    enum lm_status status = hub_names_open(&names, err);
    *is_name = true;
    if (status != LM_OK) return status;
    *is_name = hub_names_resolve(names, name, &ref, &need, NULL) == LM_OK;
    hub_registry_destroy(names);
    return *is_name ? find_or_pull(options, name, &ref, &need, path, err) : LM_OK;
}

/* A path that is there, else a name of the hub. */
static enum lm_status use_path_or_hub(const struct options *options, const char *name, char **path,
                                      struct lm_error *err)
{
    bool is_name;
    if (!strncmp(name, "file:", 5)) return use_path(name + 5, path, err);
    if (!access(name, F_OK)) return use_path(name, path, err);
    const enum lm_status status = use_hub(options, name, path, &is_name, err);
    return is_name ? status : use_path(name, path, err);
}

enum lm_status model_ref_resolve(const struct options *options, const char *ref, char **path,
                                 bool *is_demo, struct lm_error *err)
{
    const struct config *config = options_config(options);
    char *configured = NULL;
    enum lm_status status = LM_OK;
    *is_demo = false;
    if (config) status = config_get(config, "model.ref", 0, &configured, err);
    if (status != LM_OK) return status;

    if (ref && !strncmp(ref, "file:", 5))
        status = use_path(ref + 5, path, err);
    else if (ref && !access(ref, F_OK) &&
             (!is_folder(ref) || is_pack(ref))) /* a folder may have a model's name */
        status = use_path(ref, path, err);
    else if (configured && *configured && (!ref || is_configured_name(config, ref)))
        status = use_path_or_hub(options, configured, path, err);
    else if (!ref || !strcmp(ref, "demo"))
        status = use_demo(path, is_demo, err);
    else if (is_folder(ref))
        status = use_path(ref, path, err); /* which says so */
    else if (!*ref)
        status = lm_fail(err, LM_E_NOT_FOUND, "the name of the model is empty");
    else {
        bool is_name;
        status = use_hub(options, ref, path, &is_name, err);
        if (!is_name) {
            lm_fail(err, LM_E_NOT_FOUND,
                    "model '%.400s': no such file, and no such name in the "
                    "configuration or the registry",
                    ref);
            status = lm_hint(err, "name a GGUF file, or demo for the small demonstration model; "
                                  "lean list --available prints names");
        }
    }
    free(configured);
    return status;
}

enum lm_status model_ref_open(const struct options *options, const char *ref,
                              struct gguf_file **out, struct lm_error *err)
{
    char *path;
    bool is_demo;
    enum lm_status status = model_ref_resolve(options, ref, &path, &is_demo, err);
    if (status != LM_OK) return status;
    status = gguf_open(out, path, err);
    free(path);
    return status;
}
