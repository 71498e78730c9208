/* Names out of textproto. */
#include "coordinator/hub/registry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/registry.pb-c.h"
#include "proto/text/textproto.h"

enum { TEXTS_MAX = 8 };

struct hub_registry {
    Lean__Registry *text[TEXTS_MAX];
    size_t n_text;
};

enum lm_status hub_registry_create(struct hub_registry **out, struct lm_error *err)
{
    *out = calloc(1, sizeof(**out));
    return *out ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for names of models");
}

void hub_registry_destroy(struct hub_registry *registry)
{
    if (!registry) return;
    for (size_t i = 0; i < registry->n_text; i++)
        protobuf_c_message_free_unpacked(&registry->text[i]->base, NULL);
    free(registry);
}

static enum lm_status check(const Lean__Registry *text, const char *file, struct lm_error *err)
{
    struct hub_ref ref;
    for (size_t i = 0; i < text->n_model; i++) {
        const Lean__RegistryModel *model = text->model[i];
        const char *name = model->name ? model->name : "";
        if (!*name || strpbrk(name, "/: "))
            return lm_fail(err, LM_E_USAGE, "%s: model %zu: '%.80s' is no name for a model", file,
                           i + 1, name);
        if (!model->repository || !hub_ref_parse(&ref, model->repository))
            return lm_fail(err, LM_E_USAGE, "%s: model %s: its repository is no OWNER/NAME", file,
                           name);
        if (model->revision && !hub_ref_is_revision(model->revision))
            return lm_fail(err, LM_E_USAGE, "%s: model %s: its revision is none", file, name);
        for (size_t k = 0; k < model->n_variant; k++)
            if (!model->variant[k]->label || (model->variant[k]->repository &&
                                              !hub_ref_parse(&ref, model->variant[k]->repository)))
                return lm_fail(err, LM_E_USAGE,
                               "%s: model %s: variant %zu lacks a label, or its repository is no "
                               "OWNER/NAME",
                               file, name, k + 1);
    }
    return LM_OK;
}

enum lm_status hub_registry_add(struct hub_registry *registry, const char *file, const char *text,
                                size_t n, struct lm_error *err)
{
    if (registry->n_text == TEXTS_MAX)
        return lm_fail(err, LM_E_LIMIT, "%s: more than %d files of names", file, TEXTS_MAX);
    ProtobufCMessage *message = textproto_create(&lean__registry__descriptor);
    if (!message) return lm_fail(err, LM_E_NO_MEM, "no memory for names of models");
    enum lm_status status = textproto_merge(message, file, text, n, NULL, NULL, err);
    if (status == LM_OK) status = check((const Lean__Registry *)message, file, err);
    if (status == LM_OK)
        registry->text[registry->n_text++] = (Lean__Registry *)message;
    else
        protobuf_c_message_free_unpacked(message, NULL);
    return status;
}

static const Lean__RegistryModel *find_model(const struct hub_registry *registry, const char *name,
                                             size_t n)
{
    for (size_t t = registry->n_text; t-- > 0;) {
        const Lean__Registry *text = registry->text[t];
        for (size_t i = 0; i < text->n_model; i++)
            if (strlen(text->model[i]->name) == n && !strncasecmp(text->model[i]->name, name, n))
                return text->model[i];
    }
    return NULL;
}

bool hub_registry_find(const struct hub_registry *registry, const char *text, struct hub_ref *out,
                       struct hub_need *need)
{
    const size_t n = strcspn(text, ":");
    const Lean__RegistryModel *model = find_model(registry, text, n);
    const char *label = text[n] ? text + n + 1 : NULL;
    if (!model || (label && (!*label || strlen(label) >= sizeof(out->variant)))) return false;
    if (!label) label = model->default_variant;
    if (!label && model->n_variant) label = model->variant[0]->label;
    *out = (struct hub_ref){0};
    hub_ref_parse(out, model->repository);
    if (need) *need = (struct hub_need){0};
    for (size_t i = 0; label && i < model->n_variant; i++) {
        const Lean__RegistryVariant *variant = model->variant[i];
        if (strcasecmp(variant->label, label) != 0) continue;
        if (variant->repository) hub_ref_parse(out, variant->repository);
        if (need)
            *need = (struct hub_need){variant->disk_size, variant->ram_size, variant->vram_size};
    }
    if (model->revision) strcpy(out->revision, model->revision);
    if (label) snprintf(out->variant, sizeof(out->variant), "%s", label);
    return true;
}

const char *hub_registry_name(const struct hub_registry *registry, size_t i, const char **summary)
{
    for (size_t t = registry->n_text; t-- > 0;) {
        const Lean__Registry *text = registry->text[t];
        for (size_t k = 0; k < text->n_model; k++) {
            const Lean__RegistryModel *model = text->model[k];
            /* one that a later text has is named there */
            if (find_model(registry, model->name, strlen(model->name)) != model) continue;
            if (i--) continue;
            if (summary) *summary = model->summary ? model->summary : "";
            return model->name;
        }
    }
    return NULL;
}
