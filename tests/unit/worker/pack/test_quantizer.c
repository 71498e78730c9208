/* Whole files through the quantizer: same bytes from any number of threads, and clear refusals. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/base/half.h"
#include "proto/gguf/gguf_write.h"
#include "tests/unit/cmocka_all.h"
#include "worker/pack/quantizer.h"

static char folder[] = "/tmp/lean-test-quantize-XXXXXX";
static char source_path[64], path[64];

enum { N_COL = 512, N_ROW = 700 };

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(source_path, sizeof(source_path), "%s/source.gguf", folder);
    snprintf(path, sizeof(path), "%s/out.gguf", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(source_path);
    unlink(path);
    return rmdir(folder);
}

/* One matrix of the given type and a norm. bad: its value number 700 is this instead; 0: none. */
static struct gguf_file *make_source(enum tensor_type type, float bad)
{
    struct gguf_writer *writer;
    struct gguf_file *file;
    struct lm_error err;
    const float norm[N_COL] = {1};
    assert_int_equal(gguf_writer_create(&writer, source_path, &err), LM_OK);
    gguf_writer_string(writer, "general.architecture", "llama", 5);
    gguf_writer_u32(writer, "llama.block_count", 1);
    gguf_writer_u32(writer, "general.file_type", 0);
    gguf_writer_u32(writer, "split.count", 1);
    gguf_writer_tensor(writer, "blk.0.attn_norm.weight", TENSOR_F32, 1, (uint64_t[]){N_COL});
    gguf_writer_tensor(writer, "blk.0.ffn_up.weight", type, 2, (uint64_t[]){N_COL, N_ROW});
    assert_int_equal(gguf_writer_data(writer, norm, sizeof(norm), &err), LM_OK);
    for (uint32_t i = 0; i < N_COL * N_ROW; i++) {
        const float value = bad != 0 && i == 700 ? bad : (float)(i * 2654435761u >> 24) - 127;
        const uint16_t half = type == TENSOR_F16 ? f16_from_f32(value) : bf16_from_f32(value);
        if (type == TENSOR_F32)
            gguf_writer_data(writer, &value, sizeof(value), &err);
        else
            gguf_writer_data(writer, &half, sizeof(half), &err);
    }
    assert_int_equal(gguf_writer_finish(writer, &err), LM_OK);
    assert_int_equal(gguf_open(&file, source_path, &err), LM_OK);
    return file;
}

static enum lm_status quantize(const struct gguf_file *source, const char *name, uint32_t n_thread,
                               struct lm_error *err)
{
    struct quantize_config config = {.n_thread = n_thread};
    assert_int_equal(recipe_find(name, &config.recipe, err), LM_OK);
    return quantize_file(source, path, &config, err);
}

/* The values are integers below 128, so F32, F16 and BF16 hold the same. */
static void test_same_bytes_from_any_source_and_threads(void **state)
{
    (void)state;
    static const enum tensor_type types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16};
    uint8_t *first = NULL;
    uint64_t n_first = 0;
    for (size_t t = 0; t < 3; t++) {
        struct gguf_file *source = make_source(types[t], 0), *out;
        for (uint32_t n_thread = 1; n_thread <= 4; n_thread++) {
            struct lm_error err = {0};
            uint64_t n_planned;
            const struct recipe *recipe;
            if (quantize(source, "Q4_K_M", n_thread, &err) != LM_OK) fail_msg("%s", err.message);
            assert_int_equal(gguf_open(&out, path, &err), LM_OK);
            const struct gguf_shard *shard = gguf_shard_at(out, 0);
            assert_int_equal(recipe_find("Q4_K_M", &recipe, NULL), LM_OK);
            assert_int_equal(quantize_plan(source, recipe, &n_planned, &err), LM_OK);
            assert_int_equal(shard->n_bytes, n_planned);
            if (!first) {
                n_first = shard->n_bytes;
                first = malloc(n_first);
                assert_non_null(first);
                memcpy(first, shard->data, n_first);
            }
            assert_int_equal(shard->n_bytes, n_first);
            assert_memory_equal(shard->data, first, n_first);
            gguf_close(out);
        }
        gguf_close(source);
    }
    free(first);
}

static void test_metadata(void **state)
{
    (void)state;
    struct gguf_file *source = make_source(TENSOR_F32, 0), *out;
    struct lm_error err;
    uint32_t file_type = 0, version = 0;
    assert_int_equal(quantize(source, "Q5_K_M", 2, &err), LM_OK);
    assert_int_equal(gguf_open(&out, path, &err), LM_OK);
    assert_int_equal(gguf_get_u32(out, "general.file_type", &file_type, NULL, &err), LM_OK);
    assert_int_equal(gguf_get_u32(out, "general.quantization_version", &version, NULL, &err),
                     LM_OK);
    assert_int_equal(file_type, 17);
    assert_int_equal(version, 2);
    assert_null(gguf_find_kv(out, "split.count"));
    assert_non_null(gguf_find_kv(out, "llama.block_count"));
    assert_int_equal(gguf_find_tensor(out, "blk.0.attn_norm.weight")->type, TENSOR_F32);
    assert_int_equal(gguf_find_tensor(out, "blk.0.ffn_up.weight")->type, TENSOR_Q5_K);
    gguf_close(out);

    /* What is quantized is not quantized again, but a recipe that keeps it may copy it. */
    gguf_close(source);
    assert_int_equal(rename(path, source_path), 0);
    assert_int_equal(gguf_open(&source, source_path, &err), LM_OK);
    assert_int_equal(quantize(source, "Q8_0", 2, &err), LM_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "blk.0.ffn_up.weight: is Q5_K already"));
    assert_int_equal(quantize(source, "Q5_K_M", 2, &err), LM_OK);
    gguf_close(source);
}

static void test_bad_values(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 65536.0f};
    for (size_t i = 0; i < 4; i++) {
        struct gguf_file *source = make_source(TENSOR_F32, bad[i]);
        struct lm_error err;
        unlink(path);
        assert_int_equal(quantize(source, "Q8_0", 2, &err), LM_E_FORMAT);
        assert_non_null(strstr(err.message, "blk.0.ffn_up.weight: row 1, element 188 is"));
        assert_int_not_equal(access(path, F_OK), 0);
        gguf_close(source);
    }
}

static void test_interruption(void **state)
{
    (void)state;
    struct gguf_file *source = make_source(TENSOR_F32, 0);
    const volatile sig_atomic_t yes = 1;
    struct quantize_config config = {.is_interrupted = &yes};
    struct lm_error err;
    unlink(path);
    assert_int_equal(recipe_find("Q8_0", &config.recipe, &err), LM_OK);
    assert_int_equal(quantize_file(source, path, &config, &err), LM_E_INTERRUPTED);
    assert_int_not_equal(access(path, F_OK), 0);
    gguf_close(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes_from_any_source_and_threads),
        cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_interruption),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
