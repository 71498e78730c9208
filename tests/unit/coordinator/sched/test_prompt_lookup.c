/* What is found is what a search of all places finds. */
#include "tests/unit/cmocka_all.h"

#include "coordinator/sched/prompt_lookup.h"

enum { N = 600 };

static struct prompt_lookup *open_lookup(void)
{
    struct prompt_lookup *lookup = NULL;
    struct lm_error err;
    assert_int_equal(prompt_lookup_create(&lookup, N, &err), LM_OK);
    return lookup;
}

/* Tokens in common of the ends at i and at n - 1. */
static uint32_t n_common(const int32_t *ids, uint32_t n, uint32_t i)
{
    uint32_t k = 0;
    while (k <= i && ids[i - k] == ids[n - 1 - k])
        k++;
    return k;
}

/* The longest occurrence, the latest of those. */
static void test_finds_the_longest(void **state)
{
    (void)state;
    struct prompt_lookup *lookup = open_lookup();
    uint32_t n_found = 0, random = 1;
    for (int round = 0; round < 20; round++) {
        int32_t ids[N], drafts[4];
        prompt_lookup_reset(lookup);
        for (uint32_t n = 0; n < N; n++) {
            random = random * 1664525 + 1013904223;
            ids[n] = (int32_t)(random >> 16) % (2 + round / 4 * 3);
            if (n % 3) continue; /* not asked after every token */
            uint32_t best = 0, n_best = PROMPT_LOOKUP_MIN - 1;
            for (uint32_t i = n; i-- > 0;)
                if (n_common(ids, n + 1, i) > n_best) best = i, n_best = n_common(ids, n + 1, i);
            const uint32_t n_draft = prompt_lookup_find(lookup, ids, n + 1, drafts, 4);
            if (n_best < PROMPT_LOOKUP_MIN) {
                assert_int_equal(n_draft, 0);
                continue;
            }
            n_found++;
            if (round < 8) continue; /* with so many occurrences not all are looked at */
            assert_int_equal(n_draft, 4);
            for (uint32_t i = 0; i < 4 && best + 1 + i <= n; i++)
                assert_int_equal(drafts[i], ids[best + 1 + i]);
        }
    }
    assert_true(n_found > 100);
    prompt_lookup_destroy(lookup);
}

/* A repetition that has just begun goes on beyond what is there. */
static void test_goes_on_with_its_own_drafts(void **state)
{
    (void)state;
    struct prompt_lookup *lookup = open_lookup();
    const int32_t ids[] = {9, 1, 2, 1, 2, 1, 2};
    int32_t drafts[5];
    assert_int_equal(prompt_lookup_find(lookup, ids, 7, drafts, 5), 5);
    for (int i = 0; i < 5; i++)
        assert_int_equal(drafts[i], 1 + i % 2);
    prompt_lookup_reset(lookup);
    assert_int_equal(prompt_lookup_find(lookup, ids, 4, drafts, 5), 0);
    prompt_lookup_destroy(lookup);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_the_longest),
        cmocka_unit_test(test_goes_on_with_its_own_drafts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
