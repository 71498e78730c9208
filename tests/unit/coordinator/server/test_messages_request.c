/* Bodies of the Messages API as bodies of the chat API, and what is refused. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/messages_request.h"
#include "tests/unit/coordinator/server/translated.h"

static bool to_answer(struct json_object **chat, struct json_object *body, struct api_error *error)
{
    return messages_request_translate(chat, body, false, error);
}

static bool to_count(struct json_object **chat, struct json_object *body, struct api_error *error)
{
    return messages_request_translate(chat, body, true, error);
}

static const char *translated(const char *body, bool counting)
{
    return translated_by(counting ? to_count : to_answer, body);
}

/* Of a body with these messages: the translated messages. */
static const char *messages_of(const char *messages)
{
    static char text[2000];
    char body[2000];
    snprintf(body, sizeof(body), "{'messages':%s}", messages);
    const char *all = translated(body, true);
    if (strncmp(all, "{'messages':", 12) != 0) return all;
    snprintf(text, sizeof(text), "%.*s", (int)(strlen(all) - 13), all + 12);
    return text;
}

static void test_plain_messages(void **state)
{
    (void)state;
    assert_string_equal(messages_of("[{'role':'user','content':'a'}]"),
                        "[{'role':'user','content':'a'}]");
    assert_string_equal(
        messages_of("[{'role':'user','content':[{'type':'text','text':'a','cache_control':{}},"
                    "{'type':'text','text':'b'}]},{'role':'user','content':'c'},"
                    "{'role':'assistant','content':'d'}]"),
        "[{'role':'user','content':'abc'},{'role':'assistant','content':'d'}]");
}

static void test_system(void **state)
{
    (void)state;
    assert_string_equal(
        translated("{'system':'s','messages':[{'role':'user','content':'a'}]}", true),
        "{'messages':[{'role':'system','content':'s'},{'role':'user','content':'a'}]}");
    assert_string_equal(
        translated("{'system':[{'type':'text','text':'x-anthropic-billing-header: 1'},"
                   "{'type':'text','text':'s'}],'messages':[{'role':'user','content':'a'}]}",
                   true),
        "{'messages':[{'role':'system','content':'s'},{'role':'user','content':'a'}]}");
}

static void test_history_of_calls(void **state)
{
    (void)state;
    assert_string_equal(
        messages_of(
            "[{'role':'assistant','content':[{'type':'thinking','thinking':'t','signature':'s'},"
            "{'type':'redacted_thinking','data':'d'},{'type':'tool_use','id':'1','name':'f',"
            "'input':{'x':1}}]},{'role':'user','content':[{'type':'text','text':'also'},"
            "{'type':'tool_result','tool_use_id':'1','content':[{'type':'text','text':'r'}]},"
            "{'type':'tool_result','tool_use_id':'2','is_error':true}]}]"),
        "[{'role':'assistant','content':null,'reasoning_content':'t','tool_calls':[{'id':'1',"
        "'type':'function','function':{'name':'f','arguments':{'x':1}}}]},"
        "{'role':'tool','content':'r','tool_call_id':'1'},"
        "{'role':'tool','content':'','tool_call_id':'2'},{'role':'user','content':'also'}]");
    assert_string_equal(messages_of("[{'role':'user','content':[{'type':'tool_result',"
                                    "'tool_use_id':'1','content':'r'}]}]"),
                        "[{'role':'tool','content':'r','tool_call_id':'1'}]");
}

static void test_tools_and_the_rest(void **state)
{
    (void)state;
    static const char rest[] = "'messages':[{'role':'user','content':'a'}],'max_tokens':5";
    char body[600];
    snprintf(body, sizeof(body),
             "{'tools':[{'name':'f','description':'d','input_schema':{'type':'object'}},"
             "{'type':'web_search_20250305','name':'web_search'},{'type':'custom','name':'g'}],"
             "'tool_choice':{'type':'tool','name':'f','disable_parallel_tool_use':true},"
             "'stop_sequences':['x'],'temperature':0.5,'n':3,'metadata':{},%s}",
             rest);
    assert_string_equal(
        translated(body, false),
        "{'temperature':0.5,'max_tokens':5,'messages':[{'role':'user','content':'a'}],"
        "'tools':[{'type':'function','function':{'name':'f','description':'d','parameters':"
        "{'type':'object'}}},{'type':'function','function':{'name':'g'}}],"
        "'parallel_tool_calls':false,'tool_choice':{'type':'function','function':{'name':'f'}},"
        "'stop':['x']}");
    snprintf(body, sizeof(body), "{'tool_choice':{'type':'any'},%s}", rest);
    assert_non_null(strstr(translated(body, false), "'tool_choice':'required'"));
    snprintf(body, sizeof(body), "{'thinking':{'type':'disabled'},%s}", rest);
    assert_non_null(strstr(translated(body, false), "'include_reasoning':false"));
    snprintf(body, sizeof(body), "{'thinking':{'type':'enabled','budget_tokens':9},%s}", rest);
    assert_null(strstr(translated(body, false), "include_reasoning"));
}

static void test_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *messages, *error;
    } cases[] = {
        {"[]", "messages: invalid_value"},
        {"7", "messages: invalid_type"},
        {"null", "messages: missing_field"},
        {"[7]", "messages[0]: invalid_type"},
        {"[{'role':'system','content':'a'}]", "messages[0].role: invalid_value"},
        {"[{'content':'a'}]", "messages[0].role: missing_field"},
        {"[{'role':'user'}]", "messages[0].content: missing_field"},
        {"[{'role':'user','content':7}]", "messages[0].content: invalid_type"},
        {"[{'role':'user','content':['a']}]", "messages[0].content[0]: invalid_type"},
        {"[{'role':'user','content':[{}]}]", "messages[0].content[0].type: missing_field"},
        {"[{'role':'user','content':[{'type':'text'}]}]",
         "messages[0].content[0].text: missing_field"},
        {"[{'role':'user','content':[{'type':'image','source':{}}]}]",
         "messages[0].content[0].type: unsupported_content"},
        {"[{'role':'user','content':[{'type':'tool_use','id':'1','name':'f','input':{}}]}]",
         "messages[0].content[0].type: invalid_value"},
        {"[{'role':'assistant','content':[{'type':'tool_use','id':'1','name':'f','input':7}]}]",
         "messages[0].content[0].input: invalid_type"},
        {"[{'role':'user','content':[{'type':'tool_result','content':'r'}]}]",
         "messages[0].content[0].tool_use_id: missing_field"},
        {"[{'role':'user','content':[{'type':'tool_result','tool_use_id':'1','content':"
         "[{'type':'image'}]}]}]",
         "messages[0].content[0].content[0].type: unsupported_content"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_string_equal(messages_of(cases[i].messages), cases[i].error);
    static const char *const bodies[][2] = {
        {"{'messages':[{'role':'user','content':'a'}]}", "max_tokens: missing_field"},
        {"{'max_tokens':0,'messages':[{'role':'user','content':'a'}]}",
         "max_tokens: invalid_value"},
        {"{'system':7,'messages':[{'role':'user','content':'a'}]}", "system: invalid_type"},
        {"{'tools':[{}],'messages':[{'role':'user','content':'a'}]}",
         "tools[0].name: missing_field"},
        {"{'tool_choice':{'type':'x'},'messages':[{'role':'user','content':'a'}]}",
         "tool_choice.type: invalid_value"},
    };
    for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++)
        assert_string_equal(translated(bodies[i][0], false), bodies[i][1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_messages),   cmocka_unit_test(test_system),
        cmocka_unit_test(test_history_of_calls), cmocka_unit_test(test_tools_and_the_rest),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
