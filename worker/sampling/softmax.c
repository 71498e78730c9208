#include "worker/sampling/softmax.h"

/* One body, compiled for several instruction sets. None of them has fused multiply-adds, and the
 * eight accumulators fix the order, so the bits cannot differ. */
static inline __attribute__((always_inline)) double sum_exp(const float *x, size_t n, float max,
                                                            double scale)
{
    double sum[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t lane = 0; lane < 8; lane++)
            sum[lane] += softmax_exp(((double)x[i + lane] - (double)max) * scale);
    for (size_t lane = 0; i < n; i++, lane++)
        sum[lane] += softmax_exp(((double)x[i] - (double)max) * scale);
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

static double sum_exp_any(const float *x, size_t n, float max, double scale)
{
    return sum_exp(x, n, max, scale);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static double sum_exp_avx2(const float *x, size_t n, float max,
                                                           double scale)
{
    return sum_exp(x, n, max, scale);
}
#endif

double softmax_sum(const float *x, size_t n, float max, double scale)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return sum_exp_avx2(x, n, max, scale);
#endif
    return sum_exp_any(x, n, max, scale);
}
