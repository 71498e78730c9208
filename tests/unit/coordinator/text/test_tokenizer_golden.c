/* The reference's ids for 65 strings, with tiny vocabularies of each pre-tokenizer. */
#include "tests/unit/coordinator/text/golden_cases.h"

static void matches_reference(void **state)
{
    const char *const pre = *state, *const source = getenv("LEAN_SOURCE_DIR");
    char vocabulary[4096], cases[4096];
    snprintf(vocabulary, sizeof(vocabulary), "%s/tests/data/tokenizer/%s.gguf", source, pre);
    snprintf(cases, sizeof(cases), "%s/tests/data/tokenizer/%s.json", source, pre);
    check_golden(vocabulary, cases);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(matches_reference, (void *)"qwen2"),
        cmocka_unit_test_prestate(matches_reference, (void *)"qwen35"),
        cmocka_unit_test_prestate(matches_reference, (void *)"afmoe"),
        cmocka_unit_test_prestate(matches_reference, (void *)"llama-bpe"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
