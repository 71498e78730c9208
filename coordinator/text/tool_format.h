/* Tool calls in generated text: which syntax a model uses, and reading it as it arrives.
 *
 *   text ... <tool_call> -> name -> arguments ... </tool_call> -> text or the next call
 *
 * Formats: qwen_xml (function/parameter tags), hermes (JSON in <tool_call> tags; Trinity-Mini),
 * generic (JSON, for templates without tools: an instruction is added to the system message).
 * Trinity-Large-Thinking uses qwen_xml. The format follows from the template's text.
 *
 * Any division of the text into pieces gives the same events. What may be the start of a marker is
 * held back; what was emitted is never revised: the concatenation of a call's argument fragments
 * is the compact JSON text of an object. Values of qwen_xml are typed by the tool's schema.
 *
 * Threads: a parser belongs to one thread. */
#ifndef LEAN_COORDINATOR_TEXT_TOOL_FORMAT_H
#define LEAN_COORDINATOR_TEXT_TOOL_FORMAT_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

struct grammar;
struct json_object; /* json-c */
struct tool_parser;

enum tool_format {
    TOOL_FORMAT_NONE,
    TOOL_FORMAT_QWEN_XML,
    TOOL_FORMAT_HERMES,
    TOOL_FORMAT_GENERIC
};

/* By the text of a chat template. */
enum tool_format tool_format_of_template(const char *source, size_t n);
/* "auto" gives TOOL_FORMAT_NONE. False: there is none of that name. */
bool tool_format_from_name(enum tool_format *out, const char *name);
const char *tool_format_name(enum tool_format format);

struct tool_sink {
    void (*on_text)(void *context, const char *bytes, size_t n); /* outside of calls */
    void (*on_call)(void *context, const char *name, size_t n);  /* a call begins */
    void (*on_arguments)(void *context, const char *bytes, size_t n);
    void (*on_call_end)(void *context); /* complete */
    void *context;
};

/* tools: the array of the chat API, borrowed until destroy. max_calls: 1 without parallel calls,
 * else 0. A block that cannot be read as a call of one of the tools becomes text. */
enum lm_status tool_parser_create(struct tool_parser **out, enum tool_format format,
                                  struct json_object *tools, const struct tool_sink *sink,
                                  struct lm_error *err);
void tool_parser_destroy(struct tool_parser *parser);
void tool_parser_push(struct tool_parser *parser, const char *bytes, size_t n);
/* Nothing follows. cut: by length, a call that is open stands as it is. */
void tool_parser_finish(struct tool_parser *parser, bool cut);

enum tool_choice { TOOL_CHOICE_NONE, TOOL_CHOICE_AUTO, TOOL_CHOICE_REQUIRED };

/* What generation is held to. AUTO: a grammar for what follows tool_format_trigger, entered when
 * the trigger is complete; REQUIRED: for the whole answer. tools: those that may be called. strict:
 * whether arguments follow the schema (always with REQUIRED). LM_E_UNSUPPORTED: a schema, with the
 * pointer. */
enum lm_status tool_format_grammar(struct grammar **out, enum tool_format format,
                                   struct json_object *tools, enum tool_choice choice,
                                   bool parallel, struct lm_error *err);
/* The marker that begins a call, "<tool_call>". */
const char *tool_format_trigger(enum tool_format format);

#endif
