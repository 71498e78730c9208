/* Which type a recipe gives to which tensor. */
#include <stdio.h>
#include <string.h>

#include "tests/unit/cmocka_all.h"
#include "worker/pack/recipe.h"

enum { N_LAYER = 40, N_TENSOR = N_LAYER * 8 + 3 };
static struct recipe_tensor tensors[N_TENSOR];

static void set(struct recipe_tensor *tensor, const char *name, int layer, uint64_t n_row)
{
    *tensor = (struct recipe_tensor){.n_dims = n_row ? 2 : 1, .type = TENSOR_F32};
    memcpy(tensor->ne, (uint64_t[]){512, n_row ? n_row : 1, 1, 1}, sizeof(tensor->ne));
    if (layer < 0)
        snprintf(tensor->name, sizeof(tensor->name), "%s", name);
    else
        snprintf(tensor->name, sizeof(tensor->name), "blk.%d.%s", layer, name);
}

/* A model of 40 layers, its layers in descending order: the order must not matter. */
static void fill(void)
{
    static const char *const names[] = {
        "attn_v.weight",        "attn_k.weight",      "attn_output.weight", "ffn_gate_inp.weight",
        "ffn_down_exps.weight", "ffn_up_exps.weight", "ssm_conv1d.weight",  "ssm_dt.bias"};
    size_t n = 0;
    for (int layer = N_LAYER - 1; layer >= 0; layer--)
        for (size_t i = 0; i < 8; i++)
            set(&tensors[n++], names[i], layer, i == 7 ? 0 : 64);
    set(&tensors[n++], "output_norm.weight", -1, 0);
    set(&tensors[n++], "output.weight", -1, 1000);
    set(&tensors[n++], "token_embd.weight", -1, 1000);
}

static void assign(const char *name, size_t n_tensor, uint32_t n_expert)
{
    const struct recipe *recipe;
    struct lm_error err;
    fill();
    assert_int_equal(recipe_find(name, &recipe, &err), LM_OK);
    assert_int_equal(recipe_assign(recipe, tensors, n_tensor, N_LAYER, n_expert, &err), LM_OK);
}

static enum tensor_type type_of(const char *name)
{
    for (size_t i = 0; i < N_TENSOR; i++)
        if (!strcmp(tensors[i].name, name)) return tensors[i].type;
    fail_msg("no tensor %s", name);
    return TENSOR_F32;
}

static size_t count(const char *part, enum tensor_type type)
{
    size_t n = 0;
    for (size_t i = 0; i < N_TENSOR; i++)
        n += strstr(tensors[i].name, part) && tensors[i].type == type;
    return n;
}

static void test_q4_k_m(void **state)
{
    (void)state;
    assign("q4_k_m", N_TENSOR, 256);
    assert_int_equal(count("attn_v", TENSOR_Q6_K), 20);
    assert_int_equal(count("attn_v", TENSOR_Q4_K), 20);
    assert_int_equal(count("ffn_down_exps", TENSOR_Q6_K), 20);
    for (int layer = 0; layer < N_LAYER; layer++) {
        char name[64];
        snprintf(name, sizeof(name), "blk.%d.ffn_down_exps.weight", layer);
        const bool better = layer < 5 || layer >= 35 || (layer - 5) % 3 == 2;
        assert_int_equal(type_of(name), better ? TENSOR_Q6_K : TENSOR_Q4_K);
    }
    assert_int_equal(count("attn_k", TENSOR_Q4_K), N_LAYER);
    assert_int_equal(type_of("output.weight"), TENSOR_Q6_K);
    assert_int_equal(type_of("token_embd.weight"), TENSOR_Q4_K);
}

static void test_kept_tensors(void **state)
{
    (void)state;
    assign("Q8_0", N_TENSOR, 256);
    assert_int_equal(count("ffn_gate_inp", TENSOR_F32), N_LAYER);
    assert_int_equal(count("ssm_conv1d", TENSOR_F32), N_LAYER);
    assert_int_equal(count("ssm_dt.bias", TENSOR_F32), N_LAYER);
    assert_int_equal(type_of("output_norm.weight"), TENSOR_F32);
    assert_int_equal(count("", TENSOR_Q8_0), 5 * N_LAYER + 2);
}

static void test_q3_k_m(void **state)
{
    (void)state;
    assign("Q3_K_M", N_TENSOR, 256);
    assert_int_equal(type_of("blk.1.attn_v.weight"), TENSOR_Q5_K);
    assert_int_equal(type_of("blk.2.attn_v.weight"), TENSOR_Q4_K);
    assert_int_equal(count("ffn_down_exps", TENSOR_Q5_K), 2);
    assert_int_equal(count("ffn_down_exps", TENSOR_Q4_K), 38);
    assert_int_equal(count("attn_output", TENSOR_Q4_K), N_LAYER);
    assert_int_equal(count("ffn_up_exps", TENSOR_Q3_K), N_LAYER);
}

static void test_tied_embedding_is_the_output(void **state)
{
    (void)state;
    fill();
    struct recipe_tensor swap = tensors[N_TENSOR - 2]; /* output.weight last, and left out */
    assign("Q4_K_M", 0, 0);
    tensors[N_TENSOR - 2] = tensors[N_TENSOR - 1];
    tensors[N_TENSOR - 1] = swap;
    const struct recipe *recipe;
    assert_int_equal(recipe_find("Q4_K_M", &recipe, NULL), LM_OK);
    assert_int_equal(recipe_assign(recipe, tensors, N_TENSOR - 1, N_LAYER, 0, NULL), LM_OK);
    assert_int_equal(type_of("token_embd.weight"), TENSOR_Q6_K);
}

static void test_eight_experts(void **state)
{
    (void)state;
    assign("Q4_K_M", N_TENSOR, 8);
    assert_int_equal(count("attn_v", TENSOR_Q8_0), N_LAYER);
    assert_int_equal(count("attn_k", TENSOR_Q8_0), N_LAYER);
    assert_int_equal(count("attn_output", TENSOR_Q5_K), N_LAYER);
}

/* Rows that are no whole number of blocks fall back, and F16 takes any row. */
static void test_narrow_rows(void **state)
{
    (void)state;
    static const struct {
        const char *recipe;
        uint64_t n_elem;
        enum tensor_type type;
    } cases[] = {
        {"Q3_K", 288, TENSOR_Q4_0}, {"Q2_K", 288, TENSOR_Q4_0}, {"Q4_K", 288, TENSOR_Q5_0},
        {"Q5_K", 288, TENSOR_Q5_1}, {"Q6_K", 288, TENSOR_Q8_0}, {"IQ4_XS", 288, TENSOR_IQ4_NL},
        {"Q4_K", 40, TENSOR_F16},   {"Q8_0", 40, TENSOR_F16},   {"Q4_K", 256, TENSOR_Q4_K},
        {"F32", 40, TENSOR_F32},    {"BF16", 40, TENSOR_BF16},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct recipe *recipe;
        struct recipe_tensor tensor;
        set(&tensor, "ffn_up.weight", 0, 4);
        tensor.ne[0] = cases[i].n_elem;
        assert_int_equal(recipe_find(cases[i].recipe, &recipe, NULL), LM_OK);
        assert_int_equal(recipe_assign(recipe, &tensor, 1, 1, 0, NULL), LM_OK);
        assert_int_equal(tensor.type, cases[i].type);
    }
}

static void test_unknown_recipe(void **state)
{
    (void)state;
    const struct recipe *recipe;
    struct lm_error err;
    assert_int_equal(recipe_find("Q9_K", &recipe, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, "\"Q9_K\""));
    assert_non_null(strstr(err.message, "Q4_K_M"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q4_k_m),         cmocka_unit_test(test_kept_tensors),
        cmocka_unit_test(test_q3_k_m),         cmocka_unit_test(test_tied_embedding_is_the_output),
        cmocka_unit_test(test_eight_experts),  cmocka_unit_test(test_narrow_rows),
        cmocka_unit_test(test_unknown_recipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
