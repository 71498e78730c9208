/* From the messages of a request to the tokens of its prompt.
 *
 *   fields -> checked messages -> fences -> the model's chat template -> text -> tokens, turns
 *
 * What users write stays data: control tokens in it are tokenized as plain text. All routes that
 * take messages go this way, also those that only count or show.
 *
 * Threads: pure functions on what they are handed. */
#ifndef LEAN_COORDINATOR_SERVER_CHAT_PROMPT_H
#define LEAN_COORDINATOR_SERVER_CHAT_PROMPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/server/json_field.h"
#include "coordinator/server/tool_fields.h"
#include "coordinator/text/conversation.h"

struct chat_template;
struct generation_prompt;
struct json_object; /* json-c */
struct server;

/* Borrowed from the body, but for what is said to be owned and what tool_fields.h says. */
struct chat_fields {
    struct json_object *messages;
    struct tool_fields tool;
    struct json_object *documents;       /* or NULL */
    struct json_object *kwargs;          /* template variables that win, or NULL; owned */
    struct chat_template *chat_template; /* the request's own, owned; NULL: the model's */
    enum thinking thinking;
    const char *effort;       /* "low"; NULL: not given, or none */
    int64_t reasoning_budget; /* tokens; -1: none */
    bool include_reasoning;   /* the answer shows it */
    bool split_reasoning;     /* it is told from the content */
    bool logprobs;            /* of chat_request_read only */
    bool add_generation_prompt;
    bool continues; /* the answer goes on with the last message */
};

/* Reads the fields about messages, tools and reasoning. False: the error is filled; _fini
 * is called for all the same. */
bool chat_fields_read(struct chat_fields *fields, const struct field_reader *reader,
                      const struct server *server);
void chat_fields_fini(struct chat_fields *fields);

struct chat_prompt {
    char *text; /* [n_text], malloc'ed: what the template writes */
    size_t n_text;
    int32_t *ids; /* [n], malloc'ed */
    size_t n;
    size_t *turns; /* [n_turn], malloc'ed: the tokens that begin messages */
    size_t n_turn;
    bool has_added_bos;
    bool opens_reasoning;  /* it ends inside of a reasoning block */
    bool closes_reasoning; /* it ends behind one, or inside of an answer */
};

/* API_TEMPLATE_ERROR: the template's own words. API_NOT_SUPPORTED: the model has none.
 * add_begin: a begin token is added if the tokenizer is configured to and the text has none. */
bool chat_prompt_build(struct chat_prompt *prompt, const struct chat_fields *fields,
                       const struct server *server, bool add_begin, struct api_error *error);
void chat_prompt_fini(struct chat_prompt *prompt);

#endif
