/* What the answers of /v1/completions and /v1/chat/completions have in common: the object around
 * the choices, and the events of a stream.
 *
 * Threads: of the generation's sink. */
#ifndef LEAN_COORDINATOR_SERVER_OPENAI_WRITER_H
#define LEAN_COORDINATOR_SERVER_OPENAI_WRITER_H

#include <stdbool.h>

#include "coordinator/server/generation.h"
#include "coordinator/server/json_write.h"

/* {"id":..., to "choices":[ */
void openai_begin(struct json_writer *out, const struct generation *generation, const char *object);
/* Behind the choices: "usage", "timings", and the object's end; the whole answer goes out. */
void openai_reply(struct json_writer *out, struct generation *generation);

/* As openai_begin, for the next event of a stream; out is cleared. */
void openai_begin_event(struct json_writer *out, const struct generation *generation,
                        const char *object);
/* Behind the choices of an event: usage as the request wants it, timings, the end; it goes out.
 * last: no event with choices follows. */
void openai_send_event(struct json_writer *out, struct generation *generation, bool usage_always,
                       bool last);
/* How far the prompt is, if the request wants to know; at most four times a second. */
void openai_send_progress(struct json_writer *out, struct generation_choice *choice,
                          const char *object, size_t n_done, size_t n_total);
/* The event with the usage, if it is wanted, and the end of the stream. */
void openai_end_stream(struct json_writer *out, struct generation *generation, const char *object);

/* If the request wants them: "prompt_token_ids" (with_prompt) and "token_ids", the latter being the
 * inside of an array. */
void openai_put_token_ids(struct json_writer *out, const struct generation_choice *choice,
                          bool with_prompt, const struct json_writer *ids);

#endif
