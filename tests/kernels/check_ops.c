/* Every operation of every variant that is not a matrix product gives the bits of "ref", over
 * random shapes and contents: ordinary, subnormal, huge, with zero blocks and repeated extremes.
 *
 * A failure prints its seed; `check_ops SEED` repeats it. Results must be equal by memcmp, except
 * that one NaN is as good as another. Operands end where an unreadable page begins; what lies
 * behind a result must stay as it was. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "proto/base/half.h"

enum { CASES = 150 };

static uint64_t random_state;

static uint64_t random_u64(void) /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint32_t random_below(uint32_t n)
{
    return (uint32_t)(random_u64() % n);
}

/* Uniform in [-1, 1). */
static float random_float(void)
{
    return (float)(int32_t)random_u64() * 0x1p-31f;
}

/* ---- memory of one case: pages followed by an unreadable one, all freed at its end ---- */

struct block {
    uint8_t *map;
    size_t map_bytes;
};
static struct block blocks[256];
static size_t n_block_used;

/* n bytes that end at an unreadable page, or up to align - 1 bytes before it. */
static void *take(size_t n_bytes, size_t align)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t padded = (n_bytes + align - 1) / align * align;
    const size_t inner = (padded + page - 1) / page * page;
    struct block *b = &blocks[n_block_used++];
    b->map_bytes = inner + page;
    b->map = mmap(NULL, b->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->map == MAP_FAILED || n_block_used == sizeof(blocks) / sizeof(blocks[0])) abort();
    mprotect(b->map + inner, page, PROT_NONE);
    return b->map + inner - padded;
}

static void free_all(void)
{
    while (n_block_used--)
        munmap(blocks[n_block_used].map, blocks[n_block_used].map_bytes);
    n_block_used = 0;
}

enum fill { FILL_ORDINARY, FILL_SUBNORMAL, FILL_HUGE, FILL_ZERO_BLOCKS, FILL_EXTREMES, FILL_COUNT };
static enum fill fill; /* of the case */

static float fill_value(void)
{
    const float x = random_float();
    switch (fill) {
    case FILL_SUBNORMAL:
        return x * 0x1p-120f * 0x1p-24f;
    case FILL_HUGE:
        return x * 0x1p60f;
    case FILL_EXTREMES: /* equal magnitudes of both signs, ties and signed zeros */
        return random_below(4) ? copysignf((float)random_below(3), x) : x * 100.0f;
    default:
        return x * 4.0f;
    }
}

static float *take_floats(size_t n)
{
    float *x = take(n * sizeof(float), sizeof(float));
    const bool zeros = fill == FILL_ZERO_BLOCKS;
    bool zero = false;
    for (size_t i = 0; i < n; i++) {
        if (zeros && i % 32 == 0) zero = random_below(2);
        x[i] = zero ? 0.0f : fill_value();
    }
    return x;
}

static float *copy_floats(const float *x, size_t n)
{
    return memcpy(take(n * sizeof(float), sizeof(float)), x, n * sizeof(float));
}

/* ---- comparison ---- */

struct pair {
    const struct kernel_table *ref, *table;
};

static uint64_t case_seed;
static int n_failed;

static bool same_float(const uint32_t *a, const uint32_t *b)
{
    return *a == *b || (isnan(f32_from_bits(*a)) && isnan(f32_from_bits(*b)));
}

static void expect_floats(const struct pair *p, const char *what, const float *got,
                          const float *expected, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t a = f32_to_bits(got[i]), b = f32_to_bits(expected[i]);
        if (same_float(&a, &b)) continue;
        printf("%s, %s: value %zu of %zu is %a, not %a; repeat with: check_ops %" PRIu64 "\n",
               p->table->name, what, i, n, (double)got[i], (double)expected[i], case_seed);
        n_failed++;
        return;
    }
}

static void expect_bytes(const struct pair *p, const char *what, const void *got,
                         const void *expected, size_t n)
{
    if (!memcmp(got, expected, n)) return;
    printf("%s, %s: bytes differ; repeat with: check_ops %" PRIu64 "\n", p->table->name, what,
           case_seed);
    n_failed++;
}

/* ---- one check for each operation ---- */

static uint32_t random_length(void)
{
    return random_below(2) ? 32 * (1 + random_below(70)) : 1 + random_below(600);
}

static void check_norms(const struct pair *p)
{
    const uint32_t n = random_length();
    const float *x = take_floats(n), *w = take_floats(n);
    const float eps = random_below(2) ? 1e-6f : 1e-5f;
    float *a = take(n * sizeof(float), 4), *b = take(n * sizeof(float), 4);
    p->ref->rms_norm(x, w, n, eps, a);
    p->table->rms_norm(x, w, n, eps, b);
    expect_floats(p, "rms_norm", b, a, n);
    b = copy_floats(x, n);
    p->table->rms_norm(b, w, n, eps, b);
    expect_floats(p, "rms_norm in place", b, a, n);
    p->ref->l2_norm(x, n, eps, a);
    b = copy_floats(x, n);
    p->table->l2_norm(b, n, eps, b);
    expect_floats(p, "l2_norm in place", b, a, n);
}

static void check_element_wise(const struct pair *p)
{
    const uint32_t n = random_length();
    const float *x = take_floats(n), *y = take_floats(n), factor = fill_value();
    float *a = copy_floats(y, n), *b = copy_floats(y, n);
    p->ref->add_scaled(factor, x, n, a);
    p->table->add_scaled(factor, x, n, b);
    expect_floats(p, "add_scaled", b, a, n);
    p->ref->add(x, n, a);
    p->table->add(x, n, b);
    expect_floats(p, "add", b, a, n);
    p->ref->swiglu(x, y, n, a);
    p->table->swiglu(x, y, n, b);
    expect_floats(p, "swiglu", b, a, n);
    b = copy_floats(x, n);
    p->table->swiglu(b, y, n, b);
    expect_floats(p, "swiglu over gate", b, a, n);
    b = copy_floats(y, n);
    p->table->swiglu(x, b, n, b);
    expect_floats(p, "swiglu over up", b, a, n);
    a = copy_floats(x, n);
    b = copy_floats(x, n);
    p->ref->softmax(a, n);
    p->table->softmax(b, n);
    expect_floats(p, "softmax", b, a, n);
    a = copy_floats(x, n);
    b = copy_floats(x, n);
    p->ref->sigmoid(a, n);
    p->table->sigmoid(b, n);
    expect_floats(p, "sigmoid", b, a, n);
}

static void check_rope(const struct pair *p)
{
    const uint32_t n_rot = 2 * (1 + random_below(64)), n = n_rot + random_below(40);
    const float *x = take_floats(n), *c = take_floats(n_rot / 2), *s = take_floats(n_rot / 2);
    for (int adjacent = 0; adjacent < 2; adjacent++) {
        float *a = copy_floats(x, n), *b = copy_floats(x, n);
        p->ref->rope(a, c, s, n_rot, adjacent);
        p->table->rope(b, c, s, n_rot, adjacent);
        expect_floats(p, "rope", b, a, n);
    }
}

static void check_quantize(const struct pair *p)
{
    static const char *const names[ACT_TYPE_COUNT] = {"quantize F32", "quantize Q8_K",
                                                      "quantize Q8_0"};
    for (int type = 0; type < ACT_TYPE_COUNT; type++) {
        const uint32_t step = type == ACT_Q8_K ? 256 : type == ACT_Q8_0 ? 32 : 1;
        const uint32_t n = step * (1 + random_below(20));
        float *x = take_floats(n);
        if (fill == FILL_SUBNORMAL) x[random_below(n)] = 3.8e-37f; /* 127 / x overflows below */
        const size_t n_byte = act_row_bytes(type, n);
        const size_t n_used = type == ACT_F32 ? n * sizeof(float) : n_byte;
        void *a = take(n_byte, 64), *b = take(n_byte, 64);
        memset(a, 0xa5, n_byte);
        memset(b, 0x5a, n_byte);
        const bool finite = p->ref->quantize_act[type](x, n, a);
        if (p->table->quantize_act[type](x, n, b) != finite) {
            printf("%s, %s: finite or not; repeat with: check_ops %" PRIu64 "\n", p->table->name,
                   names[type], case_seed);
            n_failed++;
        }
        if (finite) expect_bytes(p, names[type], b, a, n_used);
        x[random_below(n)] = random_below(2) ? NAN : random_below(2) ? INFINITY : -INFINITY;
        if (p->table->quantize_act[type](x, n, b)) {
            printf("%s, %s: a NaN or infinity passed\n", p->table->name, names[type]);
            n_failed++;
        }
    }
}

static const enum tensor_type kv_types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q8_0};

static void check_rows(const struct pair *p)
{
    for (size_t i = 0; i < sizeof(kv_types) / sizeof(kv_types[0]); i++) {
        const enum tensor_type type = kv_types[i];
        const uint32_t n = 32 * (1 + random_below(10));
        const size_t n_byte = tensor_row_bytes(type, n);
        const float *x = take_floats(n);
        void *a = take(n_byte, 2), *b = take(n_byte, 2);
        p->ref->encode_row[type](x, n, a);
        p->table->encode_row[type](x, n, b);
        expect_bytes(p, "encode_row", b, a, n_byte);
    }
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++) {
        if (!p->ref->dequant_row[type]) continue;
        const struct tensor_type_info *info = tensor_type_info((uint32_t)type);
        const uint32_t n = info->block_elems * (1 + random_below(20));
        const size_t n_byte = tensor_row_bytes(type, n);
        uint8_t *row = take(n_byte, 1);
        for (size_t k = 0; k < n_byte; k++)
            row[k] = (uint8_t)random_u64();
        float *a = take(n * sizeof(float), 4), *b = take(n * sizeof(float), 4);
        p->ref->dequant_row[type](row, n, a);
        p->table->dequant_row[type](row, n, b);
        expect_floats(p, info->name, b, a, n);
    }
}

static void check_attend(const struct pair *p)
{
    enum { N_QUERY_MAX = 70 };
    static const uint32_t dims[] = {32, 64, 128, 256, 96, 48, 20};
    const enum tensor_type type = kv_types[random_below(4)];
    const uint32_t dim = type == TENSOR_Q8_0 ? 32 * (1 + random_below(8)) : dims[random_below(7)];
    const uint32_t n_query = 1 + random_below(random_below(2) ? 9 : N_QUERY_MAX);
    const size_t row_bytes = tensor_row_bytes(type, dim), n_partial = dim + 2;
    uint8_t *k = take(ATTEND_BLOCK * row_bytes, 2), *v = take(ATTEND_BLOCK * row_bytes, 2);
    float *keys = take_floats((size_t)ATTEND_BLOCK * dim);
    float *values = take_floats((size_t)ATTEND_BLOCK * dim);
    for (size_t i = 0; fill == FILL_HUGE && i < (size_t)ATTEND_BLOCK * dim; i++) {
        keys[i] *= 0x1p-46f; /* within f16 */
        values[i] *= 0x1p-46f;
    }
    for (size_t j = 0; j < ATTEND_BLOCK; j++) {
        p->ref->encode_row[type](keys + j * dim, dim, k + j * row_bytes);
        p->ref->encode_row[type](values + j * dim, dim, v + j * row_bytes);
    }
    const float *queries = take_floats((size_t)n_query * dim);
    float *a = take(n_query * n_partial * sizeof(float), 4);
    float *b = take(n_query * n_partial * sizeof(float), 4);
    const float *q[N_QUERY_MAX];
    float *to_a[N_QUERY_MAX], *to_b[N_QUERY_MAX];
    uint32_t begin[N_QUERY_MAX], end[N_QUERY_MAX];
    const int edges = (int)random_below(3); /* whole blocks, a causal edge, anything */
    for (uint32_t n = 0; n < n_query; n++) {
        q[n] = queries + (size_t)n * dim;
        to_a[n] = a + n * n_partial;
        to_b[n] = b + n * n_partial;
        begin[n] = edges == 2 ? random_below(ATTEND_BLOCK) : 0;
        end[n] = edges ? begin[n] + 1 + random_below(ATTEND_BLOCK - begin[n]) : ATTEND_BLOCK;
    }
    struct attend_args args = {
        .kv_type = type,
        .head_dim = dim,
        .k = k,
        .v = v,
        .n_query = n_query,
        .q = q,
        .begin = begin,
        .end = end,
        .scale = 0.3f,
        .partial = to_a,
        .scratch = take(2 * ATTEND_BLOCK * (size_t)dim * sizeof(float), 64),
    };
    p->ref->attend(&args);
    args.partial = to_b;
    p->table->attend(&args);
    expect_floats(p, "attend", b, a, n_query * n_partial);

    const float *gate = random_below(2) ? take_floats(dim) : NULL;
    float *out_a = take(dim * sizeof(float), 4), *out_b = take(dim * sizeof(float), 4);
    p->ref->attend_merge(to_a[0], to_a[n_query - 1], dim);
    p->table->attend_merge(to_b[0], to_b[n_query - 1], dim);
    expect_floats(p, "attend_merge", to_b[0], to_a[0], n_partial);
    p->ref->attend_finish(to_a[0], dim, gate, out_a);
    p->table->attend_finish(to_b[0], dim, gate, out_b);
    expect_floats(p, "attend_finish", out_b, out_a, dim);

    float *broken = copy_floats(q[0], dim); /* a NaN must not get lost among the masked keys */
    broken[random_below(dim)] = NAN;
    q[0] = broken;
    p->table->attend(&args);
    p->table->attend_finish(to_b[0], dim, NULL, out_b);
    if (!isnan(out_b[0])) {
        printf("%s, attend: a NaN got lost; repeat with: check_ops %" PRIu64 "\n", p->table->name,
               case_seed);
        n_failed++;
    }
}

static void check_conv(const struct pair *p)
{
    const uint32_t n_token = 1 + random_below(20),
                   n_tap = random_below(3) ? 4 : 2 + random_below(4);
    const uint32_t n_channel = random_below(2) ? 64 : 1 + random_below(100);
    const uint32_t begin = random_below(n_channel / 2 + 1) / 16 * 16, stride = n_channel + 3;
    const float *w = take_floats((size_t)n_channel * n_tap);
    const float *rows[32];
    for (uint32_t t = 0; t < n_token + n_tap - 1; t++)
        rows[t] = take_floats(n_channel);
    float *a = take_floats((size_t)n_token * stride);
    float *b = copy_floats(a, (size_t)n_token * stride);
    struct conv_args args = {n_token, n_tap, begin, n_channel, w, rows, a, stride};
    p->ref->conv_silu(&args);
    args.y = b;
    p->table->conv_silu(&args);
    expect_floats(p, "conv_silu", b, a, (size_t)n_token * stride);
}

static void check_delta(const struct pair *p)
{
    static const uint32_t dims[] = {128, 64, 32, 48};
    const uint32_t n_token = 1 + random_below(20), dim_k = dims[random_below(4)];
    const uint32_t dim_v = random_below(3) ? 16 * (1 + random_below(6)) : 1 + random_below(50);
    const float a = -fabsf(random_float()), dt = random_float();
    const float *alpha = take_floats(n_token), *b = take_floats(n_token);
    float *decay[2], *beta[2], *state[2], *o[2];
    const float *initial = take_floats((size_t)dim_v * dim_k);
    for (int side = 0; side < 2; side++) {
        decay[side] = take_floats(n_token);
        beta[side] = take_floats(n_token);
        state[side] = copy_floats(initial, (size_t)dim_v * dim_k);
        o[side] = take((size_t)n_token * dim_v * sizeof(float), 4);
    }
    p->ref->delta_gates(alpha, b, a, dt, n_token, decay[0], beta[0]);
    p->table->delta_gates(alpha, b, a, dt, n_token, decay[1], beta[1]);
    expect_floats(p, "decay", decay[1], decay[0], n_token);
    expect_floats(p, "beta", beta[1], beta[0], n_token);
    struct delta_rule_args args = {
        .n_token = n_token,
        .dim_k = dim_k,
        .row_begin = random_below(2) ? 0 : dim_v / 2,
        .row_end = dim_v,
        .q = take_floats((size_t)n_token * dim_k),
        .k = take_floats((size_t)n_token * dim_k),
        .qk_stride = dim_k,
        .v = take_floats((size_t)n_token * dim_v),
        .v_stride = dim_v,
        .decay = decay[0],
        .beta = beta[0],
        .gate_stride = 1,
        .scale = 1.0f / sqrtf((float)dim_k),
        .state = state[0],
        .o = o[0],
        .o_stride = dim_v,
    };
    memset(o[0], 0, (size_t)n_token * dim_v * sizeof(float));
    memset(o[1], 0, (size_t)n_token * dim_v * sizeof(float));
    p->ref->delta_rule(&args);
    args.state = state[1];
    args.o = o[1];
    p->table->delta_rule(&args);
    expect_floats(p, "delta_rule, output", o[1], o[0], (size_t)n_token * dim_v);
    expect_floats(p, "delta_rule, state", state[1], state[0], (size_t)dim_v * dim_k);
}

static void (*const checks[])(const struct pair *p) = {
    check_norms, check_element_wise, check_rope, check_quantize,
    check_rows,  check_attend,       check_conv, check_delta,
};

/* Comparing a variant that silently fell back to a weaker one would prove nothing. */
static void check_own_functions(const struct kernel_table *weaker, const struct kernel_table *table)
{
    const struct {
        const char *name;
        bool same;
    } operations[] = {
#define OPERATION(field) {#field, weaker->field == table->field}
        OPERATION(quantize_act[ACT_F32]),
        OPERATION(quantize_act[ACT_Q8_K]),
        OPERATION(quantize_act[ACT_Q8_0]),
        OPERATION(dequant_row[TENSOR_F16]),
        OPERATION(dequant_row[TENSOR_Q8_0]),
        OPERATION(encode_row[TENSOR_F16]),
        OPERATION(rms_norm),
        OPERATION(l2_norm),
        OPERATION(swiglu),
        OPERATION(add_scaled),
        OPERATION(add),
        OPERATION(softmax),
        OPERATION(sigmoid),
        OPERATION(rope),
        OPERATION(attend),
        OPERATION(attend_merge),
        OPERATION(attend_finish),
        OPERATION(conv_silu),
        OPERATION(delta_gates),
        OPERATION(delta_rule),
#undef OPERATION
    };
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        if (!operations[i].same) continue;
        printf("%s has no %s of its own\n", table->name, operations[i].name);
        n_failed++;
    }
}

int main(int argc, char **argv)
{
    const struct pair first = {kernels_select("ref"), NULL};
    for (const char *const *name = kernels_available() + 1; *name; name++) {
        const struct pair pair = {first.ref, kernels_select(*name)};
        check_own_functions(kernels_select(name[-1]), pair.table);
        for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++)
            for (uint64_t n = 0; n < (argc > 1 ? 1 : CASES); n++) {
                case_seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 77000 + n;
                random_state = case_seed;
                fill = random_below(FILL_COUNT);
                checks[i](&pair);
                free_all();
            }
        printf("%s: %s\n", *name, n_failed ? "FAILED" : "the bits of ref");
    }
    return n_failed != 0;
}
