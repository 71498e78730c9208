/* Names of devices, and their memory. */
#include "launch/device.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend_cuda.h"
#include "launch/binding.h"
#include "launch/rank_settings.h"
#include "proto/base/log.h"

/* DEVICE_MAX: that are looked at. The reserve is for what a driver and other programs take later.
 */
enum { DEVICE_MAX = 64, RESERVE_SHARE = 16 };
#define RESERVE_MAX (UINT64_C(512) << 20)
#define FREE_MIN (UINT64_C(16) << 20)

struct choice {
    const char *kind;   /* "cuda" */
    const char *plugin; /* or NULL for the usual one */
    bool given;         /* it was asked for */
    bool has_index;
    uint32_t index;
};

/* "KIND" or "KIND:N" */
static enum lm_status parse(struct choice *out, const char *text, struct lm_error *err)
{
    const size_t n = strcspn(text, ":");
    const char *const number = text[n] ? text + n + 1 : NULL;
    char *end = NULL;
    const unsigned long index = number ? strtoul(number, &end, 10) : 0;
    const bool is_cuda = n == 4 && !memcmp(text, "cuda", 4);
    const bool is_emu = n == 3 && !memcmp(text, "emu", 3);
    if ((!is_cuda && !is_emu) || (number && (*number < '0' || *number > '9' || *end)) ||
        index >= DEVICE_MAX)
        return lm_fail(err, LM_E_USAGE, "--device must be cpu, cuda, cuda:N or emu, got '%.80s'",
                       text);
    *out = (struct choice){.kind = is_cuda ? "cuda" : "emu",
                           .plugin = is_cuda ? NULL : CUDA_EMU_PLUGIN_FILE,
                           .given = true,
                           .has_index = number != NULL,
                           .index = (uint32_t)index};
    return LM_OK;
}

static uint64_t without_reserve(uint64_t free_bytes)
{
    const uint64_t share = free_bytes / RESERVE_SHARE;
    return free_bytes - (share < RESERVE_MAX ? share : RESERVE_MAX);
}

/* Which part of what is free may be used. */
static uint64_t budget(uint64_t free_bytes, uint64_t asked_bytes, const char *name)
{
    char asked[24], left[24];
    if (!asked_bytes) return without_reserve(free_bytes);
    if (asked_bytes > free_bytes)
        log_warning("%s: %s of its memory are free, not %s", name,
                    log_format_bytes(free_bytes, left), log_format_bytes(asked_bytes, asked));
    return asked_bytes < free_bytes ? asked_bytes : free_bytes;
}

/* The device of the rank's number on its host. */
static enum lm_status map_device(const struct cuda_device_info *info, uint32_t n,
                                 const struct rank_settings *settings, struct local_rank local,
                                 uint32_t *out, struct lm_error *err)
{
    const char *uuids[DEVICE_MAX];
    const uint32_t n_known = n < DEVICE_MAX ? n : DEVICE_MAX;
    for (uint32_t i = 0; i < n_known; i++)
        uuids[i] = info[i].uuid;
    return binding_device(local, settings->devices, uuids, n_known, out, err);
}

static enum lm_status open_choice(struct device *out, const struct choice *choice,
                                  const struct rank_settings *settings, struct local_rank local,
                                  struct lm_error *err)
{
    struct cuda_device_info info[DEVICE_MAX];
    uint32_t n;
    enum lm_status status = backend_cuda_devices(choice->plugin, info, DEVICE_MAX, &n, err);
    if (status != LM_OK) return status;
    struct backend_cuda_config config = {
        .plugin = choice->plugin, .device = choice->index, .fast = rank_settings_fast(settings)};
    if (!choice->has_index && n) status = map_device(info, n, settings, local, &config.device, err);
    if (status != LM_OK) return status;
    status = backend_cuda_create(&out->backend, &config, err);
    uint64_t free_bytes;
    if (status == LM_OK)
        status = backend_cuda_free_bytes(choice->plugin, config.device, &free_bytes, err);
    if (status != LM_OK) return status;
    snprintf(out->kind, sizeof(out->kind), "%s:%u", choice->kind, config.device);
    snprintf(out->name, sizeof(out->name), "%s (%s)", out->kind, info[config.device].name);
    if (!choice->plugin) snprintf(out->uuid, sizeof(out->uuid), "%s", info[config.device].uuid);
    out->budget_bytes = budget(free_bytes, settings->vram_bytes, out->name);
    out->fast = config.fast;
    out->plugin = config.plugin;
    out->index = config.device;
    return LM_OK;
}

enum lm_status device_open(struct device *out, const struct rank_settings *settings,
                           struct local_rank local, struct lm_error *err)
{
    struct choice choice = {.kind = "cuda"};
    struct lm_error why;
    const bool reference = settings->kernels && !strcmp(settings->kernels, "reference");
    *out = (struct device){.backend = NULL};
    if (settings->device && !strcmp(settings->device, "cpu")) return LM_OK;
    enum lm_status status = settings->device ? parse(&choice, settings->device, err) : LM_OK;
    if (status != LM_OK) return status;
    if (reference && choice.given)
        return lm_fail(err, LM_E_UNSUPPORTED, "--reference computes on the CPU, not on %s",
                       settings->device);
    if (reference || settings->gpu_layers == 0) return LM_OK;
    status = open_choice(out, &choice, settings, local, &why);
    if (status == LM_OK) return LM_OK;
    device_close(out);
    if (choice.given || settings->gpu_layers > 0 || status == LM_E_USAGE) {
        if (err) *err = why;
        return status;
    }
    if (status == LM_E_UNSUPPORTED)
        log_verbose("computes on the CPU: %s", why.message);
    else
        log_warning("computes on the CPU: %s", why.message);
    return LM_OK;
}

void device_close(struct device *device)
{
    if (device->backend) device->backend->ops->destroy(device->backend);
    *device = (struct device){.backend = NULL};
}

static bool free_bytes_of(const struct device *device, uint64_t *out)
{
    return backend_cuda_free_bytes(device->plugin, device->index, out, NULL) == LM_OK;
}

uint64_t device_spare_bytes(const struct device *device)
{
    uint64_t free_bytes;
    return free_bytes_of(device, &free_bytes) ? without_reserve(free_bytes) : UINT64_MAX;
}

void device_recheck(const struct device *device)
{
    char left[24];
    uint64_t free_bytes;
    if (!device->backend || !free_bytes_of(device, &free_bytes) || free_bytes >= FREE_MIN) return;
    log_warning("%s: %s of its memory are left for other programs and the driver; a smaller --vram "
                "leaves more",
                device->name, log_format_bytes(free_bytes, left));
}

/* ---- one for several -------------------------------------------------------------------- */

static bool is_common(const struct device_claim *a, const struct device_claim *b)
{
    return *a->uuid && !strcmp(a->uuid, b->uuid) && !strcmp(a->host, b->host);
}

/* Of one that did not ask for a size, by the least that any of these found; a byte if nothing is
 * left. */
static uint64_t part_of(const struct device_claim *claims, uint32_t n,
                        const struct device_claim *own)
{
    uint64_t least = own->budget_bytes, given = 0;
    uint32_t n_open = 0;
    if (!*own->uuid) return least;
    for (uint32_t i = 0; i < n; i++) {
        const struct device_claim *const claim = &claims[i];
        if (!is_common(claim, own)) continue;
        n_open += !claim->asked_bytes;
        if (claim->asked_bytes)
            given += claim->budget_bytes;
        else if (claim->budget_bytes < least)
            least = claim->budget_bytes;
    }
    return given + n_open < least ? (least - given) / n_open : 1;
}

enum lm_status device_share(struct device_claim *claims, uint32_t n, struct lm_error *err)
{
    uint64_t *const part = calloc(n, sizeof(*part));
    if (!part) return lm_fail(err, LM_E_NO_MEM, "no memory for %u ranks", n);
    enum lm_status status = LM_OK;
    for (uint32_t i = 0; i < n && status == LM_OK; i++) {
        for (uint32_t j = 0; j < i && status == LM_OK; j++) {
            if (!is_common(&claims[i], &claims[j]) || (claims[i].share && claims[j].share))
                continue;
            status = lm_fail(err, LM_E_USAGE, "%s and %s have the same device, %s", claims[j].rank,
                             claims[i].rank, claims[i].name);
            lm_hint(err, "without a number in --device each takes one of its own; --share-gpu lets "
                         "them share");
        }
        part[i] = claims[i].asked_bytes ? claims[i].budget_bytes : part_of(claims, n, &claims[i]);
    }
    for (uint32_t i = 0; i < n && status == LM_OK; i++)
        claims[i].budget_bytes = part[i];
    free(part);
    return status;
}
