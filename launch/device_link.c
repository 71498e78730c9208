/* Choosing, connecting. */
#include "launch/device_link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend_cuda.h"
#include "launch/cluster.h"
#include "launch/model_part.h"
#include "proto/base/log.h"
#include "proto/transport/transport_nccl.h"
#include "proto/transport/world.h"

/* For two ranks to find each other, who both are there; they may have to load code onto devices. */
#define CONNECT_TIMEOUT_S 60

/* ---- what a rank has ---------------------------------------------------------------------- */

static enum lm_status prepare(struct device_link *link, const struct model_part *part, bool sends,
                              struct lm_error *err)
{
    struct link_offer *const offer = &link->offer;
    enum lm_status status =
        nccl_library_open(&link->nccl, backend_cuda_nccl_file(part->device.backend), err);
    if (status == LM_OK && sends) status = nccl_library_make_id(link->nccl, &offer->id, err);
    if (status != LM_OK) return status;
    offer->has_id = sends;
    offer->nccl_version = link->nccl->version;
    return LM_OK;
}

void device_link_offer(struct device_link *link, const struct model_part *part,
                       const struct world *world)
{
    struct lm_error err;
    const bool sends = world->rank + 1 < world->n_rank;
    if (!part->device.backend) return;
    const struct device *const device = &part->device; /* an emulated one is told by its number */
    snprintf(link->offer.gpu, sizeof(link->offer.gpu), "%s",
             *device->uuid ? device->uuid : device->kind);
    if (prepare(link, part, sends, &err) != LM_OK)
        snprintf(link->offer.why_not, sizeof(link->offer.why_not), "%.255s", err.message);
}

/* ---- choosing ----------------------------------------------------------------------------- */

static bool has_device(const struct cluster_rank *rank)
{
    return rank->offer.gpu[0] && rank->device_begin < rank->layer_end;
}

static bool begins_on_device(const struct cluster_rank *rank)
{
    return rank->offer.gpu[0] && rank->device_begin == rank->layer_begin;
}

/* Whether x goes from one device to another on this edge. */
static bool joins_devices(const struct cluster_rank *from, const struct cluster_rank *to)
{
    return has_device(from) && begins_on_device(to);
}

/* Why NCCL cannot be used between two devices. */
static enum lm_status check(const struct cluster_rank *from, const struct cluster_rank *to,
                            struct lm_error *err)
{
    const struct link_offer *const a = &from->offer, *const b = &to->offer;
    if (!strcmp(a->gpu, b->gpu) && !strcmp(from->inventory.host, to->inventory.host)) {
        lm_fail(err, LM_E_UNSUPPORTED, "%s and %s are on the same GPU, which NCCL does not connect",
                from->name, to->name);
        return lm_hint(err, "--transport mpi, or a GPU for each of them: --devices");
    }
    const struct cluster_rank *const lacks = !a->nccl_version ? from : !b->nccl_version ? to : NULL;
    if (lacks) {
        lm_fail(err, LM_E_UNSUPPORTED, "%s: %s", lacks->name, lacks->offer.why_not);
        return lm_hint(err, "install libnccl2 there, or name its folder in LD_LIBRARY_PATH; "
                            "--transport mpi does without");
    }
    if (a->nccl_version != b->nccl_version)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s has NCCL %d and %s %d, which do not go together",
                       from->name, a->nccl_version, to->name, b->nccl_version);
    return LM_OK;
}

enum lm_status device_link_choose(bool *nccl, const struct cluster_rank *ranks, uint32_t n_rank,
                                  const char *transport, struct lm_error *err)
{
    const bool wanted = !strcmp(transport, "nccl");
    uint32_t n_joined = 0;
    memset(nccl, 0, (n_rank - 1) * sizeof(*nccl));
    for (uint32_t i = 0; i + 1 < n_rank && strcmp(transport, "mpi"); i++) {
        struct lm_error why;
        if (!joins_devices(&ranks[i], &ranks[i + 1])) continue;
        n_joined++;
        nccl[i] = check(&ranks[i], &ranks[i + 1], &why) == LM_OK;
        if (!nccl[i] && wanted) {
            *err = why;
            return why.status;
        }
        if (!nccl[i]) log_verbose("activations go over the host: %s", why.message);
    }
    if (n_joined || !wanted) return LM_OK;
    lm_fail(err, LM_E_UNSUPPORTED,
            "--transport nccl: between no two ranks do activations go from a GPU to a GPU");
    return lm_hint(err, "--device cuda, --gpu-layers and --partition say which layers are on one; "
                        "or --transport auto");
}

/* ---- connecting --------------------------------------------------------------------------- */

static enum lm_status open_end(struct transport_edge **out, const struct nccl_id *id,
                               struct transport_nccl_config *config, struct lm_error *err)
{
    if (!id) return LM_OK;
    config->id = *id;
    return transport_nccl_open(out, config, err);
}

/* One after the other: the first rank has no edge to wait for, the second none but the first's. */
enum lm_status device_link_open(struct device_link *link, struct model_part *part,
                                struct world *world, const struct nccl_id *in,
                                const struct nccl_id *out, struct lm_error *err)
{
    struct backend *const device = part->device.backend;
    struct transport_nccl_config config = {
        .nccl = link->nccl, .world = world, .timeout_s = CONNECT_TIMEOUT_S};
    if (!in && !out) return LM_OK;
    enum lm_status status = backend_cuda_stream(device, &config.stream, err);
    if (status != LM_OK) return status;
    config.memory = device->ops->alloc(device, TRANSPORT_NCCL_WARM_BYTES, err);
    if (!config.memory) return LM_E_NO_MEM;
    status = open_end(&link->in, in, &config, err);
    config.sending = true;
    if (status == LM_OK) status = open_end(&link->out, out, &config, err);
    device->ops->free(device, config.memory);
    return status;
}

static void close_ends(struct device_link *link)
{
    if (link->in) link->in->ops->close(link->in);
    if (link->out) link->out->ops->close(link->out);
    link->in = link->out = NULL;
}

enum lm_status device_link_settle(struct device_link *link, struct model_part *part, bool keep,
                                  struct lm_error *err)
{
    if (!keep) close_ends(link);
    if (!link->in && !link->out) return LM_OK;
    const enum lm_status status = worker_link(part->worker, link->in, link->out, err);
    link->in = link->out = NULL;
    return status;
}

void device_link_fini(struct device_link *link)
{
    close_ends(link);
    nccl_library_close(link->nccl);
    *link = (struct device_link){.nccl = NULL};
}
