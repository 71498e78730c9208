/* What a client of the Messages API asks, said in the words of /v1/chat/completions.
 *
 *   system, messages of blocks, tools, tool_choice, stop_sequences
 *     -> messages, tools, tool_choice, parallel_tool_calls, stop
 *
 * Everything else (sampling, thinking, stream, ...) means the same and is handed on; what the
 * Messages API has no use for (n, logprobs, ...) is left out. Whatever could be wrong with what is
 * translated is found here, so that errors name the fields that the client wrote.
 *
 * Threads: a pure function. */
#ifndef LEAN_COORDINATOR_SERVER_MESSAGES_REQUEST_H
#define LEAN_COORDINATOR_SERVER_MESSAGES_REQUEST_H

#include <stdbool.h>

struct api_error;
struct json_object; /* json-c */

/* *out: the caller's to put; parts of it are the body's own. counting: max_tokens is not needed. */
bool messages_request_translate(struct json_object **out, struct json_object *body, bool counting,
                                struct api_error *error);

#endif
