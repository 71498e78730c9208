/* Synthetic models: deterministic, of the stated shape, readable, with routing as asked for. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "tests/unit/cmocka_all.h"
#include "worker/pack/synth.h"
#include "worker/pack/synth_shape.h"

static char folder[] = "/tmp/lean-test-synth-XXXXXX";
static char path[64];

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof(path), "%s/model.gguf", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static struct synth_config config_of(const char *name, const char *recipe)
{
    struct synth_config config = {0};
    struct lm_error err;
    assert_int_equal(synth_shape_find(name, &config.shape, &err), LM_OK);
    assert_int_equal(recipe_find(recipe, &config.recipe, &err), LM_OK);
    return config;
}

static struct gguf_file *write_and_open(const struct synth_config *config)
{
    struct gguf_file *file;
    struct lm_error err;
    uint64_t n_bytes = 0, n_measured = 0;
    if (synth_write(path, config, &n_bytes, &err) != LM_OK) fail_msg("%s", err.message);
    assert_int_equal(synth_write(NULL, config, &n_measured, &err), LM_OK);
    if (gguf_open(&file, path, &err) != LM_OK) fail_msg("%s", err.message);
    assert_int_equal(gguf_shard_at(file, 0)->n_bytes, n_bytes);
    assert_int_equal(n_measured, n_bytes);
    return file;
}

static void test_every_tiny_architecture(void **state)
{
    (void)state;
    for (size_t i = 0; synth_shape_at(i); i++) {
        const struct synth_shape *shape = synth_shape_at(i);
        if (shape->n_embd > 256) continue;
        const struct synth_config config = config_of(shape->name, "Q8_0");
        struct gguf_file *file = write_and_open(&config);
        struct hparams hp;
        struct lm_error err;
        if (hparams_read(&hp, file, &err) != LM_OK) fail_msg("%s", err.message);
        assert_int_equal(hp.n_layer, shape->n_layer);
        assert_int_equal(hp.n_expert_used, shape->n_expert_used);
        assert_int_equal(hp.layer[0].recurrent, shape->ssm_dim != 0);
        const struct gguf_tensor *embd = gguf_find_tensor(file, "token_embd.weight");
        assert_int_equal(embd->ne[0], shape->n_embd);
        assert_int_equal(embd->ne[1], shape->n_vocab);
        assert_int_equal(!gguf_find_tensor(file, "output.weight"), shape->tied);
        gguf_close(file);
    }
}

/* 733 tensors in the 35B file, 753 with the MTP layer: the count of the published one. */
static void test_tensor_count_of_the_35b(void **state)
{
    (void)state;
    struct synth_shape shape;
    struct synth_tensor *tensors;
    size_t n;
    assert_int_equal(synth_shape_find("qwen3.5-35b-a3b", &shape, NULL), LM_OK);
    assert_int_equal(synth_tensors(&shape, false, &tensors, &n, NULL), LM_OK);
    assert_int_equal(n, 733);
    free(tensors);
    assert_int_equal(synth_tensors(&shape, true, &tensors, &n, NULL), LM_OK);
    assert_int_equal(n, 753);
    free(tensors);
}

static void test_same_arguments_same_bytes(void **state)
{
    (void)state;
    struct synth_config config = config_of("qwen35moe", "Q4_K_M");
    config.skew = 0.5f;
    config.similarity = 0.5f;
    struct gguf_file *file = write_and_open(&config);
    const uint64_t n = gguf_shard_at(file, 0)->n_bytes;
    uint8_t *first = malloc(n);
    assert_non_null(first);
    memcpy(first, gguf_shard_at(file, 0)->data, n);
    gguf_close(file);

    file = write_and_open(&config);
    assert_memory_equal(gguf_shard_at(file, 0)->data, first, n);
    gguf_close(file);

    config.seed = 1;
    file = write_and_open(&config);
    assert_int_equal(gguf_shard_at(file, 0)->n_bytes, n);
    assert_memory_not_equal(gguf_shard_at(file, 0)->data, first, n);
    gguf_close(file);
    free(first);
}

/* Composed from blocks or made value by value: mean 0 and the standard deviation asked for. */
static void test_spread_of_weights(void **state)
{
    (void)state;
    static const char *const names[] = {"blk.0.ffn_up_exps.weight", "blk.0.attn_gate.weight"};
    const struct synth_config config = config_of("qwen35moe", "F32");
    struct gguf_file *file = write_and_open(&config);
    for (size_t t = 0; t < 2; t++) {
        const struct gguf_tensor *tensor = gguf_find_tensor(file, names[t]);
        const double std = (t ? 1.5 : 1.7) / 16;
        const size_t n = tensor->n_bytes / sizeof(float);
        double sum = 0, sum2 = 0;
        for (size_t i = 0; i < n; i++) {
            const double x = ((const float *)tensor->data)[i];
            sum += x;
            sum2 += x * x;
        }
        assert_true(fabs(sum / (double)n) < 0.02 * std);
        assert_true(fabs(sqrt(sum2 / (double)n) / std - 1) < 0.01);
    }
    gguf_close(file);
}

static const float *router_of(const struct gguf_file *file, int layer)
{
    char name[64];
    snprintf(name, sizeof(name), "blk.%d.ffn_gate_inp.weight", layer);
    return gguf_find_tensor(file, name)->data;
}

static double row_norm(const float *row)
{
    double sum = 0;
    for (size_t i = 0; i < 256; i++)
        sum += (double)row[i] * (double)row[i];
    return sqrt(sum);
}

static void test_similarity_of_routers(void **state)
{
    (void)state;
    static const float similarities[] = {0.0f, 0.8f, 1.0f};
    for (size_t s = 0; s < 3; s++) {
        struct synth_config config = config_of("qwen3moe", "Q8_0");
        config.similarity = similarities[s];
        config.skew = 0.3f;
        struct gguf_file *file = write_and_open(&config);
        double dot = 0;
        for (size_t e = 0; e < 12; e++) {
            const float *a = router_of(file, 1) + 256 * e, *b = router_of(file, 2) + 256 * e;
            double sum = 0;
            for (size_t i = 0; i < 256; i++)
                sum += (double)a[i] * (double)b[i];
            dot += sum / row_norm(a) / row_norm(b) / 12;
        }
        assert_true(fabs(dot - (double)similarities[s]) < 0.06);
        gguf_close(file);
    }
}

static void test_skew_of_routers(void **state)
{
    (void)state;
    for (int skewed = 0; skewed < 2; skewed++) {
        struct synth_config config = config_of("qwen3moe", "Q8_0");
        config.skew = skewed ? 1.0f : 0.0f;
        struct gguf_file *file = write_and_open(&config);
        double low = INFINITY, high = 0;
        for (size_t e = 0; e < 12; e++) {
            const double norm = row_norm(router_of(file, 0) + 256 * e);
            low = norm < low ? norm : low;
            high = norm > high ? norm : high;
        }
        assert_true(skewed ? high > 5 * low : high < 1.4 * low);
        gguf_close(file);
    }
}

static bool has_token(const struct gguf_file *file, const struct gguf_kv *tokens, const char *text,
                      size_t n)
{
    for (uint64_t i = 0; i < tokens->n; i++) {
        const struct gguf_string token = gguf_array_string(file, tokens, i);
        if (token.n == n && !memcmp(token.data, text, n)) return true;
    }
    return false;
}

/* Tokens are distinct, and both sides and the product of every merge are tokens. */
static void test_vocabulary(void **state)
{
    (void)state;
    struct synth_config config = config_of("llama", "Q8_0");
    config.shape.n_vocab = 1200;
    struct gguf_file *file = write_and_open(&config);
    const struct gguf_kv *tokens = gguf_find_kv(file, "tokenizer.ggml.tokens");
    const struct gguf_kv *merges = gguf_find_kv(file, "tokenizer.ggml.merges");
    assert_int_equal(tokens->n, 1200);
    assert_int_equal(merges->n, 1200 - SYNTH_VOCAB_MIN);
    assert_int_equal(gguf_find_kv(file, "tokenizer.ggml.token_type")->n, 1200);
    for (uint64_t i = 0; i < tokens->n; i++)
        for (uint64_t k = 0; k < i; k++) {
            const struct gguf_string a = gguf_array_string(file, tokens, i);
            const struct gguf_string b = gguf_array_string(file, tokens, k);
            assert_false(a.n == b.n && !memcmp(a.data, b.data, a.n));
        }
    for (uint64_t i = 0; i < merges->n; i++) {
        const struct gguf_string merge = gguf_array_string(file, merges, i);
        const char *space = memchr(merge.data, ' ', merge.n);
        assert_non_null(space);
        const size_t n_left = (size_t)(space - merge.data), n_right = merge.n - n_left - 1;
        char product[32];
        memcpy(product, merge.data, n_left);
        memcpy(product + n_left, space + 1, n_right);
        assert_true(has_token(file, tokens, merge.data, n_left));
        assert_true(has_token(file, tokens, space + 1, n_right));
        assert_true(has_token(file, tokens, product, n_left + n_right));
    }
    assert_true(has_token(file, tokens, "<|im_end|>", 10));
    gguf_close(file);
}

static void test_impossible_shapes(void **state)
{
    (void)state;
    struct lm_error err;
    struct synth_shape shape;
    struct synth_config config = config_of("qwen3moe", "Q8_0");
    config.shape.n_vocab = 100;
    assert_int_equal(synth_write(path, &config, NULL, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, "vocabulary of 100"));
    config = config_of("qwen3moe", "Q8_0");
    config.shape.n_expert_used = 13;
    assert_int_equal(synth_write(path, &config, NULL, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, "12 experts, but 13"));
    config = config_of("qwen3moe", "Q8_0");
    config.mtp = true;
    assert_int_equal(synth_write(path, &config, NULL, &err), LM_E_USAGE);
    assert_int_equal(synth_shape_find("gpt-9", &shape, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, "qwen3-coder-next"));
}

static void test_interruption(void **state)
{
    (void)state;
    const volatile sig_atomic_t yes = 1;
    struct synth_config config = config_of("llama", "Q8_0");
    struct lm_error err;
    config.is_interrupted = &yes;
    unlink(path);
    assert_int_equal(synth_write(path, &config, NULL, &err), LM_E_INTERRUPTED);
    assert_int_not_equal(access(path, F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_tiny_architecture),
        cmocka_unit_test(test_tensor_count_of_the_35b),
        cmocka_unit_test(test_same_arguments_same_bytes),
        cmocka_unit_test(test_spread_of_weights),
        cmocka_unit_test(test_similarity_of_routers),
        cmocka_unit_test(test_skew_of_routers),
        cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_impossible_shapes),
        cmocka_unit_test(test_interruption),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
