/* Every matmul of every variant gives the bits of "ref", and touches nothing but its operands.
 *
 * Shapes, row ranges and contents are random from a seed that a failure prints; `check_matmul SEED`
 * repeats it. Weights, activations and results end where an unreadable page begins, or begin where
 * one ends, and so have no alignment beyond that of their blocks. Results outside the row range
 * must stay as they were. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "proto/base/half.h"

enum { N_TOKEN_MAX = 130, CASES_PER_TYPE = 60 };

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

/* ---- memory between unreadable pages ---- */

struct guarded {
    uint8_t *map, *data;
    size_t map_bytes;
};

/* n bytes that end at an unreadable page, or begin after one if at_front. */
static struct guarded guarded_create(size_t n, bool at_front)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inner = (n + page - 1) / page * page;
    struct guarded g = {.map_bytes = inner + 2 * page};
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    mprotect(g.map, page, PROT_NONE);
    mprotect(g.map + page + inner, page, PROT_NONE);
    g.data = g.map + page + (at_front ? 0 : inner - n);
    return g;
}

static void guarded_destroy(struct guarded *g)
{
    munmap(g->map, g->map_bytes);
}

/* ---- contents ---- */

/* How the weights of a case are made. */
enum fill { FILL_RANDOM, FILL_ZERO_BLOCKS, FILL_EXTREME, FILL_SUBNORMAL, FILL_HUGE, FILL_COUNT };

/* Offsets of the f16 scales in a block, -1: none. */
static void f16_fields(enum tensor_type type, int offset[2])
{
    offset[0] = 0;
    offset[1] = -1;
    switch (type) {
    case TENSOR_Q4_1:
    case TENSOR_Q5_1:
    case TENSOR_Q4_K:
    case TENSOR_Q5_K:
        offset[1] = 2;
        break;
    case TENSOR_Q2_K:
        offset[0] = offsetof(struct block_q2_k, d);
        offset[1] = offsetof(struct block_q2_k, dmin);
        break;
    case TENSOR_Q3_K:
        offset[0] = offsetof(struct block_q3_k, d);
        break;
    case TENSOR_Q6_K:
        offset[0] = offsetof(struct block_q6_k, d);
        break;
    case TENSOR_MXFP4:
        offset[0] = -1;
        break;
    default:
        break;
    }
}

static float random_scale(enum fill fill)
{
    switch (fill) {
    case FILL_SUBNORMAL:
        return random_float() * 0x1p-14f;
    case FILL_HUGE:
        return random_float() * 65504.0f;
    default:
        return random_float() * 0.1f;
    }
}

static void fill_block(enum tensor_type type, enum fill fill, uint8_t *block, size_t n_byte)
{
    static const uint8_t extremes[] = {0x00, 0xff, 0x80, 0x7f, 0x0f, 0xf0};
    const uint8_t extreme = extremes[random_below(sizeof(extremes))];
    for (size_t i = 0; i < n_byte; i++)
        block[i] = fill == FILL_EXTREME ? extreme : (uint8_t)random_u64();
    if (fill == FILL_ZERO_BLOCKS && random_below(2)) {
        memset(block, 0, n_byte);
        return;
    }
    if (type == TENSOR_MXFP4) { /* the exponent 255 is invalid; 0 and 1 are subnormal */
        block[0] = fill == FILL_SUBNORMAL ? (uint8_t)random_below(3)
                   : fill == FILL_HUGE    ? (uint8_t)(200 + random_below(55))
                                          : (uint8_t)(110 + random_below(20));
        return;
    }
    int offset[2];
    f16_fields(type, offset);
    for (int i = 0; i < 2; i++) {
        if (offset[i] < 0) continue;
        const uint16_t half = f16_from_f32(random_scale(fill));
        memcpy(block + offset[i], &half, sizeof(half));
    }
}

static float random_weight(enum fill fill)
{
    switch (fill) {
    case FILL_ZERO_BLOCKS:
        return random_below(2) ? 0.0f : random_float();
    case FILL_SUBNORMAL:
        return random_float() * 0x1p-126f;
    case FILL_HUGE:
        return random_float() * 60000.0f;
    default:
        return random_float();
    }
}

static void fill_weights(enum tensor_type type, enum fill fill, uint8_t *w, size_t n_byte)
{
    const size_t block_bytes = tensor_type_info(type)->block_bytes;
    for (uint8_t *block = w; block < w + n_byte; block += block_bytes) {
        const float value = random_weight(fill);
        const uint16_t f16 = f16_from_f32(value), bf16 = bf16_from_f32(value);
        if (type == TENSOR_F32) {
            memcpy(block, &value, sizeof(value));
        } else if (type == TENSOR_F16) {
            memcpy(block, &f16, sizeof(f16));
        } else if (type == TENSOR_BF16) {
            memcpy(block, &bf16, sizeof(bf16));
        } else {
            fill_block(type, fill, block, block_bytes);
        }
    }
}

/* Subnormal ones are for the rows that are not quantized; blocks of them become zeros. */
static void fill_activations(float *x, uint32_t n)
{
    static const float magnitudes[] = {1.0f, 1.0f, 1.0f, 0.0f, 1e-30f, 1e4f, 1e-40f, 6e6f};
    const bool same = random_below(4) == 0; /* all codes 127 or -127 */
    const bool steady = random_below(2);    /* a sign for 32 of them: the largest sums */
    float magnitude = 1.0f, sign = 1.0f;
    for (uint32_t i = 0; i < n; i++) {
        if (i % 32 == 0 && random_below(4) == 0) magnitude = magnitudes[random_below(8)];
        const float value = random_float();
        if (i % 32 == 0 || !steady) sign = value < 0 ? -1.0f : 1.0f;
        x[i] = magnitude * (same ? sign : value);
    }
}

/* ---- one case ---- */

struct shape {
    uint32_t n_col, n_row, row_begin, row_end, n_token;
    enum fill fill;
    bool at_front;
};

static struct shape random_shape(enum tensor_type type)
{
    static const uint32_t n_cols_256[] = {256, 512, 768, 1024, 1280, 2048, 3072, 12288};
    static const uint32_t n_cols_32[] = {32, 64, 96, 256, 288, 480, 512, 2048, 3072, 12320};
    static const uint32_t n_tokens[] = {1, 1, 1,  2,  3,  4,  5,  6,  7,
                                        8, 9, 12, 13, 16, 33, 64, 65, 130};
    const uint32_t block = tensor_type_info(type)->block_elems;
    struct shape s = {.fill = (enum fill)random_below(FILL_COUNT), .at_front = random_below(2)};
    s.n_col = block == 256  ? n_cols_256[random_below(8)]
              : block == 32 ? n_cols_32[random_below(10)]
                            : 1 + random_below(random_below(2) ? 40 : 1000);
    s.n_token = n_tokens[random_below(sizeof(n_tokens) / sizeof(*n_tokens))];
    s.n_row = 1 + random_below(s.n_token > 9 ? 40 : 80);
    if (random_below(2)) s.n_row = (s.n_row + 15) / 16 * 16;
    s.row_end = s.n_row;
    if (random_below(3) == 0) {
        s.row_begin = random_below(s.n_row);
        s.row_end = s.row_begin + 1 + random_below(s.n_row - s.row_begin);
    }
    return s;
}

/* Runs fn on fresh results y [n_token][n_row], which start as a pattern. */
static void run(matmul_fn fn, struct matmul_args args, const struct guarded *y, uint32_t n_row)
{
    float *rows[N_TOKEN_MAX];
    memset(y->data, 0xa5, args.n_token * n_row * sizeof(float));
    for (uint32_t t = 0; t < args.n_token; t++)
        rows[t] = (float *)(void *)y->data + (size_t)t * n_row;
    args.y = rows;
    fn(&args);
}

static bool check_case(enum tensor_type type, const struct shape *s, uint64_t seed)
{
    const struct kernel_table *ref = kernels_select("ref");
    const size_t row_bytes = tensor_row_bytes(type, s->n_col);
    const size_t act_bytes = act_row_bytes(ref->act_type[type], s->n_col);
    const size_t y_bytes = (size_t)s->n_token * s->n_row * sizeof(float);
    struct guarded w = guarded_create(s->n_row * row_bytes, s->at_front);
    struct guarded act = guarded_create(s->n_token * act_bytes, s->at_front);
    struct guarded expected = guarded_create(y_bytes, s->at_front);
    struct guarded y = guarded_create(y_bytes, s->at_front);
    const void *x[N_TOKEN_MAX];
    bool same = true;

    fill_weights(type, s->fill, w.data, s->n_row * row_bytes);
    float *values = malloc(s->n_col * sizeof(float));
    for (uint32_t t = 0; t < s->n_token; t++) {
        /* Rows in reverse: nothing says that they follow each other. */
        uint8_t *row = act.data + (s->n_token - 1 - t) * act_bytes;
        x[t] = row;
        fill_activations(values, s->n_col);
        if (!ref->quantize_act[ref->act_type[type]](values, s->n_col, row)) abort();
    }
    free(values);

    const struct matmul_args args = {.w = w.data,
                                     .w_row_bytes = row_bytes,
                                     .n_col = s->n_col,
                                     .row_begin = s->row_begin,
                                     .row_end = s->row_end,
                                     .n_token = s->n_token,
                                     .x = x};
    run(ref->matmul[type], args, &expected, s->n_row);
    for (const char *const *name = kernels_available(); *name; name++) {
        const matmul_fn fn = kernels_select(*name)->matmul[type];
        if (fn == ref->matmul[type]) continue;
        run(fn, args, &y, s->n_row);
        if (!memcmp(y.data, expected.data, y_bytes)) continue;
        size_t i = 0;
        while (!memcmp(y.data + 4 * i, expected.data + 4 * i, 4))
            i++;
        float got, want;
        memcpy(&got, y.data + 4 * i, 4);
        memcpy(&want, expected.data + 4 * i, 4);
        printf("%s %s: seed %" PRIu64 ", n_col %u, rows %u..%u of %u, n_token %u, fill %d: "
               "token %zu row %zu is %a, ref %a\n",
               *name, tensor_type_info(type)->name, seed, s->n_col, s->row_begin, s->row_end,
               s->n_row, s->n_token, s->fill, i / s->n_row, i % s->n_row, (double)got,
               (double)want);
        same = false;
    }
    guarded_destroy(&w);
    guarded_destroy(&act);
    guarded_destroy(&expected);
    guarded_destroy(&y);
    return same;
}

/* A variant that silently fell back to a weaker one would pass every comparison. */
static bool check_own_functions(void)
{
    const struct kernel_table *ref = kernels_select("ref");
    bool own = true;
    for (const char *const *name = kernels_available(); name[0] && name[1]; name++) {
        const struct kernel_table *weaker = kernels_select(name[0]);
        const struct kernel_table *table = kernels_select(name[1]);
        for (uint32_t type = 0; type < TENSOR_TYPE_COUNT; type++) {
            if (!ref->matmul[type] || table->matmul[type] != weaker->matmul[type]) continue;
            printf("%s has no matmul of its own for %s\n", name[1], tensor_type_info(type)->name);
            own = false;
        }
    }
    return own;
}

int main(int argc, char **argv)
{
    const struct kernel_table *ref = kernels_select("ref");
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    const uint32_t n_case = argc > 1 ? 1 : CASES_PER_TYPE;
    bool ok = check_own_functions();
    for (uint32_t i = 0; i < n_case; i++, seed++) {
        for (uint32_t type = 0; type < TENSOR_TYPE_COUNT; type++) {
            if (!ref->matmul[type]) continue;
            random_state = seed * TENSOR_TYPE_COUNT + type;
            const struct shape shape = random_shape((enum tensor_type)type);
            ok = check_case((enum tensor_type)type, &shape, seed) && ok;
        }
    }
    printf("variants:");
    for (const char *const *name = kernels_available(); *name; name++)
        printf(" %s", *name);
    printf("; %s\n", ok ? "all bits equal" : "FAILED");
    return !ok;
}
