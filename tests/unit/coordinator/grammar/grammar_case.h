/* A grammar against texts, byte by byte and through the masks of a small vocabulary. */
#ifndef LEAN_TESTS_UNIT_COORDINATOR_GRAMMAR_GRAMMAR_CASE_H
#define LEAN_TESTS_UNIT_COORDINATOR_GRAMMAR_GRAMMAR_CASE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/grammar/token_trie.h"

enum { CASE_N_VOCAB = 1024, CASE_END = CASE_N_VOCAB - 1 };

struct grammar_case {
    struct trie_token tokens[CASE_N_VOCAB];
    char bytes[256];
    struct token_trie *trie;
};

/* All single bytes, what documents are made of in pieces that cross the edges of their parts, and
 * an end token. */
static inline void case_init(struct grammar_case *vocab)
{
    static const char *const pieces[] = {"\"",        "{\"",
                                         "\":",       "\": ",
                                         "\": \"",    "\",",
                                         "\", \"",    "\"}",
                                         "\"}}",      "}}",
                                         "}}}",       "]}",
                                         "]]",        "[[",
                                         "[{",        "[]",
                                         "{}",        "[\"",
                                         "\"]",       "tr",
                                         "true",      "e,",
                                         "null",      "false",
                                         "12",        "123",
                                         "0.",        "1,",
                                         "1}",        ", ",
                                         "ab",        "abc",
                                         "abcd",      " a",
                                         "a b",       "the",
                                         "\\n",       "\\u",
                                         "\\\"",      "\\u00",
                                         "d8",        "\xc3\xa4",
                                         "\xe2\x82",  "\xe2\x82\xac",
                                         "\x82\xac",  "\xf0\x9f\x98\x80",
                                         "\xf0\x9f",  "a\xc3",
                                         "00",        "-1",
                                         "e+",        "e-",
                                         "2026",      "-0",
                                         "\n ",       "\n  ",
                                         "name",      "\"name\"",
                                         "\"a\":",    "a\":1",
                                         "{\"a\":1}", "ab",
                                         "\xff\xfe"};
    const int32_t end = CASE_END;
    memset(vocab, 0, sizeof(*vocab));
    for (int byte = 0; byte < 256; byte++) {
        vocab->bytes[byte] = (char)byte;
        vocab->tokens[byte] = (struct trie_token){&vocab->bytes[byte], 1};
    }
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++)
        vocab->tokens[256 + i] = (struct trie_token){pieces[i], strlen(pieces[i])};
    if (token_trie_build(&vocab->trie, vocab->tokens, CASE_N_VOCAB, &end, 1, NULL) != LM_OK)
        abort();
}

static inline void case_fini(struct grammar_case *vocab)
{
    token_trie_destroy(vocab->trie);
}

/* A matcher that has taken text, or NULL: it cannot. */
static inline struct grammar_matcher *
case_start(const struct grammar_case *vocab, struct grammar *grammar, const char *text, size_t n)
{
    struct grammar_matcher *matcher;
    if (grammar_matcher_create(&matcher, grammar, vocab->trie, NULL) != LM_OK) abort();
    if (grammar_matcher_take(matcher, text, n)) return matcher;
    grammar_matcher_destroy(matcher);
    return NULL;
}

enum case_result { CASE_REFUSED, CASE_BEGINNING, CASE_WHOLE };

static inline enum case_result case_try(const struct grammar_case *vocab, struct grammar *grammar,
                                        const char *text, size_t n)
{
    struct grammar_matcher *matcher = case_start(vocab, grammar, text, n);
    if (!matcher) return CASE_REFUSED;
    const bool complete = grammar_matcher_complete(matcher);
    grammar_matcher_destroy(matcher);
    return complete ? CASE_WHOLE : CASE_BEGINNING;
}

/* Whether the mask behind text has exactly the tokens whose bytes can be taken there. */
static inline bool case_mask_holds(const struct grammar_case *vocab, struct grammar *grammar,
                                   const char *text, size_t n)
{
    struct grammar_matcher *matcher = case_start(vocab, grammar, text, n);
    struct grammar_matcher *probe = case_start(vocab, grammar, text, n);
    bool good = matcher && probe;
    const uint32_t *mask = good ? grammar_matcher_mask(matcher) : NULL;
    for (size_t id = 0; id < CASE_N_VOCAB && good; id++) {
        bool fits = vocab->tokens[id].n &&
                    grammar_matcher_take(probe, vocab->tokens[id].bytes, vocab->tokens[id].n);
        if (fits) {
            grammar_matcher_destroy(probe);
            probe = case_start(vocab, grammar, text, n);
        }
        if (id == CASE_END) fits = grammar_matcher_complete(matcher);
        if (fits == (bool)(mask[id / 32] >> id % 32 & 1)) continue;
        printf("behind %.*s: token %zu %.*s: in the mask %d, fits %d\n", (int)n, text, id,
               (int)vocab->tokens[id].n, vocab->tokens[id].n ? vocab->tokens[id].bytes : "", !fits,
               fits);
        good = false;
    }
    grammar_matcher_destroy(matcher);
    grammar_matcher_destroy(probe);
    return good;
}

/* The vocabulary of a group of tests, and the group's fixtures. */
static struct grammar_case vocab;

static inline int set_up(void **state)
{
    (void)state;
    case_init(&vocab);
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    case_fini(&vocab);
    return 0;
}

#endif
