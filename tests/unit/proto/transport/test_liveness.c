/* The guard of rank 0 and that of a worker, over a socket pair; a third rank is this test itself.
 */
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "proto/base/progress.h"
#include "proto/transport/liveness.h"
#include "tests/unit/cmocka_all.h"

enum { N_RANK = 3 };

/* What one rank's guard has called. */
struct seen {
    pthread_mutex_t lock;
    unsigned n_lost, n_left;
    struct lm_error why;
};

struct job {
    struct rank_card card[N_RANK];
    int fd[N_RANK][N_RANK]; /* of rank, to rank */
    struct seen seen[N_RANK];
    struct liveness *live[N_RANK];
    struct progress progress[N_RANK];
    double stall_timeout_s; /* set before; 0: steps are not watched */
    double began_s;
};

static void on_lost(void *context, const struct lm_error *why)
{
    struct seen *seen = context;
    pthread_mutex_lock(&seen->lock);
    seen->n_lost++;
    seen->why = *why;
    pthread_mutex_unlock(&seen->lock);
}

static void on_leave(void *context, const struct lm_error *why)
{
    struct seen *seen = context;
    (void)why;
    pthread_mutex_lock(&seen->lock);
    seen->n_left++;
    pthread_mutex_unlock(&seen->lock);
}

/* Guards of ranks 0 and 1; rank 2 is ours unless n_guard says that it has one, too. */
static void open_job(struct job *job, uint32_t n_guard, double timeout_s)
{
    const double stall_timeout_s = job->stall_timeout_s;
    *job = (struct job){.began_s = log_now_s(), .stall_timeout_s = stall_timeout_s};
    for (uint32_t i = 0; i < N_RANK; i++) {
        snprintf(job->card[i].host, sizeof(job->card[i].host), "host%u", i);
        job->card[i].pid_space = i; /* all on machines of their own */
        pthread_mutex_init(&job->seen[i].lock, NULL);
        for (uint32_t k = 0; k < N_RANK; k++)
            job->fd[i][k] = -1;
    }
    for (uint32_t i = 1; i < N_RANK; i++) {
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        job->fd[0][i] = pair[0];
        job->fd[i][0] = pair[1];
    }
    for (uint32_t i = 0; i < n_guard; i++) {
        struct lm_error err;
        const struct liveness_config config = {.rank = i,
                                               .n_rank = N_RANK,
                                               .fd = job->fd[i],
                                               .card = job->card,
                                               .timeout_s = timeout_s,
                                               .heartbeat_s = 0.02,
                                               .progress = &job->progress[i],
                                               .stall_timeout_s = stall_timeout_s,
                                               .lost = on_lost,
                                               .leave = on_leave,
                                               .context = &job->seen[i]};
        progress_init(&job->progress[i]);
        assert_int_equal(liveness_start(&job->live[i], &config, &err), LM_OK);
    }
}

static void close_job(struct job *job)
{
    for (uint32_t i = 0; i < N_RANK; i++)
        liveness_stop(job->live[i]);
    for (uint32_t i = 0; i < N_RANK; i++)
        for (uint32_t k = 0; k < N_RANK; k++)
            if (job->fd[i][k] >= 0) close(job->fd[i][k]);
}

/* Waits until rank's guard has told of the loss; false: not within 5 s. */
static bool was_lost(struct job *job, uint32_t rank, bool left)
{
    struct seen *seen = &job->seen[rank];
    for (int i = 0; i < 5000; i++) {
        pthread_mutex_lock(&seen->lock);
        const bool told = seen->n_lost && seen->n_left == left;
        pthread_mutex_unlock(&seen->lock);
        if (told) return true;
        usleep(1000);
    }
    return false;
}

static void test_a_closed_socket_is_a_death(void **state)
{
    (void)state;
    struct job job = {.stall_timeout_s = 0};
    open_job(&job, 2, 60);
    close(job.fd[2][0]);
    job.fd[2][0] = -1;
    assert_true(was_lost(&job, 0, false)); /* rank 0 goes on */
    assert_true(was_lost(&job, 1, true));  /* a worker leaves */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(job.seen[i].why.status, LM_E_RANK_LOST);
        assert_string_equal(job.seen[i].why.message, "rank 2 (host host2): connection closed");
    }
    close_job(&job);
    assert_int_equal(job.seen[0].n_lost, 1);
    assert_int_equal(job.seen[1].n_lost, 1);
}

static void test_silence_is_a_loss(void **state)
{
    (void)state;
    struct job job = {.stall_timeout_s = 0};
    open_job(&job, 2, 0.3);
    assert_true(was_lost(&job, 0, false));
    assert_true(log_now_s() - job.began_s >= 0.3);
    assert_int_equal(strncmp(job.seen[0].why.message, "rank 2 (host host2): silent for 0.", 34), 0);
    close_job(&job);
}

static void test_a_worker_misses_rank_0(void **state)
{
    (void)state;
    struct job job = {.stall_timeout_s = 0};
    open_job(&job, 0, 60);
    struct lm_error err;
    const struct liveness_config config = {.rank = 1,
                                           .n_rank = N_RANK,
                                           .fd = job.fd[1],
                                           .card = job.card,
                                           .timeout_s = 60,
                                           .heartbeat_s = 0.02,
                                           .lost = on_lost,
                                           .leave = on_leave,
                                           .context = &job.seen[1]};
    assert_int_equal(liveness_start(&job.live[1], &config, &err), LM_OK);
    close(job.fd[0][1]);
    job.fd[0][1] = -1;
    assert_true(was_lost(&job, 1, true));
    assert_string_equal(job.seen[1].why.message, "rank 0 (host host0): connection closed");
    close_job(&job);
}

static void test_abort_reaches_everyone_with_its_text(void **state)
{
    (void)state;
    struct job job = {.stall_timeout_s = 0};
    open_job(&job, 3, 60);
    struct lm_error why;
    lm_fail(&why, LM_E_IO, "expert 7 cannot be read");
    liveness_abort(job.live[2], &why);
    assert_true(was_lost(&job, 2, false)); /* its own thread goes on to say so */
    assert_true(was_lost(&job, 0, false));
    assert_true(was_lost(&job, 1, true));
    for (int i = 0; i < N_RANK; i++)
        assert_string_equal(job.seen[i].why.message,
                            "rank 2 (host host2): expert 7 cannot be read");
    close_job(&job);
}

/* A stranger's bytes, or another build's. */
static void test_what_is_no_message_is_a_loss(void **state)
{
    (void)state;
    static const uint8_t noise[][8] = {{0xFF, 0xFF, 0xFF, 0xFF}, {9, 0, 0, 0}, {0, 0, 0xE9, 3}};
    for (size_t i = 0; i < sizeof(noise) / sizeof(noise[0]); i++) {
        struct job job = {.stall_timeout_s = 0};
        open_job(&job, 2, 60);
        assert_int_equal(write(job.fd[2][0], noise[i], 4), 4);
        assert_true(was_lost(&job, 0, false));
        assert_string_equal(job.seen[0].why.message,
                            "rank 2 (host host2): sends malformed heartbeats");
        close_job(&job);
    }
}

static void *say_goodbye(void *context)
{
    return (void *)(uintptr_t)liveness_goodbye(context, NULL);
}

static void test_nobody_misses_who_has_said_goodbye(void **state)
{
    (void)state;
    struct job job = {.stall_timeout_s = 0};
    pthread_t thread[N_RANK];
    open_job(&job, 3, 60);
    for (int i = 0; i < N_RANK; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, say_goodbye, job.live[i]), 0);
    for (int i = 0; i < N_RANK; i++) {
        void *status;
        pthread_join(thread[i], &status);
        assert_int_equal((uintptr_t)status, LM_OK);
    }
    /* One after the other leaves. */
    for (int i = N_RANK - 1; i >= 0; i--) {
        liveness_stop(job.live[i]);
        job.live[i] = NULL;
        for (int k = 0; k < N_RANK; k++) {
            if (job.fd[i][k] >= 0) close(job.fd[i][k]);
            job.fd[i][k] = -1;
        }
        usleep(30000);
    }
    for (int i = 0; i < N_RANK; i++)
        assert_int_equal(job.seen[i].n_lost, 0);
}

/* ---- steps -------------------------------------------------------------------------------- */

static void test_a_step_that_stands_still_ends_the_job(void **state)
{
    (void)state;
    struct job job = {.stall_timeout_s = 0.3};
    open_job(&job, 2, 60);
    progress_set(&job.progress[1], PROGRESS_COMPUTING, 7);
    assert_true(was_lost(&job, 0, false));
    assert_true(was_lost(&job, 1, true)); /* its step thread could not leave */
    assert_true(log_now_s() - job.began_s >= 0.3);
    for (int i = 0; i < 2; i++)
        assert_int_equal(strncmp(job.seen[i].why.message,
                                 "rank 1 (host host1): step 7 has not moved for 0.", 48),
                         0);
    close_job(&job);
}

/* Also of one that waits for others, or for work. */
static void test_a_slow_step_that_moves_is_let_alone(void **state)
{
    (void)state;
    struct job job = {.stall_timeout_s = 1.5};
    open_job(&job, 3, 60);
    job.progress[0].n_open = 1;
    progress_set(&job.progress[0], PROGRESS_COMPUTING, 1);
    progress_set(&job.progress[1], PROGRESS_WAITING, 1);
    while (log_now_s() - job.began_s < 2.2) {
        progress_move(&job.progress[0]);
        usleep(50000);
    }
    for (int i = 0; i < N_RANK; i++)
        assert_int_equal(job.seen[i].n_lost, 0);
    close_job(&job);
}

static void test_tokens_that_nobody_computes_are_not_awaited_for_ever(void **state)
{
    (void)state;
    struct job job = {.stall_timeout_s = 0.3};
    open_job(&job, 2, 60);
    progress_set(&job.progress[0], PROGRESS_IDLE, 4);
    progress_set(&job.progress[1], PROGRESS_WAITING, 4);
    usleep(600000);
    assert_int_equal(job.seen[0].n_lost, 0); /* nothing is awaited */
    job.progress[0].n_open = 1;
    assert_true(was_lost(&job, 0, false));
    assert_true(was_lost(&job, 1, true));
    assert_int_equal(
        strncmp(job.seen[1].why.message, "rank 0 (host host0): no rank has moved for 0.", 45), 0);
    close_job(&job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_closed_socket_is_a_death),
        cmocka_unit_test(test_silence_is_a_loss),
        cmocka_unit_test(test_a_worker_misses_rank_0),
        cmocka_unit_test(test_abort_reaches_everyone_with_its_text),
        cmocka_unit_test(test_what_is_no_message_is_a_loss),
        cmocka_unit_test(test_nobody_misses_who_has_said_goodbye),
        cmocka_unit_test(test_a_step_that_stands_still_ends_the_job),
        cmocka_unit_test(test_a_slow_step_that_moves_is_let_alone),
        cmocka_unit_test(test_tokens_that_nobody_computes_are_not_awaited_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
