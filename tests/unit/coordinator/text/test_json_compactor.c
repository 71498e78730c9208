/* JSON read byte by byte: what comes out, and what is refused, against json-c's strict reader. */
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/json_compactor.h"
#include "proto/base/byte_buffer.h"
#include "tests/unit/cmocka_all.h"

static void check(const char *text, const char *expected)
{
    struct byte_buffer out = {0};
    const bool good = json_compact(text, strlen(text), &out);
    if (good != !!expected) fail_msg("%s: %s", text, good ? "taken" : "refused");
    if (expected) assert_string_equal(out.data, expected);
    byte_buffer_free(&out);
}

static void test_values(void **state)
{
    (void)state;
    check(" { \"a\" : [ 1 , -0.5e+10, true,false ,null ] , \"\" : { } , \"b\\u00e9\\\"\" : [ ] }\n",
          "{\"a\":[1,-0.5e+10,true,false,null],\"\":{},\"b\\u00e9\\\"\":[]}");
    check("0", "0");
    check(" -12.50E-3 ", "-12.50E-3");
    check("\"a b\tc\n\xC3\xA9\"", "\"a b\\tc\\n\xC3\xA9\"");
    check("[[],[[]]]", "[[],[[]]]");
}

static void test_what_is_no_value(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",      " ",       "01",       "-",     "1.",      ".5",          "1e",       "+1",
        "tru",   "truee",   "nul l",    "\"a",   "\"\\x\"", "\"\\u12g4\"", "[1,]",     "[,1]",
        "[1 2]", "{\"a\"}", "{\"a\":}", "{a:1}", "{,}",     "{\"a\":1,}",  "[1}",      "{\"a\":1]",
        "1 2",   "[] []",   "]",        "NaN",   "'a'",     "[",           "{\"a\":1", "\"\\\""};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        check(texts[i], NULL);
}

static void test_depth(void **state)
{
    (void)state;
    for (int depth = JSON_COMPACTOR_DEPTH_MAX; depth < JSON_COMPACTOR_DEPTH_MAX + 2; depth++) {
        char text[2 * JSON_COMPACTOR_DEPTH_MAX + 8];
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        text[2 * depth] = '\0';
        check(text, depth == JSON_COMPACTOR_DEPTH_MAX ? text : NULL);
    }
}

/* Texts of JSON's characters: taken where json-c takes them, with the same value. */
static void test_random_texts(void **state)
{
    (void)state;
    static const char alphabet[] = "[[]]{{}}:,,\"\"\"a0 1-.eE\\";
    uint32_t seed = 3;
    size_t n_good = 0;
    for (int round = 0; round < 200000; round++) {
        char text[16];
        size_t n = 0;
        seed = seed * 1664525 + 1013904223;
        for (const size_t length = 1 + (seed >> 16) % 12; n < length; n++) {
            seed = seed * 1664525 + 1013904223;
            text[n] = alphabet[(seed >> 16) % (sizeof(alphabet) - 1)];
        }
        text[n] = '\0';
        struct json_tokener *reader = json_tokener_new();
        json_tokener_set_flags(reader, JSON_TOKENER_STRICT);
        struct json_object *value = json_tokener_parse_ex(reader, text, (int)n + 1);
        bool expected = json_tokener_get_error(reader) == json_tokener_success;
        struct byte_buffer out = {0};
        const bool good = json_compact(text, n, &out);
        if (good && !expected) fail_msg("taken: %s", text);
        if (good) {
            struct json_object *again = json_tokener_parse(out.data);
            assert_true(json_object_equal(value, again));
            json_object_put(again);
            n_good++;
        }
        byte_buffer_free(&out);
        json_object_put(value);
        json_tokener_free(reader);
    }
    assert_true(n_good > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_what_is_no_value),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_random_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
