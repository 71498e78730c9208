/* The store finds every expert's bytes in each of the forms that files have. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/gguf/gguf_write.h"
#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"
#include "tests/unit/cmocka_all.h"
#include "worker/pack/synth.h"
#include "worker/pager/expert_store.h"

enum form { STACKED, FUSED, SINGLE, SINGLE_OF_TWO_TYPES };

static char folder[] = "/tmp/lean-test-store-XXXXXX";
static char stacked_path[64], other_path[64];
static struct gguf_file *stacked; /* what the other forms are made from and compared with */
static struct hparams hp;

static int make_stacked(void **state)
{
    (void)state;
    struct synth_config config = {.seed = 5};
    struct lm_error err;
    if (!mkdtemp(folder)) return -1;
    snprintf(stacked_path, sizeof(stacked_path), "%s/stacked.gguf", folder);
    snprintf(other_path, sizeof(other_path), "%s/other.gguf", folder);
    if (synth_shape_find("qwen35moe", &config.shape, &err) != LM_OK ||
        recipe_find("Q4_K_M", &config.recipe, &err) != LM_OK ||
        synth_write(stacked_path, &config, NULL, &err) != LM_OK ||
        gguf_open(&stacked, stacked_path, &err) != LM_OK ||
        hparams_read(&hp, stacked, &err) != LM_OK) {
        print_error("%s\n", err.message);
        return -1;
    }
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    gguf_close(stacked);
    unlink(stacked_path);
    unlink(other_path);
    return rmdir(folder);
}

/* One expert of a stack. */
struct slice {
    const char *data;
    uint64_t n_bytes;
    enum tensor_type type;
};

static struct slice slice_of(enum tensor_role role, uint32_t il, uint32_t ie)
{
    char name[TENSOR_NAME_MAX];
    const struct gguf_tensor *stack = gguf_find_tensor(stacked, tensor_name(name, role, il, 0));
    assert_non_null(stack);
    const uint64_t n_bytes = stack->n_bytes / hp.n_expert;
    return (struct slice){(const char *)stack->data + ie * n_bytes, n_bytes, stack->type};
}

static void put(struct gguf_writer *writer, const void *data, uint64_t n_bytes)
{
    struct lm_error err;
    if (data && gguf_writer_data(writer, data, n_bytes, &err) != LM_OK) fail_msg("%s", err.message);
}

static void put_slice(struct gguf_writer *writer, enum tensor_role role, uint32_t il, uint32_t ie)
{
    const struct slice slice = slice_of(role, il, ie);
    put(writer, slice.data, slice.n_bytes);
}

/* Declares the experts of a layer, or writes their data. */
static void put_fused(struct gguf_writer *writer, uint32_t il, bool data)
{
    char name[TENSOR_NAME_MAX];
    const uint64_t ne[3] = {hp.n_embd, 2 * hp.n_ff_exp, hp.n_expert};
    if (!data)
        gguf_writer_tensor(writer, tensor_name(name, ROLE_FFN_GATE_UP_EXPS, il, 0),
                           slice_of(ROLE_FFN_GATE_EXPS, il, 0).type, 3, ne);
    for (uint32_t ie = 0; ie < hp.n_expert && data; ie++) {
        put_slice(writer, ROLE_FFN_GATE_EXPS, il, ie);
        put_slice(writer, ROLE_FFN_UP_EXPS, il, ie);
    }
}

static void put_singles(struct gguf_writer *writer, uint32_t il, bool data, bool two_types)
{
    static const enum tensor_role stacks[] = {ROLE_FFN_GATE_EXPS, ROLE_FFN_UP_EXPS,
                                              ROLE_FFN_DOWN_EXPS};
    static const enum tensor_role singles[] = {ROLE_FFN_GATE_EXP, ROLE_FFN_UP_EXP,
                                               ROLE_FFN_DOWN_EXP};
    for (uint32_t ie = hp.n_expert; ie-- > 0;) { /* backwards: order means nothing */
        for (int i = 0; i < 3; i++) {
            const struct slice slice = slice_of(stacks[i], il, ie);
            const bool other =
                /* of as many bytes as Q4_K */ two_types && il == 2 && ie == 3 && i == 1;
            const uint64_t ne[2] = {i == 2 ? hp.n_ff_exp : hp.n_embd,
                                    i == 2 ? hp.n_embd : hp.n_ff_exp};
            char name[TENSOR_NAME_MAX];
            if (data)
                put(writer, slice.data, slice.n_bytes);
            else
                gguf_writer_tensor(writer, tensor_name(name, singles[i], il, ie),
                                   other ? TENSOR_Q4_0 : slice.type, 2, ne);
        }
    }
}

static void put_tensors(struct gguf_writer *writer, enum form form, bool data)
{
    for (size_t i = 0; i < gguf_n_tensor(stacked); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(stacked, i);
        char name[TENSOR_NAME_MAX];
        enum tensor_role role;
        uint32_t il, ie;
        snprintf(name, sizeof(name), "%.*s", (int)tensor->name.n, tensor->name.data);
        assert_true(tensor_name_parse(name, tensor->name.n, &role, &il, &ie));
        const bool gate = role == ROLE_FFN_GATE_EXPS, up = role == ROLE_FFN_UP_EXPS,
                   down = role == ROLE_FFN_DOWN_EXPS;
        if (form == FUSED && gate) {
            put_fused(writer, il, data);
        } else if (form >= SINGLE && gate) {
            put_singles(writer, il, data, form == SINGLE_OF_TWO_TYPES);
        } else if (!gate && !up && !(form >= SINGLE && down)) {
            if (data)
                put(writer, tensor->data, tensor->n_bytes);
            else
                gguf_writer_tensor(writer, name, tensor->type, tensor->n_dims, tensor->ne);
        }
    }
}

/* The same model in another form. */
static struct gguf_file *write_and_open(enum form form)
{
    struct gguf_writer *writer;
    struct gguf_file *file;
    struct lm_error err;
    assert_int_equal(gguf_writer_create(&writer, other_path, &err), LM_OK);
    for (size_t i = 0; i < gguf_n_kv(stacked); i++)
        gguf_writer_copy(writer, stacked, gguf_kv_at(stacked, i));
    put_tensors(writer, form, false);
    put_tensors(writer, form, true);
    if (gguf_writer_finish(writer, &err) != LM_OK) fail_msg("%s", err.message);
    if (gguf_open(&file, other_path, &err) != LM_OK) fail_msg("%s", err.message);
    return file;
}

static void check_matrices(uint32_t il, uint32_t ie, struct expert_view view)
{
    const struct slice gate = slice_of(ROLE_FFN_GATE_EXPS, il, ie);
    const struct slice up = slice_of(ROLE_FFN_UP_EXPS, il, ie);
    const struct slice down = slice_of(ROLE_FFN_DOWN_EXPS, il, ie);
    assert_memory_equal(view.gate, gate.data, gate.n_bytes);
    assert_memory_equal(view.up, up.data, up.n_bytes);
    assert_memory_equal(view.down, down.data, down.n_bytes);
}

/* Reads an expert's parts with pread. */
static void check_expert(const struct expert_store *store, struct expert_key key)
{
    const struct expert_layer *layer = expert_store_layer(store, key.layer);
    struct expert_extent extent[EXPERT_PART_MAX];
    void *part[EXPERT_PART_MAX] = {NULL};
    uint64_t n_bytes = 0, checksum;
    expert_store_locate(store, key, extent);
    for (uint32_t i = 0; i < layer->n_part; i++) {
        assert_int_equal(extent[i].n_bytes, layer->part_bytes[i]);
        part[i] = malloc(extent[i].n_bytes);
        assert_int_equal(pread(expert_store_file(store, extent[i].file).fd, part[i],
                               extent[i].n_bytes, (off_t)extent[i].offset),
                         extent[i].n_bytes);
        n_bytes += extent[i].n_bytes;
    }
    assert_int_equal(n_bytes, layer->n_bytes);
    check_matrices(key.layer, key.expert, expert_layer_view(layer, (const void *const *)part));
    check_matrices(key.layer, key.expert, expert_store_mapped(store, key));
    assert_false(expert_store_checksum(store, key, &checksum));
    for (uint32_t i = 0; i < layer->n_part; i++)
        free(part[i]);
}

static void check_form(const struct gguf_file *file, uint32_t n_part)
{
    struct expert_store *store;
    struct hparams read;
    struct lm_error err;
    if (hparams_read(&read, file, &err) != LM_OK) fail_msg("%s", err.message);
    assert_int_equal(expert_store_create(&store, file, &read, 0, hp.n_layer, &err), LM_OK);
    assert_int_equal(expert_store_n_file(store), 1);
    for (uint32_t il = 0; il < hp.n_layer; il++) {
        const struct expert_layer *layer = expert_store_layer(store, il);
        assert_int_equal(layer->n_part, n_part);
        assert_int_equal(layer->gate.type, slice_of(ROLE_FFN_GATE_EXPS, il, 0).type);
        assert_int_equal(layer->up.n_row, hp.n_ff_exp);
        assert_int_equal(layer->down.n_row * layer->down.row_bytes,
                         slice_of(ROLE_FFN_DOWN_EXPS, il, 0).n_bytes);
        for (uint32_t ie = 0; ie < hp.n_expert; ie++)
            check_expert(store, (struct expert_key){il, ie});
    }
    expert_store_destroy(store);
}

static void test_stacked(void **state)
{
    (void)state;
    check_form(stacked, 3);
}

static void test_gate_and_up_fused(void **state)
{
    (void)state;
    struct gguf_file *file = write_and_open(FUSED);
    check_form(file, 2);
    gguf_close(file);
}

static void test_one_tensor_per_expert(void **state)
{
    (void)state;
    struct gguf_file *file = write_and_open(SINGLE);
    check_form(file, 3);
    gguf_close(file);
}

/* Only the layers of a rank are looked for. */
static void test_layers_of_a_rank(void **state)
{
    (void)state;
    struct expert_store *store;
    struct lm_error err;
    assert_int_equal(expert_store_create(&store, stacked, &hp, 1, 2, &err), LM_OK);
    assert_int_equal(expert_store_layer(store, 0)->n_part, 0);
    assert_int_equal(expert_store_layer(store, 1)->n_part, 3);
    assert_int_equal(expert_store_layer(store, 2)->n_part, 0);
    expert_store_destroy(store);
}

static void test_experts_of_different_types_are_refused(void **state)
{
    (void)state;
    struct gguf_file *file = write_and_open(SINGLE_OF_TWO_TYPES);
    struct expert_store *store = NULL;
    struct lm_error err;
    assert_int_equal(expert_store_create(&store, file, &hp, 0, hp.n_layer, &err), LM_E_UNSUPPORTED);
    assert_null(store);
    assert_non_null(strstr(err.message, "layer 2: experts 0 and 3 are of different types"));
    gguf_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stacked),
        cmocka_unit_test(test_gate_and_up_fused),
        cmocka_unit_test(test_one_tensor_per_expert),
        cmocka_unit_test(test_layers_of_a_rank),
        cmocka_unit_test(test_experts_of_different_types_are_refused),
    };
    return cmocka_run_group_tests(tests, make_stacked, remove_folder);
}
