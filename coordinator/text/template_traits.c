/* Traits by substrings: a template that mentions a variable uses it, and its literal markup is what
 * the model was trained to write. */
#include "coordinator/text/template_traits.h"

#include <string.h>

static bool mentions(const char *source, size_t n, const char *text)
{
    return memmem(source, n, text, strlen(text)) != NULL;
}

struct template_traits template_traits(const char *source, size_t n)
{
    struct template_traits traits = {
        .tools = mentions(source, n, "tools"),
        .reasoning = mentions(source, n, "<think>"),
        .reasoning_switch = mentions(source, n, "enable_thinking"),
    };
    if (mentions(source, n, "<function="))
        traits.tool_format = TOOL_FORMAT_XML;
    else if (traits.tools && mentions(source, n, "<tool_call>"))
        traits.tool_format = TOOL_FORMAT_JSON;
    return traits;
}

const char *tool_format_name(enum tool_format format)
{
    static const char *const names[] = {"none", "json", "xml"};
    return names[format];
}
