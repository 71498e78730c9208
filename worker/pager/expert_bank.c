/* A block of the device's memory for each layer, filled through two pieces of the host's: one is
 * read into while the other goes to the device. */
#include "worker/pager/expert_bank.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Parts begin at multiples of the first, which suits every load that a kernel makes. The second is
 * the smallest piece to read through: larger ones gain nothing from a disk or a link. */
enum { PART_ALIGN = 256, PIECE_BYTES = 16 << 20, N_PIECE = 2, PAGE_BYTES = 4096 };

struct piece {
    char *memory;
    size_t used_bytes;
    uint64_t ticket; /* of the last copy out of it; 0: none */
};

struct expert_bank {
    struct expert_bank_config config;
    char **memory;              /* [layer_end] blocks; NULL where a layer has no routed experts */
    struct expert_view **table; /* [layer_end] in the device's memory */
    uint64_t n_done, n_total;
    struct piece piece[N_PIECE]; /* while loading */
    size_t piece_bytes;
    uint32_t turn;
};

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

/* Bytes from one expert of a layer to the next. */
static uint64_t expert_stride(const struct expert_layer *layer)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < layer->n_part; i++)
        n_bytes += round_up(layer->part_bytes[i], PART_ALIGN);
    return n_bytes;
}

uint64_t expert_bank_bytes(const struct expert_store *store, uint32_t layer_begin,
                           uint32_t layer_end, uint32_t n_expert)
{
    uint64_t n_bytes = 0;
    for (uint32_t il = layer_begin; il < layer_end; il++)
        n_bytes += expert_stride(expert_store_layer(store, il)) * n_expert;
    return n_bytes;
}

static enum lm_status read_piece(const struct expert_file *file, uint64_t offset, char *to,
                                 size_t n_bytes, struct lm_error *err)
{
    for (size_t at = 0; at < n_bytes;) {
        const ssize_t n = pread(file->fd, to + at, n_bytes - at, (off_t)(offset + at));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return lm_fail_errno(err, "%s: read at %llu", file->path,
                                 (unsigned long long)(offset + at));
        if (!n)
            return lm_fail(err, LM_E_IO, "%s: the file ends before byte %llu", file->path,
                           (unsigned long long)(offset + n_bytes));
        at += (size_t)n;
    }
    return LM_OK;
}

/* Waits until the device has what is in a piece. */
static enum lm_status empty_piece(struct expert_bank *bank, struct piece *piece,
                                  struct lm_error *err)
{
    struct backend *backend = bank->config.backend;
    piece->used_bytes = 0;
    if (backend->ops->fetched(backend, piece->ticket)) return LM_OK;
    backend->ops->await(backend, piece->ticket);
    return backend->ops->sync(backend, err);
}

/* A piece with room for n_bytes. */
static enum lm_status next_piece(struct expert_bank *bank, size_t n_bytes, struct piece **out,
                                 struct lm_error *err)
{
    *out = &bank->piece[bank->turn];
    if (n_bytes <= bank->piece_bytes - (*out)->used_bytes) return LM_OK;
    bank->turn = (bank->turn + 1) % N_PIECE;
    *out = &bank->piece[bank->turn];
    return empty_piece(bank, *out, err);
}

/* One part of an expert, from its file to the device. */
static enum lm_status load_part(struct expert_bank *bank, const struct expert_extent *extent,
                                char *to, struct lm_error *err)
{
    const struct expert_bank_config *config = &bank->config;
    const struct expert_file file = expert_store_file(config->store, extent->file);
    for (uint64_t at = 0; at < extent->n_bytes; at += bank->piece_bytes) {
        const uint64_t n_left = extent->n_bytes - at;
        const size_t n_bytes = n_left < bank->piece_bytes ? n_left : bank->piece_bytes;
        struct piece *piece;
        enum lm_status status = next_piece(bank, n_bytes, &piece, err);
        if (status != LM_OK) return status;
        char *const from = piece->memory + piece->used_bytes;
        status = read_piece(&file, extent->offset + at, from, n_bytes, err);
        if (status != LM_OK) return status;
        piece->ticket =
            config->backend->ops->fetch(config->backend, to + at, from, n_bytes, 0, COPY_DEMAND);
        piece->used_bytes += n_bytes;
        bank->n_done += n_bytes;
        if (config->on_progress) config->on_progress(config->context, bank->n_done, bank->n_total);
    }
    return LM_OK;
}

/* Lets the system read a layer while the one before it goes to the device. */
static void announce_layer(const struct expert_bank *bank, uint32_t il)
{
    struct expert_extent part[EXPERT_PART_MAX];
    if (il >= bank->config.layer_end) return;
    const struct expert_layer *layer = expert_store_layer(bank->config.store, il);
    for (uint32_t ie = 0; layer->n_part && ie < bank->config.n_expert; ie++) {
        expert_store_locate(bank->config.store, (struct expert_key){il, ie}, part);
        for (uint32_t i = 0; i < layer->n_part; i++)
            posix_fadvise(expert_store_file(bank->config.store, part[i].file).fd,
                          (off_t)part[i].offset, (off_t)part[i].n_bytes, POSIX_FADV_WILLNEED);
    }
}

/* Part by part, in the order of a GGUF file, where the parts of all experts lie side by side. */
static enum lm_status load_layer(struct expert_bank *bank, uint32_t il, struct expert_view *view,
                                 struct lm_error *err)
{
    const struct expert_bank_config *config = &bank->config;
    const struct expert_layer *layer = expert_store_layer(config->store, il);
    const uint64_t stride = expert_stride(layer);
    struct expert_extent extent[EXPERT_PART_MAX];
    uint64_t begin = 0; /* of the part in an expert */
    for (uint32_t i = 0; i < layer->n_part; begin += round_up(layer->part_bytes[i++], PART_ALIGN)) {
        for (uint32_t ie = 0; ie < config->n_expert; ie++) {
            expert_store_locate(config->store, (struct expert_key){il, ie}, extent);
            const enum lm_status status =
                load_part(bank, &extent[i], bank->memory[il] + ie * stride + begin, err);
            if (status != LM_OK) return status;
        }
    }
    for (uint32_t ie = 0; ie < config->n_expert; ie++) {
        const void *part[EXPERT_PART_MAX] = {NULL};
        const char *at = bank->memory[il] + ie * stride;
        for (uint32_t i = 0; i < layer->n_part; i++) {
            part[i] = at;
            at += round_up(layer->part_bytes[i], PART_ALIGN);
        }
        view[ie] = expert_layer_view(layer, part);
    }
    config->backend->ops->upload(config->backend, bank->table[il], view,
                                 config->n_expert * sizeof(*view));
    return LM_OK;
}

/* All memory first, so that what does not fit is known before anything is read. */
static enum lm_status take_memory(struct expert_bank *bank, struct lm_error *err)
{
    const struct expert_bank_config *config = &bank->config;
    const struct backend_ops *ops = config->backend->ops;
    for (uint32_t il = config->layer_begin; il < config->layer_end; il++) {
        const struct expert_layer *layer = expert_store_layer(config->store, il);
        if (!layer->n_part) continue;
        for (uint32_t i = 0; i < layer->n_part; i++)
            bank->n_total += layer->part_bytes[i] * config->n_expert;
        bank->memory[il] =
            ops->alloc(config->backend, expert_stride(layer) * config->n_expert, err);
        if (!bank->memory[il]) return LM_E_NO_MEM;
        bank->table[il] =
            ops->alloc(config->backend, config->n_expert * sizeof(**bank->table), err);
        if (!bank->table[il]) return LM_E_NO_MEM;
    }
    return LM_OK;
}

static enum lm_status load_layers(struct expert_bank *bank, struct expert_view *view,
                                  struct lm_error *err)
{
    const struct expert_bank_config *config = &bank->config;
    enum lm_status status = LM_OK;
    announce_layer(bank, config->layer_begin);
    for (uint32_t il = config->layer_begin; il < config->layer_end && status == LM_OK; il++) {
        announce_layer(bank, il + 1);
        if (bank->memory[il]) status = load_layer(bank, il, view, err);
    }
    return status;
}

static enum lm_status load(struct expert_bank *bank, struct lm_error *err)
{
    struct backend *backend = bank->config.backend;
    struct expert_view *view = calloc(bank->config.n_expert + 1, sizeof(*view));
    bank->piece_bytes = bank->config.piece_bytes ? bank->config.piece_bytes : PIECE_BYTES;
    const size_t n_bytes = round_up(N_PIECE * bank->piece_bytes, PAGE_BYTES);
    char *memory = aligned_alloc(PAGE_BYTES, n_bytes);
    enum lm_status status = LM_OK;
    if (!view || !memory) {
        status = lm_fail(err, LM_E_NO_MEM, "expert bank: no memory");
        goto out;
    }
    for (int i = 0; i < N_PIECE; i++)
        bank->piece[i] = (struct piece){.memory = memory + i * bank->piece_bytes};
    /* not pinned, they are slower, no more */
    const bool pinned = backend->ops->pin(backend, memory, n_bytes, NULL) == LM_OK;
    status = load_layers(bank, view, err);
    for (int i = 0; i < N_PIECE; i++) {
        const enum lm_status last =
            empty_piece(bank, &bank->piece[i], status == LM_OK ? err : NULL);
        if (status == LM_OK) status = last;
    }
    if (status == LM_OK) status = backend->ops->sync(backend, err);
    if (pinned) backend->ops->unpin(backend, memory);
    memset(bank->piece, 0, sizeof(bank->piece));
out:
    free(memory);
    free(view);
    return status;
}

enum lm_status expert_bank_create(struct expert_bank **out, const struct expert_bank_config *config,
                                  struct lm_error *err)
{
    struct expert_bank *bank = calloc(1, sizeof(*bank));
    if (!bank) return lm_fail(err, LM_E_NO_MEM, "expert bank: no memory");
    bank->config = *config;
    bank->memory = calloc(config->layer_end, sizeof(*bank->memory));
    bank->table = calloc(config->layer_end, sizeof(*bank->table));
    enum lm_status status = LM_OK;
    if (!bank->memory || !bank->table) status = lm_fail(err, LM_E_NO_MEM, "expert bank: no memory");
    if (status == LM_OK) status = take_memory(bank, err);
    if (status == LM_OK && bank->n_total) status = load(bank, err);
    if (status != LM_OK) {
        expert_bank_destroy(bank);
        return status;
    }
    *out = bank;
    return LM_OK;
}

void expert_bank_destroy(struct expert_bank *bank)
{
    if (!bank) return;
    struct backend *backend = bank->config.backend;
    for (uint32_t il = bank->config.layer_end; il-- > bank->config.layer_begin;) {
        if (bank->table && bank->table[il]) backend->ops->free(backend, bank->table[il]);
        if (bank->memory && bank->memory[il]) backend->ops->free(backend, bank->memory[il]);
    }
    free(bank->table);
    free(bank->memory);
    free(bank);
}

const struct expert_layer *expert_bank_layer(const struct expert_bank *bank, uint32_t il)
{
    return expert_store_layer(bank->config.store, il);
}

const struct expert_view *expert_bank_table(const struct expert_bank *bank, uint32_t il)
{
    return bank->table[il];
}
