/* Byte-pair encoding: the texts of a vocabulary, its merges, and the merging of one word.
 *
 * Texts are in GPT-2's byte alphabet: every byte stands as one printable code point (33-126,
 * 161-172 and 174-255 as themselves, the other 68 in rising order as U+0100, U+0101, ...), so that
 * any bytes can be written as text. A word starts as one symbol per byte; the adjacent pair whose
 * merge comes first in the list is merged, the leftmost of equals, until none is left.
 *
 * Words that are tokens are the common case, and most of them merge to just that token. Whether a
 * token does is found out once and remembered, so such a word costs one lookup.
 *
 * Life cycle: create, all tokens, then all merges, then encode.
 * Threads:    once filled, encode may run in any number of threads, each with its own scratch (the
 *             memory above is atomic, and every thread would write the same).
 * Cost:       short words quadratic with a tiny constant, long ones O(n log n) with a heap. */
#ifndef LEAN_COORDINATOR_TEXT_BPE_H
#define LEAN_COORDINATOR_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct bpe;

/* ignore_merges: a word that is a token is that token, whatever its merges give.
 * n_token, n_merge: how many will come, n_token exactly. */
enum lm_status bpe_create(struct bpe **out, bool ignore_merges, size_t n_token, size_t n_merge,
                          struct lm_error *err);
void bpe_destroy(struct bpe *bpe); /* NULL is legal */

/* The token with the next id, from 0. LM_E_FORMAT: another one has this text. */
enum lm_status bpe_add_token(struct bpe *bpe, const char *text, size_t n, struct lm_error *err);
/* The merge with the next rank: "left right", cut at the first space after the first byte. Of equal
 * pairs the first counts. LM_E_FORMAT: no space. */
enum lm_status bpe_add_merge(struct bpe *bpe, const char *text, size_t n, struct lm_error *err);

/* The token with this text, -1 if there is none. */
int32_t bpe_find(const struct bpe *bpe, const char *text, size_t n);
/* A view that bpe_add_* moves. id must be a token's. */
const char *bpe_text(const struct bpe *bpe, int32_t id, size_t *n);

/* The bytes that a text of the byte alphabet stands for; at most n, written to bytes. False: the
 * text has code points outside the alphabet, or is not UTF-8. */
bool bpe_text_to_bytes(const struct bpe *bpe, const char *text, size_t n, char *bytes,
                       size_t *n_bytes);

/* Ids, and the memory that encoding them needs; grows, never shrinks. Zero-initialized. */
struct bpe_output {
    int32_t *ids; /* [n_id], malloc'ed: whoever takes it sets it to NULL */
    size_t n_id, n_id_max;
    void *scratch; /* private */
    size_t n_scratch_bytes;
};
void bpe_output_fini(struct bpe_output *output);
bool bpe_output_push(struct bpe_output *output, int32_t id); /* false: no memory */

/* Appends the ids of one word, n >= 1 bytes. A byte that no token covers gives nothing.
 * LM_E_LIMIT: the word has 2^31 bytes or more. LM_E_NO_MEM. */
enum lm_status bpe_encode_word(const struct bpe *bpe, const char *word, size_t n,
                               struct bpe_output *output, struct lm_error *err);

#endif
