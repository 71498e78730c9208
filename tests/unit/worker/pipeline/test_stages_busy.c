/* Stages work at the same time, on steps that follow one another. */
#include <stdatomic.h>
#include <time.h>

#include "tests/unit/worker/pipeline/step_script.h"

enum { N_STEP = 4, N_WAIT = 3000 /* milliseconds */ };

static atomic_uint n_embedded;      /* steps that rank 0 has begun */
static atomic_uint n_synced, n_met; /* steps that rank 1 has come to the end of; of them beside
                                     * a later one of rank 0 */
static void (*embed)(struct backend *backend, const struct weight *table, const int32_t *ids,
                     uint32_t n_token, float scale, float *x);
static enum lm_status (*sync_backend)(struct backend *backend, struct lm_error *err);

static void count_embed(struct backend *backend, const struct weight *table, const int32_t *ids,
                        uint32_t n_token, float scale, float *x)
{
    atomic_fetch_add(&n_embedded, 1);
    embed(backend, table, ids, n_token, scale, x);
}

/* Rank 1 stays in a step until rank 0 is in the next one, which it could not be if the steps took
 * turns. */
static enum lm_status wait_for_rank_0(struct backend *backend, struct lm_error *err)
{
    const unsigned i = atomic_fetch_add(&n_synced, 1);
    for (int ms = 0; i + 1 < N_STEP && ms < N_WAIT; ms++) {
        if (atomic_load(&n_embedded) > i + 1) {
            atomic_fetch_add(&n_met, 1);
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return sync_backend(backend, err);
}

static void test_two_stages_busy_at_once(void **state)
{
    (void)state;
    static struct job job;
    static struct script script;
    job_prepare(&job, "llama-s-f32", 3, (uint32_t[]){1, 2});
    embed = job.rank[0].own.ops.embed;
    job.rank[0].own.ops.embed = count_embed;
    sync_backend = job.rank[1].own.ops.sync;
    job.rank[1].own.ops.sync = wait_for_rank_0;
    job_start(&job, 1);
    script_begin(&script, job.runner);
    script_prompt(&script, 0, N_STEP * 8, 1);
    for (uint32_t i = 0; i < N_STEP; i++)
        script_step(&script, &(struct script_part){0, 8, STEP_OUTPUT_NONE, false}, 1);
    free(script_end(&script));
    assert_int_equal(atomic_load(&n_synced), N_STEP);
    assert_int_equal(atomic_load(&n_met), N_STEP - 1);
    job_close(&job, LM_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_two_stages_busy_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
