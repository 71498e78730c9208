/* The answers to one request being generated: from checked fields and tokens to events.
 *
 *   read (HTTP thread) -> started -> queued -> tokens, events (step thread) -> all ended -> freed
 *
 * A request has n_prompt prompts and n samples of each, so n_prompt * n choices; the j-th sample of
 * the i-th prompt has index i * n + j and runs as a sequence of its own. A dialect (completions,
 * chat, ...) is told what comes and writes it; generation looks after the exchange: cancels when
 * the client leaves, reports errors, frees everything when the last choice has ended.
 *
 * Text is told in whole characters, in the order in which it was generated, as one piece for each
 * token where a token brings text of one kind; the tokens settled by it (answer_stream.h) are told
 * before it. To a client that does not keep up, the text of up to 64 tokens is told as one.
 *
 * Ownership: a generation owns its parts and itself.
 * Threads:   generation_serve and read on an HTTP thread; the sink's functions on the step thread.
 */
#ifndef LEAN_COORDINATOR_SERVER_GENERATION_H
#define LEAN_COORDINATOR_SERVER_GENERATION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/sched/request.h"
#include "coordinator/server/api_error.h"
#include "coordinator/server/call_record.h"
#include "coordinator/server/fields_generation.h"
#include "coordinator/server/inflight.h"
#include "coordinator/server/json_write.h"
#include "coordinator/server/random_id.h"
#include "coordinator/text/answer_stream.h"
#include "proto/base/byte_buffer.h"

struct generation;
struct grammar;
struct http_exchange;
struct server;
struct steering;
struct tool_fields;

struct generation_prompt {
    int32_t *ids; /* [n], malloc'ed */
    size_t n;
    bool has_added_bos; /* the first of them is not of the text */
    const char *text;   /* [n_text] what it is the tokens of, of source; NULL: ids */
    size_t n_text;
    struct json_object *source; /* owned, or NULL */
    size_t *turns;              /* [n_turn] tokens that begin messages, malloc'ed, or NULL */
    size_t n_turn;
};

struct generation_choice {
    struct generation *generation;
    size_t index;
    const struct generation_prompt *prompt;
    struct request request;
    struct answer_stream *stream;
    struct steering *steering; /* NULL: nothing is to be steered */
    struct inflight_sequence *progress;
    struct byte_buffer text;      /* that the sink has not been told yet */
    enum answer_part part;        /* of it */
    struct byte_buffer arguments; /* likewise, of the call that is open */
    uint32_t n_held;              /* tokens whose text that is: their client is behind */
    bool no_memory;
    struct call_record record;   /* where calls are remembered */
    size_t n_call_begun, n_call; /* tool calls; those that are complete */
    size_t n_token;
    int32_t last_id;                    /* of the last token */
    double first_token_s, last_token_s; /* 0: none yet */
    bool finished;                      /* the form of the answer leaves nothing more to say */
    bool has_text[2];                   /* was told, by enum answer_part */

    /* Known when the choice has ended. */
    const char *finish; /* "stop", "length", "tool_calls", "abort" */
    const char *stop_string;
    int32_t stop_id; /* of stop_token_ids, or -1 */
};

/* What a dialect does. All but on_end may be NULL; those of calls where there are no tools. */
struct generation_sink {
    const char *ping; /* written to a stream that says nothing; NULL: a comment */
    void (*on_prefill)(struct generation_choice *choice, size_t n_done, size_t n_total);
    /* If wants_prompt_tokens: all of them, in order; the first has no log-probability (NULL). */
    void (*on_prompt_token)(struct generation_choice *choice, uint32_t pos,
                            const struct sampled_token *token);
    /* The prompt has been read. */
    void (*on_begin)(struct generation_choice *choice);
    void (*on_token)(struct generation_choice *choice, const struct answer_token *token);
    void (*on_text)(struct generation_choice *choice, enum answer_part part, const char *text,
                    size_t n);
    const char *call_prefix; /* of the ids of tool calls */
    /* A tool call begins; fragments of its arguments, of one JSON text; it is complete. */
    void (*on_call)(struct generation_choice *choice, const char *id, const char *name, size_t n);
    void (*on_arguments)(struct generation_choice *choice, const char *text, size_t n);
    void (*on_call_end)(struct generation_choice *choice);
    void (*on_choice_end)(struct generation_choice *choice);
    /* All choices have ended, none with an error: generation_reply, or generation_end_stream. */
    void (*on_end)(struct generation *generation);
    /* The stream has begun and has to end with this. NULL: the event of the OpenAI dialects. */
    void (*on_stream_error)(struct generation *generation, const struct api_error *error);
    void (*destroy)(void *context); /* frees what is in the context, not itself */
};

struct generation {
    struct server *server;
    struct http_exchange *exchange;
    uint64_t owner; /* of the request's API key; 0: there are no keys */
    char id[RANDOM_ID_SIZE];
    int64_t created; /* Unix seconds */
    struct generation_fields fields;
    struct json_object *body;          /* what is read and borrowed from; gone once it runs */
    struct generation_prompt *prompts; /* [n_prompt] */
    size_t n_prompt;
    bool split, opened, show_marks; /* of the answers' reasoning: answer_stream.h */
    bool channels, in_answer;       /* likewise */
    bool may_think;                 /* an answer may begin with a reasoning block of its own */
    bool wants_prompt_tokens;
    const struct tool_fields *tools; /* of the sink's context; NULL: calls are text */
    struct grammar *grammar;         /* what the content is held to, or NULL; owned */
    struct grammar *call_grammar;    /* what a call is held to from its marker on, likewise */
    int64_t reasoning_budget;        /* tokens; -1: none */

    const struct generation_sink *sink;
    void *sink_context; /* owned */

    /* the choices */
    struct generation_choice *choices; /* [n_choice] */
    size_t n_choice;

    double progress_s; /* when the reading of a prompt was last told */

    /* private */
    uint32_t n_reserved; /* places in the queue besides the route's */
    uint32_t n_of_key;   /* sequences that count for the request's API key */
    size_t n_ended;
    bool streaming;         /* the headers are out */
    struct api_error error; /* of the first choice that failed */
    atomic_int closed;      /* enum http_close + 1; 0: the client is there */
    struct inflight_entry entry;
};

/* Serves a request of a dialect on a route that has reserved one place in the queue. `read` fills
 * the fields above "the choices" from the body, its context being n_context zeroed bytes; then all
 * of it goes to the step thread, or the error is answered. The exchange is not the caller's
 * afterwards. */
void generation_serve(struct server *server, struct http_exchange *exchange, const char *id_prefix,
                      const struct generation_sink *sink, size_t n_context,
                      bool (*read)(struct generation *generation, struct api_error *error));

/* ---- for read ---- */

/* n_prompt prompts of no tokens. */
bool generation_alloc_prompts(struct generation *generation, size_t n_prompt,
                              struct api_error *error);
/* The route reserved one place in the queue; this takes the other choices'. Before any expensive
 * work. API_QUEUE_FULL. */
bool generation_reserve(struct generation *generation, struct api_error *error);
/* Shortens prompts where the request asks for it and refuses those that do not fit the context.
 * param: the field that they came from; of several prompts the index follows. */
bool generation_fit_prompts(struct generation *generation, const char *param,
                            struct api_error *error);

/* ---- for sinks ---- */

/* Where there was no memory for what is to be sent, the answer ends with that error. */

/* The whole answer. */
void generation_reply(struct generation *generation, const struct json_writer *json);
/* Appends to the event stream, beginning it if need be. */
void generation_send(struct generation *generation, const struct byte_buffer *events);
/* last: text behind the events, "". Nothing, if the stream has to end with an error. */
void generation_end_stream(struct generation *generation, const char *last);

/* The "usage" object, of what has been generated so far. */
void generation_put_usage(const struct generation *generation, struct json_writer *writer);
/* The "timings" object. */
void generation_put_timings(const struct generation *generation, struct json_writer *writer);
/* "stop_reason": the string, the id, or null. */
void generation_put_stop_reason(const struct generation_choice *choice, struct json_writer *writer);

#endif
