/* dlopen, and the checks behind it. */
#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/base/plugin.h"

/* The folder of the running program. */
static void find_origin(char origin[PATH_MAX])
{
    const ssize_t n = readlink("/proc/self/exe", origin, PATH_MAX - 1);
    origin[n < 0 ? 0 : n] = '\0';
    char *slash = strrchr(origin, '/');
    if (slash) *slash = '\0';
}

/* Sets path to the first place where file is, or returns false. */
static bool find_file(const char *file, char path[PATH_MAX], struct lm_error *err)
{
    const char *chosen = getenv("LEAN_PLUGIN_DIR");
    if (chosen && *chosen) {
        if (snprintf(path, PATH_MAX, "%s/%s", chosen, file) < PATH_MAX && !access(path, R_OK))
            return true;
        lm_fail(err, LM_E_UNSUPPORTED, "%s: not in %s", file, chosen);
        lm_hint(err,
                "LEAN_PLUGIN_DIR says where plugins are; unset, they are found beside the program");
        return false;
    }
    char origin[PATH_MAX];
    find_origin(origin);
    static const char *const folders[] = {"", "/../lib/lean"};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
        if (snprintf(path, PATH_MAX, "%s%s/%s", origin, folders[i], file) < PATH_MAX &&
            !access(path, R_OK))
            return true;
    lm_fail(err, LM_E_UNSUPPORTED, "%s: not in %s nor in %s/../lib/lean", file, origin, origin);
    lm_hint(
        err,
        "the program was built without it: launch/setup.sh builds it where what it needs is, that "
        "of CUDA with nvcc for the GPUs that are here or LEAN_CUDA_ARCHITECTURES names");
    return false;
}

enum lm_status plugin_open(const struct plugin_head **out, const char *file, size_t table_size,
                           struct lm_error *err)
{
    char path[PATH_MAX];
    if (!find_file(file, path, err)) return LM_E_UNSUPPORTED;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return lm_fail(err, LM_E_UNSUPPORTED, "%s", dlerror());
    plugin_fn *entry = (plugin_fn *)(uintptr_t)dlsym(library, "lean_plugin_v1");
    const struct plugin_head *head = entry ? entry() : NULL;
    if (!head) return lm_fail(err, LM_E_UNSUPPORTED, "%s: is no plugin of lean", path);
    if (head->size != table_size || strcmp(head->build_id, LEAN_BUILD_ID) != 0)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: is of build %s, this program of %s", path,
                       head->build_id, LEAN_BUILD_ID);
    *out = head;
    return LM_OK;
}
