/* The dynamic programme against all cuts there are. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/plan/hit_rate.h"
#include "coordinator/plan/partition.h"
#include "tests/unit/cmocka_all.h"
#include "tests/unit/coordinator/plan/plan_model.h"

#define MIB (UINT64_C(1) << 20)

static uint32_t draw(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static struct partition_model random_model(uint32_t *seed)
{
    struct partition_model model = {.n_layer = 2 + draw(seed) % 8,
                                    .embedding_bytes = draw(seed) % 50 * MIB,
                                    .output_bytes = draw(seed) % 100 * MIB,
                                    .common_bytes = draw(seed) % 20 * MIB,
                                    .slot_bytes_min = draw(seed) % 2 * 30 * MIB,
                                    .device_slot_bytes_min = draw(seed) % 2 * 40 * MIB,
                                    .n_expert = 32,
                                    .n_expert_used = 4};
    for (uint32_t il = 0; il < model.n_layer; il++)
        model.layer[il] =
            (struct partition_layer){.dense_bytes = (1 + draw(seed) % 60) * MIB,
                                     .expert_bytes = draw(seed) % 4 ? draw(seed) % 500 * MIB : 0,
                                     .state_bytes = draw(seed) % 10 * MIB};
    return model;
}

/* The measures of a cut: infinite where it does not fit. */
static void measure(const struct partition_stage *stages, uint32_t n, double *slowest, double *sum)
{
    *slowest = *sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        *slowest = fmax(*slowest, stages[i].token_s);
        *sum += stages[i].token_s;
    }
}

/* The least of a measure over all cuts. */
static double least_of_all(const struct partition_model *model, const struct partition_rank *ranks,
                           uint32_t n_rank, uint32_t *n_layer, uint32_t i, uint32_t left,
                           enum partition_objective objective)
{
    double least = INFINITY;
    if (i + 1 == n_rank) {
        struct partition_stage stages[4];
        double slowest, sum;
        n_layer[i] = left;
        assert_int_equal(partition_given(stages, model, ranks, n_rank, n_layer, NULL), LM_OK);
        measure(stages, n_rank, &slowest, &sum);
        return objective == PARTITION_LATENCY ? sum : slowest;
    }
    for (uint32_t n = 1; left - n >= n_rank - i - 1 && n < left; n++) {
        n_layer[i] = n;
        least =
            fmin(least, least_of_all(model, ranks, n_rank, n_layer, i + 1, left - n, objective));
    }
    return least;
}

static void test_no_cut_is_better(void **state)
{
    (void)state;
    uint32_t seed = 5, n_fit = 0, n_paged = 0, n_uneven = 0, n_device = 0, n_lacking = 0;
    for (int round = 0; round < 400; round++) {
        const struct partition_model model = random_model(&seed);
        struct partition_rank ranks[4];
        struct partition_stage stages[4];
        uint32_t n_layer[4];
        struct lm_error err;
        const uint32_t n_rank = 1 + draw(&seed) % (model.n_layer < 4 ? model.n_layer : 4);
        const enum partition_objective objective = draw(&seed) % 2;
        for (uint32_t i = 0; i < n_rank; i++)
            ranks[i] =
                (struct partition_rank){.ram_bytes = (100 + draw(&seed) % 1500) * MIB,
                                        .memory_bytes_s = 1e9 * (1 + draw(&seed) % 20),
                                        .disk_bytes_s = 1e8 * (1 + draw(&seed) % 20),
                                        .hop_s = 1e-5 * (draw(&seed) % 10),
                                        .vram_bytes = draw(&seed) % 2 * (draw(&seed) % 900) * MIB,
                                        .vram_bytes_s = 1e11,
                                        .device_begin = draw(&seed) % 3};
        const double least =
            least_of_all(&model, ranks, n_rank, n_layer, 0, model.n_layer, objective);
        const enum lm_status status =
            partition_make(stages, &model, ranks, n_rank, objective, &err);
        assert_int_equal(status, isinf(least) ? LM_E_NO_MEM : LM_OK);
        if (status != LM_OK) continue;
        double slowest, sum;
        measure(stages, n_rank, &slowest, &sum);
        const double found = objective == PARTITION_LATENCY ? sum : slowest;
        assert_true(fabs(found - least) <= 1e-12 * least);
        assert_int_equal(stages[0].layer_begin, 0);
        assert_int_equal(stages[n_rank - 1].layer_end, model.n_layer);
        for (uint32_t i = 0; i < n_rank; i++) {
            assert_true(stages[i].layer_begin < stages[i].layer_end);
            if (i) assert_int_equal(stages[i].layer_begin, stages[i - 1].layer_end);
            assert_true(stages[i].fixed_bytes + stages[i].slot_bytes <= ranks[i].ram_bytes);
            assert_true(stages[i].device_begin >= stages[i].layer_begin &&
                        stages[i].device_begin <= stages[i].layer_end);
            assert_true(stages[i].device_fixed_bytes + stages[i].device_slot_bytes <=
                        ranks[i].vram_bytes);
            n_paged += stages[i].hit_rate < 1;
            n_device += stages[i].device_begin < stages[i].layer_end;
            n_lacking += stages[i].device_slot_bytes < stages[i].device_expert_bytes;
        }
        const uint32_t even = model.n_layer / n_rank, first = stages[0].layer_end;
        n_uneven += first != even && first != even + 1;
        n_fit++;
    }
    assert_true(n_fit > 100 && n_paged > 30 && n_uneven > 30);
    assert_true(n_device > 50 && n_lacking > 20);
}

/* A faster rank gets more layers, one with the output fewer. */
static void test_what_counts(void **state)
{
    (void)state;
    struct partition_model model = {.n_layer = 40, .n_expert = 64, .n_expert_used = 4};
    struct partition_rank ranks[2] = {
        {.ram_bytes = 1 << 30, .memory_bytes_s = 1e10, .disk_bytes_s = 1e9},
        {.ram_bytes = 1 << 30, .memory_bytes_s = 1e10, .disk_bytes_s = 1e9}};
    struct partition_stage stages[2];
    for (uint32_t il = 0; il < 40; il++)
        model.layer[il] = (struct partition_layer){.dense_bytes = 4 * MIB, .expert_bytes = 8 * MIB};
    assert_int_equal(partition_make(stages, &model, ranks, 2, PARTITION_THROUGHPUT, NULL), LM_OK);
    assert_int_equal(stages[0].layer_end, 20);
    model.output_bytes = 45 * MIB; /* as ten layers read */
    assert_int_equal(partition_make(stages, &model, ranks, 2, PARTITION_THROUGHPUT, NULL), LM_OK);
    assert_int_equal(stages[0].layer_end, 25);
    ranks[0].memory_bytes_s = 2e10;
    assert_int_equal(partition_make(stages, &model, ranks, 2, PARTITION_THROUGHPUT, NULL), LM_OK);
    assert_int_equal(stages[0].layer_end, 34); /* 33 is as slow, with a larger sum */
}

/* Memory of devices decides, not that of the hosts; and a device that holds its layers but lacks
 * experts is worth more than none. */
static void test_devices(void **state)
{
    (void)state;
    struct partition_model model = {.n_layer = 30,
                                    .n_expert = 64,
                                    .n_expert_used = 4,
                                    .slot_bytes_min = MIB,
                                    .device_slot_bytes_min = 10 * MIB};
    struct partition_rank ranks[2] = {
        {.ram_bytes = 4000 * MIB, .memory_bytes_s = 1e10, .disk_bytes_s = 1e9},
        {.ram_bytes = 1000 * MIB, .memory_bytes_s = 1e10, .disk_bytes_s = 1e9}};
    struct partition_stage stages[2];
    for (uint32_t il = 0; il < 30; il++)
        model.layer[il] =
            (struct partition_layer){.dense_bytes = 10 * MIB, .expert_bytes = 100 * MIB};
    for (uint32_t i = 0; i < 2; i++)
        ranks[i].vram_bytes_s = 1e12;
    ranks[0].vram_bytes = 1100 * MIB;
    ranks[1].vram_bytes = 2200 * MIB;
    assert_int_equal(partition_make(stages, &model, ranks, 2, PARTITION_LATENCY, NULL), LM_OK);
    assert_int_equal(stages[0].layer_end, 10);
    assert_int_equal(stages[0].device_begin, 0);
    assert_int_equal(stages[1].device_slot_bytes, 2000 * MIB);
    assert_true(stages[0].device_hit_rate == 1 && stages[0].expert_bytes == 0);

    ranks[1].vram_bytes = 0; /* the CPU is a hundredth as fast: the device takes what it can */
    assert_int_equal(partition_make(stages, &model, ranks, 2, PARTITION_THROUGHPUT, NULL), LM_OK);
    assert_true(stages[0].layer_end > 20);
    assert_int_equal(stages[0].device_begin, 0);
    assert_true(stages[0].device_slot_bytes < stages[0].device_expert_bytes);
    assert_true(stages[0].expert_bytes == stages[0].device_expert_bytes);
    assert_int_equal(stages[1].device_begin, 30);

    ranks[0].device_begin = 5; /* --gpu-layers 25 */
    assert_int_equal(partition_make(stages, &model, ranks, 2, PARTITION_THROUGHPUT, NULL), LM_OK);
    assert_int_equal(stages[0].device_begin, 5);
}

static void test_cuts_that_are_given(void **state)
{
    (void)state;
    const struct partition_model model = {.n_layer = 10};
    const struct partition_rank ranks[3] = {{.memory_bytes_s = 1, .disk_bytes_s = 1},
                                            {.memory_bytes_s = 1, .disk_bytes_s = 1},
                                            {.memory_bytes_s = 1, .disk_bytes_s = 1}};
    struct partition_stage stages[11];
    struct lm_error err;
    const uint32_t good[] = {2, 5, 3}, none[] = {5, 0, 5}, much[] = {5, 5, 5};
    assert_int_equal(partition_given(stages, &model, ranks, 3, good, &err), LM_OK);
    assert_int_equal(stages[1].layer_begin, 2);
    assert_int_equal(stages[1].layer_end, 7);
    assert_int_equal(partition_given(stages, &model, ranks, 3, none, &err), LM_E_USAGE);
    assert_string_equal(err.message, "the partition gives rank 1 no layer");
    assert_int_equal(partition_given(stages, &model, ranks, 3, much, &err), LM_E_USAGE);
    assert_string_equal(err.message, "the partition has 15 layers, the model 10");
    assert_int_equal(partition_make(stages, &model, ranks, 11, PARTITION_LATENCY, &err),
                     LM_E_USAGE);
}

/* The layers of a file sum up to what the plan of the whole says. */
static void test_a_file(void **state)
{
    (void)state;
    static struct partition_model model;
    struct memory_plan whole;
    struct partition_stage stages[2];
    struct lm_error err;
    struct memory_request request = {.n_ctx = 1000,
                                     .n_slot = 1,
                                     .prefill_chunk = 64,
                                     .kv_type = TENSOR_F16,
                                     .budget_bytes = UINT64_C(1) << 40};
    memory_plan_make(&whole, file, &tiny, &request);
    partition_model_take(&model, file, &tiny, &request);
    uint64_t n_bytes = model.embedding_bytes + (tiny.tied ? 0 : model.output_bytes);
    for (uint32_t il = 0; il < model.n_layer; il++)
        n_bytes += model.layer[il].dense_bytes + model.layer[il].expert_bytes;
    assert_int_equal(n_bytes, whole.weight_bytes);
    const struct partition_rank rich = {
        .ram_bytes = UINT64_C(1) << 40, .memory_bytes_s = 1e10, .disk_bytes_s = 1e9};
    const struct partition_rank poor = {
        .ram_bytes = 1000, .memory_bytes_s = 1e10, .disk_bytes_s = 1e9};
    assert_int_equal(partition_make(stages, &model, (struct partition_rank[]){rich, rich}, 2,
                                    PARTITION_THROUGHPUT, &err),
                     LM_OK);
    assert_true(stages[0].hit_rate == 1 && stages[1].hit_rate == 1);
    assert_int_equal(partition_make(stages, &model, (struct partition_rank[]){rich, poor}, 2,
                                    PARTITION_THROUGHPUT, &err),
                     LM_E_NO_MEM);
    assert_non_null(strstr(err.message, "no cut into 2 ranks fits"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_cut_is_better), cmocka_unit_test(test_what_counts),
        cmocka_unit_test(test_devices),          cmocka_unit_test(test_cuts_that_are_given),
        cmocka_unit_test(test_a_file),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
