/* What messages in the shape of the chat API become before a template sees them. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/conversation.h"
#include "proto/gguf/gguf.h"
#include "tests/unit/cmocka_all.h"

static struct gguf_file *open_vocabulary(void)
{
    const char *const source = getenv("LEAN_SOURCE_DIR");
    char path[4096];
    struct gguf_file *file = NULL;
    struct lm_error err = {0};
    snprintf(path, sizeof(path), "%s/tests/data/tokenizer/qwen2.gguf", source ? source : ".");
    if (gguf_open(&file, path, &err) != LM_OK) fail_msg("%s", err.message);
    return file;
}

/* The variables as JSON text, or the message of the error; freed by the next call. */
static const char *variables_of(const char *messages, struct conversation conversation)
{
    static char *text;
    struct json_object *variables = NULL;
    struct lm_error err = {0};
    free(text);
    conversation.messages = json_tokener_parse(messages);
    char *const before = strdup(json_object_to_json_string(conversation.messages));
    struct gguf_file *file = open_vocabulary();
    const enum lm_status status = conversation_variables(&variables, &conversation, file, &err);
    assert_string_equal(json_object_to_json_string(conversation.messages), before);
    if (status == LM_OK) { /* as the vocabulary has them, and not of interest below */
        assert_true(json_object_object_get_ex(variables, "eos_token", NULL));
        json_object_object_del(variables, "bos_token");
        json_object_object_del(variables, "eos_token");
    }
    text =
        strdup(status == LM_OK ? json_object_to_json_string_ext(variables, JSON_C_TO_STRING_PLAIN)
                               : err.message);
    json_object_put(variables);
    json_object_put(conversation.messages);
    gguf_close(file);
    free(before);
    return text;
}

static const char *messages_of(const char *messages)
{
    static char text[1000];
    const char *const variables = variables_of(messages, (struct conversation){0});
    const char *const end = strstr(variables, ",\"tools\":null");
    if (strncmp(variables, "{\"messages\":", 12) || !end) return variables;
    snprintf(text, sizeof(text), "%.*s", (int)(end - variables - 12), variables + 12);
    return text;
}

static void test_roles_and_reasoning_get_the_names_that_templates_know(void **state)
{
    (void)state;
    assert_string_equal(messages_of("[{\"role\":\"developer\",\"content\":\"a\"},"
                                    "{\"role\":\"function\",\"content\":\"b\"}]"),
                        "[{\"role\":\"system\",\"content\":\"a\"},"
                        "{\"role\":\"tool\",\"content\":\"b\"}]");
    assert_string_equal(
        messages_of("[{\"role\":\"assistant\",\"reasoning\":\"r\"}]"),
        "[{\"role\":\"assistant\",\"reasoning\":\"r\",\"reasoning_content\":\"r\"}]");
    assert_string_equal(
        messages_of("[{\"role\":\"assistant\",\"reasoning\":\"r\",\"reasoning_content\":\"c\"}]"),
        "[{\"role\":\"assistant\",\"reasoning\":\"r\",\"reasoning_content\":\"c\"}]");
}

static void test_arguments_of_calls_become_objects(void **state)
{
    (void)state;
    assert_string_equal(messages_of("[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":"
                                    "{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"}}]}]"),
                        "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":"
                        "{\"name\":\"f\",\"arguments\":{\"x\":1}}}]}]");
    assert_string_equal(messages_of("[{\"role\":\"assistant\",\"tool_calls\":"
                                    "[{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"}]}]"),
                        "[{\"role\":\"assistant\",\"tool_calls\":"
                        "[{\"name\":\"f\",\"arguments\":{\"x\":1}}]}]");
    assert_string_equal(messages_of("[{\"role\":\"assistant\",\"tool_calls\":"
                                    "[1,{\"function\":2},{\"function\":{\"arguments\":\"[\"}}]}]"),
                        "[{\"role\":\"assistant\",\"tool_calls\":"
                        "[1,{\"function\":2},{\"function\":{\"arguments\":\"[\"}}]}]");
}

static void test_text_parts_become_one_text(void **state)
{
    (void)state;
    assert_string_equal(
        messages_of("[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
                    "{\"type\":\"input_text\",\"text\":\"b\\u0000c\"}]}]"),
        "[{\"role\":\"user\",\"content\":\"ab\\u0000c\"}]");
    assert_string_equal(messages_of("[{\"role\":\"user\",\"content\":[]}]"),
                        "[{\"role\":\"user\",\"content\":\"\"}]");
    assert_string_equal(messages_of("[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\","
                                    "\"content\":[{\"type\":\"image_url\"}]}]"),
                        "messages[1].content[0] is not text");
}

static void test_what_is_no_message_is_refused(void **state)
{
    (void)state;
    assert_string_equal(messages_of("{}"), "messages is not an array");
    assert_string_equal(messages_of("[{\"role\":\"user\"},{}]"),
                        "messages[1] is not an object with a role");
    assert_string_equal(messages_of("[null]"), "messages[0] is not an object with a role");
    assert_string_equal(messages_of("[{\"role\":1}]"), "messages[0] is not an object with a role");
}

static void test_variables(void **state)
{
    (void)state;
    assert_string_equal(variables_of("[]", (struct conversation){0}),
                        "{\"messages\":[],\"tools\":null,\"documents\":null,"
                        "\"add_generation_prompt\":false}");
    struct json_object *const extra = json_tokener_parse("{\"enable_thinking\":1,\"a\":[2]}");
    struct json_object *const tools = json_tokener_parse("[3]");
    const struct conversation conversation = {
        .tools = tools, .extra = extra, .thinking = THINKING_OFF, .add_generation_prompt = true};
    assert_string_equal(variables_of("[]", conversation),
                        "{\"messages\":[],\"tools\":[3],\"documents\":null,"
                        "\"add_generation_prompt\":true,\"enable_thinking\":1,\"thinking\":false,"
                        "\"a\":[2]}");
    json_object_put(extra);
    json_object_put(tools);
}

static void test_tools_of_the_generic_format_are_in_the_messages(void **state)
{
    (void)state;
    struct json_object *const tools = json_tokener_parse("[{\"name\":\"f\"}]");
    const struct conversation conversation = {.tools = tools, .tool_format = TOOL_FORMAT_GENERIC};
    const char *const variables =
        variables_of("[{\"role\":\"function\",\"content\":\"b\"}]", conversation);
    static const char begin[] = "{\"messages\":[{\"role\":\"system\",\"content\":\"# Tools";
    assert_memory_equal(variables, begin, sizeof(begin) - 1);
    assert_non_null(strstr(variables, "{\"role\":\"user\",\"content\":\"<tool_response>\\nb"));
    assert_non_null(strstr(variables, "\"tools\":null"));
    json_object_put(tools);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_roles_and_reasoning_get_the_names_that_templates_know),
        cmocka_unit_test(test_arguments_of_calls_become_objects),
        cmocka_unit_test(test_text_parts_become_one_text),
        cmocka_unit_test(test_what_is_no_message_is_refused),
        cmocka_unit_test(test_variables),
        cmocka_unit_test(test_tools_of_the_generic_format_are_in_the_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
