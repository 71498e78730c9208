/* The dispatcher from several threads, over a runner that takes a moment for each step. */
#include "tests/unit/cmocka_all.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "coordinator/sched/dispatcher.h"

enum { N_SLOT = 2, N_CTX = 4000, MAX_QUEUE = 3 };

static void sleep_ms(long ms)
{
    const struct timespec time = {.tv_nsec = ms * 1000000};
    nanosleep(&time, NULL);
}

static enum lm_status slow_step(void *context, const struct step_plan *plan,
                                struct sampled_token *sampled, struct lm_error *err)
{
    (void)context, (void)err;
    sleep_ms(1);
    for (uint32_t i = 0; i < plan->n_seq; i++)
        if (plan->seq[i].output == STEP_OUTPUT_SAMPLE) sampled[i].id = 7;
    return LM_OK;
}

static enum lm_status nothing_failed(void *context, struct lm_error *err)
{
    (void)context, (void)err;
    return LM_OK;
}

static enum lm_status any_seq(void *context, const struct seq_op *op, struct lm_error *err)
{
    (void)context, (void)op, (void)err;
    return LM_OK;
}

/* A request and what became of it; the mutex passes it from the step thread to the test. */
struct call {
    struct request request;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n_token;
    bool ended;
};

static bool on_token(void *context, const struct sampled_token *token)
{
    struct call *call = context;
    (void)token;
    pthread_mutex_lock(&call->lock);
    call->n_token++;
    pthread_cond_broadcast(&call->changed);
    pthread_mutex_unlock(&call->lock);
    return true;
}

static void on_end(void *context)
{
    struct call *call = context;
    pthread_mutex_lock(&call->lock);
    assert_false(call->ended);
    call->ended = true;
    pthread_cond_broadcast(&call->changed);
    pthread_mutex_unlock(&call->lock);
}

static void init_call(struct call *call, const int32_t *prompt, size_t n_prompt, uint32_t n_max)
{
    memset(call, 0, sizeof(*call));
    pthread_mutex_init(&call->lock, NULL);
    pthread_cond_init(&call->changed, NULL);
    call->request = (struct request){.prompt = prompt,
                                     .n_prompt = n_prompt,
                                     .n_max = n_max,
                                     .on_token = on_token,
                                     .on_end = on_end,
                                     .context = call};
}

static void wait_tokens(struct call *call, int n)
{
    pthread_mutex_lock(&call->lock);
    while (call->n_token < n && !call->ended)
        pthread_cond_wait(&call->changed, &call->lock);
    pthread_mutex_unlock(&call->lock);
}

static void wait_end(struct call *call)
{
    pthread_mutex_lock(&call->lock);
    while (!call->ended)
        pthread_cond_wait(&call->changed, &call->lock);
    pthread_mutex_unlock(&call->lock);
}

static struct seq_usage no_usage(void *context)
{
    (void)context;
    return (struct seq_usage){.n_position = 0};
}

/* What a runner does when there is nothing to do: the step thread's, but to be looked at. */
struct spare {
    atomic_int n_left, n_call; /* pieces that it still has; calls */
    atomic_int n_over;         /* times that it had no more */
};

static bool do_a_piece(void *context)
{
    struct spare *spare = context;
    atomic_fetch_add(&spare->n_call, 1);
    return atomic_load(&spare->n_left) > 0 && atomic_fetch_sub(&spare->n_left, 1) > 1;
}

static void note_over(void *context)
{
    atomic_fetch_add(&((struct spare *)context)->n_over, 1);
}

struct fixture {
    struct spare spare;
    struct step_runner runner;
    struct scheduler *scheduler;
    struct dispatcher *dispatcher;
    int32_t prompt[N_CTX + 1];
};

static void open_fixture(struct fixture *fixture, uint32_t max_queue, double queue_timeout_s)
{
    struct lm_error err;
    memset(fixture, 0, sizeof(*fixture));
    fixture->spare.n_left = 5;
    fixture->runner = (struct step_runner){.context = &fixture->spare,
                                           .n_stage = 1,
                                           .depth = 1,
                                           .begin = slow_step,
                                           .end = nothing_failed,
                                           .seq = any_seq,
                                           .usage = no_usage,
                                           .idle = do_a_piece};
    const struct scheduler_config config = {
        .runner = &fixture->runner, .n_slot = N_SLOT, .n_ctx = N_CTX, .prefill_chunk = 64};
    assert_int_equal(scheduler_create(&fixture->scheduler, &config, &err), LM_OK);
    const struct dispatcher_config dispatcher = {.scheduler = fixture->scheduler,
                                                 .max_queue = max_queue,
                                                 .queue_timeout_s = queue_timeout_s,
                                                 .on_idle = note_over,
                                                 .context = &fixture->spare};
    assert_int_equal(dispatcher_create(&fixture->dispatcher, &dispatcher, &err), LM_OK);
}

static void close_fixture(struct fixture *fixture)
{
    dispatcher_destroy(fixture->dispatcher);
    scheduler_destroy(fixture->scheduler);
}

static void submit(struct fixture *fixture, struct call *call)
{
    struct request *const request = &call->request;
    dispatcher_submit(fixture->dispatcher, &request, 1);
}

/* Reserves and submits, over and over where the queue is full. */
static void *run_calls(void *context)
{
    struct fixture *fixture = context;
    for (int i = 0; i < 20; i++) {
        struct call call;
        init_call(&call, fixture->prompt, 100, 5);
        while (!dispatcher_reserve(fixture->dispatcher, 1))
            sleep_ms(1);
        submit(fixture, &call);
        if (i % 4 == 3) dispatcher_cancel(fixture->dispatcher, &call.request);
        wait_end(&call);
        assert_int_equal(call.request.status, LM_OK);
        if (i % 4 != 3) assert_int_equal(call.n_token, 5);
    }
    return NULL;
}

static void test_many_threads_are_served(void **state)
{
    (void)state;
    struct fixture fixture;
    pthread_t threads[6];
    open_fixture(&fixture, MAX_QUEUE, 0);
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_calls, &fixture), 0);
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    assert_true(dispatcher_drain(fixture.dispatcher, 5));
    const struct dispatcher_stats stats = dispatcher_stats(fixture.dispatcher);
    assert_int_equal(stats.n_running, 0);
    assert_int_equal(stats.n_waiting, 0);
    assert_int_equal(stats.scheduler.n_seq_max, N_SLOT);
    const uint32_t after_s = dispatcher_retry_after_s(fixture.dispatcher);
    assert_in_range(after_s, 1, 60);
    close_fixture(&fixture);
}

/* Places: the idle slots and max_queue. */
static void test_the_queue_is_bounded(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call running[N_SLOT];
    open_fixture(&fixture, MAX_QUEUE, 0);
    for (int i = 0; i < N_SLOT + MAX_QUEUE; i++)
        assert_true(dispatcher_reserve(fixture.dispatcher, 1));
    assert_false(dispatcher_reserve(fixture.dispatcher, 1));
    for (int i = 0; i < N_SLOT; i++) {
        init_call(&running[i], fixture.prompt, 10, 3000);
        submit(&fixture, &running[i]);
    }
    while (dispatcher_stats(fixture.dispatcher).n_running < N_SLOT)
        sleep_ms(1);
    assert_false(dispatcher_reserve(fixture.dispatcher, 1));
    dispatcher_unreserve(fixture.dispatcher, 2);
    assert_true(dispatcher_reserve(fixture.dispatcher, 2));
    assert_false(dispatcher_reserve(fixture.dispatcher, 1));
    dispatcher_unreserve(fixture.dispatcher, 3);
    /* a large request, of which one place was taken before */
    assert_true(dispatcher_reserve(fixture.dispatcher, 1));
    assert_true(dispatcher_reserve(fixture.dispatcher, 100));
    assert_false(dispatcher_reserve(fixture.dispatcher, 1));
    dispatcher_unreserve(fixture.dispatcher, 101);
    for (int i = 0; i < N_SLOT; i++) {
        dispatcher_cancel(fixture.dispatcher, &running[i].request);
        wait_end(&running[i]);
        assert_int_equal(running[i].request.status, LM_OK);
        assert_true(running[i].n_token < 3000);
    }
    close_fixture(&fixture);
}

/* Too long a prompt ends its own request only; one that waits too long ends too; destroying ends
 * those that run. */
static void test_what_cannot_run_ends(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call running[N_SLOT], late, oversize;
    open_fixture(&fixture, MAX_QUEUE, 0.05);
    assert_true(dispatcher_reserve(fixture.dispatcher, N_SLOT + 2));
    for (int i = 0; i < N_SLOT; i++) {
        init_call(&running[i], fixture.prompt, 10, 100000);
        submit(&fixture, &running[i]);
        wait_tokens(&running[i], 1);
    }
    init_call(&oversize, fixture.prompt, N_CTX + 1, 1);
    init_call(&late, fixture.prompt, 10, 1);
    submit(&fixture, &oversize);
    submit(&fixture, &late);
    wait_end(&oversize);
    assert_int_equal(oversize.request.status, LM_E_LIMIT);
    wait_end(&late);
    assert_int_equal(late.request.status, LM_E_BUSY);
    assert_true(late.request.end_s - late.request.submit_s >= 0.05);
    assert_int_equal(late.request.start_s, 0);
    assert_false(running[0].ended);
    close_fixture(&fixture);
    for (int i = 0; i < N_SLOT; i++) {
        assert_true(running[i].ended);
        assert_int_equal(running[i].request.status, LM_E_INTERRUPTED);
    }
}

/* Draining: what waits ends at once, what runs may finish in time, the rest is cut. */
static void test_draining(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call shorter, endless, waiting, later;
    open_fixture(&fixture, MAX_QUEUE, 0);
    assert_true(dispatcher_reserve(fixture.dispatcher, 4));
    init_call(&shorter, fixture.prompt, 10, 30);
    init_call(&endless, fixture.prompt, 10, 100000);
    init_call(&waiting, fixture.prompt, 10, 1);
    init_call(&later, fixture.prompt, 10, 1);
    submit(&fixture, &shorter);
    submit(&fixture, &endless);
    wait_tokens(&shorter, 1);
    wait_tokens(&endless, 1);
    submit(&fixture, &waiting);
    assert_false(dispatcher_drain(fixture.dispatcher, 0.15));
    assert_int_equal(shorter.request.status, LM_OK);
    assert_int_equal(shorter.n_token, 30);
    assert_int_equal(endless.request.status, LM_E_INTERRUPTED);
    assert_true(endless.n_token > 30);
    assert_int_equal(waiting.request.status, LM_E_INTERRUPTED);
    submit(&fixture, &later);
    wait_end(&later);
    assert_int_equal(later.request.status, LM_E_INTERRUPTED);
    close_fixture(&fixture);
}

/* After a failure all ends with its error, what comes later too. */
static void test_a_failure_ends_all(void **state)
{
    (void)state;
    struct fixture fixture;
    struct lm_error err;
    struct call calls[4];
    open_fixture(&fixture, MAX_QUEUE, 0);
    assert_true(dispatcher_reserve(fixture.dispatcher, 4));
    for (int i = 0; i < 4; i++)
        init_call(&calls[i], fixture.prompt, 10, 100000);
    for (int i = 0; i < 3; i++)
        submit(&fixture, &calls[i]);
    wait_tokens(&calls[0], 1);
    err.status = lm_fail(&err, LM_E_RANK_LOST, "rank 2 is gone");
    assert_true(dispatcher_fail(fixture.dispatcher, &err, 10));
    submit(&fixture, &calls[3]);
    for (int i = 0; i < 4; i++) {
        wait_end(&calls[i]);
        assert_int_equal(calls[i].request.status, LM_E_RANK_LOST);
        assert_string_equal(calls[i].request.error.message, "rank 2 is gone");
    }
    close_fixture(&fixture);
}

/* The exception for large requests is not for a single sequence. */
static void test_a_queue_of_one_holds_one(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call running[N_SLOT];
    open_fixture(&fixture, 1, 0);
    for (int i = 0; i < N_SLOT; i++) {
        assert_true(dispatcher_reserve(fixture.dispatcher, 1));
        init_call(&running[i], fixture.prompt, 10, 3000);
        submit(&fixture, &running[i]);
    }
    while (dispatcher_stats(fixture.dispatcher).n_running < N_SLOT)
        sleep_ms(1);
    assert_true(dispatcher_reserve(fixture.dispatcher, 1));
    assert_false(dispatcher_reserve(fixture.dispatcher, 1));
    dispatcher_unreserve(fixture.dispatcher, 1);
    for (int i = 0; i < N_SLOT; i++) {
        dispatcher_cancel(fixture.dispatcher, &running[i].request);
        wait_end(&running[i]);
    }
    close_fixture(&fixture);
}

/* What can be done while nothing is to do is done before the first request and behind each, and
 * when there is no more of it nobody asks again. */
static void test_idle_time_is_used(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    open_fixture(&fixture, MAX_QUEUE, 0);
    for (int i = 1; i <= 2; i++) {
        while (atomic_load(&fixture.spare.n_over) < i)
            sleep_ms(1);
        sleep_ms(5);
        assert_int_equal(atomic_load(&fixture.spare.n_call), 5 * i);
        assert_int_equal(atomic_load(&fixture.spare.n_over), i);
        atomic_store(&fixture.spare.n_left, 5);
        assert_true(dispatcher_reserve(fixture.dispatcher, 1));
        init_call(&call, fixture.prompt, 10, 3);
        submit(&fixture, &call);
        wait_end(&call);
        assert_int_equal(call.n_token, 3);
    }
    close_fixture(&fixture);
}

/* A request does not wait until the runner has nothing more to do. */
static void test_a_request_interrupts_idle_time(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    open_fixture(&fixture, MAX_QUEUE, 0);
    atomic_store(&fixture.spare.n_left, INT32_MAX);
    assert_true(dispatcher_reserve(fixture.dispatcher, 1));
    init_call(&call, fixture.prompt, 10, 3);
    submit(&fixture, &call);
    wait_end(&call);
    assert_int_equal(call.n_token, 3);
    assert_true(atomic_load(&fixture.spare.n_left) > 0);
    close_fixture(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_threads_are_served),
        cmocka_unit_test(test_the_queue_is_bounded),
        cmocka_unit_test(test_a_queue_of_one_holds_one),
        cmocka_unit_test(test_idle_time_is_used),
        cmocka_unit_test(test_a_request_interrupts_idle_time),
        cmocka_unit_test(test_what_cannot_run_ends),
        cmocka_unit_test(test_draining),
        cmocka_unit_test(test_a_failure_ends_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
