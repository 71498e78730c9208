#include "worker/pager/heat_profile.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/read_all.h"
#include "proto/base/unpack_memory.h"
#include "proto/model/hparams.h"
#include "proto/profile.pb-c.h"

enum { PROFILE_BYTES_MAX = 64 << 20, PROFILE_VERSION = 1 };

enum lm_status heat_profile_create(struct heat_profile **out, uint64_t fingerprint,
                                   const char *architecture, uint32_t n_layer, uint32_t n_expert,
                                   uint32_t n_expert_used, struct lm_error *err)
{
    if (!n_layer || n_layer > HPARAMS_MAX_LAYER || !n_expert || n_expert > HPARAMS_MAX_EXPERT ||
        !n_expert_used || n_expert_used > n_expert)
        return lm_fail(err, LM_E_LIMIT,
                       "a routing profile of %u layers, %u of %u experts cannot be", n_layer,
                       n_expert_used, n_expert);
    struct heat_profile *profile = calloc(1, sizeof(*profile));
    if (profile) profile->uses = calloc((size_t)n_layer * n_expert, sizeof(*profile->uses));
    if (!profile || !profile->uses) {
        heat_profile_destroy(profile);
        return lm_fail(err, LM_E_NO_MEM, "routing profile: no memory");
    }
    profile->fingerprint = fingerprint;
    snprintf(profile->architecture, sizeof(profile->architecture), "%s", architecture);
    profile->n_layer = n_layer;
    profile->n_expert = n_expert;
    profile->n_expert_used = n_expert_used;
    *out = profile;
    return LM_OK;
}

void heat_profile_destroy(struct heat_profile *profile)
{
    if (!profile) return;
    free(profile->uses);
    free(profile);
}

/* ---- reading ------------------------------------------------------------------------------ */

static enum lm_status take_layers(struct heat_profile *profile, const Lean__Profile *message,
                                  const char *path, struct lm_error *err)
{
    bool seen[HPARAMS_MAX_LAYER] = {false};
    for (size_t i = 0; i < message->n_layer; i++) {
        const Lean__ProfileLayer *layer = message->layer[i];
        if (layer->layer >= profile->n_layer || seen[layer->layer])
            return lm_fail(err, LM_E_FORMAT, "%s: layer %u is not of the %u layers, or is twice",
                           path, layer->layer, profile->n_layer);
        seen[layer->layer] = true;
        if (layer->n_uses != profile->n_expert)
            return lm_fail(err, LM_E_FORMAT, "%s: layer %u: %zu experts, must be %u", path,
                           layer->layer, layer->n_uses, profile->n_expert);
        for (uint32_t ie = 0; ie < profile->n_expert; ie++) {
            const float uses = layer->uses[ie];
            if (!isfinite(uses) || uses < 0)
                return lm_fail(err, LM_E_FORMAT, "%s: layer %u: uses of expert %u are not a count",
                               path, layer->layer, ie);
            profile->uses[(size_t)layer->layer * profile->n_expert + ie] = (double)uses;
        }
    }
    return LM_OK;
}

static enum lm_status take_message(struct heat_profile **out, const Lean__Profile *message,
                                   const char *path, struct lm_error *err)
{
    struct heat_profile *profile;
    if (message->version != PROFILE_VERSION)
        return message->has_version ? lm_fail(err, LM_E_UNSUPPORTED,
                                              "%s: routing profile of version %u, this is "
                                              "for %d",
                                              path, message->version, PROFILE_VERSION)
                                    : lm_fail(err, LM_E_FORMAT, "%s: not a routing profile", path);
    if (!isfinite(message->n_token) || message->n_token < 0)
        return lm_fail(err, LM_E_FORMAT, "%s: the number of tokens is not one", path);
    enum lm_status status = heat_profile_create(
        &profile, message->fingerprint, message->architecture ? message->architecture : "",
        message->layer_count, message->n_expert, message->n_expert_used, err);
    if (status == LM_E_LIMIT)
        return lm_fail(err, LM_E_FORMAT, "%s: %u layers, %u of %u experts cannot be", path,
                       message->layer_count, message->n_expert_used, message->n_expert);
    if (status != LM_OK) return status;
    profile->n_token = message->n_token;
    profile->weights = message->weights;
    status = take_layers(profile, message, path, err);
    if (status == LM_OK)
        *out = profile;
    else
        heat_profile_destroy(profile);
    return status;
}

enum lm_status heat_profile_read(struct heat_profile **out, const char *path, struct lm_error *err)
{
    char *bytes;
    size_t n_bytes;
    enum lm_status status = read_all_path(path, PROFILE_BYTES_MAX, &bytes, &n_bytes, err);
    if (status != LM_OK) return status;
    struct unpack_memory memory;
    unpack_memory_init(&memory, SIZE_MAX);
    Lean__Profile *message =
        lean__profile__unpack(&memory.allocator, n_bytes, (const uint8_t *)bytes);
    free(bytes);
    if (!message)
        return memory.failed ? lm_fail(err, LM_E_NO_MEM, "%s: no memory for the profile", path)
                             : lm_fail(err, LM_E_FORMAT, "%s: not a routing profile", path);
    status = take_message(out, message, path, err);
    lean__profile__free_unpacked(message, NULL);
    return status;
}

/* ---- writing ------------------------------------------------------------------------------ */

static bool is_used(const struct heat_profile *profile, uint32_t il)
{
    for (uint32_t ie = 0; ie < profile->n_expert; ie++)
        if (profile->uses[(size_t)il * profile->n_expert + ie] > 0) return true;
    return false;
}

/* *out: malloc'ed. */
static enum lm_status pack(const struct heat_profile *profile, uint8_t **out, size_t *n,
                           struct lm_error *err)
{
    Lean__Profile message = LEAN__PROFILE__INIT;
    Lean__ProfileLayer *layers = calloc(profile->n_layer, sizeof(*layers));
    Lean__ProfileLayer **list = calloc(profile->n_layer, sizeof(*list));
    const size_t n_uses = (size_t)profile->n_layer * profile->n_expert;
    float *uses = calloc(n_uses, sizeof(*uses));
    uint8_t *bytes = NULL;
    if (!layers || !list || !uses) goto free_all;
    for (size_t i = 0; i < n_uses; i++)
        uses[i] = (float)profile->uses[i];
    message.has_version = message.has_fingerprint = message.has_layer_count = 1;
    message.has_n_expert = message.has_n_expert_used = message.has_n_token = 1;
    message.version = PROFILE_VERSION;
    message.fingerprint = profile->fingerprint;
    message.has_weights = profile->weights != 0;
    message.weights = profile->weights;
    message.architecture = (char *)profile->architecture; /* packing only reads it */
    message.layer_count = profile->n_layer;
    message.n_expert = profile->n_expert;
    message.n_expert_used = profile->n_expert_used;
    message.n_token = profile->n_token;
    message.layer = list;
    for (uint32_t il = 0; il < profile->n_layer; il++) {
        if (!is_used(profile, il)) continue;
        lean__profile_layer__init(&layers[il]);
        layers[il].has_layer = 1;
        layers[il].layer = il;
        layers[il].n_uses = profile->n_expert;
        layers[il].uses = uses + (size_t)il * profile->n_expert;
        list[message.n_layer++] = &layers[il];
    }
    *n = lean__profile__get_packed_size(&message);
    bytes = malloc(*n);
    if (bytes) lean__profile__pack(&message, bytes);

free_all:
    free(uses);
    free(list);
    free(layers);
    *out = bytes;
    return bytes ? LM_OK : lm_fail(err, LM_E_NO_MEM, "routing profile: no memory to write it");
}

static enum lm_status write_bytes(int fd, const char *path, const uint8_t *bytes, size_t n,
                                  struct lm_error *err)
{
    while (n) {
        const ssize_t done = write(fd, bytes, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return lm_fail_errno(err, "%s: write", path);
        bytes += done;
        n -= (size_t)done;
    }
    return fsync(fd) ? lm_fail_errno(err, "%s: sync", path) : LM_OK;
}

enum lm_status heat_profile_write(const struct heat_profile *profile, const char *path,
                                  struct lm_error *err)
{
    uint8_t *bytes;
    size_t n = 0;
    char *partial;
    enum lm_status status = pack(profile, &bytes, &n, err);
    if (status != LM_OK) return status;
    if (asprintf(&partial, "%s.XXXXXX", path) < 0) {
        free(bytes);
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    }
    const int fd = mkostemp(partial, O_CLOEXEC);
    if (fd < 0) {
        status = lm_fail_errno(err, "%s: create", partial);
        goto free_partial;
    }
    status = write_bytes(fd, partial, bytes, n, err);
    if (status == LM_OK && fchmod(fd, 0644)) status = lm_fail_errno(err, "%s: chmod", partial);
    close(fd);
    if (status == LM_OK && rename(partial, path))
        status = lm_fail_errno(err, "%s: rename to %s", partial, path);
    if (status != LM_OK) unlink(partial);

free_partial:
    free(partial);
    free(bytes);
    return status;
}

/* ---- models and sums ---------------------------------------------------------------------- */

enum lm_status heat_profile_check(const struct heat_profile *profile, const char *name,
                                  uint64_t fingerprint, uint64_t weights, struct lm_error *err)
{
    const bool same_weights = profile->weights == weights || profile->weights == 0 || weights == 0;
    if (profile->fingerprint == fingerprint && same_weights) return LM_OK;
    if (profile->fingerprint == fingerprint)
        return lm_fail(
            err, LM_E_MISMATCH,
            "%s: profile of a model with the fingerprint of this one, %016llx, and other "
            "weights",
            name, (unsigned long long)fingerprint);
    return lm_fail(err, LM_E_MISMATCH,
                   "%s: profile of a model with fingerprint %016llx, this one has %016llx", name,
                   (unsigned long long)profile->fingerprint, (unsigned long long)fingerprint);
}

void heat_profile_fade(struct heat_profile *profile, double n_token)
{
    const double keep = exp2(-n_token / HEAT_PROFILE_HALF_LIFE);
    profile->n_token *= keep;
    for (size_t i = 0; i < (size_t)profile->n_layer * profile->n_expert; i++)
        profile->uses[i] *= keep;
}

enum lm_status heat_profile_add(struct heat_profile *profile, const struct heat_profile *from,
                                const char *name, struct lm_error *err)
{
    const enum lm_status status =
        heat_profile_check(from, name, profile->fingerprint, profile->weights, err);
    if (status != LM_OK) return status;
    if (from->n_layer != profile->n_layer || from->n_expert != profile->n_expert ||
        from->n_expert_used != profile->n_expert_used)
        return lm_fail(err, LM_E_MISMATCH, "%s: %u layers of %u experts, must be %u of %u", name,
                       from->n_layer, from->n_expert, profile->n_layer, profile->n_expert);
    if (!profile->weights) profile->weights = from->weights;
    profile->n_token += from->n_token;
    for (size_t i = 0; i < (size_t)profile->n_layer * profile->n_expert; i++)
        profile->uses[i] += from->uses[i];
    return LM_OK;
}

/* *out: a descriptor to close. */
static enum lm_status take_lock(int *out, const char *path, struct lm_error *err)
{
    enum { WAIT_S = 10, TRIES_PER_S = 100 };
    const struct timespec pause = {.tv_nsec = 1000000000 / TRIES_PER_S};
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return lm_fail_errno(err, "%s: create", path);
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB); i++) {
        const bool held = errno == EWOULDBLOCK || errno == EINTR;
        if (held && i < WAIT_S * TRIES_PER_S) {
            nanosleep(&pause, NULL);
            continue;
        }
        const enum lm_status status =
            held ? lm_fail(err, LM_E_BUSY, "%s: another process holds the lock", path)
                 : lm_fail_errno(err, "%s: lock", path);
        close(fd);
        return status;
    }
    *out = fd;
    return LM_OK;
}

static enum lm_status update_locked(const char *path, const struct heat_profile *run,
                                    struct lm_error *err)
{
    struct heat_profile *kept;
    enum lm_status status = heat_profile_read(&kept, path, err);
    if (status == LM_OK) {
        heat_profile_fade(kept, run->n_token);
        status = heat_profile_add(kept, run, path, err);
        if (status == LM_OK) status = heat_profile_write(kept, path, err);
        heat_profile_destroy(kept);
    }
    if (status != LM_E_NOT_FOUND && status != LM_E_FORMAT && status != LM_E_MISMATCH) return status;
    return heat_profile_write(run, path, err);
}

enum lm_status heat_profile_update(const char *path, const struct heat_profile *run,
                                   struct lm_error *err)
{
    char *lock_path;
    int fd = -1;
    if (asprintf(&lock_path, "%s.lock", path) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    enum lm_status status = take_lock(&fd, lock_path, err);
    if (status == LM_OK) {
        status = update_locked(path, run, err);
        close(fd);
    }
    free(lock_path);
    return status;
}

/* ---- rates -------------------------------------------------------------------------------- */

double heat_profile_rows(const struct heat_profile *profile, uint32_t layer)
{
    const double *uses = profile->uses + (size_t)layer * profile->n_expert;
    double sum = 0;
    for (uint32_t ie = 0; ie < profile->n_expert; ie++)
        sum += uses[ie];
    return sum / profile->n_expert_used;
}

void heat_profile_rates(const struct heat_profile *profile, uint32_t layer, double *out)
{
    const double *uses = profile->uses + (size_t)layer * profile->n_expert;
    const double n_row = heat_profile_rows(profile, layer);
    for (uint32_t ie = 0; ie < profile->n_expert; ie++)
        out[ie] = n_row > 0 ? uses[ie] / n_row : 0;
}
