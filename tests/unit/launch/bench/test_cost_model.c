/* launch/bench/cost_model.c against times worked out by hand. */
#include "tests/unit/cmocka_all.h"

#include "coordinator/plan/hit_rate.h"
#include "launch/bench/cost_model.h"

static void assert_near(double got, double expected)
{
    if (got < expected * (1 - 1e-9) || got > expected * (1 + 1e-9))
        fail_msg("%.12g, expected %.12g", got, expected);
}

static const struct cost_machine machine = {.memory_bytes_s = 20e9, .disk_bytes_s = 2e9};

/* 4 GB dense and 1/32 of 64 GB chosen: 6 GB by memory are 0.3 s. */
static void all_in_memory(void **state)
{
    (void)state;
    const struct cost_weights weights = {
        .dense_bytes = 4e9, .bank_bytes = 64e9, .used_share = 1.0 / 32, .resident_share = 1};
    const struct cost_estimate estimate = cost_model_estimate(&machine, &weights);
    assert_near(estimate.hit_rate, 1);
    assert_near(estimate.memory_s, 0.3);
    assert_near(estimate.serial_tok_s, 1 / 0.3);
    assert_near(estimate.ideal_tok_s, 1 / 0.3);
}

/* What misses comes from the disk, first or meanwhile. */
static void half_in_memory(void **state)
{
    (void)state;
    const struct cost_weights weights = {
        .dense_bytes = 4e9, .bank_bytes = 64e9, .used_share = 1.0 / 32, .resident_share = 0.5};
    const struct cost_estimate estimate = cost_model_estimate(&machine, &weights);
    const double hit = hit_rate_expected(0.5, 1, 1.0 / 32), disk_s = (1 - hit) * 2e9 / 2e9;
    assert_true(hit > 0.5 && hit < 1);
    assert_near(estimate.hit_rate, hit);
    assert_near(estimate.disk_s, disk_s);
    assert_near(estimate.serial_tok_s, 1 / (0.3 + disk_s));
    assert_near(estimate.ideal_tok_s, 1 / (disk_s > 0.3 ? disk_s : 0.3));
}

static void without_experts(void **state)
{
    (void)state;
    const struct cost_weights weights = {.dense_bytes = 1e9, .resident_share = 1};
    assert_near(cost_model_estimate(&machine, &weights).serial_tok_s, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_in_memory),
        cmocka_unit_test(half_in_memory),
        cmocka_unit_test(without_experts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
