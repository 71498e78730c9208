/* Grammars are found by what they were made from, as long as they are used. */
#include <string.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/server/grammar_cache.h"
#include "tests/unit/cmocka_all.h"

static struct grammar *make(const char *gbnf)
{
    struct grammar *grammar;
    assert_int_equal(grammar_from_gbnf(&grammar, gbnf, strlen(gbnf), NULL), LM_OK);
    return grammar;
}

static void test_the_least_used_makes_room(void **state)
{
    (void)state;
    struct grammar_cache *cache;
    struct grammar_key keys[4];
    struct grammar *grammars[4];
    assert_int_equal(grammar_cache_create(&cache, 3, 42, NULL), LM_OK);
    for (int i = 0; i < 4; i++) {
        const char source[] = {(char)('a' + i)};
        keys[i] = grammar_cache_key(cache, 1, source, 1);
        grammars[i] = make("root ::= \"a\"");
    }
    for (int i = 0; i < 3; i++) {
        assert_null(grammar_cache_find(cache, keys[i]));
        grammar_cache_add(cache, keys[i], grammars[i]);
    }
    struct grammar *found = grammar_cache_find(cache, keys[0]);
    assert_ptr_equal(found, grammars[0]);
    grammar_unref(found);
    grammar_cache_add(cache, keys[3], grammars[3]); /* in the place of the second */
    assert_null(grammar_cache_find(cache, keys[1]));
    for (int i = 0; i < 4; i++) {
        found = i == 1 ? NULL : grammar_cache_find(cache, keys[i]);
        assert_ptr_equal(found, i == 1 ? NULL : grammars[i]);
        grammar_unref(found);
    }
    grammar_cache_add(cache, keys[0], grammars[1]); /* the first one stays */
    found = grammar_cache_find(cache, keys[0]);
    assert_ptr_equal(found, grammars[0]);
    grammar_unref(found);
    grammar_cache_destroy(cache);
    for (int i = 0; i < 4; i++)
        grammar_unref(grammars[i]);
}

static void test_keys_differ_by_kind_source_and_secret(void **state)
{
    (void)state;
    struct grammar_cache *one, *other;
    assert_int_equal(grammar_cache_create(&one, 1, 1, NULL), LM_OK);
    assert_int_equal(grammar_cache_create(&other, 1, 2, NULL), LM_OK);
    const struct grammar_key key = grammar_cache_key(one, 1, "ab", 2);
    assert_true(grammar_cache_key(one, 1, "ab", 2).low == key.low);
    assert_true(grammar_cache_key(one, 2, "ab", 2).low != key.low);
    assert_true(grammar_cache_key(one, 1, "ac", 2).low != key.low);
    assert_true(grammar_cache_key(other, 1, "ab", 2).low != key.low);
    grammar_cache_destroy(one);
    grammar_cache_destroy(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_least_used_makes_room),
        cmocka_unit_test(test_keys_differ_by_kind_source_and_secret),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
