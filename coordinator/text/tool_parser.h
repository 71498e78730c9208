/* Tells the tool calls from the text around them, as generated text arrives.
 *
 *   text ... <tool_call> -> name -> arguments ... </tool_call> -> text or the next call
 *
 * Any division of the text into pieces gives the same calls, arguments and text. What may be the
 * start of a marker is held back; what was emitted is never revised: the concatenation of a call's
 * argument fragments is the compact JSON text of an object.
 *
 * A block that turns out to be no call of one of the tools is text. To keep that promise a call is
 * held until it is complete, unless it is trusted: held to a grammar, it can only be cut off, and
 * its arguments go out as they come. (If one breaks all the same, it stays without its end.)
 *
 * White space between calls is dropped, and so is white space alone before or after them.
 *
 * Threads: a parser belongs to one thread. */
#ifndef LEAN_COORDINATOR_TEXT_TOOL_PARSER_H
#define LEAN_COORDINATOR_TEXT_TOOL_PARSER_H

#include <stdbool.h>
#include <stddef.h>

#include "coordinator/text/tool_format.h"
#include "proto/base/error.h"

struct json_object; /* json-c */
struct tool_parser;

/* on_text, on_arguments: n > 0 bytes, cut anywhere. */
struct tool_sink {
    void (*on_text)(void *context, const char *bytes, size_t n); /* outside of calls */
    void (*on_call)(void *context, const char *name, size_t n);  /* a call begins */
    void (*on_arguments)(void *context, const char *bytes, size_t n);
    void (*on_call_end)(void *context); /* complete */
    void *context;
};

/* tools: the array of the chat API, those that may be called; borrowed until destroy. n_call_max:
 * what follows so many complete calls is dropped; 0: no bound. */
enum lm_status tool_parser_create(struct tool_parser **out, enum tool_format format,
                                  struct json_object *tools, size_t n_call_max,
                                  const struct tool_sink *sink, struct lm_error *err);
void tool_parser_destroy(struct tool_parser *parser); /* NULL is legal */
void tool_parser_push(struct tool_parser *parser, const char *bytes, size_t n);
/* Nothing follows. cut: by length, a call that is open stands as it is; else what is missing at its
 * end is supplied where that can be done. */
void tool_parser_finish(struct tool_parser *parser, bool cut);
/* There was no memory: what the sink got is not all. */
bool tool_parser_failed(const struct tool_parser *parser);

/* The text of the call that is being read and not trusted, from its marker on; NULL: there is none.
 * Valid until the next push. */
const char *tool_parser_untrusted(const struct tool_parser *parser, size_t *n);
/* The call that is being read is held to a grammar; all: every one is. */
void tool_parser_trust(struct tool_parser *parser, bool all);
/* Whether a call is being read. */
bool tool_parser_in_call(const struct tool_parser *parser);
/* Bytes that are held back, or belong to a call that is being read. */
size_t tool_parser_held(const struct tool_parser *parser);

#endif
