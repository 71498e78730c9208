/* Keeps what users write from becoming control tokens.
 *
 * A chat template puts message texts between control tokens that it writes itself; afterwards both
 * are one text. So before rendering, each control token's text inside of the messages is broken
 * by a mark after its first character, and when the marks are taken out of the rendered text, their
 * places are kept as fences, which the tokenizer does not read across. The mark is a private-use
 * character that occurs nowhere in the messages. A second mark finds the place where the last
 * message ends, for answers that go on with it.
 *
 * Threads: a fence belongs to one thread. */
#ifndef LEAN_COORDINATOR_TEXT_FENCE_H
#define LEAN_COORDINATOR_TEXT_FENCE_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

struct json_object; /* json-c */
struct tokenizer;

enum { FENCE_MARK_BYTES = 4 };

struct fence {
    const struct tokenizer *tokenizer; /* borrowed; NULL: texts are trusted, nothing is marked */
    char mark[FENCE_MARK_BYTES], end_mark[FENCE_MARK_BYTES];
    size_t *places; /* [n_place] in the text without marks, rising */
    size_t n_place, room;
};

/* Chooses marks that occur in none of the values, NULL being legal among them. LM_E_LIMIT: the
 * texts use up all private characters. */
enum lm_status fence_init(struct fence *fence, const struct tokenizer *tokenizer,
                          struct json_object *const *values, size_t n_value, struct lm_error *err);
void fence_fini(struct fence *fence);

/* A copy of the value whose strings and keys have marks; the caller's to put. keep_thinking:
 * <think> and </think> in strings are not marked, so that templates find the reasoning of earlier
 * answers. NULL: no memory. */
struct json_object *fence_mark(const struct fence *fence, struct json_object *value,
                               bool keep_thinking);

/* Takes the marks out of the text in place and collects the places. *end: where the last end mark
 * was; SIZE_MAX: there was none. */
enum lm_status fence_strip(struct fence *fence, char *text, size_t *n, size_t *end,
                           struct lm_error *err);

#endif
