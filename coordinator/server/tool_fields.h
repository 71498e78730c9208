/* The fields of a request about tools: what may be called, and what has to be.
 *
 * Threads: read on one thread, constant afterwards. */
#ifndef LEAN_COORDINATOR_SERVER_TOOL_FIELDS_H
#define LEAN_COORDINATOR_SERVER_TOOL_FIELDS_H

#include <stdbool.h>

#include "coordinator/server/json_field.h"
#include "coordinator/text/tool_format.h"

struct json_object; /* json-c */
struct server;

struct tool_fields {
    struct json_object *tools;   /* as the template shows them, borrowed; NULL: none */
    struct json_object *wrapped; /* tools made of functions, the old form of them, owned; or NULL */
    struct json_object *callable; /* those that may be called, owned; NULL: calls are text */
    bool required;                /* the answer is a call */
    bool parallel;                /* or several */
    enum tool_format format;      /* never AUTO */
    bool in_system;               /* the template shows no tools: the system message does */
};

/* tools, tool_choice and parallel_tool_calls; functions and function_call in their place. False:
 * the error is filled; _fini is called for all the same. */
bool tool_fields_read(struct tool_fields *fields, const struct field_reader *reader,
                      const struct server *server);
void tool_fields_fini(struct tool_fields *fields);

#endif
