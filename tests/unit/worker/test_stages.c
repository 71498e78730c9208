/* A model cut into stages over transport edges computes what it computes in one piece. */
#include "tests/unit/worker/stage_ranks.h"

static void check_model(const char *name)
{
    struct lm_error err;
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct transport_edge *edge[2];
    struct rank whole = {.n_row = 0}, ranks[3] = {{.n_row = 0}};
    open_golden(&file, &hp, name);
    open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
    run_rank(&whole);
    assert_int_equal(whole.status, LM_OK);

    assert_int_equal(transport_loopback_open(&edge[0], &err), LM_OK);
    assert_int_equal(transport_loopback_open(&edge[1], &err), LM_OK);
    const struct rank_layers layers[3] = {
        {.begin = 0, .end = 1, .out = edge[0]},
        {.begin = 1, .end = 2, .in = edge[0], .out = edge[1]},
        {.begin = 2, .end = hp.n_layer, .in = edge[1]},
    };
    for (int i = 0; i < 3; i++)
        open_rank(&ranks[i], file, &hp, &layers[i]);
    run_ranks(ranks, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(ranks[i].status, LM_OK);
    assert_int_equal(ranks[2].n_row, whole.n_row);
    assert_memory_equal(ranks[2].logits, whole.logits, whole.n_row * N_VOCAB * sizeof(float));

    /* a rank that is gone ends the wait of the others */
    edge[0]->ops->abort(edge[0]);
    edge[1]->ops->abort(edge[1]);
    run_ranks(ranks, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(ranks[i].status, LM_E_RANK_LOST);

    for (int i = 0; i < 3; i++)
        close_rank(&ranks[i]);
    for (int i = 0; i < 2; i++)
        edge[i]->ops->close(edge[i]);
    close_rank(&whole);
    gguf_close(file);
}

static void test_three_stages_equal_one(void **state)
{
    (void)state;
    check_model("qwen35moe-k-q4km");
    check_model("llama-s-bf16");
    check_model("afmoe-s-q8_0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_three_stages_equal_one)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
