/* A message of the chat API that is put together from the pieces of other dialects.
 *
 * Pieces of one role are added, then flush appends what they amount to: results of tools as
 * messages of their own, then the message with text, reasoning and calls.
 *
 * Threads: one owner. Zero-initialised is empty. */
#ifndef LEAN_COORDINATOR_SERVER_CHAT_TURN_H
#define LEAN_COORDINATOR_SERVER_CHAT_TURN_H

#include <stdbool.h>

#include "proto/base/byte_buffer.h"

struct json_object; /* json-c */

struct chat_turn {
    const char *role; /* static text; NULL: nothing was added */
    struct byte_buffer text, reasoning;
    bool has_text;
    struct json_object *calls, *results; /* arrays, or NULL */
};

/* All copy what they are given but the values of json-c, of which they take a reference. */
void chat_turn_add_text(struct chat_turn *turn, struct json_object *text);
void chat_turn_add_reasoning(struct chat_turn *turn, struct json_object *text);
/* arguments: an object, or its text. */
void chat_turn_add_call(struct chat_turn *turn, struct json_object *id, struct json_object *name,
                        struct json_object *arguments);
void chat_turn_add_result(struct chat_turn *turn, struct json_object *id,
                          const struct byte_buffer *content);
/* Appends to messages and is empty again. False: no memory. */
bool chat_turn_flush(struct chat_turn *turn, struct json_object *messages);
void chat_turn_fini(struct chat_turn *turn);

/* {"role": role, "content": text} */
struct json_object *chat_message(const char *role, const struct byte_buffer *text);
/* {"type": "function", "function": {"name": ..., ...}}: the members of definition that are named,
 * `parameters` from its member `schema`. */
struct json_object *chat_tool(struct json_object *definition, const char *schema);

#endif
