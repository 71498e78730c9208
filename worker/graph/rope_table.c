/* Frequencies once, rows on demand, a block of them at a time: then most steps fill none, which on
 * a device would make them differ from the step before. */
#include "worker/graph/rope_table.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/exact_math.h"

enum { BLOCK_ROWS = 128 };

struct rope_table {
    struct backend *backend;
    uint32_t n_pair, n_ctx, n_filled;
    double *freq;     /* [n_pair] angle per position */
    double magnitude; /* of both results */
    float *cos, *sin; /* [n_ctx][n_pair], in backend memory */
    float *rows;      /* [BLOCK_ROWS][n_pair], on the host */
};

/* The pair, as a real number, that turns n_turn times within n_ctx positions. */
static double yarn_pair(const struct rope_hparams *rope, double base, double n_turn)
{
    const double two_pi = 6.283185307179586;
    return rope->n_rot * exact_log_f64(rope->n_ctx_orig / (n_turn * two_pi)) /
           (2 * exact_log_f64(base));
}

/* 1 where a pair turns so fast that stretching would hurt it, 0 where it turns slowly. */
static double yarn_share(const struct rope_hparams *rope, double base, uint32_t pair)
{
    const double low = fmax(0, floor(yarn_pair(rope, base, (double)rope->beta_fast)));
    const double high = fmin(rope->n_rot - 1, ceil(yarn_pair(rope, base, (double)rope->beta_slow)));
    const double ramp = (pair - low) / fmax(0.001, high - low);
    return 1 - fmin(1, fmax(0, ramp));
}

/* The YaRN factors of the file and of the scale compose to this. */
static double attention_factor(const struct rope_hparams *rope, double scale)
{
    double factor = (double)rope->yarn_attn_factor;
    if (rope->ext_factor != 0) {
        const bool stretched = rope->scaling != ROPE_SCALING_NONE && rope->factor > 1;
        const double log_factor =
            rope->scaling != ROPE_SCALING_NONE ? exact_log_f64((double)rope->factor) : 0;
        factor = (stretched ? 1 + 0.1 * log_factor : 1) / (1 + 0.1 * log_factor);
        factor *= 1 + 0.1 * exact_log_f64(1 / scale);
    }
    return factor * (double)rope->attn_factor;
}

/* With sections, pairs are dealt in turn to time, height and width while each has any left, the
 * others go to a stream that stands at 0 in text. */
static bool rotates(const struct rope_hparams *rope, uint32_t pair)
{
    const uint32_t *n = rope->sections;
    const uint32_t n_all = n[0] + n[1] + n[2] + n[3];
    if (!n_all) return true;
    const uint32_t sector = pair % n_all;
    return sector < 3 * n[sector % 3];
}

static enum lm_status set_frequencies(struct rope_table *table, const struct rope_hparams *rope,
                                      bool window, const float *freq_factors, struct lm_error *err)
{
    const double base = (double)(window ? rope->freq_base_swa : rope->freq_base);
    const bool scaled = window || rope->scaling != ROPE_SCALING_NONE;
    const double scale = scaled ? 1 / (double)rope->factor : 1;
    table->magnitude = attention_factor(rope, scale);
    for (uint32_t i = 0; i < table->n_pair; i++) {
        double freq = exact_exp_f64(-2.0 * i / rope->n_rot * exact_log_f64(base));
        if (freq_factors) freq /= (double)freq_factors[i];
        const double mix =
            rope->ext_factor != 0 ? yarn_share(rope, base, i) * (double)rope->ext_factor : 0;
        table->freq[i] = rotates(rope, i) ? freq * (scale * (1 - mix) + mix) : 0;
        if (!(fabs(table->freq[i] * table->n_ctx) < 0x1p26)) /* the range of exact_cos_f64 */
            return lm_fail(err, LM_E_FORMAT, "rope: pair %u turns by %g per position", i,
                           table->freq[i]);
    }
    return LM_OK;
}

enum lm_status rope_table_create(struct rope_table **out, struct backend *backend,
                                 const struct rope_hparams *rope, bool window,
                                 const float *freq_factors, uint32_t n_ctx, struct lm_error *err)
{
    struct rope_table *table = calloc(1, sizeof(*table));
    if (!table) return lm_fail(err, LM_E_NO_MEM, "rope table: no memory");
    table->backend = backend;
    table->n_pair = rope->n_rot / 2;
    table->n_ctx = n_ctx;
    const size_t n_bytes = (size_t)n_ctx * table->n_pair * sizeof(float);
    table->freq = calloc(table->n_pair, sizeof(*table->freq));
    table->rows = calloc((size_t)BLOCK_ROWS * table->n_pair, sizeof(*table->rows));
    if (table->freq && table->rows) table->cos = backend->ops->alloc(backend, n_bytes, err);
    if (table->cos) table->sin = backend->ops->alloc(backend, n_bytes, err);
    enum lm_status status = LM_OK;
    if (!table->sin)
        status = lm_fail(err, LM_E_NO_MEM, "rope table: no memory for %u positions", n_ctx);
    if (status == LM_OK) status = set_frequencies(table, rope, window, freq_factors, err);
    if (status != LM_OK) {
        rope_table_destroy(table);
        return status;
    }
    *out = table;
    return LM_OK;
}

void rope_table_destroy(struct rope_table *table)
{
    if (!table) return;
    if (table->sin) table->backend->ops->free(table->backend, table->sin);
    if (table->cos) table->backend->ops->free(table->backend, table->cos);
    free(table->rows);
    free(table->freq);
    free(table);
}

/* Fills n rows from the first that is not filled, of one of the two tables. */
static void fill_block(struct rope_table *table, float *to, uint32_t n, double (*function)(double))
{
    const size_t n_pair = table->n_pair;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t pair = 0; pair < n_pair; pair++)
            table->rows[i * n_pair + pair] =
                (float)(function((table->n_filled + i) * table->freq[pair]) * table->magnitude);
    table->backend->ops->upload(table->backend, to + table->n_filled * n_pair, table->rows,
                                n * n_pair * sizeof(float));
}

void rope_table_fill(struct rope_table *table, uint32_t n)
{
    while (table->n_filled < n && table->n_filled < table->n_ctx) {
        const uint32_t n_left = table->n_ctx - table->n_filled;
        const uint32_t n_block = n_left < BLOCK_ROWS ? n_left : BLOCK_ROWS;
        fill_block(table, table->cos, n_block, exact_cos_f64);
        fill_block(table, table->sin, n_block, exact_sin_f64);
        table->n_filled += n_block;
    }
}

const float *rope_table_cos(const struct rope_table *table)
{
    return table->cos;
}

const float *rope_table_sin(const struct rope_table *table)
{
    return table->sin;
}
