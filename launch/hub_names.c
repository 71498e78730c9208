/* The registry's files. */
#include "launch/hub_names.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launch/config.h"
#include "launch/share_path.h"
#include "proto/base/nearest.h"
#include "proto/base/read_all.h"

enum { FILE_MAX = 1 << 20 };

/* A file that is not there names nothing. */
static enum lm_status add_file(struct hub_registry *registry, const char *path,
                               struct lm_error *err)
{
    char *text;
    size_t n;
    if (!path || access(path, F_OK)) return LM_OK;
    enum lm_status status = read_all_path(path, FILE_MAX, &text, &n, err);
    if (status != LM_OK) return status;
    status = hub_registry_add(registry, path, text, n, err);
    free(text);
    return status;
}

enum lm_status hub_names_open(struct hub_registry **out, struct lm_error *err)
{
    struct hub_registry *registry;
    enum lm_status status = hub_registry_create(&registry, err);
    if (status != LM_OK) return status;
    char *ours = share_path("registry.textproto");
    char *users = config_user_path("XDG_CONFIG_HOME", ".config", "lean/registry.textproto");
    status = add_file(registry, ours, err);
    if (status == LM_OK) status = add_file(registry, users, err);
    free(ours);
    free(users);
    if (status == LM_OK)
        *out = registry;
    else
        hub_registry_destroy(registry);
    return status;
}

enum lm_status hub_names_resolve(const struct hub_registry *registry, const char *text,
                                 struct hub_ref *out, struct hub_need *need, struct lm_error *err)
{
    *need = (struct hub_need){0};
    if (hub_registry_find(registry, text, out, need) || hub_ref_parse(out, text)) return LM_OK;
    if (strchr(text, '/'))
        return lm_fail(err, LM_E_USAGE, "'%.200s' is not OWNER/NAME[@REVISION][:VARIANT]", text);
    struct nearest nearest = {.word = text};
    const char *name;
    for (size_t i = 0; (name = hub_registry_name(registry, i, NULL)); i++)
        nearest_offer(&nearest, name);
    name = nearest_name(&nearest);
    lm_fail(err, LM_E_NOT_FOUND, "'%.200s' is no model's name%s%s%s", text,
            name ? ", did you mean " : "", name ? name : "", name ? "?" : "");
    return lm_hint(err,
                   "lean list --available prints the names; or OWNER/NAME[@REVISION][:VARIANT]");
}
