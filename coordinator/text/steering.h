/* What may be sampled next: the mask of tokens that a request's rules leave over.
 *
 *   every token -> steering_take -> steering_allowed -> the next token
 *
 * The rules, strongest first: a reasoning block that has used up its budget is closed, token by
 * token; a tool call, once its marker stands, follows the grammar of calls; the content follows
 * the grammar of the answer, where reasoning is told from content only behind its end marker, and
 * the answer cannot end before; all tokens but the request's own are forbidden, and the last one of
 * a bad word. What is left over is never nothing: a weaker rule gives way.
 *
 * Where the model writes channels and the content has a grammar, the headers between are held to
 * those that lead to reasoning or to such content.
 *
 * A steering follows the bytes of one sequence itself, since what the sink of an answer_stream
 * gets is held back for stop strings.
 *
 * Threads: one owner. */
#ifndef LEAN_COORDINATOR_TEXT_STEERING_H
#define LEAN_COORDINATOR_TEXT_STEERING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/text/tool_format.h"
#include "proto/base/error.h"

/* Words as tokens: the last of a word's tokens may not come where the others have just come. */
struct bad_words {
    const int32_t *ids;
    const size_t *ends; /* [n] of each word in ids, rising; none is empty */
    size_t n;
};

struct grammar;
struct json_object; /* json-c */
struct steering;
struct token_trie;
struct tokenizer;

/* All borrowed until destroy. */
struct steering_config {
    const struct tokenizer *tokenizer;
    const struct token_trie *trie; /* needed with a grammar */
    const uint32_t *allowed;       /* of the request, or NULL */
    struct bad_words bad;          /* likewise; n 0: none */
    struct grammar *grammar;       /* of the content, or NULL */
    struct grammar *call_grammar;  /* of one tool call from its marker on, or NULL */
    enum tool_format tool_format;  /* with call_grammar, */
    struct json_object *tools;     /* likewise */
    bool single_call;              /* only end tokens follow the first */
    bool split, opened;            /* reasoning: answer_stream.h */
    bool channels, in_answer;      /* likewise */
    bool grammar_is_calls;         /* the content is to be calls */
    bool may_think;                /* the answer may begin with a reasoning block of its own */
    int64_t reasoning_budget;      /* tokens; -1: none */
    const char *budget_message;    /* comes before the end marker that is forced, or NULL */
};

/* NULL in *out: nothing is to be steered. */
enum lm_status steering_create(struct steering **out, const struct steering_config *config,
                               struct lm_error *err);
void steering_destroy(struct steering *steering); /* NULL is legal */

/* Bits of the tokens that may come next; NULL: all. Valid until the next take. */
const uint32_t *steering_allowed(struct steering *steering);
/* The token that came, and the bytes that it adds to the answer. LM_E_NO_MEM. */
enum lm_status steering_take(struct steering *steering, int32_t id, const char *bytes, size_t n,
                             struct lm_error *err);
/* The call that is being written is held to the grammar of calls. */
bool steering_holds_call(const struct steering *steering);
/* The content is a whole document of its grammar; true without one. */
bool steering_complete(const struct steering *steering);
/* It is, and cannot go on: only end tokens may come. */
bool steering_finished(const struct steering *steering);
/* Before the first token: the answer goes on with this content. False: it is no beginning of a
 * document of the grammar. */
bool steering_resume(struct steering *steering, const char *text, size_t n);

#endif
