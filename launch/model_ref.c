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
#include "launch/options.h"
#include "proto/gguf/gguf.h"
#include "proto/lmpack/lmpack.h"

/* The folder of the running program, without a slash at its end; false if it cannot be told. */
static bool program_folder(char path[PATH_MAX])
{
    const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (n <= 0) return false;
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    if (slash) *slash = '\0';
    return slash != NULL;
}

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

/* Installed beside the program (PREFIX/bin, PREFIX/share), in its source tree, or where the build
 * was told to install. */
static char *find_demo(void)
{
    char program[PATH_MAX], *folder = NULL, *path = NULL;
    static const char *const beside[] = {"../share/lean/demo", "../configs/demo"};
    const bool known = program_folder(program);
    for (size_t i = 0; known && !path && i < sizeof(beside) / sizeof(beside[0]); i++) {
        if (asprintf(&folder, "%s/%s", program, beside[i]) < 0) return NULL;
        path = first_model(folder);
        free(folder);
    }
    return path ? path : first_model(LEAN_SHARE_DIR "/demo");
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
        status = use_path(strncmp(configured, "file:", 5) ? configured : configured + 5, path, err);
    else if (!ref || !strcmp(ref, "demo"))
        status = use_demo(path, is_demo, err);
    else if (is_folder(ref))
        status = use_path(ref, path, err); /* which says so */
    else if (!*ref)
        status = lm_fail(err, LM_E_NOT_FOUND, "the name of the model is empty");
    else {
        lm_fail(err, LM_E_NOT_FOUND,
                "model '%.400s': no such file, and no such name in the "
                "configuration",
                ref);
        status = lm_hint(err, "name a GGUF file, or demo for the small demonstration model");
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
