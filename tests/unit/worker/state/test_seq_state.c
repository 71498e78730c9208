/* Sequences share what they have in common, and what one of them writes no other one sees. */
#include "tests/unit/cmocka_all.h"

#include "proto/model/hparams.h"
#include "worker/state/seq_state.h"

enum { N_CTX = 1024, WINDOW = 200, BATCH = 64 };

/* Layer 0 sees everything, layer 1 a window, layer 2 is recurrent if asked for. */
static struct hparams *shape(bool recurrent)
{
    static struct hparams hp;
    hp = (struct hparams){.n_layer = recurrent ? 3 : 2,
                          .head_dim = 16,
                          .n_conv = 4,
                          .dim_k = 8,
                          .dim_v = 8,
                          .n_head_k = 1,
                          .n_head_v = 2};
    hp.layer[0] = (struct layer_hparams){.n_head = 2, .n_head_kv = 1};
    hp.layer[1] = (struct layer_hparams){.n_head = 2, .n_head_kv = 1, .window = WINDOW};
    hp.layer[2] = (struct layer_hparams){.recurrent = true};
    return &hp;
}

struct fixture {
    struct backend *backend;
    struct seq_state *state;
};

static void open_lending_fixture(struct fixture *fixture, const struct hparams *hp, uint32_t n_slot,
                                 uint64_t n_position, uint64_t n_position_ready)
{
    struct lm_error err;
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "ref"};
    const struct seq_state_config config = {.layer_end = hp->n_layer,
                                            .n_slot = n_slot,
                                            .n_ctx = N_CTX,
                                            .n_position = n_position,
                                            .n_position_ready = n_position_ready,
                                            .n_batch = BATCH,
                                            .kv_type = TENSOR_F32};
    assert_int_equal(backend_cpu_create(&fixture->backend, &cpu, &err), LM_OK);
    assert_int_equal(seq_state_create(&fixture->state, fixture->backend, hp, &config, &err), LM_OK);
}

static void open_fixture(struct fixture *fixture, const struct hparams *hp, uint32_t n_slot,
                         uint64_t n_position)
{
    open_lending_fixture(fixture, hp, n_slot, n_position, 0);
}

static void close_fixture(struct fixture *fixture)
{
    seq_state_destroy(fixture->state);
    fixture->backend->ops->destroy(fixture->backend);
}

static float *cell(struct fixture *fixture, uint32_t il, uint32_t slot, uint32_t pos)
{
    float *block = seq_state_kv_blocks(fixture->state, il)[slot][pos / KV_BLOCK];
    assert_non_null(block);
    return block + (size_t)(pos % KV_BLOCK) * 16;
}

/* What a step would do to n more positions: each cell of each layer gets a mark. */
static enum lm_status extend(struct fixture *fixture, uint32_t slot, uint32_t n, float mark)
{
    struct lm_error err;
    const enum lm_status status = seq_state_reserve(fixture->state, slot, n, 0, &err);
    if (status != LM_OK) return status;
    const uint32_t begin = seq_state_length(fixture->state, slot);
    for (uint32_t pos = begin; pos < begin + n; pos++) {
        *cell(fixture, 0, slot, pos) = mark + (float)pos;
        *cell(fixture, 1, slot, pos) = mark - (float)pos;
    }
    seq_state_advance(fixture->state, slot, n);
    return LM_OK;
}

static enum lm_status extend_in_batches(struct fixture *fixture, uint32_t slot, uint32_t n,
                                        float mark)
{
    enum lm_status status = LM_OK;
    for (uint32_t done = 0; done < n && status == LM_OK; done += BATCH)
        status = extend(fixture, slot, n - done < BATCH ? n - done : BATCH, mark);
    return status;
}

static void assert_marked(struct fixture *fixture, uint32_t slot, uint32_t begin, uint32_t end,
                          float mark)
{
    const uint32_t length = seq_state_length(fixture->state, slot);
    for (uint32_t pos = begin; pos < end; pos++) {
        assert_true(*cell(fixture, 0, slot, pos) == mark + (float)pos);
        if (pos + WINDOW > length) assert_true(*cell(fixture, 1, slot, pos) == mark - (float)pos);
    }
}

static void fork_whole(struct fixture *fixture, uint32_t from, uint32_t to)
{
    const uint32_t n = seq_state_length(fixture->state, from);
    assert_int_equal(seq_state_fork(fixture->state, from, to, n, NULL), LM_OK);
}

static void test_forks_share_and_part(void **state)
{
    (void)state;
    struct fixture fixture;
    open_fixture(&fixture, shape(false), 3, 3 * N_CTX);
    assert_int_equal(extend_in_batches(&fixture, 0, 300, 1000), LM_OK);
    fork_whole(&fixture, 0, 1);
    fork_whole(&fixture, 1, 2);
    assert_ptr_equal(cell(&fixture, 0, 0, 5), cell(&fixture, 0, 2, 5)); /* shared */
    assert_int_equal(extend_in_batches(&fixture, 1, 100, 2000), LM_OK);
    assert_int_equal(extend_in_batches(&fixture, 0, 100, 3000), LM_OK);
    assert_marked(&fixture, 0, 0, 300, 1000);
    assert_marked(&fixture, 1, 0, 300, 1000);
    assert_marked(&fixture, 2, 0, 300, 1000);
    assert_marked(&fixture, 0, 300, 400, 3000);
    assert_marked(&fixture, 1, 300, 400, 2000);
    assert_ptr_equal(cell(&fixture, 0, 0, 5), cell(&fixture, 0, 1, 5));
    seq_state_clear(fixture.state, 0);
    assert_marked(&fixture, 1, 300, 400, 2000);
    close_fixture(&fixture);
}

/* A fork may be cut: as far back as the window reaches. */
static void test_cut_forks_stop_at_the_window(void **state)
{
    (void)state;
    struct fixture fixture;
    struct lm_error err;
    open_fixture(&fixture, shape(false), 2, 2 * N_CTX);
    assert_int_equal(extend_in_batches(&fixture, 0, 700, 0), LM_OK);
    assert_null(seq_state_kv_blocks(fixture.state, 1)[0][0]); /* the window has passed */
    assert_non_null(seq_state_kv_blocks(fixture.state, 0)[0][0]);
    assert_int_equal(seq_state_fork(fixture.state, 0, 1, 650, &err), LM_OK);
    assert_int_equal(seq_state_length(fixture.state, 1), 650);
    assert_int_equal(seq_state_fork(fixture.state, 0, 1, 300, &err), LM_E_UNSUPPORTED);
    assert_int_equal(seq_state_length(fixture.state, 1), 650);
    assert_int_equal(extend(&fixture, 1, 10, 5), LM_OK);
    assert_marked(&fixture, 1, 500, 650, 0);
    assert_marked(&fixture, 1, 650, 660, 5);
    assert_marked(&fixture, 0, 500, 700, 0);
    close_fixture(&fixture);
}

static void test_usage_counts_shared_blocks_once(void **state)
{
    (void)state;
    struct fixture fixture;
    open_fixture(&fixture, shape(false), 2, 2 * N_CTX);
    assert_int_equal(seq_state_usage(fixture.state).n_position, 0);
    assert_int_equal(seq_state_usage(fixture.state).n_position_max, 2 * N_CTX + 2 * KV_BLOCK);
    assert_int_equal(extend_in_batches(&fixture, 0, 300, 0), LM_OK);
    fork_whole(&fixture, 0, 1);
    assert_int_equal(seq_state_usage(fixture.state).n_position, 3 * KV_BLOCK);
    assert_int_equal(extend(&fixture, 1, 1, 0), LM_OK);
    assert_int_equal(seq_state_usage(fixture.state).n_position, 4 * KV_BLOCK);
    close_fixture(&fixture);
}

/* A fork keeps the window that it was taken with, however far the other sequence goes. */
static void test_fork_keeps_its_window(void **state)
{
    (void)state;
    struct fixture fixture;
    open_fixture(&fixture, shape(false), 2, 2 * N_CTX);
    assert_int_equal(extend_in_batches(&fixture, 0, 300, 7), LM_OK);
    fork_whole(&fixture, 0, 1);
    assert_int_equal(extend_in_batches(&fixture, 0, 700, 8), LM_OK);
    assert_marked(&fixture, 1, 101, 300, 7);
    fork_whole(&fixture, 1, 0); /* and back */
    assert_int_equal(seq_state_length(fixture.state, 0), 300);
    assert_marked(&fixture, 0, 101, 300, 7);
    close_fixture(&fixture);
}

static void test_pool_and_context_have_ends(void **state)
{
    (void)state;
    struct fixture fixture;
    open_fixture(&fixture, shape(false), 3, N_CTX); /* room for one context in three slots */
    assert_int_equal(extend_in_batches(&fixture, 0, N_CTX, 1), LM_OK);
    assert_int_equal(extend(&fixture, 0, 1, 1), LM_E_LIMIT);
    assert_int_equal(extend_in_batches(&fixture, 1, 384, 2), LM_OK); /* pieces end inside blocks */
    assert_int_equal(extend(&fixture, 2, 1, 3), LM_E_LIMIT);
    assert_marked(&fixture, 0, 0, N_CTX, 1);
    seq_state_clear(fixture.state, 0);
    assert_int_equal(extend_in_batches(&fixture, 2, N_CTX - 384, 3), LM_OK);
    assert_marked(&fixture, 1, 0, 384, 2);
    close_fixture(&fixture);
}

static void test_recurrent_records_are_copied_and_cleared(void **state)
{
    (void)state;
    struct fixture fixture;
    struct lm_error err;
    open_fixture(&fixture, shape(true), 2, 2 * N_CTX);
    float *const *memory = seq_state_memory(fixture.state, 2);
    float *const *conv = seq_state_conv(fixture.state, 2);
    assert_int_equal(extend(&fixture, 0, 10, 0), LM_OK);
    memory[0][127] = 3, conv[0][95] = 4; /* the last of [2][8][8] and [3][32] */
    fork_whole(&fixture, 0, 1);
    memory[0][127] = 5;
    assert_true(memory[1][127] == 3 && conv[1][95] == 4);
    assert_int_equal(seq_state_fork(fixture.state, 0, 1, 9, &err), LM_E_UNSUPPORTED);
    seq_state_clear(fixture.state, 0);
    assert_true(memory[0][127] == 0 && conv[0][95] == 0);
    assert_true(memory[1][127] == 3);
    close_fixture(&fixture);
}

static void test_heads_must_be_whole_blocks(void **state)
{
    (void)state;
    struct lm_error err;
    struct seq_state *seq = NULL;
    const struct seq_state_config config = {.layer_end = 2,
                                            .n_slot = 1,
                                            .n_ctx = 128,
                                            .n_position = 128,
                                            .n_batch = 1,
                                            .kv_type = TENSOR_Q8_0};
    assert_int_equal(seq_state_create(&seq, NULL, shape(false), &config, &err), LM_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "heads of 16"));
}

/* A stage with the layers of one kind holds what one with all layers holds of that kind, also
 * behind steps for which there was no room: so who books for all can say what each will do. */
static void test_stages_hold_what_the_whole_holds(void **state)
{
    (void)state;
    enum { N_SLOT = 3, N_POSITION = 256, N_ENTRY = N_CTX / KV_BLOCK };
    struct fixture whole, stage[2];
    struct lm_error err;
    uint32_t seed = 1, n_full = 0;
    open_fixture(&whole, shape(false), N_SLOT, N_POSITION);
    for (uint32_t il = 0; il < 2; il++) {
        const struct seq_state_config config = {.layer_begin = il,
                                                .layer_end = il + 1,
                                                .n_slot = N_SLOT,
                                                .n_ctx = N_CTX,
                                                .n_position = N_POSITION,
                                                .n_batch = BATCH,
                                                .kv_type = TENSOR_F32};
        stage[il].backend = whole.backend;
        assert_int_equal(
            seq_state_create(&stage[il].state, whole.backend, shape(false), &config, &err), LM_OK);
    }
    for (int round = 0; round < 2000; round++) {
        seed = seed * 1664525u + 1013904223u;
        const uint32_t slot = seed >> 8 & 3, n = 1 + (seed >> 12) % BATCH;
        if (slot == N_SLOT) {
            const uint32_t old = (seed >> 20) % N_SLOT;
            seq_state_clear(whole.state, old);
            for (int i = 0; i < 2; i++)
                seq_state_clear(stage[i].state, old);
        } else {
            const enum lm_status status = seq_state_reserve(whole.state, slot, n, 0, &err);
            for (int i = 0; i < 2; i++) {
                const enum lm_status own = seq_state_reserve(stage[i].state, slot, n, 0, NULL);
                if (status == LM_OK) assert_int_equal(own, LM_OK);
            }
            if (status == LM_OK) {
                seq_state_advance(whole.state, slot, n);
                for (int i = 0; i < 2; i++)
                    seq_state_advance(stage[i].state, slot, n);
            }
            n_full += status == LM_E_LIMIT;
        }
        for (uint32_t il = 0; il < 2; il++)
            for (uint32_t k = 0; k < N_SLOT; k++)
                for (uint32_t i = 0; i < N_ENTRY; i++)
                    assert_int_equal(!seq_state_kv_blocks(whole.state, il)[k][i],
                                     !seq_state_kv_blocks(stage[il].state, il)[k][i]);
    }
    assert_true(n_full > 100);
    for (int i = 0; i < 2; i++)
        seq_state_destroy(stage[i].state);
    close_fixture(&whole);
}

/* ---- lending ---- */

enum { BORROWED = 0x5a };

/* What is lent out belongs to somebody else, who finds it as it was left. */
static void check_borrowed(const struct fixture *fixture)
{
    const struct kv_pool pool = seq_state_pool(fixture->state);
    for (size_t i = pool.n_ready * pool.group_bytes; i < pool.n_group * pool.group_bytes; i++)
        assert_int_equal(pool.memory[i], BORROWED);
}

static void resize(struct fixture *fixture, uint32_t n_ready)
{
    struct kv_pool pool = seq_state_pool(fixture->state);
    const uint32_t n_used = pool.n_used;
    check_borrowed(fixture);
    seq_state_resize_pool(fixture->state, n_ready);
    pool = seq_state_pool(fixture->state);
    assert_int_equal(pool.n_ready, n_ready);
    assert_int_equal(pool.n_used, n_used);
    memset(pool.memory + n_ready * pool.group_bytes, BORROWED,
           (pool.n_group - n_ready) * pool.group_bytes);
}

/* Sequences come, fork, grow and go while memory goes back and forth: they read what they wrote. */
static void test_pool_is_lent_and_taken_back(void **state)
{
    enum { N_SLOT = 4 };
    struct fixture fixture;
    uint32_t shared[N_SLOT] = {0}, random = 1, n_moved = 0, n_taken = 0;
    float mark[N_SLOT] = {0}, below[N_SLOT] = {0}; /* behind and in the shared part */
    (void)state;
    open_lending_fixture(&fixture, shape(false), N_SLOT, N_SLOT * N_CTX, 100);
    struct kv_pool pool = seq_state_pool(fixture.state);
    assert_int_equal(pool.n_ready, 1);
    memset(pool.memory + pool.group_bytes, BORROWED, (pool.n_group - 1) * pool.group_bytes);
    for (int i = 0; i < 3000; i++) {
        random = random * 1664525 + 1013904223;
        const uint32_t slot = random >> 8 & 3, other = random >> 10 & 3,
                       n = 1 + (random >> 12 & 63);
        const uint32_t length = seq_state_length(fixture.state, slot);
        pool = seq_state_pool(fixture.state);
        if ((random >> 20 & 15) == 0) {
            seq_state_clear(fixture.state, slot);
            shared[slot] = 0;
        } else if ((random >> 20 & 15) == 1 && slot != other && length) {
            fork_whole(&fixture, slot, other);
            /* the part behind a shared one has one mark only */
            if (shared[slot]) seq_state_clear(fixture.state, other);
            shared[other] = shared[slot] ? 0 : length;
            below[other] = mark[slot];
            mark[other] = (float)i + 20000;
        } else if ((random >> 20 & 15) == 2) {
            n_moved += pool.n_used < pool.n_ready;
            resize(&fixture, pool.n_used + (n & 1));
        } else if (length + n <= N_CTX) {
            const uint32_t n_lacking = seq_state_n_lacking(fixture.state, slot, n);
            if (!length) mark[slot] = (float)i;
            if (n_lacking) resize(&fixture, pool.n_ready + n_lacking);
            n_taken += n_lacking > 0;
            assert_int_equal(extend(&fixture, slot, n, mark[slot]), LM_OK);
        }
        const uint32_t now = seq_state_length(fixture.state, slot);
        if (now < shared[slot]) shared[slot] = 0;
        for (uint32_t pos = 0; pos < now; pos++) {
            const float from = pos < shared[slot] ? below[slot] : mark[slot];
            assert_true(*cell(&fixture, 0, slot, pos) == from + (float)pos);
        }
    }
    check_borrowed(&fixture);
    assert_true(n_moved > 50 && n_taken > 50);
    close_fixture(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stages_hold_what_the_whole_holds),
        cmocka_unit_test(test_forks_share_and_part),
        cmocka_unit_test(test_cut_forks_stop_at_the_window),
        cmocka_unit_test(test_usage_counts_shared_blocks_once),
        cmocka_unit_test(test_fork_keeps_its_window),
        cmocka_unit_test(test_pool_and_context_have_ends),
        cmocka_unit_test(test_pool_is_lent_and_taken_back),
        cmocka_unit_test(test_recurrent_records_are_copied_and_cleared),
        cmocka_unit_test(test_heads_must_be_whole_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
