/* Bodies of the Responses API as bodies of the chat API, and what is refused. */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/responses_request.h"
#include "tests/unit/coordinator/server/translated.h"

static const char *translated(const char *body)
{
    return translated_by(responses_request_translate, body);
}

static void check(const char *body, const char *expected)
{
    assert_string_equal(translated(body), expected);
}

static void test_input(void **state)
{
    (void)state;
    check("{'input':'a'}", "{'messages':[{'role':'user','content':'a'}]}");
    check("{'instructions':'i','input':[{'type':'message','role':'developer','content':'d'},"
          "{'role':'user','content':[{'type':'input_text','text':'a'},{'type':'input_text',"
          "'text':'b'}]},{'role':'user','content':'c'},{'role':'system','content':'late'}]}",
          "{'messages':[{'role':'system','content':'i\\n\\nd'},{'role':'user','content':'ab'},"
          "{'role':'user','content':'c'},{'role':'system','content':'late'}]}");
}

static void test_history(void **state)
{
    (void)state;
    check("{'input':[{'role':'user','content':'q'},{'type':'reasoning','id':'rs','summary':[],"
          "'content':[{'type':'reasoning_text','text':'t'}]},{'type':'message','role':'assistant',"
          "'content':[{'type':'output_text','text':'a'}]},{'type':'function_call','call_id':'1',"
          "'name':'f','arguments':'{}'},{'type':'function_call','call_id':'2','name':'g',"
          "'arguments':'{}'},{'type':'function_call_output','call_id':'1','output':'r'},"
          "{'type':'function_call_output','call_id':'2','output':[{'type':'input_text',"
          "'text':'s'}]},{'type':'web_search_call','id':'w'},{'type':'reasoning','summary':"
          "[{'type':'summary_text','text':'nothing follows'}]}]}",
          "{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'a',"
          "'reasoning_content':'t','tool_calls':[{'id':'1','type':'function','function':"
          "{'name':'f','arguments':'{}'}},{'id':'2','type':'function','function':{'name':'g',"
          "'arguments':'{}'}}]},{'role':'tool','content':'r','tool_call_id':'1'},"
          "{'role':'tool','content':'s','tool_call_id':'2'}]}");
}

static void test_tools_and_the_rest(void **state)
{
    (void)state;
    check("{'input':'a','tools':[{'type':'function','name':'f','parameters':{},'strict':true},"
          "{'type':'web_search'}],'tool_choice':{'type':'function','name':'f'},"
          "'parallel_tool_calls':false,'max_output_tokens':9,'temperature':0.5,"
          "'text':{'format':{'type':'json_schema','name':'n','schema':{},'strict':true}},"
          "'reasoning':{'effort':'low'},'top_logprobs':2,'store':true,'stream':true}",
          "{'parallel_tool_calls':false,'temperature':0.5,'stream':true,'messages':"
          "[{'role':'user','content':'a'}],'tools':[{'type':'function','function':{'name':'f',"
          "'strict':true,'parameters':{}}}],'tool_choice':{'type':'function','function':"
          "{'name':'f'}},'response_format':{'type':'json_schema','json_schema':{'name':'n',"
          "'schema':{},'strict':true}},'reasoning_effort':'low','max_tokens':9,'top_logprobs':2,"
          "'logprobs':true}");
    check("{'input':'a','tool_choice':{'type':'allowed_tools','mode':'required','tools':"
          "[{'type':'function','name':'f'}]},'include':['message.output_text.logprobs']}",
          "{'messages':[{'role':'user','content':'a'}],'tool_choice':{'type':'allowed_tools',"
          "'allowed_tools':{'mode':'required','tools':[{'type':'function','function':"
          "{'name':'f'}}]}},'logprobs':true}");
}

static void test_what_is_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{}", "input: missing_field"},
        {"{'input':7}", "input: invalid_type"},
        {"{'input':[]}", "input: invalid_value"},
        {"{'input':[7]}", "input[0]: invalid_type"},
        {"{'input':[{'role':'tool','content':'a'}]}", "input[0].role: invalid_value"},
        {"{'input':[{'role':'user'}]}", "input[0].content: missing_field"},
        {"{'input':[{'role':'user','content':[{'type':'input_image'}]}]}",
         "input[0].content[0].type: unsupported_content"},
        {"{'input':[{'type':'item_reference','id':'x'}]}", "input[0].type: invalid_value"},
        {"{'input':[{'type':'function_call','name':'f'}]}", "input[0].call_id: missing_field"},
        {"{'input':[{'type':'function_call_output','call_id':'1'}]}",
         "input[0].output: missing_field"},
        {"{'input':'a','previous_response_id':'x'}", "previous_response_id: not_supported"},
        {"{'input':'a','conversation':{'id':'x'}}", "conversation: not_supported"},
        {"{'input':'a','background':true}", "background: not_supported"},
        {"{'input':'a','max_output_tokens':0}", "max_output_tokens: invalid_value"},
        {"{'input':'a','tools':[{'type':'function'}]}", "tools[0].name: missing_field"},
        {"{'input':'a','tool_choice':{'type':'web_search'}}", "tool_choice.type: invalid_value"},
        {"{'input':'a','text':{'format':{}}}", "text.format.type: missing_field"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        check(cases[i][0], cases[i][1]);
    check("{'input':'a','previous_response_id':null,'background':false}",
          "{'messages':[{'role':'user','content':'a'}]}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_input),
        cmocka_unit_test(test_history),
        cmocka_unit_test(test_tools_and_the_rest),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
