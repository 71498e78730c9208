/* How models write tool calls: a registry of syntaxes, by names and by chat templates.
 *
 *   qwen_xml <tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></tool_call>
 *                 (Qwen3.5, Qwen3-Coder, Trinity-Large-Thinking)
 *   hermes        <tool_call>{"name": NAME, "arguments": {...}}</tool_call>  (Qwen3, Trinity-Mini)
 *   generic       as hermes, for templates that know none of these: an instruction in the system
 *                 message shows the tools and the syntax, and history is written in it
 *   glm           <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>...</tool_call>
 *   deepseek_v3   a section of calls in tokens of their own, arguments as a fenced block of JSON
 *   deepseek_v31  the same with NAME <tool_sep> {...}
 *   dsml          invoke and parameter tags with the mark of DSML, string="true|false" (DeepSeek
 * V3.2) kimi          a section of calls "functions.NAME:INDEX", then {...} invoke
 * <minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter>... harmony
 * channels: a message of the commentary channel with a recipient (gpt-oss) mistral
 * [TOOL_CALLS][{"name": NAME, "arguments": {...}}, ...] mistral_args  [TOOL_CALLS]NAME[ARGS]{...}
 *   llama         {"name": NAME, "parameters": {...}} as the whole answer
 *
 * A syntax is a row of texts: tool_block.h reads calls by it, tool_grammar.h writes grammars of it.
 *
 * Threads: constants and pure functions. */
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
    TOOL_FORMAT_GENERIC,
    TOOL_FORMAT_GLM,
    TOOL_FORMAT_DEEPSEEK_V3,
    TOOL_FORMAT_DEEPSEEK_V31,
    TOOL_FORMAT_DSML,
    TOOL_FORMAT_KIMI,
    TOOL_FORMAT_INVOKE,
    TOOL_FORMAT_HARMONY,
    TOOL_FORMAT_MISTRAL,
    TOOL_FORMAT_MISTRAL_ARGS,
    TOOL_FORMAT_LLAMA,
    TOOL_FORMAT_N
};

enum tool_body {
    TOOL_BODY_PARAMETERS, /* a name, then parameters in tags of their own */
    TOOL_BODY_ARGUMENTS,  /* a name, then the object of the arguments */
    TOOL_BODY_OBJECT      /* an object of both */
};

/*   [section_open] call_open NAME name_close BODY [body_close] call_close [section_close]
 *
 *   PARAMETERS  (key_open KEY key_close [value_open] VALUE value_close)...
 *   ARGUMENTS   {...}
 *   OBJECT      instead of call_open to call_close
 *
 * White space may stand between the parts. Texts that a syntax lacks are NULL. */
struct tool_syntax {
    const char *name; /* of the format */
    enum tool_body body;
    const char *section_open, *call_open, *name_close, *key_open, *key_close, *value_open,
        *value_close, *body_close, *call_close, *section_close;
    const char *prefix;        /* written in front of each name */
    const char *arguments_key; /* OBJECT */
    bool is_marker;            /* call_open begins a call outside of a section too */
    bool many;                 /* a section may hold several calls */
    bool list;                 /* OBJECT: the section is an array */
    bool reads_object;         /* what the section holds may also be an OBJECT */
    bool line_breaks;          /* each tag stands in a line of its own */
    bool numbered;             /* ":INDEX" stands between NAME and name_close */
    bool described;            /* other words may */
    bool typed;                /* key_close is followed by "true\"> or "false\">: it is a string */
    bool only_first;           /* text comes before no call */
};

/* format: not AUTO. */
const struct tool_syntax *tool_format_syntax(enum tool_format format);
/* Whether the text of a token is a part of the syntax, and so counts where it is a control token.
 */
bool tool_format_mentions(enum tool_format format, const char *text, size_t n);

/* By the text of a chat template; never AUTO. */
enum tool_format tool_format_of_template(const char *source, size_t n);
/* Whether such a template shows definitions of tools to the model. */
bool tool_format_template_shows_tools(const char *source, size_t n);
/* False: there is none of that name. */
bool tool_format_from_name(enum tool_format *out, const char *name);
const char *tool_format_name(enum tool_format format);

/* Changes messages of the history, in place, to what the model's template wants of them: ids of
 * calls that it shows to the model or checks, and names of members. messages: as below. */
void tool_format_adapt_history(enum tool_format format, struct json_object *messages);

/* Messages for a template that shows no definitions: they and the syntax go into the system
 * message. *out is a new array. */
enum lm_status tool_format_add_definitions(struct json_object **out, enum tool_format format,
                                           struct json_object *messages, struct json_object *tools,
                                           struct lm_error *err);

/* Messages for a template that knows no tools: their definitions go into the system message, calls
 * and results of the history into content. messages: in the shape of the chat API with contents
 * that are strings or absent; calls hold their arguments as objects or text; its objects are
 * changed. tools may be NULL. *out is a new array. */
enum lm_status tool_format_generic_messages(struct json_object **out, struct json_object *messages,
                                            struct json_object *tools, struct lm_error *err);

#endif
