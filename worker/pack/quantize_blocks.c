/* The block quantizers. Groups: a block of a k-quant is divided into groups of 16 or 32 that have
 * a scale (and a minimum) each, and the scales are quantized again with one or two F16 factors. */
#include "worker/pack/quantize_blocks.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/quant_blocks.h"
#include "proto/base/half.h"

/* Below this magnitude a group counts as all zero. */
#define GROUP_MAX_EPS 1e-15f

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
static const int8_t fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Nearest even, for magnitudes up to 2^22: the sum leaves the integer in the low mantissa bits. */
static inline int nearest(float value)
{
    return (int)(f32_to_bits(value + 12582912.0f) & 0x007fffff) - 0x00400000;
}

static inline int clamp(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

/* The element of largest magnitude, with its sign; the first of equals. */
static float signed_max(const float *x, int n)
{
    float amax = 0, max = 0;
    for (int i = 0; i < n; i++) {
        if (fabsf(x[i]) <= amax) continue;
        amax = fabsf(x[i]);
        max = x[i];
    }
    return max;
}

/* Scale searches. Those for k-quants are nearly all the work of quantizing, so they run for four
 * groups side by side, one in each lane of a vector: sums still run in index order within a group,
 * and the bits are those of a scalar search. Four, because every x86-64 has such vectors; eight
 * with a variant for AVX2 took 0.6 of the time, which did not seem worth two variants. Codes are
 * floats, which hold them exactly. */
enum { N_LANE = 4, GROUP_MAX = 32 };
typedef float lanes __attribute__((vector_size(4 * N_LANE)));
typedef int32_t lane_mask __attribute__((vector_size(4 * N_LANE))); /* 0 or -1 */

static inline lanes pick(lane_mask mask, lanes yes, lanes no)
{
    return (lanes)(((lane_mask)yes & mask) | ((lane_mask)no & ~mask));
}

static inline lanes fill_lanes(float value)
{
    return value - (lanes){0};
}

static inline lanes absolute(lanes value)
{
    return (lanes)((lane_mask)value & 0x7fffffff);
}

/* nearest, clamped; low for a NaN. */
static inline lanes nearest_code(lanes value, float low, float high)
{
    const lanes code = (value + 12582912.0f) - 12582912.0f;
    const lanes raised = pick(code >= low, code, fill_lanes(low));
    return pick(raised <= high, raised, fill_lanes(high));
}

/* Element i of the group in lane g to out[i][g]. x: [N_LANE][n] */
static inline void transpose(const float *x, int n, lanes *out)
{
    for (int i = 0; i < n; i++)
        out[i] = (lanes){x[i], x[n + i], x[2 * n + i], x[3 * n + i]};
}

/* Codes of all groups, plus offset, as bytes; 0 for groups in is_zero. codes: [N_LANE][n] */
static inline void store_codes(const lanes *code, int n, int offset, lane_mask is_zero,
                               uint8_t *codes)
{
    for (int i = 0; i < n; i++)
        for (int g = 0; g < N_LANE; g++)
            codes[g * n + i] = is_zero[g] ? 0 : (uint8_t)((int)code[i][g] + offset);
}

struct symmetric_search {
    int n, n_max; /* codes -n_max ... n_max - 1, stored plus n_max */
};

/* Tries 19 scales around -n_max/max and keeps the one whose least-squares fit, with weights x^2,
 * explains most. A lane of zeros computes infinities that nothing uses. */
static void search_symmetric(const struct symmetric_search *search, const float *groups,
                             uint8_t *codes, float *scales)
{
    const int n = search->n;
    const float n_max = (float)search->n_max;
    lanes x[GROUP_MAX], scale = {0}, best = {0}, code_iscale = {0};
    transpose(groups, n, x);
    const lanes max = {signed_max(groups, n), signed_max(groups + n, n),
                       signed_max(groups + 2 * n, n), signed_max(groups + 3 * n, n)};
    for (int attempt = -10; attempt <= 9; attempt++) { /* -10 stands for the plain scale */
        const float shift = attempt == -10 ? 0.0f : 0.1f * (float)attempt;
        const lanes iscale = -(n_max + shift) / max;
        lanes sum_lx = {0}, sum_l2 = {0};
        if (attempt == 0) continue;
        for (int i = 0; i < n; i++) {
            const lanes l = nearest_code(iscale * x[i], -n_max, n_max - 1);
            const lanes w = x[i] * x[i];
            sum_lx += w * x[i] * l;
            sum_l2 += w * l * l;
        }
        const lane_mask better =
            (sum_l2 > 0) & (-(attempt == -10) | (sum_lx * sum_lx > best * sum_l2));
        scale = pick(better, sum_lx / sum_l2, scale);
        best = pick(better, scale * sum_lx, best);
        code_iscale = pick(better | -(attempt == -10), iscale, code_iscale);
    }
    const lane_mask is_zero = absolute(max) < GROUP_MAX_EPS;
    scale = pick(is_zero, fill_lanes(0), scale);
    memcpy(scales, &scale, sizeof(scale));
    for (int i = 0; i < n; i++)
        x[i] = nearest_code(code_iscale * x[i], -n_max, n_max - 1);
    store_codes(x, n, search->n_max, is_zero, codes);
}

/* Codes [-n_max, n_max), stored plus n_max, of one group: from -n_max/max by up to five sweeps of
 * coordinate descent: each code in turn moves to its optimum under the scale that the others give,
 * if that raises the fit. */
static float search_descent(int n, int n_max, const float *x, uint8_t *codes)
{
    const float max = signed_max(x, n);
    if (fabsf(max) < GROUP_MAX_EPS) {
        memset(codes, 0, (size_t)n);
        return 0;
    }
    const float iscale = -(float)n_max / max;
    int l[32];
    float sum_lx = 0, sum_l2 = 0;
    for (int i = 0; i < n; i++) {
        l[i] = clamp(nearest(iscale * x[i]), -n_max, n_max - 1);
        const float w = x[i] * x[i];
        sum_lx += w * x[i] * (float)l[i];
        sum_l2 += w * (float)l[i] * (float)l[i];
    }
    bool changed = true;
    for (int sweep = 0; sweep < 5 && changed; sweep++) {
        changed = false;
        for (int i = 0; i < n; i++) {
            const float w = x[i] * x[i];
            float lx = sum_lx - w * x[i] * (float)l[i];
            if (!(lx > 0)) continue;
            float l2 = sum_l2 - w * (float)l[i] * (float)l[i];
            const int moved = clamp(nearest(x[i] * l2 / lx), -n_max, n_max - 1);
            if (moved == l[i]) continue;
            lx += w * x[i] * (float)moved;
            l2 += w * (float)moved * (float)moved;
            if (!(l2 > 0 && lx * lx * sum_l2 > sum_lx * sum_lx * l2)) continue;
            l[i] = moved;
            sum_lx = lx;
            sum_l2 = l2;
            changed = true;
        }
    }
    for (int i = 0; i < n; i++)
        codes[i] = (uint8_t)(l[i] + n_max);
    return sum_l2 > 0 ? sum_lx / sum_l2 : 0;
}

struct affine_search {
    int n, n_max; /* codes 0 ... n_max */
    float start, step;
    int n_step;
    bool absolute; /* the error is |e|, else e^2 */
};

static inline lanes affine_error(const struct affine_search *search, const lanes *x, const lanes *w,
                                 const lanes *codes, lanes scale, lanes min)
{
    lanes error = {0};
    for (int i = 0; i < search->n; i++) {
        const lanes diff = scale * codes[i] + min - x[i];
        error += w[i] * (search->absolute ? absolute(diff) : diff * diff);
    }
    return error;
}

/* x is about scale * code - minus_min, with a minimum of at most 0. Candidates are ranges a bit
 * smaller and larger than the data's; for each, scale and minimum come from the weighted least
 * squares of the codes it gives. weights: as groups, [N_LANE][n]. A lane whose values are all the
 * same computes infinities that nothing uses. */
static void search_affine(const struct affine_search *search, const float *groups,
                          const float *weights, uint8_t *codes, float *scales, float *minus_mins)
{
    const int n = search->n;
    const float n_max = (float)search->n_max;
    lanes x[GROUP_MAX], w[GROUP_MAX], l[GROUP_MAX];
    transpose(groups, n, x);
    transpose(weights, n, w);
    lanes min = x[0], max = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < n; i++) {
        min = pick(x[i] < min, x[i], min);
        max = pick(x[i] > max, x[i], max);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    min = pick(min > 0, fill_lanes(0), min);
    const lane_mask is_flat = max == min;
    const lanes flat_min = min;
    /* Codes are kept as the range that gave them. */
    lanes code_min = min, code_iscale = n_max / (max - min);
    lanes scale = 1 / code_iscale;
    for (int i = 0; i < n; i++)
        l[i] = nearest_code(code_iscale * (x[i] - min), 0, n_max);
    lanes best_error = affine_error(search, x, w, l, scale, min);

    for (int attempt = 0; attempt <= search->n_step; attempt++) {
        const lanes iscale = (search->start + search->step * (float)attempt + n_max) / (max - min);
        lanes sum_l = {0}, sum_l2 = {0}, sum_xl = {0};
        for (int i = 0; i < n; i++) {
            l[i] = nearest_code(iscale * (x[i] - min), 0, n_max);
            sum_l += w[i] * l[i];
            sum_l2 += w[i] * l[i] * l[i];
            sum_xl += w[i] * l[i] * x[i];
        }
        const lanes determinant = sum_w * sum_l2 - sum_l * sum_l;
        lanes this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        lanes this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        this_scale = pick(this_min > 0, sum_xl / sum_l2, this_scale);
        this_min = pick(this_min > 0, fill_lanes(0), this_min);
        const lanes error = affine_error(search, x, w, l, this_scale, this_min);
        const lane_mask better = (determinant > 0) & (error < best_error);
        code_iscale = pick(better, iscale, code_iscale);
        code_min = pick(better, min, code_min);
        best_error = pick(better, error, best_error);
        scale = pick(better, this_scale, scale);
        min = pick(better, this_min, min);
    }
    scale = pick(is_flat, fill_lanes(0), scale);
    min = -pick(is_flat, flat_min, min);
    memcpy(scales, &scale, sizeof(scale));
    memcpy(minus_mins, &min, sizeof(min));
    for (int i = 0; i < n; i++)
        l[i] = nearest_code(code_iscale * (x[i] - code_min), 0, n_max);
    store_codes(l, n, 0, is_flat, codes);
}

/* Codes of a group against the scale and minimum that the decoder will use. */
static void recode(const float *x, int n, float scale, float minus_min, int low, int high,
                   uint8_t *codes)
{
    if (scale == 0) return; /* any code decodes to the same value; ggml leaves them */
    for (int i = 0; i < n; i++)
        codes[i] = (uint8_t)(clamp(nearest((x[i] + minus_min) / scale), low, high) - low);
}

/* Blocks of 32. x [32] */

static void block_q8_0_from(const float *x, struct block_q8_0 *y)
{
    const float d = fabsf(signed_max(x, 32)) / 127;
    const float id = d != 0 ? 1 / d : 0;
    y->d = f16_from_f32(d);
    for (int i = 0; i < 32; i++)
        y->qs[i] = (int8_t)roundf(x[i] * id);
}

/* 32 codes of 4 bits: element i in the low nibble of byte i, i + 16 in the high one. */
static void pack_nibbles(const uint8_t *codes, uint8_t *qs)
{
    for (int i = 0; i < 16; i++)
        qs[i] = (uint8_t)((codes[i] & 15) | codes[i + 16] << 4);
}

static void pack_fifth_bits(const uint8_t *codes, uint8_t *qh)
{
    memset(qh, 0, 4);
    for (int i = 0; i < 32; i++)
        qh[i / 8] |= (uint8_t)((codes[i] >> 4 & 1) << i % 8);
}

/* Codes 0 ... 2 n_max - 1 around n_max; the element of largest magnitude gets code 0. */
static f16_bits symmetric_32(const float *x, int n_max, uint8_t *codes)
{
    const float d = signed_max(x, 32) / (float)-n_max;
    const float id = d != 0 ? 1 / d : 0;
    for (int i = 0; i < 32; i++)
        codes[i] = (uint8_t)clamp((int)(x[i] * id + (float)n_max + 0.5f), 0, 2 * n_max - 1);
    return f16_from_f32(d);
}

static void affine_32(const float *x, int n_max, uint8_t *codes, f16_bits *d16, f16_bits *m16)
{
    float min = x[0], max = x[0];
    for (int i = 1; i < 32; i++) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
    }
    const float d = (max - min) / (float)n_max;
    const float id = d != 0 ? 1 / d : 0;
    for (int i = 0; i < 32; i++)
        codes[i] = (uint8_t)clamp((int)((x[i] - min) * id + 0.5f), 0, n_max);
    *d16 = f16_from_f32(d);
    *m16 = f16_from_f32(min);
}

static void block_q4_0_from(const float *x, struct block_q4_0 *y)
{
    uint8_t codes[32];
    y->d = symmetric_32(x, 8, codes);
    pack_nibbles(codes, y->qs);
}

static void block_q4_1_from(const float *x, struct block_q4_1 *y)
{
    uint8_t codes[32];
    affine_32(x, 15, codes, &y->d, &y->m);
    pack_nibbles(codes, y->qs);
}

static void block_q5_0_from(const float *x, struct block_q5_0 *y)
{
    uint8_t codes[32];
    y->d = symmetric_32(x, 16, codes);
    pack_nibbles(codes, y->qs);
    pack_fifth_bits(codes, y->qh);
}

static void block_q5_1_from(const float *x, struct block_q5_1 *y)
{
    uint8_t codes[32];
    affine_32(x, 31, codes, &y->d, &y->m);
    pack_nibbles(codes, y->qs);
    pack_fifth_bits(codes, y->qh);
}

/* The scale puts the largest magnitude into the top binade of FP4; of two equally near values the
 * first wins. Table values are doubled, hence the scale of 2^(e - 128). */
static void block_mxfp4_from(const float *x, struct block_mxfp4 *y)
{
    const float amax = fabsf(signed_max(x, 32));
    /* (float) as ggml: just below a power of two the rounded logarithm is that of the power. */
    const int e = amax > 0 ? (int)floorf((float)log2((double)amax)) - 2 + 127 : 0;
    y->e = (uint8_t)clamp(e, 0, 254);
    const float d = ldexpf(1, (int)y->e - 128);
    uint8_t codes[32];
    for (int i = 0; i < 32; i++) {
        codes[i] = 0;
        float best = fabsf(x[i]);
        for (uint8_t k = 1; k < 16; k++) {
            const float error = fabsf((float)fp4_values[k] * d - x[i]);
            if (error < best) {
                best = error;
                codes[i] = k;
            }
        }
    }
    pack_nibbles(codes, y->qs);
}

/* IQ4: codes index a table of 16 unevenly spaced values. */

static uint8_t nearest_iq4(float value)
{
    if (value <= iq4_values[0]) return 0;
    if (value >= iq4_values[15]) return 15;
    uint8_t above = 1;
    while (value >= iq4_values[above])
        above++;
    return value - iq4_values[above - 1] < iq4_values[above] - value ? above - 1 : above;
}

/* The scale of 32 values: the plain one and 15 candidates by least squares with weights x^2. */
static float search_iq4(const float *x)
{
    const float max = signed_max(x, 32);
    if (fabsf(max) < GROUP_MAX_EPS) return 0;
    float scale = 0, best = 0;
    for (int attempt = -8; attempt <= 7; attempt++) { /* -8 stands for the plain scale */
        const float id = attempt == -8 ? 1 / (-max / (float)iq4_values[0])
                                       : (float)(attempt + iq4_values[0]) / max;
        float sum_qx = 0, sum_q2 = 0;
        for (int i = 0; i < 32; i++) {
            const float q = iq4_values[nearest_iq4(id * x[i])], w = x[i] * x[i];
            sum_qx += w * q * x[i];
            sum_q2 += w * q * q;
        }
        if (attempt != -8 && !(sum_q2 > 0 && sum_qx * sum_qx > best * sum_q2)) continue;
        scale = sum_qx / sum_q2;
        best = scale * sum_qx;
    }
    return scale;
}

static void recode_iq4(const float *x, float scale, uint8_t *qs)
{
    const float id = scale != 0 ? 1 / scale : 0;
    uint8_t codes[32];
    for (int i = 0; i < 32; i++)
        codes[i] = nearest_iq4(id * x[i]);
    pack_nibbles(codes, qs);
}

static void block_iq4_nl_from(const float *x, struct block_iq4_nl *y)
{
    const float scale = search_iq4(x);
    y->d = f16_from_f32(scale);
    recode_iq4(x, scale, y->qs);
}

/* Superblocks of 256. x [256] */

static void block_iq4_xs_from(const float *x, struct block_iq4_xs *y)
{
    float scales[8];
    for (int g = 0; g < 8; g++)
        scales[g] = search_iq4(x + 32 * g);
    const float d = -signed_max(scales, 8) / 32;
    const float id = d != 0 ? 1 / d : 0;
    memset(y, 0, sizeof(*y));
    y->d = f16_from_f32(d);
    for (int g = 0; g < 8; g++) {
        const int l = clamp(nearest(id * scales[g]), -32, 31);
        recode_iq4(x + 32 * g, d * (float)l, y->qs + 16 * g);
        y->scales_l[g / 2] |= (uint8_t)(((l + 32) & 15) << 4 * (g % 2));
        y->scales_h |= (uint16_t)(((l + 32) >> 4) << 2 * g);
    }
}

static float largest(const float *values, int n)
{
    float max = 0;
    for (int i = 0; i < n; i++)
        max = values[i] > max ? values[i] : max;
    return max;
}

static void block_q2_k_from(const float *x, struct block_q2_k *y)
{
    static const struct affine_search search = {16, 3, -0.5f, 0.1f, 15, true};
    uint8_t codes[256];
    float scales[16], mins[16], w[256];
    for (int i = 0; i < 256; i++)
        w[i] = fabsf(x[i]);
    for (int g = 0; g < 16; g += N_LANE)
        search_affine(&search, x + 16 * g, w + 16 * g, codes + 16 * g, scales + g, mins + g);
    const float max_scale = largest(scales, 16), max_min = largest(mins, 16);
    const float iscale = max_scale > 0 ? 15 / max_scale : 0;
    const float imin = max_min > 0 ? 15 / max_min : 0;
    y->d = f16_from_f32(max_scale / 15);
    y->dmin = f16_from_f32(max_min / 15);
    for (int g = 0; g < 16; g++) {
        y->scales[g] = (uint8_t)(nearest(iscale * scales[g]) | 16 * nearest(imin * mins[g]));
        const float scale = f32_from_f16(y->d) * (float)(y->scales[g] & 15);
        const float min = f32_from_f16(y->dmin) * (float)(y->scales[g] >> 4);
        recode(x + 16 * g, 16, scale, min, 0, 3, codes + 16 * g);
    }
    for (int h = 0; h < 2; h++)
        for (int l = 0; l < 32; l++) {
            const uint8_t *c = codes + 128 * h + l;
            y->qs[32 * h + l] = (uint8_t)(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
        }
}

static void block_q3_k_from(const float *x, struct block_q3_k *y)
{
    uint8_t codes[256]; /* plus 4 */
    float scales[16];
    for (int g = 0; g < 16; g++)
        scales[g] = search_descent(16, 4, x + 16 * g, codes + 16 * g);
    const float max_scale = signed_max(scales, 16);
    const float iscale = max_scale != 0 ? -32 / max_scale : 0;
    memset(y, 0, sizeof(*y));
    y->d = f16_from_f32(max_scale != 0 ? 1 / iscale : 0);
    for (int g = 0; g < 16; g++) {
        /* A block of zeros has stored scales of 0, not of 32. */
        const int l = max_scale != 0 ? clamp(nearest(iscale * scales[g]), -32, 31) + 32 : 0;
        y->scales[g % 8] |= (uint8_t)((l & 15) << 4 * (g / 8));
        y->scales[8 + g % 4] |= (uint8_t)((l >> 4) << 2 * (g / 4));
        recode(x + 16 * g, 16, f32_from_f16(y->d) * (float)(l - 32), 0, -4, 3, codes + 16 * g);
    }
    for (int i = 0; i < 256; i++) {
        y->hmask[i % 32] |= (uint8_t)((codes[i] >> 2) << i / 32);
        y->qs[32 * (i / 128) + i % 32] |= (uint8_t)((codes[i] & 3) << 2 * (i % 128 / 32));
    }
}

/* What Q4_K and Q5_K share: eight groups with 6-bit scales and minimums in 12 bytes. */
static void quantize_8x32(const struct affine_search *search, const float *x, f16_bits *d,
                          f16_bits *dmin, uint8_t packed[12], uint8_t *codes)
{
    float scales[8], mins[8], w[256];
    for (int g = 0; g < 8; g++) {
        float sum_x2 = 0;
        for (int i = 0; i < 32; i++)
            sum_x2 += x[32 * g + i] * x[32 * g + i];
        const float rms = sqrtf(sum_x2 / 32);
        for (int i = 0; i < 32; i++)
            w[32 * g + i] = rms + fabsf(x[32 * g + i]);
    }
    for (int g = 0; g < 8; g += N_LANE)
        search_affine(search, x + 32 * g, w + 32 * g, codes + 32 * g, scales + g, mins + g);
    const float max_scale = largest(scales, 8), max_min = largest(mins, 8);
    const float iscale = max_scale > 0 ? 63 / max_scale : 0;
    const float imin = max_min > 0 ? 63 / max_min : 0;
    *d = f16_from_f32(max_scale / 63);
    *dmin = f16_from_f32(max_min / 63);
    memset(packed, 0, 12);
    for (int g = 0; g < 8; g++) {
        /* (uint8_t): a negative scale, which the fit can give, saturates as in ggml. */
        const int ls = clamp((uint8_t)nearest(iscale * scales[g]), 0, 63);
        const int lm = clamp((uint8_t)nearest(imin * mins[g]), 0, 63);
        if (g < 4) {
            packed[g] |= (uint8_t)ls;
            packed[g + 4] |= (uint8_t)lm;
        } else {
            packed[g + 4] = (uint8_t)((ls & 15) | (lm & 15) << 4);
            packed[g - 4] |= (uint8_t)((ls >> 4) << 6);
            packed[g] |= (uint8_t)((lm >> 4) << 6);
        }
        recode(x + 32 * g, 32, f32_from_f16(*d) * (float)ls, f32_from_f16(*dmin) * (float)lm, 0,
               search->n_max, codes + 32 * g);
    }
}

static void block_q4_k_from(const float *x, struct block_q4_k *y)
{
    static const struct affine_search search = {32, 15, -1.0f, 0.1f, 20, false};
    uint8_t codes[256];
    quantize_8x32(&search, x, &y->d, &y->dmin, y->scales, codes);
    for (int i = 0; i < 128; i++) {
        const uint8_t *c = codes + 64 * (i / 32) + i % 32;
        y->qs[i] = (uint8_t)(c[0] | c[32] << 4);
    }
}

static void block_q5_k_from(const float *x, struct block_q5_k *y)
{
    static const struct affine_search search = {32, 31, -0.5f, 0.1f, 15, false};
    uint8_t codes[256];
    quantize_8x32(&search, x, &y->d, &y->dmin, y->scales, codes);
    memset(y->qh, 0, sizeof(y->qh));
    for (int i = 0; i < 128; i++) {
        const uint8_t *c = codes + 64 * (i / 32) + i % 32;
        y->qs[i] = (uint8_t)((c[0] & 15) | c[32] << 4);
        y->qh[i % 32] |= (uint8_t)((c[0] >> 4 | c[32] >> 4 << 1) << 2 * (i / 32));
    }
}

static void block_q6_k_from(const float *x, struct block_q6_k *y)
{
    static const struct symmetric_search search = {16, 32};
    uint8_t codes[256]; /* plus 32 */
    float scales[16];
    for (int g = 0; g < 16; g += N_LANE)
        search_symmetric(&search, x + 16 * g, codes + 16 * g, scales + g);
    const float max_scale = signed_max(scales, 16);
    memset(y, 0, sizeof(*y));
    if (fabsf(max_scale) < GROUP_MAX_EPS) return;
    const float iscale = -128 / max_scale;
    y->d = f16_from_f32(1 / iscale);
    for (int g = 0; g < 16; g++) {
        y->scales[g] = (int8_t)clamp(nearest(iscale * scales[g]), -128, 127);
        recode(x + 16 * g, 16, f32_from_f16(y->d) * (float)y->scales[g], 0, -32, 31,
               codes + 16 * g);
    }
    for (int i = 0; i < 256; i++) {
        const int h = i / 128, s = i % 128 / 32, l = i % 32;
        y->ql[64 * h + 32 * (s & 1) + l] |= (uint8_t)((codes[i] & 15) << 4 * (s / 2));
        y->qh[32 * h + l] |= (uint8_t)((codes[i] >> 4) << 2 * s);
    }
}

/* Rows */

static void row_f32(const float *x, size_t n, void *out)
{
    memcpy(out, x, n * sizeof(float));
}

static void row_f16(const float *x, size_t n, void *out)
{
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = f16_from_f32(x[i]);
        memcpy((uint8_t *)out + 2 * i, &half, 2);
    }
}

static void row_bf16(const float *x, size_t n, void *out)
{
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = bf16_from_f32(x[i]);
        memcpy((uint8_t *)out + 2 * i, &half, 2);
    }
}

/* row_NAME: n / elems blocks, each made by block_NAME_from. Through a local block, because out
 * may have any alignment. */
#define ROW_OF_BLOCKS(name, elems)                                                                 \
    static void row_##name(const float *x, size_t n, void *out)                                    \
    {                                                                                              \
        for (size_t i = 0; i < n / (elems); i++) {                                                 \
            struct block_##name block;                                                             \
            block_##name##_from(x + i * (elems), &block);                                          \
            memcpy((uint8_t *)out + i * sizeof(block), &block, sizeof(block));                     \
        }                                                                                          \
    }
ROW_OF_BLOCKS(q4_0, 32)
ROW_OF_BLOCKS(q4_1, 32)
ROW_OF_BLOCKS(q5_0, 32)
ROW_OF_BLOCKS(q5_1, 32)
ROW_OF_BLOCKS(q8_0, 32)
ROW_OF_BLOCKS(iq4_nl, 32)
ROW_OF_BLOCKS(mxfp4, 32)
ROW_OF_BLOCKS(q2_k, 256)
ROW_OF_BLOCKS(q3_k, 256)
ROW_OF_BLOCKS(q4_k, 256)
ROW_OF_BLOCKS(q5_k, 256)
ROW_OF_BLOCKS(q6_k, 256)
ROW_OF_BLOCKS(iq4_xs, 256)

quantize_row_fn quantize_row_for(enum tensor_type type)
{
    static const quantize_row_fn functions[TENSOR_TYPE_COUNT] = {
        [TENSOR_F32] = row_f32,     [TENSOR_F16] = row_f16,       [TENSOR_BF16] = row_bf16,
        [TENSOR_Q4_0] = row_q4_0,   [TENSOR_Q4_1] = row_q4_1,     [TENSOR_Q5_0] = row_q5_0,
        [TENSOR_Q5_1] = row_q5_1,   [TENSOR_Q8_0] = row_q8_0,     [TENSOR_Q2_K] = row_q2_k,
        [TENSOR_Q3_K] = row_q3_k,   [TENSOR_Q4_K] = row_q4_k,     [TENSOR_Q5_K] = row_q5_k,
        [TENSOR_Q6_K] = row_q6_k,   [TENSOR_IQ4_NL] = row_iq4_nl, [TENSOR_IQ4_XS] = row_iq4_xs,
        [TENSOR_MXFP4] = row_mxfp4,
    };
    return functions[type];
}
