/* Pre-tokenizers: how a vocabulary's text falls into words before byte pairs are merged.
 *
 * Each is one or more passes; a pass cuts every piece that the one before left. The patterns that
 * define them stand beside the hand-written matchers in pretokenizer.c; all run in linear time.
 *
 * Threads: tables are constant, a cursor belongs to its caller. */
#ifndef LEAN_COORDINATOR_TEXT_PRETOKENIZER_H
#define LEAN_COORDINATOR_TEXT_PRETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>

enum { PRETOKENIZER_MAX_PASS = 4 };

/* The end of the first piece of [at, end), which is not empty. begin: of the whole text, for the
 * pass that must know what stands before at. */
typedef const char *(*pretokenizer_pass_fn)(const char *begin, const char *at, const char *end);

struct pretokenizer {
    const char *name;                                   /* as tokenizer.ggml.pre writes it */
    pretokenizer_pass_fn passes[PRETOKENIZER_MAX_PASS]; /* NULL after the last */
    bool add_bos;                                       /* unless the file says otherwise */
    bool ignore_merges;                                 /* a word that is a token is not merged */
};

/* NULL if the name is unknown. */
const struct pretokenizer *pretokenizer_find(const char *name, size_t n);

struct pretokenizer_cursor { /* private */
    const struct pretokenizer *pretokenizer;
    const char *begin, *at;
    unsigned n_pass;
    const char *end[PRETOKENIZER_MAX_PASS]; /* [0] of the text, [i] of the piece after pass i - 1 */
};

/* text: n bytes of well-formed UTF-8, which must outlive the cursor. */
void pretokenizer_begin(struct pretokenizer_cursor *cursor, const struct pretokenizer *pretokenizer,
                        const char *text, size_t n);
/* The next word and its length in bytes; 0 at the end. The words are the text, in order. */
size_t pretokenizer_next(struct pretokenizer_cursor *cursor, const char **word);

#endif
