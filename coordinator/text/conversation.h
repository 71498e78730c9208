/* From a conversation to what a model's chat template needs.
 *
 * Messages come in the shape of the chat API. Templates expect them slightly different, and this
 * is where they are made to fit: arguments of tool calls as objects, text parts as one text,
 * reasoning under one name. */
#ifndef LEAN_COORDINATOR_TEXT_CONVERSATION_H
#define LEAN_COORDINATOR_TEXT_CONVERSATION_H

#include <stdbool.h>
#include <stddef.h>

#include "coordinator/text/tool_format.h"
#include "proto/base/error.h"
#include "proto/gguf/gguf.h"

struct json_object; /* json-c */

/* The text of a model's template, a view into the file. name: one of its further templates, or
 * NULL for the main one. LM_E_NOT_FOUND: the model has none of that name. */
enum lm_status model_template_source(const struct gguf_file *file, const char *name,
                                     struct gguf_string *source, struct lm_error *err);

/* Adds bos_token and eos_token, as the vocabulary has them, where variables lack them. */
void model_template_tokens(const struct gguf_file *file, struct json_object *variables);

enum thinking { THINKING_DEFAULT /* the template decides */, THINKING_ON, THINKING_OFF };

struct conversation {
    struct json_object *messages;  /* an array; borrowed like the rest, none of it is changed */
    struct json_object *tools;     /* an array, or NULL */
    struct json_object *documents; /* an array, or NULL */
    struct json_object *extra;     /* further variables, which win; or NULL */
    enum thinking thinking;
    bool add_generation_prompt;
    /* GENERIC: the template is not shown the tools; messages hold all about them. Else it is. */
    enum tool_format tool_format;
    bool tools_in_system; /* the template shows none: the system message has the definitions */
};

/* The variables for chat_template_render; *out is the caller's to put. file: the model, for its
 * tokens. LM_E_USAGE: messages is not an array of objects with a role. LM_E_UNSUPPORTED: a part
 * of a message is not text. */
enum lm_status conversation_variables(struct json_object **out,
                                      const struct conversation *conversation,
                                      const struct gguf_file *file, struct lm_error *err);

#endif
