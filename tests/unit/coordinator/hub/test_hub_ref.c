/* References to repositories: what is one, and that nothing in one can lead out of a folder. */
#include "coordinator/hub/hub_ref.h"
#include "tests/unit/cmocka_all.h"

static void check(const char *text, const char *repo, const char *revision, const char *variant)
{
    struct hub_ref ref;
    assert_true(hub_ref_parse(&ref, text));
    assert_string_equal(ref.repo, repo);
    assert_string_equal(ref.revision, revision);
    assert_string_equal(ref.variant, variant);
}

static void test_parts(void **state)
{
    (void)state;
    check("a/b", "a/b", "", "");
    check("hf:Qwen/Qwen3-8B.GGUF_x", "Qwen/Qwen3-8B.GGUF_x", "", "");
    check("a/b:Q4_K_M", "a/b", "", "Q4_K_M");
    check("a/b@refs/pr/1", "a/b", "refs/pr/1", "");
    check("a/b@v1.0:UD-Q4_K_XL", "a/b", "v1.0", "UD-Q4_K_XL");
}

static void test_what_is_none(void **state)
{
    static const char *const texts[] = {
        "",     "a",      "a/",       "/b",     "a/b/c",  "../b",     "a/..",    "a/b@",
        "a/b:", "a/b@..", "a/b@x/..", "a/b@/x", "a b/c",  "a/b c",    "a/b@x y", "a/b@.git",
        ".a/b", "a--b/c", "a/b?x",    "a/b#x",  "a/b%2f", "a/b@x/.y", "a/b@x//y"};
    struct hub_ref ref;
    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        assert_false(hub_ref_parse(&ref, texts[i]));
    char large[600];
    memset(large, 'x', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    memcpy(large, "a/b:", 4);
    assert_false(hub_ref_parse(&ref, large));
    memcpy(large, "a/b@", 4);
    assert_false(hub_ref_parse(&ref, large));
    memcpy(large, "a/bb", 4);
    assert_false(hub_ref_parse(&ref, large));
}

static void test_commits(void **state)
{
    (void)state;
    assert_true(hub_ref_is_commit("0123456789abcdef0123456789abcdef01234567"));
    assert_false(hub_ref_is_commit("0123456789abcdef0123456789abcdef0123456"));
    assert_false(hub_ref_is_commit("0123456789ABCDEF0123456789abcdef01234567"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_what_is_none),
        cmocka_unit_test(test_commits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
