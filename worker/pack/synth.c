/* Writing a synthetic model. Every value is a function of the seed, a stream (the tensor's name or
 * a pool's parameters) and its index, so any part could be made alone.
 *
 * A small tensor is made value by value and quantized. A large one would take hours at 20 million
 * values a second, so it is composed: a pool of 4096 blocks of 256 values is quantized once for
 * each type and scale, and every row is a sequence of blocks drawn from it. Quantized blocks do
 * not know their neighbours, so the result is what quantizing the drawn values would give. */
#include "worker/pack/synth.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "kernels/exact_math.h"
#include "proto/base/log.h"
#include "worker/pack/quantize_blocks.h"
#include "worker/pack/synth_shape.h"

enum {
    POOL_BLOCKS = 4096, /* a power of two; a draw takes 12 bits */
    DRAW_BITS = 12,
    DRAWS_PER_WORD = 5,
    BLOCK_ELEMENTS = 256,       /* a multiple of every type's block */
    COMPOSE_ELEMENTS = 1 << 18, /* tensors of at least this size are composed */
    BUFFER_BYTES = 8 << 20,
};

struct block_pool {
    enum tensor_type type;
    float std;
    size_t block_bytes;
    uint8_t *blocks; /* [POOL_BLOCKS][block_bytes] */
};

struct synth {
    const struct synth_config *config;
    struct gguf_writer *writer;
    struct block_pool *pools;
    size_t n_pool;
    uint8_t *buffer; /* [BUFFER_BYTES], or one row if that is longer */
    size_t buffer_bytes;
    float *row;    /* [widest row], values of a small tensor */
    float *router; /* [n_expert][n_embd], normal values of the last router: what similarity needs */
    float *gains;  /* [n_expert], exponents of its rows */
    bool router_valid;
    struct log_bar bar;
    uint64_t n_done; /* bytes */
};

/* Random values */

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Word number index of a stream. */
static uint64_t random_word(uint64_t stream, uint64_t index)
{
    return mix(stream + (index + 1) * 0x9e3779b97f4a7c15);
}

static uint64_t stream_of(const struct synth *synth, const void *name, size_t n)
{
    return XXH3_64bits_withSeed(name, n, synth->config->seed);
}

/* Nearly normal with mean 0 and variance 1: the sum of four 16-bit numbers, which has no rounding
 * and no library function in it. */
static float random_normal(uint64_t stream, uint64_t index)
{
    const uint64_t word = random_word(stream, index);
    const int32_t sum =
        (int32_t)((word & 0xffff) + (word >> 16 & 0xffff) + (word >> 32 & 0xffff) + (word >> 48));
    return (float)(sum - 2 * 0xffff) * (1.0f / 37837.2f);
}

/* Pools */

static enum lm_status pool_find(struct synth *synth, enum tensor_type type, float std,
                                const struct block_pool **out, struct lm_error *err)
{
    for (size_t i = 0; i < synth->n_pool; i++) {
        *out = &synth->pools[i];
        if (synth->pools[i].type == type && synth->pools[i].std == std) return LM_OK;
    }
    const size_t block_bytes = tensor_row_bytes(type, BLOCK_ELEMENTS);
    struct block_pool *grown = realloc(synth->pools, (synth->n_pool + 1) * sizeof(*grown));
    if (grown) synth->pools = grown;
    uint8_t *blocks = malloc(POOL_BLOCKS * block_bytes);
    if (!grown || !blocks) {
        free(blocks);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a pool of %zu bytes",
                       POOL_BLOCKS * block_bytes);
    }
    struct block_pool *pool = &synth->pools[synth->n_pool++];
    *pool = (struct block_pool){type, std, block_bytes, blocks};
    /* The same values for every type: the files of a model differ by quantization alone. */
    const uint64_t stream = stream_of(synth, &std, sizeof(std));
    for (uint64_t b = 0; b < POOL_BLOCKS; b++) {
        float values[BLOCK_ELEMENTS];
        for (uint64_t i = 0; i < BLOCK_ELEMENTS; i++)
            values[i] = std * random_normal(stream, b * BLOCK_ELEMENTS + i);
        quantize_row_for(type)(values, BLOCK_ELEMENTS, pool->blocks + b * block_bytes);
    }
    *out = pool;
    return LM_OK;
}

/* n blocks drawn with the words from first_word on. */
static void compose(const struct block_pool *pool, uint64_t stream, uint64_t first_word, uint64_t n,
                    uint8_t *out)
{
    uint64_t word = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (i % DRAWS_PER_WORD == 0) word = random_word(stream, first_word + i / DRAWS_PER_WORD);
        memcpy(out, pool->blocks + (word % POOL_BLOCKS) * pool->block_bytes, pool->block_bytes);
        out += pool->block_bytes;
        word >>= DRAW_BITS;
    }
}

/* Tensors */

static enum lm_status put(struct synth *synth, uint64_t n_bytes, struct lm_error *err)
{
    const volatile sig_atomic_t *is_interrupted = synth->config->is_interrupted;
    if (is_interrupted && *is_interrupted) return lm_fail(err, LM_E_INTERRUPTED, "interrupted");
    const enum lm_status status = gguf_writer_data(synth->writer, synth->buffer, n_bytes, err);
    synth->n_done += n_bytes;
    log_bar_update(&synth->bar, synth->n_done);
    return status;
}

static enum lm_status write_composed(struct synth *synth, const struct synth_tensor *tensor,
                                     uint64_t stream, struct lm_error *err)
{
    const uint64_t *ne = tensor->info.ne;
    const uint64_t n_block = ne[0] / BLOCK_ELEMENTS * ne[1] * ne[2];
    const struct block_pool *pool = NULL;
    enum lm_status status = pool_find(synth, tensor->info.type, tensor->std, &pool, err);
    if (status != LM_OK) return status;
    /* A multiple of DRAWS_PER_WORD, so that pieces do not share words. */
    const uint64_t piece = BUFFER_BYTES / pool->block_bytes / DRAWS_PER_WORD * DRAWS_PER_WORD;
    for (uint64_t done = 0; done < n_block && status == LM_OK; done += piece) {
        const uint64_t n = n_block - done < piece ? n_block - done : piece;
        compose(pool, stream, done / DRAWS_PER_WORD, n, synth->buffer);
        status = put(synth, n * pool->block_bytes, err);
    }
    return status;
}

/* Values of a row of a router. The normal values behind it and the exponent of its gain follow the
 * layer before with correlation config->similarity. */
static void fill_router_row(struct synth *synth, const struct synth_tensor *tensor, uint64_t stream,
                            uint64_t row)
{
    const uint64_t n = tensor->info.ne[0], gain_index = n * tensor->info.ne[1] + row;
    const float keep = synth->router_valid ? synth->config->similarity : 0;
    const float fresh = sqrtf(1 - keep * keep);
    float *normal = synth->router + row * n;
    synth->gains[row] = keep * synth->gains[row] + fresh * random_normal(stream, gain_index);
    const float scale = tensor->std * exact_exp(synth->config->skew * synth->gains[row]);
    for (uint64_t i = 0; i < n; i++) {
        normal[i] = keep * normal[i] + fresh * random_normal(stream, row * n + i);
        synth->row[i] = scale * normal[i];
    }
}

static void fill_row(struct synth *synth, const struct synth_tensor *tensor, uint64_t stream,
                     uint64_t row)
{
    const uint64_t n = tensor->info.ne[0];
    if (tensor->fill == SYNTH_ROUTER) {
        fill_router_row(synth, tensor, stream, row);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        const float value = tensor->std * random_normal(stream, row * n + i);
        synth->row[i] = tensor->fill == SYNTH_DECAY ? -0.05f - fabsf(value) : tensor->mean + value;
    }
}

static enum lm_status write_quantized(struct synth *synth, const struct synth_tensor *tensor,
                                      uint64_t stream, struct lm_error *err)
{
    const uint64_t n_col = tensor->info.ne[0], n_row = tensor->info.ne[1] * tensor->info.ne[2];
    const uint64_t row_bytes = tensor_row_bytes(tensor->info.type, n_col);
    const quantize_row_fn quantize = quantize_row_for(tensor->info.type);
    uint64_t n_filled = 0;
    enum lm_status status = LM_OK;
    for (uint64_t row = 0; row < n_row && status == LM_OK; row++) {
        fill_row(synth, tensor, stream, row);
        quantize(synth->row, n_col, synth->buffer + n_filled);
        n_filled += row_bytes;
        if (row + 1 < n_row && n_filled + row_bytes <= synth->buffer_bytes) continue;
        status = put(synth, n_filled, err);
        n_filled = 0;
    }
    if (tensor->fill == SYNTH_ROUTER) synth->router_valid = true;
    return status;
}

static enum lm_status write_tensor(struct synth *synth, const struct synth_tensor *tensor,
                                   struct lm_error *err)
{
    const struct recipe_tensor *info = &tensor->info;
    const uint64_t stream = stream_of(synth, info->name, strlen(info->name));
    const bool is_plain_matrix = tensor->fill == SYNTH_NORMAL && tensor->mean == 0;
    if (is_plain_matrix && info->ne[0] % BLOCK_ELEMENTS == 0 &&
        info->ne[0] * info->ne[1] * info->ne[2] >= COMPOSE_ELEMENTS)
        return write_composed(synth, tensor, stream, err);
    return write_quantized(synth, tensor, stream, err);
}

/* Files */

static enum lm_status apply_recipe(const struct synth_config *config, struct synth_tensor *tensors,
                                   size_t n, struct lm_error *err)
{
    struct recipe_tensor *infos = calloc(n, sizeof(*infos));
    if (!infos) return lm_fail(err, LM_E_NO_MEM, "no memory for %zu tensors", n);
    for (size_t i = 0; i < n; i++)
        infos[i] = tensors[i].info;
    const enum lm_status status = recipe_assign(
        config->recipe, infos, n, config->shape.n_layer + config->mtp, config->shape.n_expert, err);
    for (size_t i = 0; i < n; i++)
        tensors[i].info.type = infos[i].type;
    free(infos);
    return status;
}

static enum lm_status allocate(struct synth *synth, const struct synth_tensor *tensors, size_t n,
                               struct lm_error *err)
{
    const struct synth_shape *shape = &synth->config->shape;
    uint64_t widest = 1;
    synth->buffer_bytes = BUFFER_BYTES;
    for (size_t i = 0; i < n; i++) {
        const uint64_t row_bytes = tensor_row_bytes(tensors[i].info.type, tensors[i].info.ne[0]);
        if (tensors[i].info.ne[0] > widest) widest = tensors[i].info.ne[0];
        if (row_bytes > synth->buffer_bytes) synth->buffer_bytes = row_bytes;
    }
    synth->buffer = malloc(synth->buffer_bytes);
    synth->row = malloc(widest * sizeof(float));
    synth->router = calloc((size_t)shape->n_expert * shape->n_embd + 1, sizeof(float));
    synth->gains = calloc((size_t)shape->n_expert + 1, sizeof(float));
    if (!synth->buffer || !synth->row || !synth->router || !synth->gains)
        return lm_fail(err, LM_E_NO_MEM, "no memory for rows of %llu values",
                       (unsigned long long)widest);
    return LM_OK;
}

static enum lm_status write_weights(struct synth *synth, const struct synth_tensor *tensors,
                                    size_t n, uint64_t n_bytes, struct lm_error *err)
{
    enum lm_status status = allocate(synth, tensors, n, err);
    log_bar_begin(&synth->bar, "writing", NULL, n_bytes);
    for (size_t i = 0; i < n && status == LM_OK; i++)
        status = write_tensor(synth, &tensors[i], err);
    log_bar_end(&synth->bar);
    for (size_t i = 0; i < synth->n_pool; i++)
        free(synth->pools[i].blocks);
    free(synth->pools);
    free(synth->buffer);
    free(synth->row);
    free(synth->router);
    free(synth->gains);
    return status;
}

enum lm_status synth_write(const char *path, const struct synth_config *config, uint64_t *n_bytes,
                           struct lm_error *err)
{
    struct synth synth = {.config = config};
    struct synth_tensor *tensors = NULL;
    size_t n = 0;
    enum lm_status status = synth_check(&config->shape, config->mtp, err);
    if (status == LM_OK) status = synth_tensors(&config->shape, config->mtp, &tensors, &n, err);
    if (status == LM_OK) status = apply_recipe(config, tensors, n, err);
    if (status == LM_OK) status = gguf_writer_create(&synth.writer, path, err);
    if (status != LM_OK) {
        free(tensors);
        return status;
    }
    synth_put_hparams(synth.writer, &config->shape, config->mtp, config->recipe);
    status = synth_put_tokenizer(synth.writer, &config->shape, err);
    for (size_t i = 0; i < n; i++)
        gguf_writer_tensor(synth.writer, tensors[i].info.name, tensors[i].info.type,
                           tensors[i].info.n_dims, tensors[i].info.ne);
    uint64_t n_measured = 0;
    if (status == LM_OK) status = gguf_writer_measure(synth.writer, &n_measured, err);
    if (n_bytes) *n_bytes = n_measured;
    const bool hollow = path && config->hollow;
    if (status == LM_OK && path && !hollow)
        status = write_weights(&synth, tensors, n, n_measured, err);
    free(tensors);
    if (status == LM_OK && hollow) return gguf_writer_finish_hollow(synth.writer, err);
    if (status == LM_OK && path) return gguf_writer_finish(synth.writer, err);
    gguf_writer_destroy(synth.writer);
    return status;
}
