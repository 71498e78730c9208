/* Where the profile lies, and the way between it and the pager. */
#include "launch/routing_profile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/config.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/lmpack/lmpack.h"
#include "proto/model/hparams.h"
#include "proto/model/weights_sample.h"
#include "worker/pager/expert_pager.h"
#include "worker/pager/heat_profile.h"

/* Malloc'ed; NULL: there is nowhere to keep one. */
static char *own_path(uint64_t fingerprint)
{
    char suffix[64];
    snprintf(suffix, sizeof(suffix), "lean/profiles/%016llx.profile",
             (unsigned long long)fingerprint);
    return config_user_path("XDG_CACHE_HOME", ".cache", suffix);
}

/* A file may have the fingerprint of the model and yet not its sizes. */
static enum lm_status check_sizes(const struct heat_profile *profile, const char *name,
                                  const struct hparams *hp, struct lm_error *err)
{
    if (profile->n_layer == hp->n_layer + hp->n_layer_mtp && profile->n_expert == hp->n_expert &&
        profile->n_expert_used == hp->n_expert_used)
        return LM_OK;
    return lm_fail(err, LM_E_MISMATCH,
                   "%s: a profile of %u layers and %u of %u experts, the model has %u, %u and %u",
                   name, profile->n_layer, profile->n_expert_used, profile->n_expert,
                   hp->n_layer + hp->n_layer_mtp, hp->n_expert_used, hp->n_expert);
}

static void seed(struct expert_pager *pager, const struct heat_profile *profile,
                 const struct hparams *hp)
{
    double rate[HPARAMS_MAX_EXPERT];
    const struct expert_pager_stats stats = expert_pager_stats(pager);
    for (uint32_t il = stats.layer_begin; il < stats.layer_end; il++) {
        heat_profile_rates(profile, il, rate);
        for (uint32_t ie = 0; ie < hp->n_expert && hp->layer[il].moe; ie++)
            expert_pager_seed(pager, (struct expert_key){il, ie}, (float)fmin(rate[ie], 1));
    }
    expert_pager_preload(pager);
}

static enum lm_status seed_from(struct expert_pager *pager, const struct gguf_file *file,
                                const struct hparams *hp, const char *path, struct lm_error *err)
{
    struct heat_profile *profile;
    uint64_t fingerprint, weights;
    enum lm_status status = heat_profile_read(&profile, path, err);
    if (status != LM_OK) return status;
    status = gguf_fingerprint(file, &fingerprint, err);
    if (status == LM_OK) status = weights_sample(file, &weights, err);
    if (status == LM_OK) status = heat_profile_check(profile, path, fingerprint, weights, err);
    if (status == LM_OK) status = check_sizes(profile, path, hp, err);
    if (status == LM_OK) seed(pager, profile, hp);
    heat_profile_destroy(profile);
    return status;
}

/* LM_E_NOT_FOUND: the model has none that was kept. */
static enum lm_status seed_from_own(struct expert_pager *pager, const struct gguf_file *file,
                                    const struct hparams *hp, struct lm_error *err)
{
    uint64_t fingerprint;
    enum lm_status status = gguf_fingerprint(file, &fingerprint, err);
    if (status != LM_OK) return status;
    char *path = own_path(fingerprint);
    if (!path) return LM_E_NOT_FOUND;
    status = seed_from(pager, file, hp, path, err);
    free(path);
    return status;
}

/* LM_E_NOT_FOUND: no pack, or one without a profile. */
static enum lm_status seed_from_pack(struct expert_pager *pager, const struct gguf_file *file,
                                     const struct hparams *hp, struct lm_error *err)
{
    const char *dense = gguf_path(file), *slash = strrchr(dense, '/');
    const int n_folder = slash ? (int)(slash - dense) + 1 : 0;
    char *path;
    if (!gguf_is_pack(file)) return LM_E_NOT_FOUND;
    if (asprintf(&path, "%.*s" LMPACK_PROFILE_NAME, n_folder, dense) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory for a path", dense);
    const enum lm_status status = seed_from(pager, file, hp, path, err);
    free(path);
    return status;
}

enum lm_status routing_profile_load(struct expert_pager *pager, const struct gguf_file *file,
                                    const struct hparams *hp, const char *path,
                                    struct lm_error *err)
{
    struct lm_error own_err;
    if (path && !strcmp(path, "none")) return LM_OK;
    if (path) return seed_from(pager, file, hp, path, err);
    enum lm_status status = seed_from_own(pager, file, hp, &own_err);
    if (status == LM_E_NOT_FOUND) status = seed_from_pack(pager, file, hp, &own_err);
    if (status != LM_OK && status != LM_E_NOT_FOUND) log_warning("%s", own_err.message);
    return LM_OK;
}

double routing_profile_uses(const struct expert_pager *pager, const struct hparams *hp,
                            double *uses)
{
    const struct expert_pager_stats stats = expert_pager_stats(pager);
    for (uint32_t il = stats.layer_begin; il < stats.layer_end; il++)
        for (uint32_t ie = 0; ie < hp->n_expert && hp->layer[il].moe; ie++)
            uses[(size_t)il * hp->n_expert + ie] =
                (double)expert_pager_uses(pager, (struct expert_key){il, ie});
    return (double)expert_pager_n_token(pager);
}

void routing_profile_save(const struct gguf_file *file, const struct hparams *hp, double n_token,
                          const double *uses)
{
    struct heat_profile *run;
    struct lm_error err;
    uint64_t fingerprint, weights;
    if (gguf_fingerprint(file, &fingerprint, &err) != LM_OK) return;
    if (weights_sample(file, &weights, &err) != LM_OK) return; /* the file is gone */
    char *path = own_path(fingerprint);
    if (!path) return;
    enum lm_status status =
        heat_profile_create(&run, fingerprint, hp->arch->name, hp->n_layer + hp->n_layer_mtp,
                            hp->n_expert, hp->n_expert_used, &err);
    if (status == LM_OK) {
        run->weights = weights;
        run->n_token = n_token;
        memcpy(run->uses, uses, (size_t)run->n_layer * run->n_expert * sizeof(*uses));
        config_make_parents(path);
        status = heat_profile_update(path, run, &err);
        heat_profile_destroy(run);
    }
    if (status != LM_OK) log_warning("the routing profile was not kept: %s", err.message);
    free(path);
}
