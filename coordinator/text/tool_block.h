/* Reads one tool call behind its marker, byte by byte, by the texts of a syntax (tool_format.h).
 *
 * Tolerated: white space between parts; a call without its section, no value_close before a tag
 * that begins a line and can be one, no call_close and no section_close; in objects, arguments
 * before the name, as a string, under the name "parameters", null or not there. What stands between
 * tags may contain value_close if no tag of the call follows it.
 *
 * Threads: one owner. */
#ifndef LEAN_COORDINATOR_TEXT_TOOL_BLOCK_H
#define LEAN_COORDINATOR_TEXT_TOOL_BLOCK_H

#include <stdbool.h>
#include <stddef.h>

#include "coordinator/text/json_compactor.h"
#include "coordinator/text/tool_format.h"
#include "proto/base/byte_buffer.h"

struct json_object; /* json-c */

enum tool_block_status {
    TOOL_BLOCK_MORE,
    TOOL_BLOCK_DONE, /* the last n_back bytes do not belong to the call */
    TOOL_BLOCK_BAD   /* no call; the last n_back bytes may begin one */
};

/* What was read before. */
enum tool_block_place {
    TOOL_BLOCK_IN_SECTION, /* section_open */
    TOOL_BLOCK_IN_CALL,    /* call_open */
    TOOL_BLOCK_IN_LIST     /* another call of the same list */
};

struct tool_block {
    const struct tool_syntax *syntax;
    struct json_object *tools;    /* borrowed */
    struct json_object *function; /* the one that is called; NULL while its name is not known */
    struct byte_buffer name;
    struct byte_buffer arguments; /* compact JSON; the owner may take what there is at any time */
    size_t n_back;                /* set with DONE and BAD */
    bool continues;               /* with DONE: the next call of a list follows */

    /* Private. */
    int state;
    bool in_list;
    unsigned i_closer;          /* of the closing texts, the first that may still come */
    struct byte_buffer pending; /* what is not decided, or a value that is read as a whole */
    struct byte_buffer key;
    struct byte_buffer seen; /* names of parameters that were read, each behind a NUL */
    unsigned types;          /* of the parameter */
    struct byte_buffer value;
    bool has_arguments;
    struct json_compactor json;
    struct byte_buffer *json_out;
};

/* A block is used again and again; its syntax and tools are set before the first time. */
void tool_block_begin(struct tool_block *block, enum tool_block_place place);
void tool_block_free(struct tool_block *block);
enum tool_block_status tool_block_take(struct tool_block *block, char byte);
/* Nothing follows. cut: the text was cut off, so that only what is written counts: MORE is then a
 * call that has begun. Else what is missing at the end is supplied, and the result is DONE or BAD.
 */
enum tool_block_status tool_block_finish(struct tool_block *block, bool cut);

#endif
