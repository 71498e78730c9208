/* The tokens of answers that called tools, by the ids of their calls.
 *
 * A client sends an answer back as names and arguments. What a template makes of them need not be
 * what the model wrote (True for true, other line breaks), and a prompt that differs there cannot
 * use what is cached behind. So the tokens themselves are kept, and stand in for a message that
 * says the same.
 *
 * What was used least recently is forgotten, beyond a number of calls and of bytes.
 *
 * Threads: all functions from any thread. */
#ifndef LEAN_COORDINATOR_SERVER_CALL_MEMORY_H
#define LEAN_COORDINATOR_SERVER_CALL_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct call_memory;
struct json_object; /* json-c */

/* NULL: no memory. */
struct call_memory *call_memory_create(size_t n_call_max, size_t n_bytes_max);
void call_memory_destroy(struct call_memory *memory); /* NULL is legal */

struct call_memory_call {
    const char *id, *name;
    const char *arguments; /* JSON text */
};

/* Everything is copied. n_lead: of the ids, those before the content: reasoning and its mark.
 * Without memory nothing is kept. */
void call_memory_put(struct call_memory *memory, const struct call_memory_call *calls,
                     size_t n_call, const char *content, const int32_t *ids, size_t n_id,
                     size_t n_lead);

/* The tokens that message, one of the chat API, stands for: its calls have the ids, names and
 * arguments (as JSON values) of one answer, and its content is that answer's. *ids: [*n_id],
 * malloc'ed. False: there is none. */
bool call_memory_find(struct call_memory *memory, struct json_object *message, int32_t **ids,
                      size_t *n_id, size_t *n_lead);

#endif
