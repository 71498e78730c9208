/* kernels/cpu/pool: every task runs once, in time, whatever the number of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <time.h>

#include "kernels/cpu/pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { N_TASK_MAX = 1000 };

struct counts {
    _Atomic uint32_t n_call[N_TASK_MAX];
    _Atomic uint32_t worker_max;
    uint32_t plain[N_TASK_MAX]; /* unsynchronized: the pool's own ordering must cover it */
};

static void count(void *context, uint32_t task, uint32_t worker)
{
    struct counts *counts = context;
    atomic_fetch_add(&counts->n_call[task], 1);
    counts->plain[task]++;
    uint32_t seen = atomic_load(&counts->worker_max);
    while (worker > seen && !atomic_compare_exchange_weak(&counts->worker_max, &seen, worker)) {
    }
}

static void every_task_runs_once_in_each_region(void **state)
{
    (void)state;
    static const uint32_t n_threads[] = {1, 2, 4, 7};
    for (size_t i = 0; i < sizeof(n_threads) / sizeof(n_threads[0]); i++) {
        struct pool *pool;
        struct lm_error err;
        assert_int_equal(pool_create(&pool, n_threads[i], i % 2, &err), LM_OK);
        assert_int_equal(pool_n_thread(pool), n_threads[i]);
        struct counts counts = {0};
        uint32_t expected[N_TASK_MAX] = {0};
        for (uint32_t round = 0; round < 2000; round++) {
            const uint32_t n_task = round % 50 ? round % 9 : N_TASK_MAX;
            pool_run(pool, count, &counts, n_task);
            for (uint32_t t = 0; t < n_task; t++)
                expected[t]++;
        }
        for (uint32_t t = 0; t < N_TASK_MAX; t++) {
            assert_int_equal(counts.n_call[t], expected[t]);
            assert_int_equal(counts.plain[t], expected[t]);
        }
        assert_true(counts.worker_max < n_threads[i]);
        assert_true(pool_float_mode_ok(pool));
        pool_destroy(pool);
    }
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static void slow_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    sleep_ms(task ? 20 : 1);
    atomic_fetch_add((_Atomic uint32_t *)context, 1);
}

/* The caller finishes first and must be woken; workers sleep between regions and must be too. */
static void sleepers_are_woken(void **state)
{
    (void)state;
    struct pool *pool;
    struct lm_error err;
    assert_int_equal(pool_create(&pool, 3, false, &err), LM_OK);
    _Atomic uint32_t n_done = 0;
    for (uint32_t round = 1; round <= 5; round++) {
        pool_run(pool, slow_task, &n_done, 3);
        assert_int_equal(n_done, 3 * round);
        sleep_ms(5);
    }
    pool_destroy(pool);
}

static void idle_threads_use_no_processor(void **state)
{
    (void)state;
    struct pool *pool;
    struct lm_error err;
    assert_int_equal(pool_create(&pool, 4, false, &err), LM_OK);
    struct counts counts = {0};
    pool_run(pool, count, &counts, 100);
    sleep_ms(50);
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    sleep_ms(200);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    const double used_s =
        (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) * 1e-9;
    assert_true(used_s < 0.005);
    pool_destroy(pool);
}

static void default_is_at_least_one_thread(void **state)
{
    (void)state;
    struct pool *pool;
    struct lm_error err;
    assert_int_equal(pool_create(&pool, 0, true, &err), LM_OK);
    assert_true(pool_n_thread(pool) >= 1);
    pool_destroy(pool);
    pool_destroy(NULL);
}

static void flushed_denormals_are_noticed(void **state)
{
    (void)state;
#if defined(__x86_64__)
    struct pool *pool;
    struct lm_error err;
    struct counts counts = {0};
    assert_int_equal(pool_create(&pool, 2, false, &err), LM_OK);
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040u); /* flush to zero, denormals are zero */
    pool_run(pool, count, &counts, 1);
    _mm_setcsr(mode);
    assert_false(pool_float_mode_ok(pool));
    pool_destroy(pool);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once_in_each_region),
        cmocka_unit_test(sleepers_are_woken),
        cmocka_unit_test(idle_threads_use_no_processor),
        cmocka_unit_test(default_is_at_least_one_thread),
        cmocka_unit_test(flushed_denormals_are_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
