/* Constrained decoding: which tokens may come next so that the text stays a prefix of a document
 * that a grammar accepts.
 *
 * Every form (GBNF, regular expression, choice, JSON schema, tool-call syntax) is compiled to one
 * kind of grammar over bytes: rules of alternatives of byte ranges and references, run as a
 * pushdown automaton. Text is well-formed UTF-8 by construction. A matcher follows one sequence;
 * its mask of the vocabulary comes from a walk of the token trie, which keeps it by state, so equal
 * states share masks, also those of other matchers and of grammars compiled from the same text.
 *
 * Threads: a compiled grammar is immutable and shared, a token_trie is shared too and guards the
 *          masks that it keeps; a matcher has one owner. */
#ifndef LEAN_COORDINATOR_GRAMMAR_GRAMMAR_H
#define LEAN_COORDINATOR_GRAMMAR_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct grammar; /* counted */
struct grammar_matcher;
struct json_object; /* json-c */
struct token_trie;
struct tokenizer;

/* Control tokens count as their text behind this byte, which is in no text: only grammars that
 * name it take them. */
#define GRAMMAR_CONTROL_BYTE ((char)0xff)

/* All tokens by their bytes, end tokens left out. tokenizer: borrowed. */
enum lm_status token_trie_create(struct token_trie **out, const struct tokenizer *tokenizer,
                                 struct lm_error *err);
void token_trie_destroy(struct token_trie *trie);

/* LM_E_FORMAT in all of these: also where no text at all would match. LM_E_LIMIT: too large. */

/* GBNF with start rule `root`. LM_E_FORMAT: with line and column, or the name of a rule that may
 * call itself before it has taken a byte (left recursion). LM_E_UNSUPPORTED: a large repetition of
 * what may be empty. */
enum lm_status grammar_from_gbnf(struct grammar **out, const char *text, size_t n,
                                 struct lm_error *err);
/* The whole text matches. LM_E_UNSUPPORTED: look-around, back-references. */
enum lm_status grammar_from_regex(struct grammar **out, const char *pattern, size_t n,
                                  struct lm_error *err);
/* One of the strings of a JSON array. */
enum lm_status grammar_from_choice(struct grammar **out, struct json_object *choices,
                                   struct lm_error *err);
/* schema: NULL or `true`: any JSON object. pretty: line breaks with bounded indentation may stand.
 * LM_E_UNSUPPORTED: a keyword that would have to be ignored, the message holds its JSON pointer;
 * LM_E_FORMAT: a schema that is malformed or that nothing satisfies. */
enum lm_status grammar_from_schema(struct grammar **out, struct json_object *schema, bool pretty,
                                   struct lm_error *err);

struct grammar *grammar_ref(struct grammar *grammar);
void grammar_unref(struct grammar *grammar); /* NULL is legal */

/* grammar: referenced. trie: borrowed; all matchers of a grammar use the same one. */
enum lm_status grammar_matcher_create(struct grammar_matcher **out, struct grammar *grammar,
                                      const struct token_trie *trie, struct lm_error *err);
void grammar_matcher_destroy(struct grammar_matcher *matcher);

/* Bits of the tokens whose bytes may come next, ceil(n_vocab / 32) words; end tokens are set where
 * the text is complete, and only they when nothing else may come. Valid until the next take. */
const uint32_t *grammar_matcher_mask(struct grammar_matcher *matcher);
/* False: the bytes cannot come here; the matcher is then as it was. */
bool grammar_matcher_take(struct grammar_matcher *matcher, const char *bytes, size_t n);
/* The text may end here. */
bool grammar_matcher_complete(const struct grammar_matcher *matcher);
/* And nothing may follow it. */
bool grammar_matcher_finished(const struct grammar_matcher *matcher);

#endif
