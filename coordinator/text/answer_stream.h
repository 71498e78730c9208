/* From sampled tokens to an answer, as they come.
 *
 *   token -> bytes -> stop strings -> whole characters -> reasoning told from content
 *         -> tool calls told from the content's text -> sink
 *
 * Every stage may hold back what it cannot decide yet: the beginning of a stop string, of a
 * character, of a marker; a whole tool call. A token is settled when all of its bytes are decided;
 * settled tokens are reported in order, so that their log-probabilities travel with the text they
 * became.
 *
 * Any division of the same bytes into tokens gives the same text.
 *
 * Threads: a stream belongs to one thread. */
#ifndef LEAN_COORDINATOR_TEXT_ANSWER_STREAM_H
#define LEAN_COORDINATOR_TEXT_ANSWER_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/text/reasoning.h"
#include "coordinator/text/tool_format.h"
#include "proto/base/error.h"
#include "proto/model/sampling.h"

struct answer_stream;
struct json_object; /* json-c */
struct tokenizer;

enum answer_part {
    ANSWER_REASONING,
    ANSWER_CONTENT,
    ANSWER_MARKUP /* markers, end tokens, tool calls, what has no text */
};

struct answer_token {
    const struct sampled_token *sampled;
    enum answer_part part;
    /* Characters of the answer before the token's first byte, where reasoning is not split off;
     * the character that a token begins inside of does not count. */
    size_t offset;
};

struct answer_sink {
    /* n > 0 bytes of whole characters. part: REASONING or CONTENT. */
    void (*on_text)(void *context, enum answer_part part, const char *text, size_t n);
    void (*on_token)(void *context, const struct answer_token *token); /* or NULL */
    /* As of struct tool_sink (tool_parser.h); needed where tools may be called. */
    void (*on_call)(void *context, const char *name, size_t n);
    void (*on_arguments)(void *context, const char *bytes, size_t n);
    void (*on_call_end)(void *context);
    void *context;
};

struct answer_config {
    const struct tokenizer *tokenizer;
    const char *const *stops; /* [n_stop]; one that is a control token's text is that token too */
    size_t n_stop;
    const int32_t *stop_ids; /* [n_stop_id]: end the answer like an end token */
    size_t n_stop_id;
    size_t min_tokens; /* nothing ends the answer before so many tokens have come */
    bool include_stop; /* the stop string that was found belongs to the text */
    bool show_special; /* control tokens appear as their text; those that end the answer do not */
    bool show_marks;   /* so do marks of reasoning and calls, where they are control tokens */
    bool split;        /* reasoning is told from content; else all is content */
    bool opened;       /* the prompt ends inside of a reasoning block */
    bool channels;     /* the model writes channels (reasoning.h) */
    bool in_answer;    /* of them: the prompt ends inside of the answer */
    struct json_object *tools;    /* those that may be called; NULL: calls are text */
    enum tool_format tool_format; /* not AUTO, if there are any */
    bool single_call;             /* nothing counts after the first */
};

enum answer_end {
    ANSWER_OPEN, /* it goes on */
    ANSWER_END_TOKEN,
    ANSWER_STOP_TOKEN,  /* one of stop_ids */
    ANSWER_STOP_STRING, /* in the text or as a control token */
    ANSWER_CALLED,      /* the single call is complete */
    ANSWER_NO_MEMORY    /* some of the text is lost */
};

/* What config points to is borrowed until destroy, but for the stop strings, which are copied.
 * LM_E_USAGE: more or longer stop strings than stop_strings.h allows. */
enum lm_status answer_stream_create(struct answer_stream **out, const struct answer_config *config,
                                    const struct answer_sink *sink, struct lm_error *err);
void answer_stream_destroy(struct answer_stream *stream); /* NULL is legal */

/* The next token; not after the answer has ended. */
enum answer_end answer_stream_push(struct answer_stream *stream, const struct sampled_token *token);
/* No token follows: passes on what was held back. Once, whether the answer has ended or not; if it
 * has not, it was cut off, and so is a tool call that is open. */
void answer_stream_finish(struct answer_stream *stream);

enum answer_end answer_stream_end(const struct answer_stream *stream);
/* The stop string that ended the answer, or NULL. */
const char *answer_stream_stop_string(const struct answer_stream *stream);
/* Of the reasoning, its markers included; 0 if there was none. */
size_t answer_stream_n_reasoning(const struct answer_stream *stream);
/* The bytes that a token adds to the text; a view. */
const char *answer_stream_token_bytes(const struct answer_stream *stream, int32_t id, size_t *n);
/* NULL: calls are text. */
struct tool_parser *answer_stream_tools(const struct answer_stream *stream);

#endif
