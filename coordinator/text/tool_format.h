/* How a model writes tool calls.
 *
 *   qwen_xml  <tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></tool_call>
 *             (Qwen3.5, Qwen3-Coder, Trinity-Large-Thinking)
 *   hermes    <tool_call>{"name": NAME, "arguments": {...}}</tool_call>  (Qwen3, Trinity-Mini)
 *   generic   as hermes, for templates that know neither: an instruction in the system message
 *             shows the tools and the syntax, and history is written in it
 *
 * The format follows from the text of the template. tool_parser.h reads calls. */
#ifndef LEAN_COORDINATOR_TEXT_TOOL_FORMAT_H
#define LEAN_COORDINATOR_TEXT_TOOL_FORMAT_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

struct json_object; /* json-c */

enum tool_format {
    TOOL_FORMAT_AUTO, /* by the template; not a format */
    TOOL_FORMAT_QWEN_XML,
    TOOL_FORMAT_HERMES,
    TOOL_FORMAT_GENERIC
};

/* By the text of a chat template; never AUTO. */
enum tool_format tool_format_of_template(const char *source, size_t n);
/* False: there is none of that name. */
bool tool_format_from_name(enum tool_format *out, const char *name);
const char *tool_format_name(enum tool_format format);

/* Messages for a template that knows no tools: their definitions go into the system message, calls
 * and results of the history into content. messages: in the shape of the chat API with contents
 * that are strings or absent; calls hold their arguments as objects or text; its objects are
 * changed. tools may be NULL. *out is a new array. */
enum lm_status tool_format_generic_messages(struct json_object **out, struct json_object *messages,
                                            struct json_object *tools, struct lm_error *err);

#endif
