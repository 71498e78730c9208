/* The scheduler over a runner that only keeps books: what it asks for, and what it does when a
 * step fails. */
#include "tests/unit/cmocka_all.h"

#include "coordinator/sched/scheduler.h"

enum { N_SLOT_MAX = 4, N_CTX = 200, CHUNK = 16 };

/* Lengths of the slots as a worker would have them, and what has been asked. */
struct books {
    uint32_t length[N_SLOT_MAX];
    uint32_t room; /* positions that all slots together may hold */
    bool can_cut;
    enum lm_status fail_with; /* the next step fails so, halfway */
    uint32_t n_fork, n_clear, n_token_max, n_prefill_seq_max;
    int32_t next_token;
};

static enum lm_status books_step(void *context, const struct step_plan *plan,
                                 struct sampled_token *sampled, struct lm_error *err)
{
    struct books *books = context;
    uint32_t held = 0, n_token = 0, n_prefill = 0;
    for (uint32_t i = 0; i < N_SLOT_MAX; i++)
        held += books->length[i];
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        const struct step_seq *seq = &plan->seq[i];
        n_token += seq->n_token;
        n_prefill += seq->n_token > 1;
        assert_int_equal(seq->n_history, books->length[seq->slot] + seq->n_token);
        assert_ptr_equal(seq->history + books->length[seq->slot], seq->ids);
        for (uint32_t k = 0; k < i; k++)
            assert_int_not_equal(plan->seq[k].slot, seq->slot);
    }
    if (books->fail_with != LM_OK) {
        const enum lm_status status = books->fail_with;
        books->fail_with = LM_OK;
        for (uint32_t i = 0; i < plan->n_seq; i++)
            books->length[plan->seq[i].slot] += plan->seq[i].n_token;
        return lm_fail(err, status, "the step fails");
    }
    if (held + n_token > books->room) return lm_fail(err, LM_E_LIMIT, "full");
    if (n_token > books->n_token_max) books->n_token_max = n_token;
    if (n_prefill > books->n_prefill_seq_max) books->n_prefill_seq_max = n_prefill;
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        books->length[plan->seq[i].slot] += plan->seq[i].n_token;
        if (plan->seq[i].output == STEP_OUTPUT_SAMPLE) sampled[i].id = books->next_token++;
    }
    return LM_OK;
}

static enum lm_status books_seq(void *context, const struct seq_op *op, struct lm_error *err)
{
    struct books *books = context;
    switch (op->kind) {
    case SEQ_CLEAR:
        books->length[op->slot] = 0;
        books->n_clear++;
        return LM_OK;
    case SEQ_FORK:
        assert_int_not_equal(op->slot, op->to);
        books->length[op->to] = books->length[op->slot];
        books->n_fork++;
        return LM_OK;
    case SEQ_TRUNCATE:
        assert_true(op->n <= books->length[op->slot]);
        if (op->n < books->length[op->slot] && !books->can_cut)
            return lm_fail(err, LM_E_UNSUPPORTED, "cannot cut");
        books->length[op->slot] = op->n;
        return LM_OK;
    }
    return LM_E_FAIL;
}

struct fixture {
    struct books books;
    struct step_runner runner;
    struct scheduler *scheduler;
};

static void open_fixture(struct fixture *fixture, uint32_t n_slot, uint32_t n_parked, bool can_cut)
{
    struct lm_error err;
    memset(fixture, 0, sizeof(*fixture));
    fixture->books.room = N_SLOT_MAX * N_CTX;
    fixture->books.can_cut = can_cut;
    fixture->runner = (struct step_runner){&fixture->books, books_step, books_seq};
    const struct scheduler_config config = {.runner = &fixture->runner,
                                            .n_slot = n_slot,
                                            .n_parked = n_parked,
                                            .n_ctx = N_CTX,
                                            .prefill_chunk = CHUNK};
    assert_true(n_slot + n_parked <= N_SLOT_MAX);
    assert_int_equal(scheduler_create(&fixture->scheduler, &config, &err), LM_OK);
}

static bool count_token(void *context, const struct sampled_token *token)
{
    (void)token;
    if (context) ++*(int *)context;
    return true;
}

static void submit(struct fixture *fixture, struct request *request, const int32_t *prompt,
                   size_t n, uint32_t n_max)
{
    struct lm_error err;
    memset(request, 0, sizeof(*request));
    request->prompt = prompt;
    request->n_prompt = n;
    request->n_max = n_max;
    request->on_token = count_token;
    assert_int_equal(scheduler_submit(fixture->scheduler, request, &err), LM_OK);
}

static void run_all(struct fixture *fixture)
{
    while (scheduler_step(fixture->scheduler)) {
    }
}

static void fill(int32_t *ids, size_t n, int32_t seed)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)i * 3 + seed;
}

static void test_steps_mix_decoding_and_one_chunk(void **state)
{
    (void)state;
    struct fixture fixture;
    struct request requests[5];
    int32_t prompts[5][60];
    open_fixture(&fixture, 3, 0, true);
    for (int32_t i = 0; i < 5; i++) {
        fill(prompts[i], 60, 1000 * i);
        submit(&fixture, &requests[i], prompts[i], 40 + (size_t)i, 30);
    }
    run_all(&fixture);
    for (int i = 0; i < 5; i++) {
        assert_true(requests[i].done);
        assert_int_equal(requests[i].status, LM_OK);
        assert_int_equal(requests[i].n_generated, 30);
        assert_true(i == 0 || requests[i].prefill_end_s >= requests[i - 1].prefill_end_s);
    }
    assert_int_equal(scheduler_stats(fixture.scheduler).n_seq_max, 3);
    assert_int_equal(fixture.books.n_prefill_seq_max, 1);
    assert_true(fixture.books.n_token_max <= CHUNK + 2);
    scheduler_destroy(fixture.scheduler);
}

/* Prompts of different beginnings keep their slots; the least recently used one goes. */
static void test_the_longest_prefix_is_found(void **state)
{
    (void)state;
    struct fixture fixture;
    struct request request;
    int32_t a[100], b[100], c[100];
    open_fixture(&fixture, 2, 0, true);
    fill(a, 100, 0), fill(b, 100, 5000), fill(c, 100, 9000);
    submit(&fixture, &request, a, 80, 4), run_all(&fixture);
    submit(&fixture, &request, b, 80, 4), run_all(&fixture);
    submit(&fixture, &request, a, 100, 4), run_all(&fixture);
    assert_int_equal(request.n_cached, 80);
    submit(&fixture, &request, c, 80, 4), run_all(&fixture); /* in place of b */
    assert_int_equal(request.n_cached, 0);
    submit(&fixture, &request, a, 100, 4), run_all(&fixture);
    assert_int_equal(request.n_cached, 99); /* the last token is read for its logits */
    submit(&fixture, &request, b, 80, 4), run_all(&fixture);
    assert_int_equal(request.n_cached, 0);
    scheduler_destroy(fixture.scheduler);
}

/* Where states cannot be cut, snapshots bring the prefix back. */
static void test_snapshots_serve_what_cannot_be_cut(void **state)
{
    (void)state;
    struct fixture fixture;
    struct request request;
    int32_t ids[150];
    open_fixture(&fixture, 1, 2, false);
    fill(ids, 150, 0);
    submit(&fixture, &request, ids, 120, 4);
    const size_t turn = 50;
    request.turns = &turn;
    request.n_turn = 1;
    run_all(&fixture);
    assert_int_equal(fixture.books.n_fork, 2); /* before token 50, and before the last one */
    submit(&fixture, &request, ids, 120, 4), run_all(&fixture);
    assert_int_equal(request.n_cached, 119);
    ids[60] = 77777;
    submit(&fixture, &request, ids, 120, 4), run_all(&fixture);
    assert_int_equal(request.n_cached, 50);
    ids[20] = 77777;
    submit(&fixture, &request, ids, 120, 4), run_all(&fixture);
    assert_int_equal(request.n_cached, 0);
    scheduler_destroy(fixture.scheduler);
}

static void test_room_is_made_by_giving_up_what_is_idle(void **state)
{
    (void)state;
    struct fixture fixture;
    struct request request;
    int32_t a[150], b[150];
    open_fixture(&fixture, 2, 0, true);
    fixture.books.room = 180;
    fill(a, 150, 0), fill(b, 150, 7000);
    submit(&fixture, &request, a, 100, 4), run_all(&fixture);
    submit(&fixture, &request, b, 150, 4), run_all(&fixture);
    assert_int_equal(request.status, LM_OK);
    assert_int_equal(request.n_generated, 4);
    assert_int_equal(fixture.books.n_clear, 1);
    scheduler_destroy(fixture.scheduler);
}

/* A step that fails ends the requests in it, with the error, and the slot is clean again. */
static void test_a_failed_step_ends_its_requests(void **state)
{
    (void)state;
    struct fixture fixture;
    struct request first, second;
    int32_t ids[100];
    open_fixture(&fixture, 1, 0, true);
    fill(ids, 100, 0);
    submit(&fixture, &first, ids, 100, 4);
    submit(&fixture, &second, ids, 100, 4);
    scheduler_step(fixture.scheduler);
    fixture.books.fail_with = LM_E_IO;
    run_all(&fixture);
    assert_int_equal(first.status, LM_E_IO);
    assert_string_equal(first.error.message, "the step fails");
    assert_int_equal(first.n_generated, 0);
    assert_int_equal(second.status, LM_OK);
    assert_int_equal(second.n_cached, 0);
    assert_int_equal(second.n_generated, 4);
    scheduler_destroy(fixture.scheduler);
}

/* What the first chunk of a prompt has left in a slot when it fails is cleared too, though the
 * scheduler has counted nothing there yet. */
static void test_a_failed_first_step_leaves_nothing(void **state)
{
    (void)state;
    struct fixture fixture;
    struct request first, second;
    int32_t ids[100];
    open_fixture(&fixture, 1, 0, true);
    fill(ids, 100, 0);
    submit(&fixture, &first, ids, CHUNK, 4);
    fixture.books.fail_with = LM_E_FAIL;
    run_all(&fixture);
    assert_int_equal(first.status, LM_E_FAIL);
    assert_int_equal(fixture.books.length[0], 0);
    submit(&fixture, &second, ids, 100, 4), run_all(&fixture);
    assert_int_equal(second.status, LM_OK);
    assert_int_equal(second.n_generated, 4);
    scheduler_destroy(fixture.scheduler);
}

static void test_cancelled_requests_leave(void **state)
{
    (void)state;
    struct fixture fixture;
    struct request running, waiting;
    int32_t ids[100];
    int n_token = 0;
    open_fixture(&fixture, 1, 0, true);
    fill(ids, 100, 0);
    submit(&fixture, &running, ids, 20, 50);
    running.context = &n_token;
    submit(&fixture, &waiting, ids, 90, 50);
    while (n_token < 3)
        scheduler_step(fixture.scheduler);
    atomic_store(&waiting.cancelled, true);
    atomic_store(&running.cancelled, true);
    assert_false(scheduler_step(fixture.scheduler));
    assert_true(running.done && waiting.done);
    assert_int_equal(running.n_generated, 3);
    assert_int_equal(waiting.n_generated, 0);
    scheduler_destroy(fixture.scheduler);
}

static void test_prompts_are_held_to_the_context(void **state)
{
    (void)state;
    struct fixture fixture;
    struct request request = {.n_prompt = N_CTX + 1};
    struct lm_error err;
    int32_t ids[N_CTX];
    open_fixture(&fixture, 1, 0, true);
    assert_int_equal(scheduler_submit(fixture.scheduler, &request, &err), LM_E_LIMIT);
    fill(ids, N_CTX, 0);
    submit(&fixture, &request, ids, N_CTX, 100), run_all(&fixture);
    assert_int_equal(request.n_generated, 1); /* behind the last position, never read */
    submit(&fixture, &request, ids, 30, 0), run_all(&fixture);
    assert_int_equal(request.n_generated, 0);
    scheduler_destroy(fixture.scheduler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_mix_decoding_and_one_chunk),
        cmocka_unit_test(test_the_longest_prefix_is_found),
        cmocka_unit_test(test_snapshots_serve_what_cannot_be_cut),
        cmocka_unit_test(test_room_is_made_by_giving_up_what_is_idle),
        cmocka_unit_test(test_a_failed_step_ends_its_requests),
        cmocka_unit_test(test_a_failed_first_step_leaves_nothing),
        cmocka_unit_test(test_cancelled_requests_leave),
        cmocka_unit_test(test_prompts_are_held_to_the_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
