/* From the body of /v1/chat/completions to a generation that can start.
 *
 * Other dialects that take messages are translated to such a body first, so that sampling, tools,
 * reasoning and constraints are read in one place. */
#ifndef LEAN_COORDINATOR_SERVER_CHAT_REQUEST_H
#define LEAN_COORDINATOR_SERVER_CHAT_REQUEST_H

#include <stdbool.h>

#include "coordinator/server/chat_prompt.h"

struct generation;
struct http_exchange;
struct json_object; /* json-c */
struct server;

/* Reads generation->body and fills everything that generation_start needs. fields: in the context
 * of the generation's sink, which calls chat_fields_fini. */
bool chat_request_read(struct generation *generation, struct chat_fields *fields,
                       struct api_error *error);

/* Answers with how many tokens the prompt for a body has, which need not say what is generated.
 * translate: from a dialect's body to a new one of the chat route, NULL: it is one. object: the
 * answer's member of that name, NULL: it has none. */
void chat_request_answer_count(struct server *server, struct http_exchange *exchange,
                               bool (*translate)(struct json_object **chat,
                                                 struct json_object *body, struct api_error *error),
                               const char *object);

#endif
