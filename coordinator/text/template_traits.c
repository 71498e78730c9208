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
    return (struct template_traits){
        .tools = mentions(source, n, "tools"),
        .reasoning = mentions(source, n, "<think>") || mentions(source, n, "<|channel|>analysis"),
        .reasoning_switch = mentions(source, n, "enable_thinking"),
        .tool_format = tool_format_of_template(source, n),
    };
}
