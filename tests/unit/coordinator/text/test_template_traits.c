/* Traits of templates that write their tool calls in the two common ways, and of one without. */
#include <string.h>

#include "coordinator/text/template_traits.h"
#include "tests/unit/cmocka_all.h"

static struct template_traits traits_of(const char *source)
{
    return template_traits(source, strlen(source));
}

static void test_xml_calls(void **state)
{
    (void)state;
    const struct template_traits traits =
        traits_of("{% if tools %}<tool_call>\n<function=name>\n{% endif %}"
                  "{% if enable_thinking is false %}<think>\n\n</think>{% endif %}");
    assert_true(traits.tools && traits.reasoning && traits.reasoning_switch);
    assert_string_equal(tool_format_name(traits.tool_format), "qwen_xml");
}

static void test_json_calls(void **state)
{
    (void)state;
    const struct template_traits traits =
        traits_of("{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>\n{\"name\": ");
    assert_true(traits.tools && !traits.reasoning && !traits.reasoning_switch);
    assert_string_equal(tool_format_name(traits.tool_format), "hermes");
}

static void test_plain(void **state)
{
    (void)state;
    const struct template_traits traits = traits_of("{% for m in messages %}{{ m }}{% endfor %}");
    assert_true(!traits.tools && !traits.reasoning && !traits.reasoning_switch);
    assert_string_equal(tool_format_name(traits.tool_format), "generic");
    assert_false(template_traits("", 0).tools);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_xml_calls),
        cmocka_unit_test(test_json_calls),
        cmocka_unit_test(test_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
