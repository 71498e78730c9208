/* Bodies of requests and the text of answers: strict in, shortest out. */
#include <json-c/json.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/json_field.h"
#include "coordinator/server/json_parse.h"
#include "coordinator/server/json_write.h"
#include "tests/unit/cmocka_all.h"

static void check_fault(const char *text, size_t at)
{
    const char *why = NULL;
    assert_int_equal(json_find_fault(text, strlen(text), &why), at);
    if (at != SIZE_MAX) assert_non_null(why);
}

static void test_the_first_fault_is_found(void **state)
{
    (void)state;
    static const char *const good[] = {"{}",
                                       " [ ] ",
                                       "0",
                                       "-0.5e+10",
                                       "\"\\u00e9\\n\xC3\xA9\"",
                                       "[1,[2,{\"a\":[]}],{}]",
                                       "null",
                                       "{\"a\":1,\"a\":2}",
                                       "{\"a\\\\u0000\":\"\\u0000\"}"};
    static const struct {
        const char *text;
        size_t at;
    } bad[] = {{"", 0},
               {"{", 1},
               {"{]", 1},
               {"[1,]", 3},
               {"{\"a\":1,}", 7},
               {"01", 1},
               {"1.", 2},
               {".5", 0},
               {"+1", 0},
               {"NaN", 0},
               {"-Infinity", 1},
               {"'a'", 0},
               {"\"\t\"", 1},
               {"\"\\x\"", 2},
               {"\"\\u12g4\"", 5},
               {"\"\xC3\"", 1},
               {"\"\xED\xA0\x80\"", 1},
               {"tru", 0},
               {"{} x", 3},
               {"[1 2]", 3},
               {"{\"a\" 1}", 5},
               {"{a:1}", 1},
               {"// no\n{}", 0},
               {"\"abc", 4},
               {"1e", 2},
               {"-", 1},
               {"{\"a\\\\u0000\":1,\"b\\u0000c\":2}", 16}};
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
        check_fault(good[i], SIZE_MAX);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        const char *why = NULL;
        const size_t at = json_find_fault(bad[i].text, strlen(bad[i].text), &why);
        if (at != bad[i].at) fail_msg("%s: fault at %zu, not %zu", bad[i].text, at, bad[i].at);
    }
    char deep[600];
    memset(deep, '[', 300);
    memset(deep + 300, ']', 300);
    const char *why;
    assert_int_equal(json_find_fault(deep + 300 - 128, 256, &why), SIZE_MAX);
    assert_int_equal(json_find_fault(deep + 300 - 129, 258, &why), 128);
}

static struct json_object *parse(const char *text, struct api_error *error)
{
    struct json_object *object = NULL;
    *error = (struct api_error){0};
    return json_parse_object(&object, text, strlen(text), error) ? object : NULL;
}

static void test_the_last_of_equal_keys_wins_and_order_is_kept(void **state)
{
    (void)state;
    struct api_error error;
    struct json_object *body = parse("{\"b\":1,\"a\":{\"z\":1,\"y\":2},\"b\":3}", &error);
    assert_non_null(body);
    assert_string_equal(json_object_to_json_string_ext(body, JSON_C_TO_STRING_PLAIN),
                        "{\"b\":3,\"a\":{\"z\":1,\"y\":2}}");
    json_object_put(body);
    assert_null(parse("[]", &error));
    assert_int_equal(error.code, API_INVALID_JSON);
    assert_null(parse("{\"a\":nul}", &error));
    assert_non_null(strstr(error.message, "byte 5"));
    char deep[600] = "{\"a\":";
    memset(deep + 5, '[', 127);
    memset(deep + 132, ']', 127);
    strcpy(deep + 259, "}");
    body = parse(deep, &error);
    assert_non_null(body);
    json_object_put(body);
}

static void test_integers_of_more_than_64_bits_are_floats(void **state)
{
    (void)state;
    struct api_error error;
    struct json_object *body =
        parse("{\"a\":[-9223372036854775808,-9223372036854775809, 18446744073709551615,"
              "18446744073709551616],\"99999999999999999999\":-1e30}",
              &error);
    assert_non_null(body);
    assert_string_equal(json_object_to_json_string_ext(body, JSON_C_TO_STRING_PLAIN),
                        "{\"a\":[-9223372036854775808,-9223372036854775809.0,18446744073709551615,"
                        "18446744073709551616.0],\"99999999999999999999\":-1e30}");
    const struct field_reader reader = field_reader_body(body, &error);
    struct json_object *array = json_object_object_get(body, "a");
    int64_t value = 0;
    assert_true(json_to_int(json_object_array_get_idx(array, 0), &value));
    assert_true(value == INT64_MIN);
    for (size_t i = 1; i < 4; i++)
        assert_false(json_to_int(json_object_array_get_idx(array, i), &value));
    assert_false(field_int(&reader, "99999999999999999999", INT64_MIN, INT64_MAX, &value));
    assert_int_equal(error.code, API_INVALID_VALUE);
    json_object_put(body);
}

/* {"a":[REPEATED,REPEATED,...]} */
static enum api_code code_of_many(const char *repeated, size_t n)
{
    const size_t n_one = strlen(repeated);
    char *text = malloc(n * (n_one + 1) + 16), *at = text;
    struct json_object *object = NULL;
    struct api_error error = {0};
    at += sprintf(at, "{\"a\":[");
    for (size_t i = 0; i < n; i++) {
        memcpy(at, repeated, n_one);
        at[n_one] = ',';
        at += n_one + 1;
    }
    at[-1] = ']';
    *at++ = '}';
    if (json_parse_object(&object, text, (size_t)(at - text), &error)) json_object_put(object);
    free(text);
    return error.code;
}

static void test_a_body_cannot_become_a_tree_of_gigabytes(void **state)
{
    (void)state;
    assert_int_equal(code_of_many("[]", 10000), API_OK);
    assert_int_equal(code_of_many("{}", 1 << 20), API_REQUEST_TOO_LARGE);
    assert_int_equal(code_of_many("1", 1 << 24), API_REQUEST_TOO_LARGE);
}

static void check_refused(const char *text, enum api_code code, const char *param,
                          bool (*read)(const struct field_reader *reader))
{
    struct api_error error;
    struct json_object *body = parse(text, &error);
    assert_non_null(body);
    const struct field_reader reader = field_reader_body(body, &error);
    assert_false(read(&reader));
    assert_int_equal(error.code, code);
    assert_string_equal(error.param, param);
    assert_non_null(strstr(error.message, param));
    json_object_put(body);
}

static bool read_int(const struct field_reader *reader)
{
    int64_t value;
    return field_int(reader, "x", 0, 10, &value);
}

static bool read_real(const struct field_reader *reader)
{
    double value;
    return field_real(reader, "x", 0, 2, &value);
}

static bool read_bool(const struct field_reader *reader)
{
    bool value;
    return field_bool(reader, "x", &value);
}

static bool read_ints(const struct field_reader *reader)
{
    int32_t *list = NULL;
    size_t n;
    return field_ints(reader, "x", 0, 9, 3, &list, &n);
}

static bool read_inside(const struct field_reader *reader)
{
    struct json_object *array = field_get(reader, "list");
    const struct field_reader inside =
        field_reader_inside(reader, json_object_array_get_idx(array, 1), "list", 1);
    const char *text;
    return field_string(&inside, "text", &text, NULL);
}

static void test_wrong_fields_are_named(void **state)
{
    (void)state;
    check_refused("{\"x\":5.5}", API_INVALID_TYPE, "x", read_int);
    check_refused("{\"x\":\"5\"}", API_INVALID_TYPE, "x", read_int);
    check_refused("{\"x\":11}", API_INVALID_VALUE, "x", read_int);
    check_refused("{\"x\":1e300}", API_INVALID_VALUE, "x", read_int);
    check_refused("{\"x\":99999999999999999999999}", API_INVALID_VALUE, "x", read_int);
    check_refused("{\"x\":true}", API_INVALID_TYPE, "x", read_int);
    check_refused("{\"x\":3.5}", API_INVALID_VALUE, "x", read_real);
    check_refused("{\"x\":1e999}", API_INVALID_VALUE, "x", read_real);
    check_refused("{\"x\":0}", API_INVALID_TYPE, "x", read_bool);
    check_refused("{\"x\":\"true\"}", API_INVALID_TYPE, "x", read_bool);
    check_refused("{\"x\":[1,2,3,4]}", API_INVALID_VALUE, "x", read_ints);
    check_refused("{\"x\":[1,12]}", API_INVALID_VALUE, "x[1]", read_ints);
    check_refused("{\"x\":[1,\"a\"]}", API_INVALID_TYPE, "x[1]", read_ints);
    check_refused("{\"list\":[{},{\"text\":1}]}", API_INVALID_TYPE, "list[1].text", read_inside);
}

static void test_null_is_absent_and_whole_floats_are_integers(void **state)
{
    (void)state;
    struct api_error error;
    struct json_object *body = parse("{\"a\":null,\"b\":5.0,\"c\":3}", &error);
    const struct field_reader reader = field_reader_body(body, &error);
    int64_t a = 7, b = 7;
    double c = 7;
    assert_true(field_int(&reader, "a", 0, 9, &a) && field_int(&reader, "b", 0, 9, &b) &&
                field_real(&reader, "c", 0, 9, &c));
    assert_int_equal(a, 7);
    assert_int_equal(b, 5);
    assert_true(c == 3);
    json_object_put(body);
}

static void test_long_values_are_cut(void **state)
{
    (void)state;
    char text[2000] = "{\"x\":\"";
    for (int i = 0; i < 400; i++)
        strcat(text, "\xC3\xA9");
    strcat(text, "\"}");
    struct api_error error;
    struct json_object *body = parse(text, &error);
    const struct field_reader reader = field_reader_body(body, &error);
    assert_false(read_int(&reader));
    assert_true(strlen(error.message) < 240);
    const char *why;
    char quoted[800];
    snprintf(quoted, sizeof(quoted), "\"%s", strstr(error.message, "\xC3\xA9"));
    strcat(quoted, "\"");
    assert_int_equal(json_find_fault(quoted, strlen(quoted), &why),
                     SIZE_MAX); /* whole characters */
    json_object_put(body);
}

static void test_documents_are_written(void **state)
{
    (void)state;
    struct json_writer writer = {0};
    json_open(&writer, '{');
    json_put_key(&writer, "a");
    json_open(&writer, '[');
    json_put_int(&writer, -5);
    json_put_bool(&writer, true);
    json_put_null(&writer);
    json_put_text(&writer, NULL);
    json_open(&writer, '{');
    json_close(&writer, '}');
    json_close(&writer, ']');
    json_put_key(&writer, "b");
    json_put_string(&writer, "\"\\\n\x01\xC3\xA9\xE2\x80x\xFF", 10);
    json_put_key(&writer, "c");
    json_put_value(&writer, "[1]", 3);
    json_close(&writer, '}');
    assert_false(writer.text.failed);
    assert_string_equal(writer.text.data,
                        "{\"a\":[-5,true,null,null,{}],"
                        "\"b\":\"\\\"\\\\\\n\\u0001\xC3\xA9\xEF\xBF\xBDx\xEF\xBF\xBD\",\"c\":[1]}");
    byte_buffer_free(&writer.text);
}

static void check_float(float value, const char *text)
{
    struct json_writer writer = {0};
    json_put_float(&writer, value);
    assert_string_equal(writer.text.data, text);
    byte_buffer_free(&writer.text);
}

static void test_floats_are_as_short_as_they_can_be(void **state)
{
    (void)state;
    check_float(0, "0.0");
    check_float(-9999, "-9999.0");
    check_float(-0.1f, "-0.1");
    check_float(1.0f / 3, "0.33333334");
    check_float(16777216, "16777216.0");
    check_float(1e-7f, "1e-07");
    uint32_t seed = 1;
    for (int i = 0; i < 20000; i++) {
        struct json_writer writer = {0};
        uint64_t bits = 0;
        for (int k = 0; k < 4; k++)
            bits = bits << 16 | (seed = seed * 1664525 + 1013904223) >> 16;
        float narrow;
        double wide;
        const uint32_t low = (uint32_t)bits;
        memcpy(&narrow, &low, 4);
        memcpy(&wide, &bits, 8);
        if (!isfinite(narrow) || !isfinite(wide)) continue;
        json_put_float(&writer, narrow);
        assert_true(strtof(writer.text.data, NULL) == narrow);
        json_writer_clear(&writer);
        json_put_real(&writer, wide);
        assert_true(strtod(writer.text.data, NULL) == wide);
        byte_buffer_free(&writer.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_first_fault_is_found),
        cmocka_unit_test(test_the_last_of_equal_keys_wins_and_order_is_kept),
        cmocka_unit_test(test_integers_of_more_than_64_bits_are_floats),
        cmocka_unit_test(test_a_body_cannot_become_a_tree_of_gigabytes),
        cmocka_unit_test(test_wrong_fields_are_named),
        cmocka_unit_test(test_null_is_absent_and_whole_floats_are_integers),
        cmocka_unit_test(test_long_values_are_cut),
        cmocka_unit_test(test_documents_are_written),
        cmocka_unit_test(test_floats_are_as_short_as_they_can_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
