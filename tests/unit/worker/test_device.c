/* Layers on a device whose memory the host cannot read compute what they compute on the CPU, and a
 * device without memory, or lost, ends what it was asked for and nothing else. */
#include "tests/unit/worker/sealed_device.h"
#include "tests/unit/worker/stage_ranks.h"

static void check_same(const struct rank *rank, const struct rank *whole)
{
    assert_int_equal(rank->status, LM_OK);
    assert_int_equal(rank->n_row, whole->n_row);
    assert_memory_equal(rank->logits, whole->logits, whole->n_row * N_VOCAB * sizeof(float));
}

/* One rank whose layers from `begin` on are on the device. */
static void check_split(const struct gguf_file *file, const struct hparams *hp,
                        const struct rank *whole, uint32_t begin)
{
    struct sealed_device device;
    struct rank rank = {.n_row = 0};
    sealed_device_init(&device);
    open_rank(&rank, file, hp,
              &(struct rank_layers){
                  .end = hp->n_layer, .device = &device.backend, .device_begin = begin});
    const int n_alloc = device.n_alloc;
    run_rank(&rank);
    check_same(&rank, whole);
    assert_int_equal(device.n_alloc, n_alloc); /* steps take no memory */
    close_rank(&rank);
    sealed_device_fini(&device);
}

/* Two ranks, each with a device; the first one's layers are all there, the second's partly. */
static void check_ranks(const struct gguf_file *file, const struct hparams *hp,
                        const struct rank *whole)
{
    struct lm_error err;
    struct transport_edge *edge;
    struct sealed_device device[2];
    struct rank ranks[2] = {{.n_row = 0}};
    assert_int_equal(transport_loopback_open(&edge, &err), LM_OK);
    const struct rank_layers layers[2] = {
        {.end = 1, .out = edge, .device = &device[0].backend},
        {.begin = 1,
         .end = hp->n_layer,
         .in = edge,
         .device = &device[1].backend,
         .device_begin = hp->n_layer - 1},
    };
    for (int i = 0; i < 2; i++) {
        sealed_device_init(&device[i]);
        open_rank(&ranks[i], file, hp, &layers[i]);
    }
    run_ranks(ranks, 2);
    assert_int_equal(ranks[0].status, LM_OK);
    check_same(&ranks[1], whole);
    for (int i = 0; i < 2; i++) {
        close_rank(&ranks[i]);
        sealed_device_fini(&device[i]);
    }
    edge->ops->close(edge);
}

static void test_same_bits_on_a_device(void **state)
{
    static const char *const names[] = {
        "qwen35moe-k-q4km", "qwen35moe-s-q8_0", "qwen3next-s-q8_0", "qwen3moe-s-q8_0",
        "afmoe-s-q8_0",     "llama-s-bf16",     "llama-k-q4_k",
    };
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct gguf_file *file = NULL;
        static struct hparams hp;
        struct rank whole = {.n_row = 0};
        open_golden(&file, &hp, names[i]);
        open_rank(&whole, file, &hp, &(struct rank_layers){.end = hp.n_layer});
        run_rank(&whole);
        assert_int_equal(whole.status, LM_OK);
        check_split(file, &hp, &whole, 0);
        check_split(file, &hp, &whole, hp.n_layer / 2);
        check_split(file, &hp, &whole, hp.n_layer - 1);
        check_ranks(file, &hp, &whole);
        close_rank(&whole);
        gguf_close(file);
    }
}

/* Whichever piece of memory cannot be had, there is one error, and nothing is left. */
static void test_no_memory_on_the_device(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    enum lm_status status = LM_E_NO_MEM;
    (void)state;
    open_golden(&file, &hp, "qwen3moe-s-q8_0");
    for (int piece = 0; status != LM_OK; piece++) {
        struct sealed_device device;
        struct rank rank = {.n_row = 0};
        struct lm_error err;
        sealed_device_init(&device);
        device.fail_alloc = piece;
        status = try_open_rank(
            &rank, file, &hp,
            &(struct rank_layers){.end = hp.n_layer, .device = &device.backend, .device_begin = 1},
            &err);
        assert_true(status == LM_OK || status == LM_E_NO_MEM);
        assert_true(status == LM_OK || strstr(err.message, "no memory for"));
        close_rank(&rank);
        sealed_device_fini(&device);
    }
    gguf_close(file);
}

/* A device that is lost in the middle of a step ends that step with its error. */
static void test_lost_device(void **state)
{
    struct gguf_file *file = NULL;
    static struct hparams hp;
    struct sealed_device device;
    struct rank rank = {.n_row = 0};
    (void)state;
    open_golden(&file, &hp, "qwen35moe-s-q8_0");
    sealed_device_init(&device);
    open_rank(&rank, file, &hp,
              &(struct rank_layers){.end = hp.n_layer, .device = &device.backend});
    device.lost_op = device.n_op + 100;
    run_rank(&rank);
    assert_int_equal(rank.status, LM_E_FAIL);
    assert_string_equal(rank.err.message, "sealed device: lost");
    close_rank(&rank);
    sealed_device_fini(&device);
    gguf_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits_on_a_device),
                                       cmocka_unit_test(test_no_memory_on_the_device),
                                       cmocka_unit_test(test_lost_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
