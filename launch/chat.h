/* A conversation with a model: messages in, an answer out while it is generated.
 *
 *   messages -> the model's chat template -> tokens -> engine -> token bytes -> stop strings
 *            -> whole characters -> reasoning told from content -> sink
 *
 * Settings are the options of the command (options_sampling and chat_options), read anew for each
 * answer, so that changing an option changes the next one.
 *
 * Threads: one caller; engine_cancel may come from anywhere. */
#ifndef LEAN_LAUNCH_CHAT_H
#define LEAN_LAUNCH_CHAT_H

#include <stdbool.h>
#include <stddef.h>

#include "launch/engine.h"
#include "launch/options.h"
#include "proto/base/error.h"

struct chat;
struct json_object;

extern const struct option_spec chat_options[]; /* --system, --think, --format, ... */

enum chat_part { CHAT_REASONING, CHAT_CONTENT };

/* Where an answer goes as it comes. */
struct chat_sink {
    /* text: n bytes of whole characters, as generated; false ends the answer. */
    bool (*on_text)(void *context, enum chat_part part, const char *text, size_t n);
    /* First with n_done 0; may be NULL. */
    void (*on_prefill)(void *context, size_t n_done, size_t n_total);
    void *context;
};

enum chat_finish { CHAT_END_OF_TURN, CHAT_STOP_STRING, CHAT_LENGTH, CHAT_INTERRUPTED };

struct chat_answer {
    char *content, *reasoning; /* malloc'ed, never NULL */
    enum chat_finish finish;
    bool complete; /* --format was kept to the end; true without it */
    struct generate_result counts;
    size_t n_reasoning; /* tokens */
    double reasoning_s;
};
void chat_answer_fini(struct chat_answer *answer);

/* --format: an answer is one JSON document, or the beginning of one if it is cut. */
bool chat_has_format(const struct options *options);
/* LM_E_USAGE: no such format; and whatever reading the schema can find. */
enum lm_status chat_check_format(const struct options *options, struct lm_error *err);

/* engine and options are borrowed and must outlive the chat. A model without a template is an
 * error only when messages are to be answered. LM_E_FORMAT: the template does not compile. */
enum lm_status chat_create(struct chat **out, struct engine *engine, const struct options *options,
                           struct lm_error *err);
void chat_destroy(struct chat *chat);

/* The messages so far, an array of {"role", "content", ...} objects; borrowed. */
struct json_object *chat_messages(const struct chat *chat);
/* Replaces them by a copy; LM_E_FORMAT: not such an array. */
enum lm_status chat_set_messages(struct chat *chat, struct json_object *messages,
                                 struct lm_error *err);
enum lm_status chat_add_user(struct chat *chat, const char *content, struct lm_error *err);
/* The last message if role wrote it, else NULL; a copy of its content, malloc'ed. */
char *chat_last_content(const struct chat *chat, const char *role);
void chat_remove_last(struct chat *chat);
/* The system message; NULL or "": none. */
enum lm_status chat_set_system(struct chat *chat, const char *text, struct lm_error *err);
const char *chat_system(const struct chat *chat); /* or NULL */

/* Answers the messages and appends the answer to them, also when it was interrupted.
 * LM_E_LIMIT: they do not fit the context. On an error there is no answer. */
enum lm_status chat_reply(struct chat *chat, const struct chat_sink *sink,
                          struct chat_answer *answer, struct lm_error *err);

/* Goes on with the last message, an answer that was cut; answer holds what is new.
 * LM_E_USAGE: the last message is no answer. */
enum lm_status chat_continue(struct chat *chat, const struct chat_sink *sink,
                             struct chat_answer *answer, struct lm_error *err);

/* Continues n bytes of text as they are, without template or messages. */
enum lm_status chat_complete(struct chat *chat, const char *text, size_t n,
                             const struct chat_sink *sink, struct chat_answer *answer,
                             struct lm_error *err);

#endif
