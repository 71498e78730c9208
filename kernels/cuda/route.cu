/* route: the router's product, then one warp for each row that makes probabilities of the logits
 * and takes the best experts one after another. */
#include "kernels/cuda/backend_cuda.cuh"
#include "kernels/exact_math.h"

struct choose_args {
    const float *logits; /* [n_token][n_expert] */
    const float *bias;   /* [n_expert] or NULL */
    int32_t *ids;        /* [n_token][n_used] */
    float *weights;
    int32_t *not_finite;
    uint32_t n_expert, n_used;
    uint32_t softmax, normalize; /* flags */
    float scale;
    uint32_t unused; /* no padding */
};

/* An expert and what it is chosen by. Rank order is score descending, id ascending. */
struct candidate {
    float score;
    uint32_t id;
};

DEVICE bool ranks_before(struct candidate a, struct candidate b)
{
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

/* The first in rank order of this lane's experts that come behind `last`. A NaN counts as minus
 * infinity, so that any scores have one order and ids stay in range; the error is noted. */
DEVICE struct candidate best_of_lane(const struct choose_args &a, const float *p, bool first,
                                     struct candidate last)
{
    struct candidate best = {-INFINITY, UINT32_MAX};
    for (uint32_t ie = threadIdx.x; ie < a.n_expert; ie += WARP) {
        const float score = a.bias ? p[ie] + a.bias[ie] : p[ie];
        const struct candidate it = {score == score ? score : -INFINITY, ie};
        if ((first || ranks_before(last, it)) && ranks_before(it, best)) best = it;
    }
    return best;
}

DEVICE struct candidate best_of_warp(struct candidate best)
{
    for (int half = WARP / 2; half > 0; half /= 2) {
        const struct candidate other = {__shfl_xor_sync(ALL_LANES, best.score, half),
                                        __shfl_xor_sync(ALL_LANES, best.id, half)};
        if (ranks_before(other, best)) best = other;
    }
    return best;
}

/* p[i] = e^(x[i] - max) / sum; lane l holds the elements of lane l of the canonical sum. */
DEVICE void softmax_row(const float *logits, uint32_t n, float *p)
{
    float max = -INFINITY, sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < n; i += WARP)
        max = fmaxf(max, logits[i]);
    max = warp_max(max);
    for (uint32_t i = threadIdx.x; i < n; i += WARP) {
        p[i] = exact_exp(logits[i] - max);
        sum += p[i];
    }
    sum = lanes_sum(sum);
    for (uint32_t i = threadIdx.x; i < n; i += WARP)
        p[i] /= sum;
}

/* A block of one warp for each row. */
KERNEL(WARP) choose_kernel(const struct choose_args a)
{
    DYNAMIC_SHARED(float, p); /* [n_expert] probabilities */
    const uint32_t lane = threadIdx.x, n = a.n_expert;
    const float *const logits = a.logits + (size_t)blockIdx.x * n;
    int32_t *const ids = a.ids + (size_t)blockIdx.x * a.n_used;
    float *const weights = a.weights + (size_t)blockIdx.x * a.n_used;
    bool finite = true;
    for (uint32_t i = lane; i < n; i += WARP)
        finite = finite && isfinite(logits[i]);
    if (a.softmax) {
        softmax_row(logits, n, p);
    } else {
        for (uint32_t i = lane; i < n; i += WARP)
            p[i] = exact_sigmoid(logits[i]);
    }
    __syncwarp();
    struct candidate mine = best_of_lane(a, p, true, {0.0f, 0});
    float sum = 0.0f;
    for (uint32_t rank = 0; rank < a.n_used; rank++) {
        const struct candidate chosen = best_of_warp(mine);
        sum += p[chosen.id];
        if (chosen.id % WARP != lane) continue;
        ids[rank] = (int32_t)chosen.id;
        weights[rank] = p[chosen.id];
        mine = best_of_lane(a, p, false, chosen);
    }
    __syncwarp(); /* the weights are there for all lanes */
    const float divisor = sum > 0x1p-14f ? sum : 0x1p-14f;
    for (uint32_t rank = lane; rank < a.n_used; rank += WARP) {
        float weight = weights[rank];
        if (a.normalize) weight /= divisor;
        if (a.scale != 0.0f && a.scale != 1.0f) weight *= a.scale;
        weights[rank] = weight;
        finite = finite && isfinite(weight);
    }
    if (!finite) *a.not_finite = NOT_FINITE_ROUTE + 1;
}

void cuda_route(struct backend *backend, const struct route_args *args)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    const struct weight *router = args->router;
    if (!args->n_token) return;
    float *logits = (float *)scratch(cuda, (size_t)args->n_token * router->n_row * sizeof(float));
    if (!logits) return;
    struct linear_args product = {};
    product.n_token = args->n_token;
    product.x = args->x;
    product.n_col = router->n_col;
    product.n_out = 1;
    product.out[0].w = router;
    product.out[0].y = logits;
    product.out[0].y_stride = router->n_row;
    cuda_linear(backend, &product);
    const struct choose_args choose = {.logits = logits,
                                       .bias = args->selection_bias,
                                       .ids = args->ids,
                                       .weights = args->weights,
                                       .not_finite = not_finite_flag(cuda),
                                       .n_expert = router->n_row,
                                       .n_used = args->n_expert_used,
                                       .softmax = args->gating == GATING_SOFTMAX,
                                       .normalize = args->normalize,
                                       .scale = args->scale,
                                       .unused = 0};
    launch(cuda, choose_kernel, dim3(args->n_token), dim3(WARP), router->n_row * sizeof(float),
           choose);
}
