/* The expert bank brings every expert to a device, whatever its pieces are and however fast copies
 * are: on the CUDA backend's emulator, where a piece that is read into too early goes wrong. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend_cuda.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "worker/pager/expert_bank.h"

static struct gguf_file *file;
static struct hparams hp;
static struct expert_store *store;
static struct lm_error err;

static int open_model(void **state)
{
    char path[1000];
    (void)state;
    snprintf(path, sizeof(path), "%s/tests/data/golden/models/qwen3moe-s-q8_0.gguf",
             getenv("LEAN_SOURCE_DIR"));
    return gguf_open(&file, path, &err) || hparams_read(&hp, file, &err) ||
           expert_store_create(&store, file, &hp, 0, hp.n_layer, &err);
}

static int close_model(void **state)
{
    (void)state;
    expert_store_destroy(store);
    gguf_close(file);
    return 0;
}

/* copy, fail: LEAN_EMU_COPY and LEAN_EMU_FAIL, or NULL. */
static struct backend *create_device(const char *copy, const char *fail)
{
    const struct backend_cuda_config config = {.plugin = CUDA_EMU_PLUGIN_FILE};
    struct backend *device;
    unsetenv("LEAN_EMU_COPY");
    unsetenv("LEAN_EMU_FAIL");
    if (copy) setenv("LEAN_EMU_COPY", copy, 1);
    if (fail) setenv("LEAN_EMU_FAIL", fail, 1);
    if (backend_cuda_create(&device, &config, &err) != LM_OK) fail_msg("%s", err.message);
    return device;
}

static struct expert_bank_config config_of(struct backend *device, size_t piece_bytes)
{
    return (struct expert_bank_config){.backend = device,
                                       .store = store,
                                       .layer_end = hp.n_layer,
                                       .n_expert = hp.n_expert,
                                       .piece_bytes = piece_bytes};
}

/* The bytes of a layer's experts are those of the file. */
static void check_layer(struct backend *device, const struct expert_bank *bank, uint32_t il)
{
    const struct expert_layer *const layer = expert_store_layer(store, il);
    struct expert_view *const view = calloc(hp.n_expert, sizeof(*view));
    char *const got = malloc(layer->n_bytes);
    device->ops->download(device, view, expert_bank_table(bank, il), hp.n_expert * sizeof(*view));
    assert_int_equal(device->ops->sync(device, &err), LM_OK);
    for (uint32_t ie = 0; ie < hp.n_expert; ie++) {
        struct expert_extent part[EXPERT_PART_MAX];
        const void *const at[] = {view[ie].gate, view[ie].up, view[ie].down};
        expert_store_locate(store, (struct expert_key){il, ie}, part);
        for (int i = 0; i < EXPERT_MATRIX_COUNT; i++) {
            const struct expert_extent *const of = &part[layer->matrix[i].part];
            const char *const expected =
                (const char *)expert_store_file(store, of->file).data + of->offset;
            assert_int_equal(layer->matrix[i].offset, 0);
            device->ops->download(device, got, at[i], of->n_bytes);
            assert_int_equal(device->ops->sync(device, &err), LM_OK);
            assert_memory_equal(got, expected, of->n_bytes);
        }
    }
    free(view);
    free(got);
}

static void test_every_expert_arrives(void **state)
{
    static const struct {
        const char *copy;
        size_t piece_bytes;
    } cases[] = {
        {NULL, 0},
        {NULL, 5000}, /* smaller than a part */
        {"1000,0.001", 5000},
        {"1000,0.001", 40000}, /* some parts */
        {"0,100000,1000", 40000},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct backend *const device = create_device(cases[i].copy, NULL);
        const struct expert_bank_config config = config_of(device, cases[i].piece_bytes);
        struct expert_bank *bank;
        assert_int_equal(expert_bank_create(&bank, &config, &err), LM_OK);
        for (uint32_t il = 0; il < hp.n_layer; il++)
            check_layer(device, bank, il);
        assert_int_equal(backend_cuda_counters(device)->staged_bytes, 0); /* pieces are pinned */
        expert_bank_destroy(bank);
        device->ops->destroy(device);
    }
}

/* Pieces that cannot be pinned are read through. */
static void test_without_pinned_pieces(void **state)
{
    (void)state;
    struct backend *const device = create_device(NULL, "host:2");
    const struct expert_bank_config config = config_of(device, 0);
    struct expert_bank *bank;
    assert_int_equal(expert_bank_create(&bank, &config, &err), LM_OK);
    check_layer(device, bank, hp.n_layer - 1);
    assert_true(backend_cuda_counters(device)->staged_bytes > 0);
    expert_bank_destroy(bank);
    device->ops->destroy(device);
}

static void test_no_memory_is_said(void **state)
{
    (void)state;
    char fail[32];
    for (int nth = 1; nth <= 2 * (int)hp.n_layer; nth++) {
        struct expert_bank *bank;
        snprintf(fail, sizeof(fail), "malloc:%d", nth);
        struct backend *const device = create_device(NULL, fail);
        const struct expert_bank_config config = config_of(device, 0);
        assert_int_equal(expert_bank_create(&bank, &config, &err), LM_E_NO_MEM);
        device->ops->destroy(device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_expert_arrives),
                                       cmocka_unit_test(test_without_pinned_pieces),
                                       cmocka_unit_test(test_no_memory_is_said)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
