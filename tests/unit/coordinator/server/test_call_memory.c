/* Answers are found again by what clients send back, and forgotten in order of use. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/call_memory.h"
#include "tests/unit/cmocka_all.h"

/* Whether the memory knows a message, written with ' for quotes; its first token in *id. */
static bool knows(struct call_memory *memory, const char *message, int32_t *id)
{
    int32_t *ids;
    size_t n_id, n_lead;
    char *json = strdup(message);
    for (char *c = json; *c; c++)
        if (*c == '\'') *c = '"';
    struct json_object *object = json_tokener_parse(json);
    assert_non_null(object);
    const bool found = call_memory_find(memory, object, &ids, &n_id, &n_lead);
    if (found) {
        assert_int_equal(n_id, 3);
        assert_int_equal(n_lead, 1);
        *id = ids[0];
        free(ids);
    }
    json_object_put(object);
    free(json);
    return found;
}

static void put(struct call_memory *memory, int number)
{
    char first[20], second[20];
    const int32_t ids[] = {number, 8, 9};
    snprintf(first, sizeof(first), "a%d", number);
    snprintf(second, sizeof(second), "b%d", number);
    const struct call_memory_call calls[] = {{first, "f", "{\"x\":1.0,\"y\":\"\\u0041\"}"},
                                             {second, "g", "{}"}};
    call_memory_put(memory, calls, 2, "text", ids, 3, 1);
}

#define MESSAGE(number, name, arguments, content)                                                  \
    "{'content':" content ",'tool_calls':[{'id':'a" number "','function':{'name':'" name           \
    "','arguments':" arguments "}},{'id':'b" number                                                \
    "','function':{'name':'g','arguments':'{}'}}]}"
#define PLAIN(number) MESSAGE(number, "f", "{'x':1.0,'y':'A'}", "'text'")

static void test_what_says_the_same_is_found(void **state)
{
    (void)state;
    struct call_memory *memory = call_memory_create(100, 1 << 20);
    int32_t id = -1;
    put(memory, 1);
    put(memory, 2);
    assert_true(knows(memory, PLAIN("1"), &id) && id == 1);
    assert_true(knows(memory, PLAIN("2"), &id) && id == 2);
    assert_true(knows(memory, MESSAGE("1", "f", "{'y':'A','x':1.0}", "'text'"), &id));
    assert_false(knows(memory, PLAIN("3"), &id));
    assert_false(knows(memory, MESSAGE("1", "h", "{'x':1.0,'y':'A'}", "'text'"), &id));
    assert_false(knows(memory, MESSAGE("1", "f", "{'x':2,'y':'A'}", "'text'"), &id));
    assert_false(knows(memory, MESSAGE("1", "f", "7", "'text'"), &id));
    assert_false(knows(memory, MESSAGE("1", "f", "{'x':1.0,'y':'A'}", "null"), &id));
    assert_false(knows(memory, MESSAGE("1", "f", "{'x':1.0,'y':'A'}", "['text']"), &id));
    assert_false(knows(memory, "{'content':'text'}", &id));
    assert_false(knows(memory, "{'tool_calls':[]}", &id));
    assert_false(knows(memory, "{'tool_calls':[7]}", &id));
    assert_false(knows(memory, "{'content':'text','tool_calls':[{'id':'a1'}]}", &id));
    call_memory_destroy(memory);
}

static void test_what_was_used_least_is_forgotten(void **state)
{
    (void)state;
    struct call_memory *memory = call_memory_create(6, 1 << 20); /* of two calls each */
    int32_t id;
    put(memory, 1);
    put(memory, 2);
    put(memory, 3);
    assert_true(knows(memory, PLAIN("1"), &id));
    put(memory, 4);
    assert_true(knows(memory, PLAIN("1"), &id));
    assert_false(knows(memory, PLAIN("2"), &id));
    assert_true(knows(memory, PLAIN("3"), &id) && knows(memory, PLAIN("4"), &id));
    call_memory_destroy(memory);
    memory = call_memory_create(100, 10); /* none fits */
    put(memory, 1);
    assert_false(knows(memory, PLAIN("1"), &id));
    call_memory_destroy(memory);
    call_memory_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_says_the_same_is_found),
        cmocka_unit_test(test_what_was_used_least_is_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
