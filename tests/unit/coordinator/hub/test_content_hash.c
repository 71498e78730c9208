/* Hashes of known bytes, in pieces of any size. */
#include "coordinator/hub/content_hash.h"
#include "tests/unit/cmocka_all.h"

/* sha256sum and git hash-object of "hello\n", and of nothing. */
static const struct {
    const char *text, *hash;
} known[] = {
    {"hello\n", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"},
    {"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"},
    {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"},
};

static void test_known(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        for (size_t step = 1; step <= 6; step++) {
            const size_t n = strlen(known[i].text);
            struct content_hash *hash;
            assert_int_equal(content_hash_begin(&hash, known[i].hash, n, NULL), LM_OK);
            for (size_t at = 0; at < n; at += step)
                content_hash_add(hash, known[i].text + at, n - at < step ? n - at : step);
            assert_true(content_hash_end(hash));
        }
}

static void test_other_bytes(void **state)
{
    struct content_hash *hash;
    (void)state;
    assert_int_equal(content_hash_begin(&hash, known[0].hash, 6, NULL), LM_OK);
    content_hash_add(hash, "hellO\n", 6);
    assert_false(content_hash_end(hash));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_other_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
