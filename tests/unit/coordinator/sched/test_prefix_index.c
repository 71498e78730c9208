/* The tree against a plain list of sequences: what it finds is the longest, for any sequence of
 * operations, and nothing is left behind. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <time.h>

#include "coordinator/sched/prefix_index.h"

enum { N_SLOT = 12, N_HOLD = 8, LENGTH = 24 };

static uint32_t draw(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Sequences over two tokens share much. */
static void draw_ids(int32_t *ids, uint32_t n, uint32_t *seed)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = draw(seed) % 5 ? 1 : 2;
}

struct sequence {
    int32_t ids[LENGTH];
    uint32_t n; /* 0: none */
    struct prefix_node *node;
};

static uint32_t common(const struct sequence *a, const struct sequence *b)
{
    uint32_t i = 0;
    while (i < a->n && i < b->n && a->ids[i] == b->ids[i])
        i++;
    return i;
}

struct model {
    struct prefix_index *index;
    struct sequence kept[N_SLOT], held[N_HOLD];
};

static void check_searches(const struct model *model, const struct sequence *held, uint32_t limit)
{
    uint32_t best = 0, best_exact = 0, n, slot;
    for (uint32_t i = 0; i < N_SLOT; i++) {
        const struct sequence *kept = &model->kept[i];
        const uint32_t shared = common(kept, held), cut = shared < limit ? shared : limit;
        if (cut > best) best = cut;
        if (kept->n && shared == kept->n && kept->n <= limit && kept->n > best_exact)
            best_exact = kept->n;
    }
    slot = prefix_index_find(held->node, limit, &n);
    assert_int_equal(n, best);
    assert_int_equal(slot == PREFIX_NO_SLOT, best == 0);
    if (best) assert_true(common(&model->kept[slot], held) >= best);
    slot = prefix_index_find_exact(held->node, limit, &n);
    assert_int_equal(n, best_exact);
    if (best_exact) assert_int_equal(model->kept[slot].n, best_exact);
    for (uint32_t i = 0; i < N_HOLD; i++)
        if (model->held[i].n)
            assert_int_equal(prefix_index_common(held->node, model->held[i].node),
                             common(held, &model->held[i]));
}

static void change(struct model *model, uint32_t *seed)
{
    const uint32_t slot = draw(seed) % N_SLOT, hold = draw(seed) % N_HOLD;
    struct sequence *held = &model->held[hold], *kept = &model->kept[slot];
    if (!held->n) {
        held->n = 1 + draw(seed) % LENGTH;
        draw_ids(held->ids, held->n, seed);
        assert_int_equal(prefix_index_hold(model->index, 0, held->ids, held->n, &held->node, NULL),
                         LM_OK);
    } else if (draw(seed) % 3 == 0) {
        prefix_index_release(model->index, held->node);
        held->n = 0;
    } else if (kept->n) {
        if (draw(seed) % 2) prefix_index_touch(model->index, slot);
        prefix_index_drop(model->index, slot);
        kept->n = 0;
    } else {
        const uint32_t n = 1 + draw(seed) % held->n;
        bool there = false;
        for (uint32_t i = 0; i < N_SLOT; i++)
            there |= model->kept[i].n == n && common(&model->kept[i], held) == n;
        assert_int_equal(prefix_index_keep(model->index, held->node, n, slot), !there);
        if (there) return;
        *kept = *held;
        kept->n = n;
    }
}

static void test_searches_find_the_longest(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 40; round++) {
        struct model model = {.index = NULL};
        uint32_t seed = round + 1;
        assert_int_equal(prefix_index_create(&model.index, N_SLOT, 0, NULL), LM_OK);
        for (int step = 0; step < 400; step++) {
            const struct sequence *held = &model.held[draw(&seed) % N_HOLD];
            change(&model, &seed);
            if (held->n) check_searches(&model, held, draw(&seed) % (held->n + 1));
        }
        prefix_index_destroy(model.index);
    }
}

static void test_the_least_recently_used_state_goes(void **state)
{
    (void)state;
    struct prefix_index *index = NULL;
    struct prefix_node *node[4];
    const int32_t ids[4][4] = {{1, 2, 3, 4}, {1, 2, 5, 6}, {7, 8, 9, 9}, {7, 8, 1, 1}};
    assert_int_equal(prefix_index_create(&index, 8, 0, NULL), LM_OK);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(prefix_index_hold(index, 0, ids[i], 4, &node[i], NULL), LM_OK);
    assert_true(prefix_index_keep(index, node[0], 2, 0)); /* where 0 and 1 part */
    assert_true(prefix_index_keep(index, node[0], 3, 1)); /* only on the way to 0 */
    assert_true(prefix_index_keep(index, node[0], 4, 2));
    assert_true(prefix_index_keep(index, node[1], 4, 3));
    assert_true(prefix_index_keep(index, node[2], 4, 4));
    assert_int_equal(prefix_index_n_state(index), 5);
    assert_int_equal(prefix_index_oldest(index, PREFIX_NO_SLOT), 1);
    assert_int_equal(prefix_index_oldest(index, 1), 2);
    prefix_index_touch(index, 2);
    prefix_index_drop(index, 1);
    assert_int_equal(prefix_index_oldest(index, PREFIX_NO_SLOT), 3);
    prefix_index_drop(index, 3);
    assert_int_equal(prefix_index_oldest(index, PREFIX_NO_SLOT), 4);
    prefix_index_touch(index, 4);
    assert_int_equal(prefix_index_oldest(index, PREFIX_NO_SLOT), 0); /* with 2, and above it */
    assert_int_equal(prefix_index_next_branch(node[0], 0), 2);
    assert_int_equal(prefix_index_next_branch(node[0], 2), UINT32_MAX);
    prefix_index_release(index, node[1]);
    assert_int_equal(prefix_index_next_branch(node[0], 0), UINT32_MAX); /* nobody else is left */
    assert_int_equal(prefix_index_drop_above(index, 2), 0);
    assert_int_equal(prefix_index_drop_above(index, 2), PREFIX_NO_SLOT);
    prefix_index_destroy(index);
}

/* Values stay with their tokens when edges are cut, and within their memory. */
static void test_log_probabilities_stay_with_their_tokens(void **state)
{
    (void)state;
    enum { N = 100 };
    struct prefix_index *index = NULL;
    struct prefix_node *node, *other;
    struct sampled_token token = {.n_top = 2}, got;
    int32_t ids[N];
    for (int32_t i = 0; i < N; i++)
        ids[i] = i;
    assert_int_equal(prefix_index_create(&index, 1, 5000, NULL), LM_OK);
    assert_int_equal(prefix_index_hold(index, 0, ids, N, &node, NULL), LM_OK);
    assert_int_equal(prefix_index_first_without_logprob(node), 1);
    for (uint32_t pos = 1; pos < 80; pos++) {
        token.id = ids[pos];
        token.logprob = token.top_logprob[1] = -(float)pos;
        prefix_index_keep_logprob(index, node, pos, &token);
    }
    assert_int_equal(prefix_index_first_without_logprob(node), 80);
    ids[50] = 777;
    assert_int_equal(prefix_index_hold(index, 0, ids, 60, &other, NULL), LM_OK);
    assert_int_equal(prefix_index_first_without_logprob(node), 80);
    assert_int_equal(prefix_index_first_without_logprob(other), 50);
    for (uint32_t pos = 1; pos < 80; pos++) {
        prefix_index_logprob(node, pos, 5, &got);
        assert_int_equal(got.id, pos);
        assert_int_equal(got.n_top, 2);
        assert_true(got.logprob == -(float)pos && got.top_logprob[1] == -(float)pos);
    }
    prefix_index_keep_logprob(index, other, 50, &token); /* there is no memory for more */
    assert_int_equal(prefix_index_first_without_logprob(other), 50);
    prefix_index_release(index, node);
    prefix_index_release(index, other);
    assert_int_equal(prefix_index_hold(index, 0, ids, 60, &other, NULL), LM_OK);
    prefix_index_keep_logprob(index, other, 1, &token);
    assert_int_equal(prefix_index_first_without_logprob(other), 2);
    prefix_index_destroy(index);
}

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Hundreds of long contexts: looking one up costs about what comparing its tokens costs. */
static void test_searches_stay_cheap(void **state)
{
    (void)state;
    enum { N_LONG = 300, N = 20000 };
    static int32_t ids[N];
    struct prefix_index *index = NULL;
    struct prefix_node *node;
    uint32_t n;
    assert_int_equal(prefix_index_create(&index, N_LONG, 0, NULL), LM_OK);
    for (int32_t i = 0; i < N; i++)
        ids[i] = i % 1000;
    for (uint32_t i = 0; i < N_LONG; i++) {
        ids[60 * i + 50] = 5000 + (int32_t)i;
        assert_int_equal(prefix_index_hold(index, 0, ids, N, &node, NULL), LM_OK);
        assert_true(prefix_index_keep(index, node, N, i));
        prefix_index_release(index, node);
    }
    const double begin_s = now_s();
    for (uint32_t i = 0; i < 100; i++) {
        ids[60 * i + 51] = 9000;
        assert_int_equal(prefix_index_hold(index, 0, ids, N, &node, NULL), LM_OK);
        assert_int_not_equal(prefix_index_find(node, N - 1, &n), PREFIX_NO_SLOT);
        prefix_index_find_exact(node, N - 1, &n);
        prefix_index_release(index, node);
    }
    const double each_s = (now_s() - begin_s) / 100;
    printf("a lookup of %d tokens among %d contexts: %.0f us\n", N, N_LONG, each_s * 1e6);
    assert_true(each_s < 0.005);
    prefix_index_destroy(index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_searches_find_the_longest),
        cmocka_unit_test(test_the_least_recently_used_state_goes),
        cmocka_unit_test(test_log_probabilities_stay_with_their_tokens),
        cmocka_unit_test(test_searches_stay_cheap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
