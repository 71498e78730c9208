/* The quantizers' bytes are ggml's: XXH3 of their output for 512 rows that hold every kind of data
 * that takes a branch (zero groups, constants, sparse, coarse, one-sided, tiny, heavy tails). */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "kernels/kernels.h"
#include "tests/unit/cmocka_all.h"
#include "worker/pack/quantize_blocks.h"

enum { N_ROW = 512, N_COL = 256 };

/* The expected values come from tests/data/quantize_vectors.py, which runs ggml. */
static const uint64_t rows_hash = 0x6c16860313b2268e;
static const struct {
    enum tensor_type type;
    uint64_t hash;
} expected[] = {
    {TENSOR_Q4_0, 0x125ce16c4808bad4},   {TENSOR_Q4_1, 0xcde7ec0905065b9d},
    {TENSOR_Q5_0, 0xe0115aefdae211f2},   {TENSOR_Q5_1, 0x913a7b69ab1ff81d},
    {TENSOR_Q8_0, 0xa290cd6772c6c485},   {TENSOR_Q2_K, 0xa2beab3e7b5c5edb},
    {TENSOR_Q3_K, 0x3adaf5d92a4eebee},   {TENSOR_Q4_K, 0xea8965c127c7f7a3},
    {TENSOR_Q5_K, 0x280ee74132cf5736},   {TENSOR_Q6_K, 0xbb4051ef7a6715c9},
    {TENSOR_IQ4_NL, 0x5848915e1efb9286}, {TENSOR_IQ4_XS, 0x839179f4a153350d},
    {TENSOR_MXFP4, 0x72d41aa68b800dee},
};

static uint64_t splitmix64(uint64_t index)
{
    uint64_t z = (index + 1) * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static float value_at(int r, int i)
{
    static const float constants[] = {0.0f, 0.3f, -7.0f};
    const uint64_t bits = splitmix64((uint64_t)r * N_COL + (uint64_t)i);
    const int32_t bell =
        (int32_t)((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48)) -
        131070;
    const float g = (float)bell * 0x1p-17f;
    const int turn = r / 8;
    switch (r % 8) {
    case 0:
        return g * 0x1p-5f;
    case 1:
        return g * g * g;
    case 2:
        return (bits & 7) == 0 ? g : 0;
    case 3:
        return (i / 32 + turn) % 3 == 0 ? 0 : g;
    case 4:
        return (float)(bell >> 15) * 0.25f;
    case 5:
        return fabsf(g) + 0.5f;
    case 6:
        return g * ldexpf(1, -(turn % 60));
    default:
        return constants[turn % 3];
    }
}

static void fill_rows(float *x)
{
    for (int r = 0; r < N_ROW; r++)
        for (int i = 0; i < N_COL; i++)
            x[r * N_COL + i] = value_at(r, i);
}

static void test_bytes_are_those_of_ggml(void **state)
{
    (void)state;
    float *x = malloc(N_ROW * N_COL * sizeof(float));
    uint8_t *out = malloc(N_ROW * N_COL * sizeof(float));
    assert_true(x && out);
    fill_rows(x);
    assert_true(XXH3_64bits(x, N_ROW * N_COL * sizeof(float)) == rows_hash);
    for (size_t t = 0; t < sizeof(expected) / sizeof(expected[0]); t++) {
        const enum tensor_type type = expected[t].type;
        const size_t row_bytes = tensor_row_bytes(type, N_COL);
        for (int r = 0; r < N_ROW; r++)
            quantize_row_for(type)(x + r * N_COL, N_COL, out + (size_t)r * row_bytes);
        const uint64_t hash = XXH3_64bits(out, N_ROW * row_bytes);
        if (hash != expected[t].hash)
            fail_msg("%s: 0x%016llx", tensor_type_info(type)->name, (unsigned long long)hash);
    }
    free(x);
    free(out);
}

/* A row is the same whether it is quantized at once or block by block, at any alignment. */
static void test_rows_are_independent_blocks(void **state)
{
    (void)state;
    float x[2 * N_COL];
    uint8_t whole[4096], parts[4096];
    for (int i = 0; i < 2 * N_COL; i++)
        x[i] = value_at(1, i);
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++) {
        const quantize_row_fn quantize = quantize_row_for((enum tensor_type)type);
        if (!quantize) continue;
        const size_t half = tensor_row_bytes((enum tensor_type)type, N_COL);
        quantize(x, 2 * N_COL, whole);
        quantize(x, N_COL, parts + 1);
        quantize(x + N_COL, N_COL, parts + 1 + half);
        assert_memory_equal(whole, parts + 1, 2 * half);
    }
}

/* Ranges so small that their reciprocal overflows give finite blocks. */
static void test_tiniest_values(void **state)
{
    (void)state;
    float x[N_COL];
    uint8_t out[1024];
    for (int i = 0; i < N_COL; i++)
        x[i] = (float)(i % 7 - 3) * 0x1p-149f;
    for (int type = 0; type < TENSOR_TYPE_COUNT; type++) {
        const quantize_row_fn quantize = quantize_row_for((enum tensor_type)type);
        if (!quantize) continue;
        quantize(x, N_COL, out);
        float back[N_COL];
        const struct kernel_table *table = kernels_select("ref");
        assert_non_null(table);
        table->dequant_row[type](out, N_COL, back);
        for (int i = 0; i < N_COL; i++)
            assert_true(fabsf(back[i]) <= 0x1p-126f);
    }
}

static void test_types_without_quantizer(void **state)
{
    (void)state;
    assert_null(quantize_row_for(TENSOR_I32));
    assert_null(quantize_row_for((enum tensor_type)16));
    assert_non_null(quantize_row_for(TENSOR_BF16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_are_those_of_ggml),
        cmocka_unit_test(test_rows_are_independent_blocks),
        cmocka_unit_test(test_tiniest_values),
        cmocka_unit_test(test_types_without_quantizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
