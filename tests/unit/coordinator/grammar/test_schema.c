/* JSON schemas: every keyword with texts that match and texts that do not; everything that is not
 * supported is refused with its place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "tests/unit/coordinator/grammar/grammar_case.h"

static enum lm_status compile(const char *text, struct grammar **grammar, struct lm_error *err)
{
    struct json_object *schema = json_tokener_parse(text);
    if (!schema && strcmp(text, "null")) fail_msg("no JSON: %s", text);
    const enum lm_status status = grammar_from_schema(grammar, schema, false, err);
    json_object_put(schema);
    return status;
}

/* matches, refuses: texts behind each other, ended by an empty one. */
static void check(const char *schema, const char *matches, const char *refuses)
{
    struct grammar *grammar;
    struct lm_error err = {0};
    if (compile(schema, &grammar, &err) != LM_OK) fail_msg("%s: %s", schema, err.message);
    for (; *matches; matches += strlen(matches) + 1) {
        const size_t n = strlen(matches);
        if (case_try(&vocab, grammar, matches, n) != CASE_WHOLE)
            fail_msg("%s does not match %s", schema, matches);
        if (n < 60 && !case_mask_holds(&vocab, grammar, matches, n / 2))
            fail_msg("%s: wrong mask in %s", schema, matches);
    }
    for (; *refuses; refuses += strlen(refuses) + 1)
        if (case_try(&vocab, grammar, refuses, strlen(refuses)) == CASE_WHOLE)
            fail_msg("%s matches %s", schema, refuses);
    grammar_unref(grammar);
}

static void test_types(void **state)
{
    (void)state;
    check("{\"type\":\"null\"}", "null\0", "true\0");
    check("{\"type\":\"boolean\"}", "true\0false\0", "null\0\"true\"\0");
    check("{\"type\":\"integer\"}",
          "0\0-1\0"
          "12345678901234567\0",
          "1.0\0"
          "-0\0"
          "01\0"
          "1e2\0"
          "123456789012345678\0");
    check("{\"type\":\"number\"}",
          "0\0-1.5\0"
          "1e-308\0"
          "1.5E+10\0",
          "1.\0.5\0"
          "1e309\0+1\0");
    check("{\"type\":\"string\"}", "\"\"\0\"a\\u00e4\\n\xc3\xa4\"\0", "a\0\"\n\"\0\"\\x\"\0");
    check("{\"type\":\"array\"}", "[]\0[1,\"a\", null]\0[[], {}]\0", "{}\0[1,]\0");
    check("{\"type\":\"object\"}", "{}\0", "{\"a\":1}\0[]\0");
    check("{\"type\":[\"integer\",\"null\"]}",
          "null\0"
          "12\0",
          "\"\"\0"
          "1.5\0");
    check("{\"type\":[\"integer\",\"number\"]}",
          "1.5\0"
          "1\0",
          "true\0");
    check("{}",
          "{\"a\":[1,{}]}\0null\0"
          "1.5e3\0",
          "a\0");
    check("{\"title\":\"t\",\"description\":\"d\",\"default\":1,\"examples\":[1],\"$schema\":\"s\","
          "\"$id\":\"i\",\"$comment\":\"c\",\"deprecated\":true,\"readOnly\":true,"
          "\"writeOnly\":false}",
          "1\0\"a\"\0", "a\0");
    check("{\"type\":\"array\",\"items\":true}", "[1,\"a\"]\0", "1\0");
    check("{\"type\":\"array\",\"items\":false}", "[]\0", "[1]\0");
    check("{\"type\":\"string\",\"nullable\":true}", "null\0\"a\"\0", "1\0");
    check("{\"type\":\"string\",\"nullable\":false}", "\"a\"\0", "null\0");
    check("{\"enum\":[\"a\"],\"nullable\":true}", "null\0\"a\"\0", "\"b\"\0");
}

static void test_constants(void **state)
{
    (void)state;
    check("{\"enum\":[\"ab\",\"abc\",1,1.50,null,true,{\"a\":[1]},\"\\u00e4\\n/\"]}",
          "\"ab\"\0\"abc\"\0"
          "1\0"
          "1.50\0null\0true\0{\"a\":[1]}\0\"\xc3\xa4\\n/\"\0",
          "\"a\"\0"
          "2\0"
          "1.5\0{}\0");
    check("{\"const\":\"x\"}", "\"x\"\0", "\"y\"\0");
    check("{\"const\":null}", "null\0", "0\0");
    check("{\"type\":\"string\",\"enum\":[\"a\",1,\"bc\"]}", "\"a\"\0\"bc\"\0", "1\0");
    check("{\"type\":\"integer\",\"enum\":[1,2.5,3,40],\"maximum\":39}",
          "1\0"
          "3\0",
          "2.5\0"
          "40\0");
    check("{\"enum\":[\"abc\",\"abcd\",\"1bc\"],\"pattern\":\"^[a-z]\",\"maxLength\":3}",
          "\"abc\"\0", "\"abcd\"\0\"1bc\"\0");
    check("{\"enum\":[[1],[1,2],[\"a\"]],\"items\":{\"type\":\"integer\"},\"maxItems\":1}", "[1]\0",
          "[1,2]\0[\"a\"]\0");
    check("{\"enum\":[{\"a\":1},{\"b\":1}],\"required\":[\"a\"]}", "{\"a\":1}\0", "{\"b\":1}\0");
    check("{\"allOf\":[{\"enum\":[1,2,3]},{\"enum\":[2.0,3,4]}]}",
          "2\0"
          "3\0",
          "1\0"
          "4\0");
}

static void test_objects(void **state)
{
    static const char order[] =
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":"
        "\"string\"},\"c\":{\"type\":\"null\"}},\"required\":[\"b\"]}";
    (void)state;
    check(order,
          "{\"b\":\"\"}\0{\"a\":1,\"b\":\"\"}\0{\"a\":1, \"b\": \"x\", \"c\":null}\0"
          "{\"b\":\"\",\"c\":null}\0",
          "{}\0{\"a\":1}\0{\"b\":\"\",\"a\":1}\0{\"b\":1}\0{\"b\":\"\",\"d\":1}\0"
          "{\"b\":\"\",}\0{,\"b\":\"\"}\0{\"a\":1 \"b\":\"\"}\0{\"b\":\"\",\"b\":\"\"}\0"
          "{\"b\" :\"\"}\0{ \"b\":\"\"}\0{\"b\":  \"\"}\0");
    check("{\"properties\":{\"a\":{},\"b\":{}}}", "{}\0{\"a\":1}\0{\"b\":[]}\0{\"a\":1,\"b\":2}\0",
          "{\"c\":1}\0"
          "1\0{\"b\":1,\"a\":1}\0");
    check("{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}",
          "{}\0{\"x\":1}\0{\"x\":1, \"\\u00e4\":2}\0", "{\"x\":\"\"}\0{\"x\":1,}\0");
    check("{\"properties\":{\"name\":{\"type\":\"null\"}},\"additionalProperties\":true}",
          "{}\0{\"name\":null}\0{\"name\":null,\"nam\":1}\0{\"names\":1}\0{\"x\":1,\"\":2}\0"
          "{\"n\xc3\xa4\":1}\0{\"\\n\":1}\0",
          "{\"name\":1}\0{\"nam\\u0065\":1}\0{\"x\":1,\"name\":null}\0{\"x\":1,\"name\":1}\0");
    check("{\"properties\":{\"a\":false,\"b\":true}}", "{}\0{\"b\":1}\0", "{\"a\":1}\0");
    check("{\"type\":\"object\",\"required\":[\"x\"],\"additionalProperties\":{\"type\":\"null\"}}",
          "{\"x\":null}\0{\"x\":null,\"y\":null}\0", "{}\0{\"y\":null}\0{\"x\":1}\0");
    check("{\"properties\":{\"a\\\"b\\n\":{\"type\":\"null\"}}}", "{\"a\\\"b\\n\":null}\0",
          "{\"a\":null}\0");
}

static void test_many_properties(void **state)
{
    char schema[40000] = "{\"properties\":{", text[40000] = "{";
    size_t n = strlen(schema), n_text = 1;
    (void)state;
    for (int i = 0; i < 1000; i++) {
        n += (size_t)sprintf(schema + n, "%s\"p%d\":{\"type\":\"null\"}", i ? "," : "", i);
        if (i % 7 == 3)
            n_text += (size_t)sprintf(text + n_text, "%s\"p%d\":null", i > 3 ? "," : "", i);
    }
    strcpy(schema + n, "},\"required\":[\"p3\",\"p500\"]}");
    struct grammar *grammar;
    assert_int_equal(compile(schema, &grammar, NULL), LM_OK);
    strcpy(text + n_text, "}");
    assert_int_equal(case_try(&vocab, grammar, text, strlen(text)), CASE_WHOLE);
    assert_int_equal(case_try(&vocab, grammar, "{\"p3\":null}", 11), CASE_REFUSED);
    assert_int_equal(case_try(&vocab, grammar, "{\"p3\":null,\"p500\":null}", 23), CASE_WHOLE);
    assert_true(case_mask_holds(&vocab, grammar, text, n_text / 2));
    grammar_unref(grammar);
}

static void test_arrays(void **state)
{
    (void)state;
    check("{\"items\":{\"type\":\"integer\"}}", "[]\0[1]\0[1,2, 3]\0",
          "[\"a\"]\0"
          "1\0[1,,2]\0");
    check("{\"items\":{\"type\":\"null\"},\"minItems\":2,\"maxItems\":3}",
          "[null,null]\0[null,null,null]\0", "[]\0[null]\0[null,null,null,null]\0");
    check("{\"prefixItems\":[{\"type\":\"null\"},{\"type\":\"boolean\"}],\"items\":{\"type\":"
          "\"integer\"},\"minItems\":1}",
          "[null]\0[null,true]\0[null,true,1,2]\0", "[]\0[true]\0[null,1]\0[null,true,true]\0");
    check("{\"prefixItems\":[{\"type\":\"null\"},{\"type\":\"boolean\"}],\"items\":false}",
          "[]\0[null,true]\0", "[null,true,1]\0");
    check("{\"prefixItems\":[{\"type\":\"null\"},{\"type\":\"boolean\"}],\"maxItems\":1}",
          "[]\0[null]\0", "[null,true]\0");
    check("{\"type\":\"array\",\"maxItems\":0}", "[]\0", "[1]\0");
    check("{\"items\":{\"type\":\"null\"},\"minItems\":1}", "[null]\0", "[]\0");
}

static void test_strings(void **state)
{
    (void)state;
    check("{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
          "\"ab\"\0\"\xc3\xa4\xf0\x9f\x98\x80\"\0\"\\u00e4\\n\\\"\"\0\"\\ud83d\\ude00a\"\0",
          "\"a\"\0\"abcd\"\0\"\\ud83d\\ude00\"\0");
    check("{\"minLength\":1}", "\"a\"\0",
          "\"\"\0"
          "1\0");
    check("{\"maxLength\":200}", "\"\"\0\"abcd\"\0", "1\0");
    check("{\"pattern\":\"b+\"}", "\"b\"\0\"abc\"\0\"\\nb\"\0", "\"a\"\0\"\"\0");
    check("{\"pattern\":\"^[a-c\\\"\\\\\\\\\\\\n]+$\"}", "\"abc\"\0\"\\\"\\\\\\n\"\0",
          "\"d\"\0\"\\u0061\"\0");
    check("{\"pattern\":\"^a*$\",\"minLength\":2,\"maxLength\":3}", "\"aa\"\0\"aaa\"\0",
          "\"a\"\0\"aaaa\"\0");
    check("{\"allOf\":[{\"pattern\":\"a\"},{\"pattern\":\"b\"}]}", "\"ab\"\0\"bxa\"\0",
          "\"a\"\0\"b\"\0");
    check("{\"pattern\":\"^\\\\x00$\"}", "\"\\u0000\"\0", "\"\"\0");
    check("{\"type\":\"string\",\"format\":\"color\"}", "\"whatever\"\0", "1\0");
    check("{\"format\":\"color\"}",
          "\"whatever\"\0"
          "1\0",
          "x\0");
}

static void test_formats(void **state)
{
    (void)state;
    check("{\"format\":\"date\"}",
          "\"2026-11-22\"\0\"2024-02-29\"\0\"2000-02-29\"\0\"0001-12-31\"\0",
          "\"2026-02-29\"\0\"1900-02-29\"\0\"2026-13-01\"\0\"2026-04-31\"\0\"2026-1-1\"\0"
          "\"0000-01-01\"\0\"0000-02-29\"\0");
    check("{\"format\":\"time\"}", "\"23:59:59Z\"\0\"00:00:00.123+01:30\"\0",
          "\"24:00:00Z\"\0\"12:00:00\"\0\"12:60:00Z\"\0");
    check("{\"format\":\"date-time\"}",
          "\"2026-11-22T10:00:00Z\"\0\"2026-11-22T10:00:00.5-08:00\"\0",
          "\"2026-11-22 10:00:00Z\"\0\"2026-11-22\"\0");
    check("{\"format\":\"uuid\"}", "\"123e4567-e89b-12d3-a456-426614174000\"\0",
          "\"123e4567e89b12d3a456426614174000\"\0\"123e4567-e89b-12d3-a456-42661417400g\"\0");
    check("{\"format\":\"ipv4\"}", "\"192.168.0.255\"\0\"0.0.0.0\"\0",
          "\"256.0.0.1\"\0\"1.2.3\"\0\"01.2.3.4\"\0");
    check("{\"format\":\"ipv6\"}",
          "\"::\"\0\"::1\"\0\"2001:db8::ff00:42:8329\"\0\"1:2:3:4:5:6:7:8\"\0\"1::\"\0\"1:2:3:4:5:"
          "6:7::\"\0",
          "\"1:2:3\"\0\"1::2::3\"\0\"12345::\"\0\"1:2:3:4:5:6:7:8:9\"\0:\0");
    check("{\"format\":\"email\"}", "\"a.b+c@example.org\"\0",
          "\"a@b\"\0\"a..b@c.de\"\0\"@c.de\"\0\"a@-b.de\"\0");
    check("{\"format\":\"hostname\"}", "\"a\"\0\"a-b.example.org\"\0",
          "\"-a\"\0\"a..b\"\0\"a-\"\0");
    check("{\"format\":\"uri\"}",
          "\"https://user@example.org:80/a/b%20c?q=1#f\"\0\"mailto:a@b.c\"\0\"urn:x:y\"\0",
          "\"no uri\"\0\"//a/b\"\0\"http://a b\"\0\"http://a/%2\"\0");
}

static void test_numbers(void **state)
{
    (void)state;
    check("{\"type\":\"integer\",\"minimum\":-12,\"maximum\":345}",
          "-12\0-9\0"
          "0\0"
          "99\0"
          "300\0"
          "345\0",
          "-13\0"
          "346\0"
          "1000\0-100\0"
          "400\0");
    check("{\"type\":\"integer\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":100}",
          "1\0"
          "99\0",
          "0\0"
          "100\0-1\0");
    check("{\"type\":\"integer\",\"minimum\":9007199254740993}",
          "9007199254740993\0"
          "12345678901234567\0",
          "9007199254740992\0");
    check("{\"type\":\"integer\",\"minimum\":0.5,\"maximum\":2.5}",
          "1\0"
          "2\0",
          "0\0"
          "3\0");
    check("{\"type\":\"number\",\"minimum\":0.25,\"maximum\":10}",
          "0.25\0"
          "0.3\0"
          "1\0"
          "9.999\0"
          "10\0"
          "10.00\0"
          "0.250\0",
          "0.24\0"
          "0.2\0"
          "10.01\0"
          "11\0-1\0"
          "1e1\0"
          "0\0");
    check("{\"type\":\"number\",\"exclusiveMinimum\":-1.5,\"exclusiveMaximum\":0}",
          "-1.4\0-0.1\0-1.49\0-1\0",
          "-1.5\0-1.50\0"
          "0\0-2\0"
          "1\0-0\0");
    check("{\"minimum\":1e2}",
          "100\0"
          "100.5\0"
          "101\0",
          "99\0"
          "99.9\0");
    check("{\"type\":\"number\",\"maximum\":-0.05}", "-0.05\0-0.1\0-1\0-10\0-0.051\0",
          "-0.04\0-0.049\0"
          "0\0"
          "1\0");
    check("{\"type\":\"integer\",\"maximum\":1e300,\"minimum\":-1e300}", "5\0-5\0", "a\0");
    check("{\"type\":\"integer\",\"multipleOf\":10}",
          "0\0"
          "10\0-120\0",
          "5\0"
          "101\0");
    check("{\"type\":\"number\",\"multipleOf\":0.01}",
          "0.01\0"
          "1.5\0"
          "2\0",
          "0.001\0"
          "1e1\0");
    check("{\"type\":\"number\",\"multipleOf\":1}", "3\0", "3.5\0");
    check("{\"allOf\":[{\"type\":\"integer\",\"minimum\":5},{\"minimum\":7,\"maximum\":9}]}",
          "7\0"
          "9\0",
          "6\0"
          "10\0"
          "7.5\0");
}

static void test_combinations(void **state)
{
    (void)state;
    check("{\"anyOf\":[{\"type\":\"null\"},{\"type\":\"integer\",\"minimum\":5}]}",
          "null\0"
          "5\0",
          "4\0true\0");
    check("{\"oneOf\":[{\"type\":\"null\"},{\"type\":\"boolean\"}]}", "null\0true\0", "1\0");
    check(
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
        "\"anyOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]}",
        "{\"a\":null}\0{\"b\":null}\0{\"a\":null,\"b\":null}\0", "{}\0{\"c\":1}\0");
    check("{\"allOf\":[{\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]},"
          "{\"properties\":{\"a\":{\"minimum\":3},\"b\":{\"type\":\"null\"}}}]}",
          "{\"a\":3}\0{\"a\":4,\"b\":null}\0", "{\"a\":2}\0{}\0{\"a\":\"\"}\0");
    check("{\"allOf\":[{\"properties\":{\"a\":{}},\"additionalProperties\":false},"
          "{\"properties\":{\"b\":{}}}]}",
          "{}\0{\"a\":1}\0", "{\"b\":1}\0");
    check("{\"anyOf\":[{\"const\":1},{\"const\":2}],\"oneOf\":[{\"const\":2},{\"const\":3}]}",
          "2\0",
          "1\0"
          "3\0");
    check("{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"integer\"}],\"nullable\":true}",
          "null\0\"a\"\0"
          "1\0",
          "true\0");
    check("{\"minLength\":2,\"anyOf\":[{\"pattern\":\"^a\"},{\"pattern\":\"^b\"}],\"type\":"
          "\"string\"}",
          "\"ab\"\0\"ba\"\0", "\"a\"\0\"cc\"\0");
}

static void test_references(void **state)
{
    (void)state;
    check("{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"type\":\"integer\"}}}", "1\0", "\"\"\0");
    check("{\"$ref\":\"#/definitions/a~1b%20c\",\"definitions\":{\"a/b c\":{\"type\":\"null\"}}}",
          "null\0", "1\0");
    check("{\"type\":\"object\",\"properties\":{\"next\":{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":"
          "\"null\"}]}},\"required\":[\"next\"]}",
          "{\"next\":null}\0{\"next\":{\"next\":{\"next\":null}}}\0", "{}\0{\"next\":{}}\0");
    check("{\"$ref\":\"#/$defs/t\",\"$defs\":{\"t\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/"
          "$defs/t\"}}}}",
          "[]\0[[],[[]]]\0", "[1]\0");
    check("{\"$ref\":\"#/$defs/a\",\"minimum\":5,\"$defs\":{\"a\":{\"type\":\"integer\"}}}", "5\0",
          "4\0"
          "5.5\0");
    /* two schemas that refer to each other */
    check("{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"properties\":{\"b\":{\"$ref\":\"#/$defs/"
          "b\"}}},\"b\":{\"items\":{\"$ref\":\"#/$defs/a\"}}}}",
          "{}\0{\"b\":[{},{\"b\":[]}]}\0", "{\"b\":{}}\0[]\0");
}

static void test_what_is_not_supported(void **state)
{
    static const struct {
        const char *schema, *message;
    } cases[] = {
        {"{\"not\":{}}", "#/not: "},
        {"{\"if\":{}}", "#/if: "},
        {"{\"then\":{}}", "#/then: "},
        {"{\"else\":{}}", "#/else: "},
        {"{\"dependentRequired\":{}}", "#/dependentRequired: "},
        {"{\"dependentSchemas\":{}}", "#/dependentSchemas: "},
        {"{\"dependencies\":{}}", "#/dependencies: "},
        {"{\"properties\":{\"a/b\":{\"patternProperties\":{}}}}",
         "#/properties/a~1b/patternProperties: "},
        {"{\"propertyNames\":{}}", "#/propertyNames: "},
        {"{\"items\":{\"contains\":{}}}", "#/items/contains: "},
        {"{\"minContains\":1}", "#/minContains: "},
        {"{\"uniqueItems\":true}", "#/uniqueItems: "},
        {"{\"minProperties\":1}", "#/minProperties: "},
        {"{\"maxProperties\":1}", "#/maxProperties: "},
        {"{\"unevaluatedProperties\":false}", "#/unevaluatedProperties: "},
        {"{\"unevaluatedItems\":false}", "#/unevaluatedItems: "},
        {"{\"anyOf\":[{},{\"foo\":1}]}", "#/anyOf/1/foo: "},
        {"{\"$defs\":{\"a\":{\"not\":{}}}}", "#/$defs/a/not: "},
        {"{\"$ref\":\"http://example.org/s\"}", "#/$ref: "},
        {"{\"$ref\":\"#/properties/a\",\"properties\":{\"a\":{}}}", "#/$ref: "},
        {"{\"$ref\":\"other.json#/a\"}", "#/$ref: "},
        {"{\"multipleOf\":3}", "#/multipleOf: "},
        {"{\"multipleOf\":0.5}", "#/multipleOf: "},
        {"{\"pattern\":\"(?=a)\"}", "#/pattern: pattern offset 0: look-around"},
        {"{\"prefixItems\":[{\"pattern\":\"(a)\\\\1\"}]}", "#/prefixItems/0/pattern: pattern"},
        {"{\"pattern\":\"(a|b)*a(a|b){30}\"}", "#/pattern: "},
        {"{\"type\":\"integer\",\"minimum\":1e20}", "#/minimum: "},
        {"{\"type\":\"integer\",\"minimum\":1e200}", "#/minimum: "},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct grammar *grammar;
        struct lm_error err = {0};
        const enum lm_status status = compile(cases[i].schema, &grammar, &err);
        if (status != LM_E_UNSUPPORTED ||
            strncmp(err.message, cases[i].message, strlen(cases[i].message)))
            fail_msg("%s: %d %s", cases[i].schema, status, err.message);
    }
}

static void test_what_is_malformed(void **state)
{
    static const struct {
        const char *schema, *message;
    } cases[] = {
        {"[]", "#: is no schema"},
        {"false", "no text at all"},
        {"{\"type\":\"text\"}", "#/type: "},
        {"{\"type\":[]}", "#/type: "},
        {"{\"enum\":[]}", "#/enum: "},
        {"{\"properties\":[]}", "#/properties: "},
        {"{\"properties\":{\"a\":1}}", "#/properties/a: is no schema"},
        {"{\"required\":\"a\"}", "#/required: "},
        {"{\"items\":[{}]}", "#/items: is no schema"},
        {"{\"anyOf\":[]}", "#/anyOf: "},
        {"{\"minLength\":-1}", "#/minLength: "},
        {"{\"maxItems\":1.5}", "#/maxItems: "},
        {"{\"minimum\":\"1\"}", "#/minimum: "},
        {"{\"exclusiveMinimum\":true}", "#/exclusiveMinimum: "},
        {"{\"multipleOf\":-10}", "#/multipleOf: "},
        {"{\"pattern\":\"(\"}", "#/pattern: pattern offset 0"},
        {"{\"$ref\":\"#/$defs/x\"}", "#/$ref: refers to nothing"},
        {"{\"$ref\":\"#\"}", "#: refers back to itself"},
        {"{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"anyOf\":[{\"$ref\":\"#/$defs/a\"},{}]}}}",
         "#/$defs/a/anyOf/0: refers back"},
        {"{\"nullable\":1}", "#/nullable: "},
        /* no value satisfies these */
        {"{\"type\":\"integer\",\"minimum\":5,\"maximum\":4}", "no text at all"},
        {"{\"type\":\"string\",\"minLength\":5,\"maxLength\":4}", "no text at all"},
        {"{\"type\":\"array\",\"minItems\":2,\"maxItems\":1}", "no text at all"},
        {"{\"type\":\"array\",\"minItems\":1,\"items\":false}", "no text at all"},
        {"{\"allOf\":[{\"type\":\"string\"},{\"type\":\"integer\"}]}", "no text at all"},
        {"{\"type\":\"integer\",\"enum\":[\"a\"]}", "no text at all"},
        {"{\"type\":\"object\",\"required\":[\"a\"]}", "no text at all"},
        {"{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", "no text at all"},
        {"{\"pattern\":\"^a$\",\"minLength\":2}", "no text at all"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct grammar *grammar;
        struct lm_error err = {0};
        const enum lm_status status = compile(cases[i].schema, &grammar, &err);
        if (status != LM_E_FORMAT ||
            strncmp(err.message, cases[i].message, strlen(cases[i].message)))
            fail_msg("%s: %d %s", cases[i].schema, status, err.message);
    }
}

/* Alternatives that allOf or a reference brings, and that ask for nothing else. */
static void test_brought_alternatives(void **state)
{
    (void)state;
    check("{\"allOf\":[{\"anyOf\":[{\"type\":\"null\"},{\"type\":\"boolean\"}]}]}", "null\0true\0",
          "1\0\"a\"\0");
    check("{\"type\":[\"null\",\"integer\"],\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"oneOf\":["
          "{\"type\":\"integer\"},{\"type\":\"string\"}]}}}",
          "1\0", "null\0\"a\"\0");
    check("{\"allOf\":[{\"anyOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]},"
          "{\"anyOf\":[{\"required\":[\"c\"]},{\"required\":[\"d\"]}]}],"
          "\"properties\":{\"a\":{},\"b\":{},\"c\":{},\"d\":{}},\"type\":\"object\","
          "\"additionalProperties\":false}",
          "{\"a\":1,\"c\":2}\0{\"b\":1,\"d\":2}\0", "{\"a\":1}\0{\"c\":1,\"d\":2}\0");
}

/* A list of n values "v0", "v1" ... in an enum, k such lists in allOf. */
static enum lm_status compile_enums(size_t n, size_t k, const char *beside)
{
    struct grammar *grammar;
    struct lm_error err;
    char *const text = malloc(k * (n * 12 + 20) + strlen(beside) + 20), *at = text;
    assert_non_null(text);
    at += sprintf(at, "{\"allOf\":[%s", beside);
    for (size_t i = 0; i < k; i++) {
        at += sprintf(at, "%s{\"enum\":[", i ? "," : "");
        for (size_t v = 0; v < n; v++)
            at += sprintf(at, "%s\"v%zu\"", v ? "," : "", v);
        at += sprintf(at, "]}");
    }
    sprintf(at, "]}");
    const enum lm_status status = compile(text, &grammar, &err);
    if (status == LM_OK) grammar_unref(grammar);
    free(text);
    return status;
}

/* 1 against a choice of two, each of which leads to a choice of two, and so on 40 times. */
static enum lm_status compile_doubling(void)
{
    struct grammar *grammar;
    struct lm_error err;
    char text[8192], *at = text;
    at += sprintf(at, "{\"enum\":[1],\"$ref\":\"#/$defs/a0\",\"$defs\":{");
    for (int i = 0; i < 40; i++)
        at += sprintf(at,
                      "\"a%d\":{\"anyOf\":[{\"allOf\":[{\"$ref\":\"#/$defs/a%d\"}]},"
                      "{\"allOf\":[{\"$ref\":\"#/$defs/a%d\"}]}]},",
                      i, i + 1, i + 1);
    sprintf(at, "\"a40\":{\"type\":\"string\"}}}");
    return compile(text, &grammar, &err);
}

/* What would take minutes is refused; a long list alone is not. */
static void test_work_on_constants_is_bounded(void **state)
{
    (void)state;
    assert_int_equal(compile_enums(50000, 1, ""), LM_OK);
    assert_int_equal(compile_enums(500, 3, "{\"pattern\":\"^v[0-9]+$\"},"), LM_OK);
    assert_int_equal(compile_enums(20000, 2, ""), LM_E_LIMIT);
    assert_int_equal(compile_doubling(), LM_E_LIMIT);
    assert_int_equal(compile_enums(500, 1, "{\"pattern\":\"(a?){500}a{500}\"},"), LM_E_LIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_constants),
        cmocka_unit_test(test_objects),
        cmocka_unit_test(test_many_properties),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_combinations),
        cmocka_unit_test(test_references),
        cmocka_unit_test(test_what_is_not_supported),
        cmocka_unit_test(test_brought_alternatives),
        cmocka_unit_test(test_work_on_constants_is_bounded),
        cmocka_unit_test(test_what_is_malformed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
