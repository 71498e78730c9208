/* The automaton of JSON objects: what it takes, what it refuses, and that it never gets stuck. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "coordinator/text/json_automaton.h"

static bool takes(const char *text, struct json_automaton *json)
{
    json_automaton_init(json);
    return json_automaton_take_all(json, text, strlen(text));
}

static void test_complete_objects(void **state)
{
    static const char *const documents[] = {
        "{}",
        "{\"a\":1}",
        "{\"a\": 1, \"b\": [], \"c\": {\"d\": [true, false, null]}}",
        "{\"a\":-0.5e+308,\"b\":12345678901234567,\"c\":0}",
        "{\"\\u00e4\\n\\\"\\\\\\/\": \"\\ud83d\\ude00 \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80\"}",
        "{\"a\":[[[1],[2]],[{}]]}",
    };
    (void)state;
    for (size_t i = 0; i < sizeof(documents) / sizeof(documents[0]); i++) {
        struct json_automaton json;
        assert_true(takes(documents[i], &json));
        assert_true(json_automaton_complete(&json));
        assert_false(json_automaton_take(&json, ' '));
    }
}

static void test_what_cannot_come(void **state)
{
    static const char *const beginnings[] = {
        " ",
        "[",
        "{ ",
        "{,",
        "{\"a\" ",
        "{\"a\":  ",
        "{\"a\":1,}",
        "{\"a\":01",
        "{\"a\":.",
        "{\"a\":1.}",
        "{\"a\":+",
        "{\"a\":1e}",
        "{\"a\":1e309",
        "{\"a\":tru}",
        "{\"a\":[1}",
        "{\"a\"}",
        "{\"a\":[,",
        "{\"a\":\"\n",
        "{\"\\x",
        "{\"\\ud800x",
        "{\"\\udc",
        "{\"\\ud800\\u0",
        "{\"\x80",
        "{\"\xc0",
        "{\"\xed\xa0",
        "{\"\xf5",
        "{\"\xe2\x82\"",
        "{\"a\":123456789012345678",
        "{}x",
    };
    (void)state;
    for (size_t i = 0; i < sizeof(beginnings) / sizeof(beginnings[0]); i++) {
        struct json_automaton json;
        const size_t n = strlen(beginnings[i]);
        json_automaton_init(&json);
        if (!json_automaton_take_all(&json, beginnings[i], n - 1) ||
            json_automaton_take(&json, beginnings[i][n - 1]))
            fail_msg("the last byte of %s must be the first to be refused", beginnings[i]);
    }
}

static void test_depth_is_bounded(void **state)
{
    struct json_automaton json;
    (void)state;
    assert_true(takes("{\"a\":", &json));
    for (int depth = 1; depth < JSON_AUTOMATON_DEPTH_MAX; depth++)
        assert_true(json_automaton_take(&json, '['));
    assert_false(json_automaton_take(&json, '['));
    assert_false(json_automaton_take(&json, '{'));
    assert_true(json_automaton_take(&json, '1'));
}

/* Random walks over the bytes that are allowed: there is always one, and json-c reads the result.
 */
static void test_random_walks(void **state)
{
    uint64_t seed = 1;
    (void)state;
    for (int walk = 0; walk < 2000; walk++) {
        char text[4096];
        size_t n = 0;
        struct json_automaton json;
        json_automaton_init(&json);
        while (n < sizeof(text) - 1 && !json_automaton_complete(&json)) {
            char allowed[256];
            size_t n_allowed = 0;
            for (int byte = 0; byte < 256; byte++) {
                struct json_automaton next = json;
                /* Structure, digits and escapes more often than text, so that values end. */
                const bool text_byte = byte > 127 || (byte > 'a' && byte < 'z');
                const bool skip =
                    text_byte && json_automaton_in_text(&json) && byte % 16 != walk % 16;
                if (!skip && json_automaton_take(&next, (char)byte))
                    allowed[n_allowed++] = (char)byte;
            }
            assert_true(n_allowed > 0);
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            const char byte = allowed[(seed >> 33) % n_allowed];
            assert_true(json_automaton_take(&json, byte));
            text[n++] = byte;
        }
        if (!json_automaton_complete(&json)) continue;
        text[n] = '\0';
        struct json_object *object = json_tokener_parse(text);
        if (!object) fail_msg("json-c does not read %s", text);
        json_object_put(object);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_complete_objects),
        cmocka_unit_test(test_what_cannot_come),
        cmocka_unit_test(test_depth_is_bounded),
        cmocka_unit_test(test_random_walks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
