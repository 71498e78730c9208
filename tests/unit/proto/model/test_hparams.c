/* hparams_read accepts complete files in all their forms and names everything that is missing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/gguf/gguf_write.h"
#include "proto/model/hparams.h"
#include "proto/model/tensor_names.h"

/* A tiny qwen35moe: what a file is made from, before things are taken away. */
static struct hparams tiny_hparams(void)
{
    struct hparams hp = {.arch = arch_find("qwen35moe", 9),
                         .n_layer = 4,
                         .n_vocab = 32,
                         .n_embd = 64,
                         .head_dim = 32,
                         .n_expert = 4,
                         .n_expert_used = 2,
                         .n_ff_exp = 32,
                         .n_ff_shexp = 64,
                         .n_conv = 4,
                         .dim_k = 16,
                         .dim_v = 16,
                         .n_head_k = 2,
                         .n_head_v = 4};
    hp.rope.n_rot = 8;
    for (uint32_t il = 0; il < hp.n_layer; il++)
        hp.layer[il] =
            (struct layer_hparams){.recurrent = il != 3, .moe = true, .n_head = 4, .n_head_kv = 2};
    return hp;
}

struct variant {
    const char *without_key;    /* one key left out */
    const char *without_tensor; /* tensors left out whose name contains this */
    const char *extra_tensor;   /* a vector of one element more */
    const char *extra_key;      /* a u32 key more */
    uint32_t extra_value;
    uint64_t n_embd; /* other than in the keys; 0: the same */
    bool fused;      /* gate_up_exps and attn_qkv in place of the parts */
};

static void put_u32(struct gguf_writer *writer, const struct variant *variant, const char *key,
                    uint32_t value)
{
    if (!variant->without_key || strcmp(key, variant->without_key))
        gguf_writer_u32(writer, key, value);
}

static void put_keys(struct gguf_writer *writer, const struct hparams *hp,
                     const struct variant *variant)
{
    static const int32_t sections[4] = {2, 1, 1, 0};
    gguf_writer_string(writer, "general.architecture", "qwen35moe", 9);
    put_u32(writer, variant, "qwen35moe.block_count", hp->n_layer);
    put_u32(writer, variant, "qwen35moe.context_length", 128);
    put_u32(writer, variant, "qwen35moe.embedding_length", hp->n_embd);
    put_u32(writer, variant, "qwen35moe.attention.head_count", 4);
    put_u32(writer, variant, "qwen35moe.attention.head_count_kv", 2);
    put_u32(writer, variant, "qwen35moe.attention.key_length", hp->head_dim);
    put_u32(writer, variant, "qwen35moe.attention.value_length", hp->head_dim);
    put_u32(writer, variant, "qwen35moe.rope.dimension_count", hp->rope.n_rot);
    put_u32(writer, variant, "qwen35moe.expert_count", hp->n_expert);
    put_u32(writer, variant, "qwen35moe.expert_used_count", hp->n_expert_used);
    put_u32(writer, variant, "qwen35moe.expert_feed_forward_length", hp->n_ff_exp);
    put_u32(writer, variant, "qwen35moe.expert_shared_feed_forward_length", hp->n_ff_shexp);
    put_u32(writer, variant, "qwen35moe.ssm.conv_kernel", hp->n_conv);
    put_u32(writer, variant, "qwen35moe.ssm.state_size", hp->dim_k);
    put_u32(writer, variant, "qwen35moe.ssm.group_count", hp->n_head_k);
    put_u32(writer, variant, "qwen35moe.ssm.time_step_rank", hp->n_head_v);
    put_u32(writer, variant, "qwen35moe.ssm.inner_size", hp->n_head_v * hp->dim_v);
    gguf_writer_f32(writer, "qwen35moe.attention.layer_norm_rms_epsilon", 1e-6f);
    gguf_writer_array(writer, "qwen35moe.rope.dimension_sections", GGUF_I32, sections, 4);
    if (variant->extra_key) gguf_writer_u32(writer, variant->extra_key, variant->extra_value);
}

static bool wanted(const struct hparams *hp, const struct variant *variant, enum tensor_role role,
                   uint32_t il, const char *name)
{
    const enum tensor_need need = tensor_shape(hp, role, il).need;
    const bool part = role == ROLE_ATTN_Q || role == ROLE_ATTN_K || role == ROLE_ATTN_V ||
                      role == ROLE_FFN_GATE_EXPS || role == ROLE_FFN_UP_EXPS;
    const bool whole = role == ROLE_FFN_GATE_UP_EXPS || role == ROLE_ATTN_QKV;
    if (variant->without_tensor && strstr(name, variant->without_tensor)) return false;
    if (variant->fused && part) return false;
    return need == TENSOR_REQUIRED || (variant->fused && whole && need == TENSOR_ALTERNATIVE);
}

/* Writes the variant, reads it back. */
static enum lm_status read_variant(const struct variant *variant, struct hparams *out,
                                   struct lm_error *err)
{
    struct hparams hp = tiny_hparams();
    char path[] = "/tmp/lean_hparams_XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct gguf_writer *writer = NULL;
    assert_int_equal(gguf_writer_create(&writer, path, err), LM_OK);
    put_keys(writer, &hp, variant);
    if (variant->n_embd) hp.n_embd = (uint32_t)variant->n_embd;
    uint64_t n_left = 0;
    for (uint32_t il = 0; il < hp.n_layer; il++) {
        for (int role = il ? ROLE_GLOBAL_COUNT : 0; role < ROLE_COUNT; role++) {
            char name[TENSOR_NAME_MAX];
            const struct tensor_shape shape = tensor_shape(&hp, (enum tensor_role)role, il);
            tensor_name(name, (enum tensor_role)role, il, 0);
            if (!wanted(&hp, variant, (enum tensor_role)role, il, name)) continue;
            gguf_writer_tensor(writer, name, TENSOR_F32, shape.n_dims, shape.ne);
            n_left += 4 * shape.ne[0] * shape.ne[1] * shape.ne[2];
        }
    }
    if (variant->extra_tensor) {
        gguf_writer_tensor(writer, variant->extra_tensor, TENSOR_F32, 1, &(const uint64_t){1});
        n_left += 4;
    }
    static const char zeros[65536];
    while (n_left) {
        const uint64_t n = n_left < sizeof(zeros) ? n_left : sizeof(zeros);
        assert_int_equal(gguf_writer_data(writer, zeros, n, err), LM_OK);
        n_left -= n;
    }
    assert_int_equal(gguf_writer_finish(writer, err), LM_OK);
    struct gguf_file *file = NULL;
    assert_int_equal(gguf_open(&file, path, err), LM_OK);
    const enum lm_status status = hparams_read(out, file, err);
    gguf_close(file);
    unlink(path);
    return status;
}

static void test_complete_file_is_accepted(void **state)
{
    (void)state;
    struct hparams hp;
    struct lm_error err;
    const enum lm_status status = read_variant(&(struct variant){.n_embd = 0}, &hp, &err);
    if (status != LM_OK) fail_msg("%s", err.message);
    assert_int_equal(hp.n_layer, 4);
    assert_int_equal(hp.n_vocab, 32);
    assert_true(hp.tied);
    /* without the key, every fourth layer attends */
    for (uint32_t il = 0; il < 4; il++)
        assert_int_equal(hp.layer[il].recurrent, il != 3);
    assert_int_equal(hp.rope.sections[1], 1);
}

static void test_fused_tensors_are_accepted(void **state)
{
    (void)state;
    struct hparams hp;
    struct lm_error err;
    const enum lm_status status = read_variant(&(struct variant){.fused = true}, &hp, &err);
    if (status != LM_OK) fail_msg("%s", err.message);
}

static void test_declared_prediction_layer_may_be_absent(void **state)
{
    (void)state;
    struct hparams hp;
    struct lm_error err;
    /* block_count says 4: the last one is then a prediction layer whose tensors we do not hold */
    const struct variant variant = {.extra_key = "qwen35moe.nextn_predict_layers",
                                    .extra_value = 1};
    const enum lm_status status = read_variant(&variant, &hp, &err);
    if (status != LM_OK) fail_msg("%s", err.message);
    assert_int_equal(hp.n_layer, 3);
    assert_int_equal(hp.n_layer_mtp, 0);
}

static void expect_failure(const struct variant *variant, enum lm_status status, const char *first,
                           const char *second)
{
    struct hparams hp;
    struct lm_error err;
    assert_int_equal(read_variant(variant, &hp, &err), status);
    if (!strstr(err.message, first) || !strstr(err.message, second))
        fail_msg("message lacks '%s' or '%s': %s", first, second, err.message);
}

static void test_missing_keys_and_tensors_are_named_together(void **state)
{
    (void)state;
    const struct variant variant = {.without_key = "qwen35moe.expert_count",
                                    .without_tensor = "ssm_norm"};
    expect_failure(&variant, LM_E_FORMAT, "keys: qwen35moe.expert_count",
                   "tensors: blk.0.ssm_norm.weight, blk.1.ssm_norm.weight, blk.2.ssm_norm.weight");
}

static void test_unknown_tensors_are_ignored_but_not_what_changes_answers(void **state)
{
    (void)state;
    struct hparams hp;
    struct lm_error err;
    const struct variant unused = {.extra_tensor = "blk.0.unheard_of.weight"};
    assert_int_equal(read_variant(&unused, &hp, &err), LM_OK);
    const struct variant bias = {.extra_tensor = "blk.0.ffn_up.bias"};
    expect_failure(&bias, LM_E_UNSUPPORTED, "blk.0.ffn_up.bias", "qwen35moe");
    const struct variant scale = {.extra_tensor = "blk.0.ffn_up_exps.scale"};
    expect_failure(&scale, LM_E_UNSUPPORTED, "blk.0.ffn_up_exps.scale", "no such scale");
}

static void test_sizes_are_checked(void **state)
{
    (void)state;
    expect_failure(&(struct variant){.n_embd = 32}, LM_E_FORMAT, "token_embd.weight has shape {32,",
                   "must have {64, 32");
    const struct variant prediction = {.extra_key = "qwen35moe.nextn_predict_layers",
                                       .extra_value = 4};
    expect_failure(&prediction, LM_E_FORMAT, "nextn_predict_layers is 4", "from 0 to 3");
    const struct variant groups = {.extra_key = "qwen35moe.expert_group_count", .extra_value = 8};
    expect_failure(&groups, LM_E_UNSUPPORTED, "8 groups", "not supported");
    const struct variant interval = {.extra_key = "qwen35moe.full_attention_interval",
                                     .extra_value = 0};
    expect_failure(&interval, LM_E_FORMAT, "full_attention_interval is 0", "from 1");
    const struct variant layers = {.without_key = "qwen35moe.block_count",
                                   .extra_key = "qwen35moe.block_count",
                                   .extra_value = UINT32_MAX};
    expect_failure(&layers, LM_E_FORMAT, "block_count is 4.2949673e+09", "from 1 to 512");
    const struct variant heads = {.without_key = "qwen35moe.attention.head_count",
                                  .extra_key = "qwen35moe.attention.head_count",
                                  .extra_value = 130};
    expect_failure(&heads, LM_E_UNSUPPORTED, "layer 3: 65 heads", "at most 64");
}

/* Every role's name is read back as the role, the layer and the expert. */
static void test_names_round_trip(void **state)
{
    (void)state;
    for (int role = 0; role < ROLE_COUNT; role++) {
        char name[TENSOR_NAME_MAX];
        enum tensor_role parsed = ROLE_COUNT;
        uint32_t il = 99, ie = 99;
        tensor_name(name, (enum tensor_role)role, 17, 203);
        assert_true(tensor_name_parse(name, strlen(name), &parsed, &il, &ie));
        assert_int_equal(parsed, role);
        assert_int_equal(il, role < ROLE_GLOBAL_COUNT ? 0 : 17);
        assert_int_equal(ie, role >= ROLE_FFN_GATE_EXP && role <= ROLE_FFN_DOWN_EXP ? 203 : 0);
    }
    static const char *const bad[] = {"blk.x.attn_q.weight", "blk.07.attn_q.weight", "blk.1.",
                                      "attn_q.weight",       "token_embd.weightx",   ""};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        enum tensor_role role;
        uint32_t il, ie;
        assert_false(tensor_name_parse(bad[i], strlen(bad[i]), &role, &il, &ie));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_complete_file_is_accepted),
        cmocka_unit_test(test_fused_tensors_are_accepted),
        cmocka_unit_test(test_declared_prediction_layer_may_be_absent),
        cmocka_unit_test(test_missing_keys_and_tensors_are_named_together),
        cmocka_unit_test(test_unknown_tensors_are_ignored_but_not_what_changes_answers),
        cmocka_unit_test(test_sizes_are_checked),
        cmocka_unit_test(test_names_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
