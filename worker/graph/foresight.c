#include "worker/graph/foresight.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LATEST 0.2f /* the share of the latest token in a mean; 0.1 to 0.5 differ by a point */

/* The last guess at a point, until its layer is reached. */
struct guess {
    uint32_t layer, n_row; /* n_row 0: there is none */
    float *sum;            /* [n_embd] of the residual's rows */
};

struct foresight {
    uint32_t n_layer, n_embd;
    struct guess guess[PREDICT_POINT_COUNT];
    float *mean;   /* [PREDICT_POINT_COUNT][n_layer][n_embd] of what was added behind the guess */
    bool *learned; /* [PREDICT_POINT_COUNT][n_layer] */
    float *row;    /* [n_embd] */
    float *sum;    /* [n_embd] */
    float *memory;
};

enum lm_status foresight_create(struct foresight **out, uint32_t n_layer, uint32_t n_embd,
                                struct lm_error *err)
{
    const size_t n_mean = (size_t)PREDICT_POINT_COUNT * n_layer;
    struct foresight *foresight = calloc(1, sizeof(*foresight));
    if (foresight) {
        foresight->memory =
            calloc((n_mean + PREDICT_POINT_COUNT + 2) * n_embd, sizeof(*foresight->memory));
        foresight->learned = calloc(n_mean, sizeof(*foresight->learned));
    }
    if (!foresight || !foresight->memory || !foresight->learned) {
        foresight_destroy(foresight);
        return lm_fail(err, LM_E_NO_MEM, "graph: no memory for predictions of %u layers", n_layer);
    }
    foresight->n_layer = n_layer;
    foresight->n_embd = n_embd;
    foresight->mean = foresight->memory;
    foresight->row = foresight->mean + n_mean * n_embd;
    foresight->sum = foresight->row + n_embd;
    for (int point = 0; point < PREDICT_POINT_COUNT; point++)
        foresight->guess[point].sum = foresight->sum + (size_t)(1 + point) * n_embd;
    *out = foresight;
    return LM_OK;
}

void foresight_destroy(struct foresight *foresight)
{
    if (!foresight) return;
    free(foresight->learned);
    free(foresight->memory);
    free(foresight);
}

static void add(float *sum, const float *row, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        sum[i] += row[i];
}

void foresight_guess(struct foresight *foresight, struct backend *backend, uint32_t il,
                     enum prediction_point point, const float *x, uint32_t n_row, float *guess)
{
    const uint32_t n = foresight->n_embd;
    const float *mean = foresight->mean + ((size_t)point * foresight->n_layer + il) * n;
    struct guess *const made = &foresight->guess[point];
    made->layer = il;
    made->n_row = n_row;
    memset(made->sum, 0, n * sizeof(*made->sum));
    for (size_t at = 0; at < (size_t)n_row * n; at += n) {
        backend->ops->download(backend, foresight->row, x + at, n * sizeof(*x));
        add(made->sum, foresight->row, n);
        add(foresight->row, mean, n);
        backend->ops->upload(backend, guess + at, foresight->row, n * sizeof(*guess));
    }
}

/* Rows that have been dropped since leave nothing to compare with. */
static void learn_from(struct foresight *foresight, enum prediction_point point, uint32_t il)
{
    const struct guess *made = &foresight->guess[point];
    const size_t at = (size_t)point * foresight->n_layer + il;
    float *mean = foresight->mean + at * foresight->n_embd;
    const float share = foresight->learned[at] ? LATEST : 1;
    for (uint32_t i = 0; i < foresight->n_embd; i++) {
        const float added = (foresight->sum[i] - made->sum[i]) / (float)made->n_row;
        if (isfinite(added)) mean[i] += share * (added - mean[i]); /* else that step fails */
    }
    foresight->learned[at] = true;
}

void foresight_learn(struct foresight *foresight, struct backend *backend, uint32_t il,
                     const float *x, uint32_t n_row)
{
    const uint32_t n = foresight->n_embd;
    bool wanted[PREDICT_POINT_COUNT], any = false;
    for (int point = 0; point < PREDICT_POINT_COUNT; point++) {
        const struct guess *made = &foresight->guess[point];
        wanted[point] = n_row && made->n_row == n_row && made->layer == il;
        any |= wanted[point];
    }
    if (!any) return;
    memset(foresight->sum, 0, n * sizeof(*foresight->sum));
    for (size_t at = 0; at < (size_t)n_row * n; at += n) {
        backend->ops->download(backend, foresight->row, x + at, n * sizeof(*x));
        add(foresight->sum, foresight->row, n);
    }
    for (int point = 0; point < PREDICT_POINT_COUNT; point++) {
        if (!wanted[point]) continue;
        learn_from(foresight, (enum prediction_point)point, il);
        foresight->guess[point].n_row = 0;
    }
}
