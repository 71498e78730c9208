/* The reference's ids for 65 strings, with the vocabularies of published models. */
#include "tests/unit/coordinator/text/golden_cases.h"
#include "tests/unit/golden_dir.h"

static char golden[2048];

static void matches_reference(void **state)
{
    const char *const pre = *state;
    char vocabulary[4096], cases[4096];
    snprintf(vocabulary, sizeof(vocabulary), "%s/vocab/ggml-vocab-%s.gguf", golden, pre);
    snprintf(cases, sizeof(cases), "%s/expected/tokenize-real-%s.json", golden, pre);
    check_golden(vocabulary, cases);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(matches_reference, (void *)"qwen2"),
        cmocka_unit_test_prestate(matches_reference, (void *)"qwen35"),
        cmocka_unit_test_prestate(matches_reference, (void *)"llama-bpe"),
    };
    if (!golden_dir(golden, sizeof(golden))) return GOLDEN_SKIP;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
