/* The scheduler over a runner that only keeps books: what it asks for, what it reuses, and what it
 * does when a step fails. */
#include "tests/unit/cmocka_all.h"

#include "coordinator/sched/scheduler.h"
#include "tests/unit/coordinator/sched/fake_runner.h"

enum { N_CTX = FAKE_N_CTX, CHUNK = 16 };

struct fixture {
    struct fake_runner fake;
    struct step_runner runner;
    struct scheduler *scheduler;
};

static void open_deep(struct fixture *fixture, uint32_t depth, uint32_t n_slot, uint32_t n_parked,
                      bool can_cut)
{
    struct lm_error err;
    memset(fixture, 0, sizeof(*fixture));
    fixture->fake.room = FAKE_N_SLOT * N_CTX;
    fixture->fake.can_cut = can_cut;
    fixture->runner = (struct step_runner){.context = &fixture->fake,
                                           .n_stage = depth,
                                           .depth = depth,
                                           .begin = fake_begin,
                                           .end = fake_end,
                                           .seq = fake_seq,
                                           .usage = fake_usage};
    const struct scheduler_config config = {.runner = &fixture->runner,
                                            .n_slot = n_slot,
                                            .n_parked = n_parked,
                                            .n_ctx = N_CTX,
                                            .prefill_chunk = CHUNK,
                                            .chunk_min = CHUNK / 4,
                                            .can_cut = can_cut,
                                            .state_bytes = 1000,
                                            .logprob_bytes_max = 1 << 20};
    assert_true(n_slot + n_parked <= FAKE_N_SLOT);
    assert_int_equal(scheduler_create(&fixture->scheduler, &config, &err), LM_OK);
}

/* Drafts of up to n_draft tokens. */
static void open_drafting(struct fixture *fixture, uint32_t depth, uint32_t n_slot, bool can_cut,
                          enum drafting prompt_lookup, enum drafting mtp, uint32_t n_draft)
{
    struct lm_error err;
    open_deep(fixture, depth, n_slot, n_slot, can_cut);
    scheduler_destroy(fixture->scheduler);
    const struct scheduler_config config = {.runner = &fixture->runner,
                                            .n_slot = n_slot,
                                            .n_parked = n_slot,
                                            .n_ctx = N_CTX,
                                            .prefill_chunk = CHUNK,
                                            .can_cut = can_cut,
                                            .prompt_lookup = prompt_lookup,
                                            .mtp = mtp,
                                            .n_draft = n_draft,
                                            .logprob_bytes_max = 1 << 20};
    assert_int_equal(scheduler_create(&fixture->scheduler, &config, &err), LM_OK);
}

static void open_fixture(struct fixture *fixture, uint32_t n_slot, uint32_t n_parked, bool can_cut)
{
    open_deep(fixture, 1, n_slot, n_parked, can_cut);
}

/* A request, and what it got. */
struct call {
    struct request request;
    int32_t ids[N_CTX + 1]; /* prompt and output */
    uint32_t n_token, n_prompt_token, n_ended;
    int32_t n_top; /* of the prompt's log-probabilities */
};

static bool on_token(void *context, const struct sampled_token *token)
{
    struct call *call = context;
    const size_t at = call->request.n_prompt + call->n_token++;
    assert_int_equal(token->id, fake_token(call->ids, at));
    call->ids[at] = token->id;
    return true;
}

static void on_prompt_token(void *context, uint32_t pos, const struct sampled_token *token)
{
    struct call *call = context;
    assert_int_equal(pos, ++call->n_prompt_token);
    assert_int_equal(token->id, call->ids[pos]);
    assert_true(token->logprob == fake_logprob(call->ids, pos, token->id));
    assert_int_equal(token->n_top, call->n_top);
    for (int32_t i = 0; i < token->n_top; i++)
        assert_true(token->top_logprob[i] == fake_logprob(call->ids, pos, token->top_id[i]));
}

static void on_end(void *context)
{
    struct call *call = context;
    assert_true(call->request.done);
    call->n_ended++;
}

static void init_call(struct call *call, const int32_t *prompt, size_t n, uint32_t n_max)
{
    memset(call, 0, sizeof(*call));
    memcpy(call->ids, prompt, n * sizeof(*prompt));
    call->request = (struct request){.prompt = prompt,
                                     .n_prompt = n,
                                     .n_max = n_max,
                                     .on_token = on_token,
                                     .on_end = on_end,
                                     .context = call};
}

static void submit_call(struct fixture *fixture, struct call *call)
{
    struct lm_error err;
    assert_int_equal(scheduler_submit(fixture->scheduler, &call->request, &err), LM_OK);
}

static void submit(struct fixture *fixture, struct call *call, const int32_t *prompt, size_t n,
                   uint32_t n_max)
{
    init_call(call, prompt, n, n_max);
    submit_call(fixture, call);
}

static void run_all(struct fixture *fixture)
{
    while (scheduler_step(fixture->scheduler)) {
    }
}

/* Runs one request and returns how much of its prompt was cached. */
static size_t cached(struct fixture *fixture, const int32_t *prompt, size_t n, uint32_t n_max)
{
    struct call call;
    submit(fixture, &call, prompt, n, n_max), run_all(fixture);
    assert_int_equal(call.request.status, LM_OK);
    assert_int_equal(call.request.n_generated, n_max);
    assert_int_equal(call.n_ended, 1);
    return call.request.n_cached;
}

static void fill(int32_t *ids, size_t n, int32_t seed)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)i * 3 + seed;
}

/* ---- steps -------------------------------------------------------------------------------- */

static void test_steps_mix_decoding_and_reading(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[5];
    int32_t prompts[5][60];
    open_fixture(&fixture, 3, 1, true);
    for (int32_t i = 0; i < 5; i++) {
        fill(prompts[i], 60, 1000 * i);
        submit(&fixture, &calls[i], prompts[i], 40 + (size_t)i, 30);
    }
    run_all(&fixture);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(calls[i].n_ended, 1);
        assert_int_equal(calls[i].request.status, LM_OK);
        assert_int_equal(calls[i].request.n_generated, 30);
        assert_true(i == 0 || calls[i].request.prefill_end_s >= calls[i - 1].request.prefill_end_s);
    }
    const struct scheduler_stats stats = scheduler_stats(fixture.scheduler);
    assert_int_equal(stats.n_seq_max, 3);
    assert_true(fixture.fake.n_token_max <= CHUNK + 2);
    assert_int_equal(stats.n_token, fixture.fake.n_token);
    assert_int_equal(stats.n_step, stats.phase[STEP_PREFILL].n_step +
                                       stats.phase[STEP_DECODE].n_step +
                                       stats.phase[STEP_MIXED].n_step);
    assert_true(stats.phase[STEP_PREFILL].n_step && stats.phase[STEP_MIXED].n_step);
    assert_int_equal(stats.n_running, 0);
    assert_int_equal(stats.n_ended, 5);
    scheduler_destroy(fixture.scheduler);
}

static void test_short_prompts_share_a_step(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[4];
    int32_t prompts[4][4];
    open_fixture(&fixture, 4, 1, true);
    for (int32_t i = 0; i < 4; i++) {
        fill(prompts[i], 4, 1000 * i);
        submit(&fixture, &calls[i], prompts[i], 4, 1);
    }
    run_all(&fixture);
    assert_int_equal(scheduler_stats(fixture.scheduler).n_step, 1);
    assert_int_equal(fixture.fake.n_reader_max, 4);
    scheduler_destroy(fixture.scheduler);
}

static void test_priority_comes_before_arrival(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[3];
    int32_t prompts[3][60];
    open_fixture(&fixture, 1, 1, true);
    for (int32_t i = 0; i < 3; i++) {
        fill(prompts[i], 60, 1000 * i);
        init_call(&calls[i], prompts[i], 60, 2);
        calls[i].request.priority = i == 2 ? -1 : 0;
        submit_call(&fixture, &calls[i]);
    }
    run_all(&fixture);
    assert_true(calls[2].request.start_s < calls[0].request.start_s);
    assert_true(calls[0].request.start_s < calls[1].request.start_s);
    scheduler_destroy(fixture.scheduler);
}

/* The last of three, before all others, shares its prompt with the one behind all others. */
static void test_a_lower_priority_is_not_waited_for(void **state)
{
    (void)state;
    static const int32_t priority[3] = {1, 0, -1};
    struct fixture fixture;
    struct call calls[3];
    int32_t prompts[3][90];
    open_fixture(&fixture, 3, 1, true);
    for (int32_t i = 0; i < 3; i++) {
        fill(prompts[i], 90, i == 1 ? 5000 : 0);
        init_call(&calls[i], prompts[i], 90, 1);
        calls[i].request.priority = priority[i];
        submit_call(&fixture, &calls[i]);
        if (i == 0) assert_true(scheduler_step(fixture.scheduler));
    }
    run_all(&fixture);
    assert_true(calls[2].request.prefill_end_s < calls[1].request.prefill_end_s);
    assert_true(calls[1].request.prefill_end_s < calls[0].request.prefill_end_s);
    assert_int_equal(calls[2].request.n_cached, CHUNK);
    scheduler_destroy(fixture.scheduler);
}

/* ---- reuse -------------------------------------------------------------------------------- */

static void test_states_that_can_be_cut_serve_every_prefix(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t a[100], b[100], c[100];
    open_fixture(&fixture, 1, 3, true);
    fill(a, 100, 0), fill(b, 100, 5000), fill(c, 100, 9000);
    assert_int_equal(cached(&fixture, a, 80, 4), 0);
    assert_int_equal(cached(&fixture, b, 80, 4), 0);
    assert_int_equal(cached(&fixture, a, 100, 4), 80);
    assert_int_equal(cached(&fixture, a, 100, 4), 99); /* the last token is read for its logits */
    a[60] = 77777;
    assert_int_equal(cached(&fixture, a, 100, 4), 60);
    assert_int_equal(cached(&fixture, b, 50, 4), 49); /* in place of the first a */
    assert_int_equal(cached(&fixture, c, 80, 4), 0);
    assert_int_equal(cached(&fixture, b, 50, 4), 49);
    scheduler_destroy(fixture.scheduler);
}

/* Where states cannot be cut, they are kept where turns begin, before the last token, at the end
 * and, once a request has left a sequence there, where it did. */
static void test_checkpoints_serve_what_cannot_be_cut(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    int32_t ids[200];
    open_fixture(&fixture, 1, 8, false);
    fill(ids, 200, 0);
    init_call(&call, ids, 120, 4);
    const size_t turn = 50;
    call.request.turns = &turn;
    call.request.n_turn = 1;
    submit_call(&fixture, &call), run_all(&fixture);
    assert_int_equal(fixture.fake.n_fork, 2); /* before token 50, and before the last one */
    assert_int_equal(cached(&fixture, ids, 120, 4), 119);
    memcpy(ids, call.ids, 124 * sizeof(*ids)); /* the answer, the last token was not read */
    assert_int_equal(cached(&fixture, ids, 180, 4), 123);
    ids[90] = 77777;
    assert_int_equal(cached(&fixture, ids, 120, 4), 50);
    ids[90] = 88888;
    assert_int_equal(cached(&fixture, ids, 120, 4), 90); /* a branch since the last one */
    ids[20] = 77777;
    assert_int_equal(cached(&fixture, ids, 120, 4), 0);
    scheduler_destroy(fixture.scheduler);
}

static void test_checkpoints_come_in_steps(void **state)
{
    (void)state;
    struct fixture fixture;
    struct lm_error err;
    int32_t ids[300];
    open_fixture(&fixture, 1, 8, false);
    scheduler_destroy(fixture.scheduler);
    const struct scheduler_config config = {.runner = &fixture.runner,
                                            .n_slot = 1,
                                            .n_parked = 8,
                                            .n_ctx = N_CTX,
                                            .prefill_chunk = CHUNK,
                                            .checkpoint_every = 100};
    assert_int_equal(scheduler_create(&fixture.scheduler, &config, &err), LM_OK);
    fill(ids, 300, 0);
    assert_int_equal(cached(&fixture, ids, 290, 1), 0);
    ids[250] = 77777;
    assert_int_equal(cached(&fixture, ids, 290, 1), 200);
    ids[150] = 77777;
    assert_int_equal(cached(&fixture, ids, 290, 1), 100);
    scheduler_destroy(fixture.scheduler);
}

/* The least recently used state goes, but one where sequences part stays as long as they do. */
static void test_the_common_beginning_outlives_its_branches(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t ids[150];
    open_fixture(&fixture, 1, 4, false);
    fill(ids, 150, 0);
    for (int32_t i = 0; i < 12; i++) {
        ids[100] = 10000 * (i + 1);
        const size_t n = cached(&fixture, ids, 150, 3);
        assert_int_equal(n, i >= 2 ? 100 : 0);
    }
    const struct scheduler_stats stats = scheduler_stats(fixture.scheduler);
    assert_true(stats.n_evicted_state > 0);
    assert_int_equal(stats.n_state, 5);
    assert_int_equal(stats.state_bytes, 5000);
    assert_int_equal(stats.n_prompt_token, 12 * 150);
    assert_int_equal(stats.n_hit_token, 10 * 100);
    scheduler_destroy(fixture.scheduler);
}

/* Several samples of one prompt, and prompts with a common beginning: that is read once. */
static void share_while_reading(bool can_cut)
{
    struct fixture fixture;
    struct call calls[8];
    int32_t ids[8][120];
    open_fixture(&fixture, 4, 2, can_cut);
    for (int i = 0; i < 4; i++) {
        fill(ids[i], 100, 0);
        submit(&fixture, &calls[i], ids[i], 100, 5);
    }
    run_all(&fixture);
    assert_int_equal(fixture.fake.n_token, 99 + 4 + 4 * 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(calls[i].request.n_cached, i ? 99 : 0);
    assert_int_equal(fixture.fake.n_seq_max, 4);

    fixture.fake.n_token = 0;
    for (int32_t i = 0; i < 8; i++) {
        fill(ids[i], 120, 5000);
        ids[i][80] = 100000 + i;
        submit(&fixture, &calls[i], ids[i], 120, 1);
    }
    run_all(&fixture);
    assert_int_equal(fixture.fake.n_token, 80 + 8 * 40);
    for (int i = 0; i < 8; i++)
        assert_int_equal(calls[i].request.status, LM_OK);
    scheduler_destroy(fixture.scheduler);
}

static void test_what_is_being_read_is_waited_for(void **state)
{
    (void)state;
    share_while_reading(true);
    share_while_reading(false);
}

/* The one who reads for others leaves: what it has read is used, the rest is read by the next. */
static void test_a_reader_that_leaves_is_replaced(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[2];
    int32_t ids[200];
    open_fixture(&fixture, 2, 2, false);
    fill(ids, 200, 0);
    submit(&fixture, &calls[0], ids, 200, 5);
    submit(&fixture, &calls[1], ids, 200, 5);
    for (int i = 0; i < 4; i++)
        assert_true(scheduler_step(fixture.scheduler));
    atomic_store(&calls[0].request.cancelled, true);
    run_all(&fixture);
    assert_int_equal(calls[0].n_ended, 1);
    assert_int_equal(calls[0].n_token, 0);
    assert_int_equal(calls[1].request.n_cached, 4 * CHUNK);
    assert_int_equal(calls[1].n_token, 5);
    scheduler_destroy(fixture.scheduler);
}

static void test_keys_and_no_cache_keep_apart(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    int32_t ids[100];
    open_fixture(&fixture, 1, 4, true);
    fill(ids, 100, 0);
    init_call(&call, ids, 100, 2);
    call.request.no_cache = true;
    submit_call(&fixture, &call), run_all(&fixture);
    assert_int_equal(scheduler_stats(fixture.scheduler).n_state, 0);
    for (uint64_t key = 0; key < 3; key++) {
        init_call(&call, ids, 100, 2);
        call.request.cache_key = key;
        submit_call(&fixture, &call), run_all(&fixture);
        assert_int_equal(call.request.n_cached, 0);
    }
    init_call(&call, ids, 100, 2);
    call.request.cache_key = 1;
    submit_call(&fixture, &call), run_all(&fixture);
    assert_int_equal(call.request.n_cached, 99);
    init_call(&call, ids, 100, 2);
    call.request.no_cache = true;
    submit_call(&fixture, &call), run_all(&fixture);
    assert_int_equal(call.request.n_cached, 0);
    scheduler_destroy(fixture.scheduler);
}

/* ---- log-probabilities of prompts --------------------------------------------------------- */

static size_t likelihood(struct fixture *fixture, const int32_t *prompt, size_t n, int32_t n_top)
{
    struct call call;
    init_call(&call, prompt, n, 1);
    call.request.on_prompt_token = on_prompt_token;
    call.request.n_prompt_logprob = call.n_top = n_top;
    submit_call(fixture, &call), run_all(fixture);
    assert_int_equal(call.request.status, LM_OK);
    assert_int_equal(call.n_prompt_token, n - 1);
    assert_int_equal(call.n_token, 1);
    return call.request.n_cached;
}

static void test_log_probabilities_are_kept_with_the_prompt(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t ids[100];
    open_fixture(&fixture, 1, 4, true);
    fill(ids, 100, 0);
    assert_int_equal(cached(&fixture, ids, 60, 1), 0);
    assert_int_equal(likelihood(&fixture, ids, 60, 1), 0); /* kept without them */
    assert_int_equal(likelihood(&fixture, ids, 60, 1), 59);
    assert_int_equal(likelihood(&fixture, ids, 60, 5), 59);
    assert_int_equal(likelihood(&fixture, ids, 60, 6), 0); /* more than was kept */
    assert_int_equal(likelihood(&fixture, ids, 60, 0), 59);
    assert_int_equal(likelihood(&fixture, ids, 100, 2), 59);
    ids[40] = 77777; /* its log-probability is behind token 39 */
    assert_int_equal(likelihood(&fixture, ids, 100, 2), 39);
    assert_int_equal(cached(&fixture, ids, 100, 1), 99);
    assert_int_equal(likelihood(&fixture, ids, 1, 2), 0);
    assert_int_equal(likelihood(&fixture, ids, 2, 2), 1);
    scheduler_destroy(fixture.scheduler);
}

/* Many continuations of one context at once: the context is read once. */
static void score_continuations(bool can_cut)
{
    struct fixture fixture;
    struct call calls[12];
    int32_t ids[12][110];
    open_fixture(&fixture, 4, 2, can_cut);
    for (int32_t i = 0; i < 12; i++) {
        fill(ids[i], 110, 0);
        ids[i][100] = 100000 + i;
        init_call(&calls[i], ids[i], 101 + (size_t)i % 3, 1);
        calls[i].request.on_prompt_token = on_prompt_token;
        calls[i].request.n_prompt_logprob = calls[i].n_top = 1;
        submit_call(&fixture, &calls[i]);
    }
    run_all(&fixture);
    for (int i = 0; i < 12; i++) {
        assert_int_equal(calls[i].n_prompt_token, calls[i].request.n_prompt - 1);
        assert_int_equal(calls[i].n_token, 1);
        assert_int_equal(calls[i].request.n_cached, i ? 99 : 0);
    }
    scheduler_destroy(fixture.scheduler);
}

static void test_continuations_share_their_context(void **state)
{
    (void)state;
    score_continuations(true);
    score_continuations(false);
}

/* ---- memory and failures ------------------------------------------------------------------ */

static void test_room_is_made_by_giving_up_what_is_kept(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t a[150], b[150];
    open_fixture(&fixture, 2, 1, true);
    fixture.fake.room = 180;
    fill(a, 150, 0), fill(b, 150, 7000);
    assert_int_equal(cached(&fixture, a, 100, 4), 0);
    assert_int_equal(cached(&fixture, b, 150, 4), 0);
    assert_int_equal(scheduler_stats(fixture.scheduler).n_evicted_kv, 1);
    scheduler_destroy(fixture.scheduler);
}

/* If running sequences alone do not fit, which planning excludes, the last one gives way. */
static void test_the_last_one_gives_way(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call first, second;
    int32_t a[90], b[90];
    open_fixture(&fixture, 2, 1, true);
    fixture.fake.room = 120;
    fill(a, 90, 0), fill(b, 90, 7000);
    submit(&fixture, &first, a, 90, 20);
    submit(&fixture, &second, b, 90, 4);
    run_all(&fixture);
    assert_int_equal(first.request.status, LM_OK);
    assert_int_equal(first.n_token, 20);
    assert_int_equal(second.request.status, LM_E_LIMIT);
    scheduler_destroy(fixture.scheduler);
}

/* A step that fails ends the requests in it, with the error, and the slot is clean again. */
static void test_a_failed_step_ends_its_requests(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call first, second;
    int32_t ids[100];
    open_fixture(&fixture, 1, 1, true);
    fill(ids, 100, 0);
    submit(&fixture, &first, ids, 100, 4);
    submit(&fixture, &second, ids, 100, 4);
    scheduler_step(fixture.scheduler);
    fixture.fake.fail_with = LM_E_IO;
    run_all(&fixture);
    assert_int_equal(first.request.status, LM_E_IO);
    assert_string_equal(first.request.error.message, "the step fails");
    assert_int_equal(first.request.n_generated, 0);
    assert_int_equal(second.request.status, LM_OK);
    assert_int_equal(second.request.n_cached, 0);
    assert_int_equal(second.request.n_generated, 4);
    scheduler_destroy(fixture.scheduler);
}

static void test_a_failed_sequence_ends_alone(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[3];
    int32_t ids[3][20];
    open_fixture(&fixture, 3, 1, true);
    for (int32_t i = 0; i < 3; i++) {
        fill(ids[i], 20, 1000 * i);
        submit(&fixture, &calls[i], ids[i], 20, 100);
    }
    while (calls[2].n_token < 3)
        scheduler_step(fixture.scheduler);
    fixture.fake.bad_slot = 1;
    run_all(&fixture);
    int n_failed = 0;
    for (int i = 0; i < 3; i++) {
        n_failed += calls[i].request.status == LM_E_FAIL;
        if (calls[i].request.status == LM_OK) assert_int_equal(calls[i].n_token, 100);
    }
    assert_int_equal(n_failed, 1);
    scheduler_destroy(fixture.scheduler);
}

/* ---- several steps under way -------------------------------------------------------------- */

/* Those who generate are dealt out in as many parts as can be under way. */
static void test_parts_overlap(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[6];
    int32_t prompts[6][8];
    open_deep(&fixture, 3, 6, 1, true);
    for (int32_t i = 0; i < 6; i++) {
        fill(prompts[i], 8, 1000 * i);
        submit(&fixture, &calls[i], prompts[i], 8, 40);
    }
    while (calls[0].n_token < 20)
        scheduler_step(fixture.scheduler);
    fixture.fake.n_seq_max = 0;
    run_all(&fixture);
    assert_int_equal(fixture.fake.n_seq_max, 2);
    assert_int_equal(fixture.fake.n_begun_max, 3);
    assert_int_equal(scheduler_stats(fixture.scheduler).n_under_way_max, 3);
    for (int i = 0; i < 6; i++)
        assert_int_equal(calls[i].n_token, 40);
    scheduler_destroy(fixture.scheduler);
}

/* Parts are alike as far as can be, also when their number does not divide. */
static void test_parts_are_alike(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[5];
    int32_t prompts[5][8];
    open_deep(&fixture, 4, 5, 1, true);
    for (int32_t i = 0; i < 5; i++) {
        fill(prompts[i], 8, 1000 * i);
        submit(&fixture, &calls[i], prompts[i], 8, 40);
    }
    while (calls[4].n_token < 8)
        scheduler_step(fixture.scheduler);
    for (int round = 0; round < 20; round++) {
        scheduler_step(fixture.scheduler);
        assert_true(fixture.fake.n_begun - fixture.fake.n_ended >= 3);
        for (uint32_t i = fixture.fake.n_ended; i < fixture.fake.n_begun; i++) {
            const uint32_t n = fixture.fake.begun[i % FAKE_DEPTH].n_seq;
            assert_true(n == 1 || n == 2);
        }
    }
    run_all(&fixture);
    scheduler_destroy(fixture.scheduler);
}

/* Chunks of one prompt follow each other without waiting, shorter ones than alone. */
static void test_chunks_overlap(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    int32_t ids[40];
    open_deep(&fixture, 4, 1, 1, true);
    fill(ids, 40, 0);
    submit(&fixture, &call, ids, 40, 1);
    scheduler_step(fixture.scheduler);
    assert_int_equal(fixture.fake.n_begun, 4);
    assert_int_equal(fixture.fake.n_ended, 1);
    assert_int_equal(fixture.fake.n_token, 40);
    run_all(&fixture);
    assert_int_equal(call.n_token, 1);
    scheduler_destroy(fixture.scheduler);
}

/* Where a state is to be kept that cannot be cut, nobody reads on before it is. */
static void test_chunks_wait_for_checkpoints(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    int32_t ids[60];
    const size_t turn = 30;
    open_deep(&fixture, 4, 1, 8, false);
    fill(ids, 60, 0);
    init_call(&call, ids, 60, 1);
    call.request.turns = &turn;
    call.request.n_turn = 1;
    submit_call(&fixture, &call), run_all(&fixture);
    assert_true(fixture.fake.n_begun_max > 1);
    ids[30] = 7; /* another turn behind the same beginning */
    assert_int_equal(cached(&fixture, ids, 60, 1), 30);
    scheduler_destroy(fixture.scheduler);
}

/* A chunk that fails takes those behind it along; nothing of them is kept. */
static void test_a_failed_chunk_ends_those_behind_it(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    int32_t ids[60];
    open_deep(&fixture, 4, 1, 1, true);
    fill(ids, 60, 0);
    init_call(&call, ids, 60, 1);
    call.request.on_prompt_token = on_prompt_token;
    submit_call(&fixture, &call);
    fixture.fake.fail_with = LM_E_IO;
    run_all(&fixture);
    assert_int_equal(fixture.fake.n_begun_max, 4);
    assert_int_equal(call.n_ended, 1);
    assert_int_equal(call.request.status, LM_E_IO);
    assert_int_equal(call.n_prompt_token, 0);
    assert_int_equal(cached(&fixture, ids, 60, 1), 0);
    scheduler_destroy(fixture.scheduler);
}

/* ---- ends --------------------------------------------------------------------------------- */

static void test_cancelled_requests_leave(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call running, waiting;
    int32_t ids[100];
    open_fixture(&fixture, 1, 1, true);
    fill(ids, 100, 0);
    submit(&fixture, &running, ids, 20, 50);
    submit(&fixture, &waiting, ids, 90, 50);
    while (running.n_token < 3)
        scheduler_step(fixture.scheduler);
    atomic_store(&waiting.request.cancelled, true);
    assert_true(scheduler_step(fixture.scheduler)); /* the queue is left while the place is taken */
    assert_int_equal(waiting.n_ended, 1);
    atomic_store(&running.request.cancelled, true);
    assert_false(scheduler_step(fixture.scheduler));
    assert_int_equal(running.n_ended, 1);
    assert_int_equal(running.request.n_generated, 4);
    assert_int_equal(waiting.request.n_generated, 0);
    scheduler_destroy(fixture.scheduler);
}

static void test_prompts_are_held_to_the_context(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    struct lm_error err;
    int32_t ids[N_CTX];
    open_fixture(&fixture, 1, 1, true);
    fill(ids, N_CTX, 0);
    init_call(&call, ids, N_CTX, 1);
    call.request.n_prompt = N_CTX + 1;
    assert_int_equal(scheduler_submit(fixture.scheduler, &call.request, &err), LM_E_LIMIT);
    submit(&fixture, &call, ids, N_CTX, 100), run_all(&fixture);
    assert_int_equal(call.request.n_generated, 1); /* behind the last position, never read */
    submit(&fixture, &call, ids, 30, 0), run_all(&fixture);
    assert_int_equal(call.request.n_generated, 0);
    scheduler_destroy(fixture.scheduler);
}

/* ---- all together ------------------------------------------------------------------------- */

static uint32_t draw(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Random requests over few beginnings, with little room, cancelled and failing at random: each one
 * that succeeds got exactly its own tokens (checked as they come). */
static void test_random_requests(void **state)
{
    (void)state;
    enum { N_CALL = 24, N_ROUND = 120 };
    uint32_t n_deep = 0;
    static struct call calls[N_CALL];
    static int32_t ids[N_CALL][N_CTX];
    for (uint32_t round = 0; round < N_ROUND; round++) {
        struct fixture fixture;
        uint32_t seed = round * 77 + 1, n_done = 0;
        const uint32_t n_slot = 1 + draw(&seed) % 6, n_parked = draw(&seed) % 8;
        open_deep(&fixture, 1 + round / 2 % FAKE_DEPTH, n_slot, n_parked, round % 2);
        fixture.fake.room = N_CTX * (1 + draw(&seed) % 4);
        for (uint32_t i = 0; i < N_CALL; i++) {
            const uint32_t shared = draw(&seed) % 150, n = shared + 1 + draw(&seed) % 60;
            fill(ids[i], shared, (int32_t)(draw(&seed) % 2 * 1000));
            fill(ids[i] + shared, n - shared, (int32_t)(draw(&seed) % 5));
            init_call(&calls[i], ids[i], n, draw(&seed) % 20);
            struct request *request = &calls[i].request;
            request->no_cache = draw(&seed) % 10 == 0;
            request->cache_key = draw(&seed) % 8 == 0;
            request->priority = (int32_t)(draw(&seed) % 2);
            if (draw(&seed) % 2) {
                request->on_prompt_token = on_prompt_token;
                request->n_prompt_logprob = calls[i].n_top = (int32_t)(draw(&seed) % 7);
            }
            submit_call(&fixture, &calls[i]);
            if (draw(&seed) % 20 == 0)
                atomic_store(&calls[draw(&seed) % (i + 1)].request.cancelled, true);
            if (draw(&seed) % 20 == 0) fixture.fake.fail_with = LM_E_IO;
            if (draw(&seed) % 3 == 0) scheduler_step(fixture.scheduler);
        }
        run_all(&fixture);
        for (uint32_t i = 0; i < N_CALL; i++) {
            const struct request *request = &calls[i].request;
            assert_int_equal(calls[i].n_ended, 1);
            if (request->status != LM_OK || atomic_load(&request->cancelled)) continue;
            assert_int_equal(calls[i].n_token, request->n_max);
            if (request->on_prompt_token)
                assert_int_equal(calls[i].n_prompt_token, request->n_prompt - 1);
            n_done++;
        }
        assert_true(n_done >= N_CALL / 3);
        const struct scheduler_stats stats = scheduler_stats(fixture.scheduler);
        assert_int_equal(stats.n_running + stats.n_waiting, 0);
        assert_int_equal(fixture.fake.n_begun, fixture.fake.n_ended);
        n_deep += stats.n_under_way_max == FAKE_DEPTH;
        scheduler_destroy(fixture.scheduler);
    }
    assert_true(n_deep > N_ROUND / FAKE_DEPTH / 2);
}

/* ---- drafts ------------------------------------------------------------------------------- */

static void fill_repeating(int32_t *ids, size_t n, int32_t seed)
{
    ids[0] = FAKE_REPEATS;
    for (size_t i = 1; i < n; i++)
        ids[i] = seed + (int32_t)(i % FAKE_PERIOD);
}

/* on_token holds every token against what is sampled without drafts. */
static void check_drafts(enum drafting prompt_lookup, enum drafting mtp)
{
    for (uint32_t depth = 1; depth <= FAKE_DEPTH; depth += 3) {
        for (uint32_t n_draft = 1; n_draft <= STEP_DRAFT_MAX; n_draft += 7) {
            struct fixture fixture;
            struct call calls[6];
            int32_t prompts[6][60];
            size_t n_draft_sum = 0, n_accepted_sum = 0;
            open_drafting(&fixture, depth, 3, n_draft & 2, prompt_lookup, mtp, n_draft);
            for (int32_t i = 0; i < 6; i++) {
                fill_repeating(prompts[i], 60, 1000 * i);
                submit(&fixture, &calls[i], prompts[i], 40 + (size_t)i, 100 + 40 * (uint32_t)i);
            }
            run_all(&fixture);
            for (int i = 0; i < 6; i++) {
                const struct request *request = &calls[i].request;
                assert_int_equal(request->status, LM_OK);
                assert_int_equal(request->n_generated, request->n_max);
                assert_int_equal(calls[i].n_token, request->n_max);
                assert_true(request->n_draft_accepted > 0);
                assert_true(request->n_draft_accepted < request->n_draft);
                n_draft_sum += request->n_draft;
                n_accepted_sum += request->n_draft_accepted;
            }
            const struct scheduler_stats stats = scheduler_stats(fixture.scheduler);
            assert_int_equal(stats.n_draft, n_draft_sum);
            assert_int_equal(stats.n_draft_accepted, n_accepted_sum);
            assert_true(fixture.fake.n_token_max <= CHUNK + 3);
            scheduler_destroy(fixture.scheduler);
        }
    }
}

static void test_drafts_change_no_token(void **state)
{
    (void)state;
    check_drafts(DRAFTING_ON, DRAFTING_OFF);
    check_drafts(DRAFTING_OFF, DRAFTING_ON);
    check_drafts(DRAFTING_ON, DRAFTING_ON);
}

/* One sequence without, one to see, then what was faster. */
static void test_the_runner_drafts_once_that_was_faster(void **state)
{
    (void)state;
    struct fixture fixture;
    open_drafting(&fixture, 1, 1, true, DRAFTING_OFF, DRAFTING_AUTO, 8);
    for (int32_t i = 0; i < 4; i++) {
        struct call call;
        int32_t prompt[40];
        fill_repeating(prompt, 40, 500 * i);
        submit(&fixture, &call, prompt, 40, 120), run_all(&fixture);
        assert_int_equal(call.request.status, LM_OK);
        assert_int_equal(call.n_token, 120);
        if (i == 0) assert_int_equal(call.request.n_draft, 0);
        if (i == 1) assert_true(call.request.n_draft_accepted > 0);
    }
    scheduler_destroy(fixture.scheduler);
}

/* A state that ends inside drafts is kept as one that never had any. */
static void test_prefix_behind_drafts(void **state)
{
    (void)state;
    size_t n_cached[2][8];
    for (int drafts = 0; drafts < 2; drafts++) {
        for (int i = 0; i < 8; i++) {
            struct fixture fixture;
            struct call call;
            int32_t prompt[40];
            fill_repeating(prompt, 40, 5);
            open_drafting(&fixture, 1, 2, i & 1, drafts ? DRAFTING_ON : DRAFTING_OFF, DRAFTING_OFF,
                          8);
            submit(&fixture, &call, prompt, 40, 50 + (uint32_t)i), run_all(&fixture);
            n_cached[drafts][i] = cached(&fixture, call.ids, 40 + 50 + (size_t)i, 20);
            assert_int_equal(scheduler_stats(fixture.scheduler).n_draft_accepted > 0, drafts);
            scheduler_destroy(fixture.scheduler);
        }
    }
    assert_memory_equal(n_cached[0], n_cached[1], sizeof(n_cached[0]));
}

/* Stops, or is steered, at one token after the other: most of them were accepted drafts. */
struct steered {
    struct call call;
    uint32_t n_stop, n_steer;
};

static bool on_token_steered(void *context, const struct sampled_token *token)
{
    static const uint32_t anything;
    struct steered *steered = context;
    struct call *call = &steered->call;
    on_token(call, token);
    call->request.sampling.allowed = call->n_token == steered->n_steer ? &anything : NULL;
    return call->n_token != steered->n_stop;
}

static void test_stop_and_steer_inside_drafts(void **state)
{
    (void)state;
    int32_t prompt[40];
    fill_repeating(prompt, 40, 5);
    for (uint32_t i = 1; i < 40; i++) {
        struct fixture fixture;
        struct steered steered = {.n_stop = i + 5, .n_steer = i};
        open_drafting(&fixture, 1, 1, true, DRAFTING_ON, DRAFTING_OFF, 8);
        init_call(&steered.call, prompt, 40, 100);
        steered.call.request.on_token = on_token_steered;
        submit_call(&fixture, &steered.call), run_all(&fixture);
        assert_int_equal(steered.call.n_token, i + 5);
        assert_true(steered.call.request.stopped);
        assert_int_equal(fixture.fake.length[0] + fixture.fake.length[1], 40 + i + 5 - 1);
        scheduler_destroy(fixture.scheduler);
    }
}

/* A prompt is read beside sequences whose drafts would fill each step. */
static void test_drafts_leave_room_for_prompts(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[3];
    int32_t prompts[3][60];
    open_drafting(&fixture, 1, 3, true, DRAFTING_ON, DRAFTING_OFF, 8);
    for (int32_t i = 0; i < 3; i++)
        fill_repeating(prompts[i], 60, 1000 * i);
    for (int i = 0; i < 2; i++)
        submit(&fixture, &calls[i], prompts[i], 40, 300);
    while (calls[0].n_token < 60)
        scheduler_step(fixture.scheduler);
    submit(&fixture, &calls[2], prompts[2], 60, 10);
    while (!calls[2].n_token) {
        scheduler_step(fixture.scheduler);
        assert_int_equal(scheduler_stats(fixture.scheduler).last.phase, STEP_MIXED);
    }
    run_all(&fixture);
    for (int i = 0; i < 3; i++)
        assert_int_equal(calls[i].request.n_generated, calls[i].request.n_max);
    assert_true(fixture.fake.n_token_max <= CHUNK + 3);
    scheduler_destroy(fixture.scheduler);
}

/* Drafts are given up before anything else is. */
static void test_drafts_take_no_room(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    int32_t prompt[40];
    fill_repeating(prompt, 40, 5);
    open_drafting(&fixture, 1, 1, true, DRAFTING_ON, DRAFTING_OFF, 8);
    fixture.fake.room = 100;
    submit(&fixture, &call, prompt, 40, 61), run_all(&fixture);
    assert_int_equal(call.request.status, LM_OK);
    assert_int_equal(call.n_token, 61);
    scheduler_destroy(fixture.scheduler);
}

/* The context ends as it does without. */
static void test_drafts_at_the_end_of_the_context(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call call;
    int32_t prompt[40];
    fill_repeating(prompt, 40, 5);
    open_drafting(&fixture, 1, 1, true, DRAFTING_ON, DRAFTING_OFF, 15);
    submit(&fixture, &call, prompt, 40, UINT32_MAX), run_all(&fixture);
    assert_int_equal(call.request.status, LM_OK);
    assert_int_equal(call.n_token, N_CTX - 40 + 1);
    scheduler_destroy(fixture.scheduler);
}

/* A sequence fails alone behind drafts, and while drafts are under way it is cancelled. */
static void test_failure_and_cancel_with_drafts(void **state)
{
    (void)state;
    struct fixture fixture;
    struct call calls[2];
    int32_t prompts[2][40];
    open_drafting(&fixture, FAKE_DEPTH, 2, true, DRAFTING_ON, DRAFTING_OFF, 8);
    for (int32_t i = 0; i < 2; i++) {
        fill_repeating(prompts[i], 40, 500 * i);
        submit(&fixture, &calls[i], prompts[i], 40, 200);
    }
    while (calls[0].n_token < 30 || calls[1].n_token < 30)
        scheduler_step(fixture.scheduler);
    atomic_store(&calls[0].request.cancelled, true);
    fixture.fake.bad_slot = 1;
    run_all(&fixture);
    assert_int_equal(calls[0].n_ended + calls[1].n_ended, 2);
    assert_true(calls[0].request.status == LM_OK || calls[1].request.status == LM_OK);
    assert_true(calls[0].request.status != LM_OK || calls[1].request.status != LM_OK);
    scheduler_destroy(fixture.scheduler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_mix_decoding_and_reading),
        cmocka_unit_test(test_short_prompts_share_a_step),
        cmocka_unit_test(test_priority_comes_before_arrival),
        cmocka_unit_test(test_a_lower_priority_is_not_waited_for),
        cmocka_unit_test(test_states_that_can_be_cut_serve_every_prefix),
        cmocka_unit_test(test_checkpoints_serve_what_cannot_be_cut),
        cmocka_unit_test(test_checkpoints_come_in_steps),
        cmocka_unit_test(test_the_common_beginning_outlives_its_branches),
        cmocka_unit_test(test_what_is_being_read_is_waited_for),
        cmocka_unit_test(test_a_reader_that_leaves_is_replaced),
        cmocka_unit_test(test_keys_and_no_cache_keep_apart),
        cmocka_unit_test(test_log_probabilities_are_kept_with_the_prompt),
        cmocka_unit_test(test_continuations_share_their_context),
        cmocka_unit_test(test_room_is_made_by_giving_up_what_is_kept),
        cmocka_unit_test(test_the_last_one_gives_way),
        cmocka_unit_test(test_a_failed_step_ends_its_requests),
        cmocka_unit_test(test_a_failed_sequence_ends_alone),
        cmocka_unit_test(test_parts_overlap),
        cmocka_unit_test(test_parts_are_alike),
        cmocka_unit_test(test_chunks_overlap),
        cmocka_unit_test(test_chunks_wait_for_checkpoints),
        cmocka_unit_test(test_a_failed_chunk_ends_those_behind_it),
        cmocka_unit_test(test_cancelled_requests_leave),
        cmocka_unit_test(test_prompts_are_held_to_the_context),
        cmocka_unit_test(test_random_requests),
        cmocka_unit_test(test_drafts_change_no_token),
        cmocka_unit_test(test_the_runner_drafts_once_that_was_faster),
        cmocka_unit_test(test_prefix_behind_drafts),
        cmocka_unit_test(test_stop_and_steer_inside_drafts),
        cmocka_unit_test(test_drafts_leave_room_for_prompts),
        cmocka_unit_test(test_drafts_take_no_room),
        cmocka_unit_test(test_drafts_at_the_end_of_the_context),
        cmocka_unit_test(test_failure_and_cancel_with_drafts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
