/* What a client of the Responses API asks, said in the words of /v1/chat/completions.
 *
 *   instructions, input of items, tools, tool_choice, text.format, reasoning.effort
 *     -> messages, tools, tool_choice, response_format, reasoning_effort
 *
 * Everything else that both know is handed on. Instructions and the system and developer messages
 * at the beginning become one system message, since many templates take no more. Tools that run
 * elsewhere (web search, ...) are dropped, and so are their calls and results in the input.
 *
 * Threads: a pure function. */
#ifndef LEAN_COORDINATOR_SERVER_RESPONSES_REQUEST_H
#define LEAN_COORDINATOR_SERVER_RESPONSES_REQUEST_H

#include <stdbool.h>

struct api_error;
struct json_object; /* json-c */

/* *out: the caller's to put; parts of it are the body's own. */
bool responses_request_translate(struct json_object **out, struct json_object *body,
                                 struct api_error *error);

#endif
