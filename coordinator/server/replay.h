/* Earlier answers in a prompt as the model wrote them (call_memory.h).
 *
 *   messages -> those that are remembered become marks -> template -> text -> marks become tokens
 *
 * A mark stands for an answer's content and another for its reasoning. Where the template shows the
 * reasoning, everything from the one to the other is the answer's tokens; else those of the
 * content. What comes before, the beginning of the turn, is the template's.
 *
 * Threads: a replay belongs to one thread. */
#ifndef LEAN_COORDINATOR_SERVER_REPLAY_H
#define LEAN_COORDINATOR_SERVER_REPLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct call_memory;
struct fence;
struct json_object; /* json-c */
struct tokenizer;

struct replay_answer;

struct replay {
    struct json_object *messages;  /* with the marks; owned */
    struct replay_answer *answers; /* [n_answer] in order */
    size_t n_answer;
};

/* messages: borrowed. False: no memory; _fini is called for all the same. n_answer 0: nothing of
 * them is remembered. */
bool replay_init(struct replay *replay, struct call_memory *memory, struct json_object *messages);
void replay_fini(struct replay *replay);

/* Finds the marks in the rendered text. False: the template did not write them all, in order; the
 * messages have to be rendered as they are. */
bool replay_locate(struct replay *replay, const char *text, size_t n);

/* Tokens of the text with the answers in their places; fences: see fence.h. *ids: malloc'ed. */
enum lm_status replay_encode(const struct replay *replay, const struct tokenizer *tokenizer,
                             const char *text, size_t n, const size_t *fences, size_t n_fence,
                             int32_t **ids, size_t *n_id, struct lm_error *err);
/* The text with the answers' texts; malloc'ed, NUL-terminated; NULL: no memory. */
char *replay_text(const struct replay *replay, const struct tokenizer *tokenizer, const char *text,
                  size_t n, size_t *n_out);

#endif
