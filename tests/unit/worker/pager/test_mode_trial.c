/* The trial of modes, with times that are made up. */
#include "tests/unit/cmocka_all.h"

#include "worker/pager/mode_trial.h"

static const double usual_s[] = {[MISS_GPU] = 3e-3, [MISS_CPU] = 2e-3, [MISS_HYBRID] = 4e-3};

/* n_use: steps of each mode. */
static void run(struct mode_trial *trial, uint32_t n_step, const double *step_s, uint32_t n_use[4])
{
    memset(n_use, 0, 4 * sizeof(*n_use));
    for (uint32_t i = 0; i < n_step; i++) {
        const enum miss_mode mode = mode_trial_begin_step(trial, 1, false);
        n_use[mode]++;
        mode_trial_end_step(trial, i % 7 ? step_s[mode] : 1); /* some are held up */
    }
}

static void test_the_fastest_is_kept(void **state)
{
    struct mode_trial trial;
    uint32_t n_use[4];
    (void)state;
    mode_trial_init(&trial);
    run(&trial, 16 + MODE_TRIAL_MODES * MODE_TRIAL_ROUNDS, usual_s, n_use);
    assert_int_equal(n_use[MISS_GPU], MODE_TRIAL_ROUNDS);
    assert_int_equal(n_use[MISS_CPU], MODE_TRIAL_ROUNDS);
    run(&trial, 2000, usual_s, n_use);
    assert_int_equal(n_use[MISS_CPU], 2000);
    const double later_s[] = {[MISS_GPU] = 1e-3, [MISS_CPU] = 2e-3, [MISS_HYBRID] = 4e-3};
    run(&trial, MODE_TRIAL_MODES * MODE_TRIAL_ROUNDS, later_s, n_use);
    run(&trial, 10, later_s, n_use);
    assert_int_equal(n_use[MISS_GPU], 10);
}

/* By less than what may be chance nothing is gained. */
static void test_a_little_is_not_enough(void **state)
{
    static const double alike_s[] = {
        [MISS_GPU] = 3.98e-3, [MISS_CPU] = 3.95e-3, [MISS_HYBRID] = 4e-3};
    struct mode_trial trial;
    uint32_t n_use[4];
    (void)state;
    mode_trial_init(&trial);
    run(&trial, 16 + MODE_TRIAL_MODES * MODE_TRIAL_ROUNDS, alike_s, n_use);
    run(&trial, 10, alike_s, n_use);
    assert_int_equal(n_use[MISS_HYBRID], 10);
}

/* Neither prompts nor steps of another size are measured, and they do not end it. */
static void test_other_steps_between(void **state)
{
    struct mode_trial trial;
    uint32_t n_use[4];
    (void)state;
    mode_trial_init(&trial);
    run(&trial, 16, usual_s, n_use);
    for (uint32_t i = 0; i < MODE_TRIAL_MODES * MODE_TRIAL_ROUNDS; i++) {
        const enum miss_mode mode = mode_trial_begin_step(&trial, 1, false);
        mode_trial_end_step(&trial, usual_s[mode]);
        mode_trial_begin_step(&trial, 5, false);
        mode_trial_end_step(&trial, 1e-9);
        mode_trial_begin_step(&trial, 512, true);
        mode_trial_end_step(&trial, 1e-9);
    }
    run(&trial, 10, usual_s, n_use);
    assert_int_equal(n_use[MISS_CPU], 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_fastest_is_kept),
        cmocka_unit_test(test_a_little_is_not_enough),
        cmocka_unit_test(test_other_steps_between),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
