/* Log-probabilities in their two shapes. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/logprobs.h"
#include "coordinator/text/tokenizer.h"
#include "tests/unit/cmocka_all.h"
#include "tests/unit/demo_vocabulary.h"

static struct tokenizer *tokenizer;

static int open_vocabulary(void **state)
{
    (void)state;
    tokenizer = demo_vocabulary_open();
    return 0;
}

static int close_vocabulary(void **state)
{
    (void)state;
    tokenizer_destroy(tokenizer);
    return 0;
}

static int32_t find(const char *bytes, size_t n)
{
    for (uint32_t id = 0; id < tokenizer_n_vocab(tokenizer); id++) {
        size_t n_token;
        const char *token = tokenizer_token_bytes(tokenizer, (int32_t)id, true, &n_token);
        if (n_token == n && !memcmp(token, bytes, n)) return (int32_t)id;
    }
    fail_msg("no such token");
    return -1;
}

static void check_arrays(const struct logprob_arrays *arrays, const char *expected)
{
    struct json_writer out = {0};
    logprob_arrays_put(arrays, &out);
    assert_string_equal(out.text.data, expected);
    byte_buffer_free(&out.text);
}

static void test_arrays_of_completions(void **state)
{
    (void)state;
    const struct logprob_style style = {.tokenizer = tokenizer};
    const int32_t a = find("a", 1), b = find("b", 1), odd = find("\xE2", 1);
    struct logprob_arrays arrays = {0};
    check_arrays(&arrays, "{\"tokens\":[],\"token_logprobs\":[],\"top_logprobs\":[],"
                          "\"text_offset\":[]}");
    struct sampled_token token = {.id = a};
    logprob_arrays_add(&arrays, style, &token, false, 0);
    /* the chosen token is the last entry where it is not among the best */
    token = (struct sampled_token){.id = odd,
                                   .logprob = -INFINITY,
                                   .n_top = 2,
                                   .top_id = {a, b},
                                   .top_logprob = {-0.5f, -0.75f}};
    logprob_arrays_add(&arrays, style, &token, true, 1);
    token = (struct sampled_token){
        .id = b, .logprob = -0.1f, .n_top = 1, .top_id = {b}, .top_logprob = {-0.1f}};
    logprob_arrays_add(&arrays, style, &token, true, 2);
    check_arrays(&arrays,
                 "{\"tokens\":[\"a\",\"bytes:\\\\xe2\",\"b\"],\"token_logprobs\":[null,-9999.0,"
                 "-0.1],\"top_logprobs\":[null,{\"a\":-0.5,\"b\":-0.75,\"bytes:\\\\xe2\":-9999.0},"
                 "{\"b\":-0.1}],\"text_offset\":[0,1,2]}");
    logprob_arrays_clear(&arrays);
    token = (struct sampled_token){
        .id = b, .logprob = -2, .n_top = 2, .top_id = {a, a}, .top_logprob = {-1, -1.5f}};
    logprob_arrays_add(&arrays, (struct logprob_style){tokenizer, true}, &token, true, 0);
    char expected[300];
    snprintf(expected, sizeof(expected),
             "{\"tokens\":[\"token_id:%d\"],\"token_logprobs\":[-2.0],\"top_logprobs\":[{"
             "\"token_id:%d\":-1.0,\"token_id:%d\":-2.0}],\"text_offset\":[0]}",
             b, a, b);
    check_arrays(&arrays, expected);
    logprob_arrays_fini(&arrays);
}

static void test_entries_of_chat(void **state)
{
    (void)state;
    const struct logprob_style style = {.tokenizer = tokenizer};
    struct json_writer out = {0};
    const struct sampled_token token = {.id = find("\xE2", 1),
                                        .logprob = -1,
                                        .n_top = 1,
                                        .top_id = {find("a", 1)},
                                        .top_logprob = {-0.25f}};
    logprob_put_entry(&out, style, &token);
    assert_string_equal(out.text.data,
                        "{\"token\":\"\xEF\xBF\xBD\",\"logprob\":-1.0,\"bytes\":[226],"
                        "\"top_logprobs\":[{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97]}]}");
    byte_buffer_free(&out.text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arrays_of_completions),
        cmocka_unit_test(test_entries_of_chat),
    };
    return cmocka_run_group_tests(tests, open_vocabulary, close_vocabulary);
}
