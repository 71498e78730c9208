/* Tells the reasoning from the answer in generated text, as it arrives.
 *
 *   prompt ends in <think> --------------> REASONING --</think>--> CONTENT
 *   else START --<think> comes first-----> REASONING
 *              --anything else--------------------------------> CONTENT
 *
 * The markers themselves are dropped, and with them the line breaks around the reasoning and at
 * the start of the content after it; nothing else is changed. White space may precede <think>.
 * Text that never sees </think> is all reasoning. A <think> later on is plain content.
 *
 * Models with channels write messages instead, each with a header that is dropped:
 *
 *   <|channel|>analysis<|message|> REASONING <|end|><|start|>assistant<|channel|>final<|message|>
 *   CONTENT
 *
 * The text of all channels but analysis is content. A header with a recipient begins a tool call
 * and stays, in one spelling, for tool_parser.h: <|channel|>commentary to=functions.NAME ... A text
 * that does not begin with a header is content.
 *
 * Any division of the text into pieces gives the same result. What cannot be told yet is held
 * back: part of a marker, white space at the start (at most 32 bytes), line breaks at the end of
 * the reasoning, a header (at most 128 bytes). Threads: a splitter belongs to one thread. */
#ifndef LEAN_COORDINATOR_TEXT_REASONING_H
#define LEAN_COORDINATOR_TEXT_REASONING_H

#include <stdbool.h>
#include <stddef.h>

enum reasoning_part { PART_REASONING, PART_CONTENT };

/* Receives consecutive bytes of one part, n > 0. */
typedef void (*reasoning_emit_fn)(void *context, enum reasoning_part part, const char *bytes,
                                  size_t n);

struct reasoning_splitter {
    enum { REASONING_START, REASONING_INSIDE, REASONING_AFTER, REASONING_PLAIN } state;
    bool at_start;  /* of the reasoning or of the content after it: line breaks are dropped */
    size_t n_space; /* held, REASONING_START */
    char space[32];
    size_t n_break;  /* line breaks held, at what may be the end of the reasoning */
    size_t n_marker; /* bytes of the marker that have been seen */
    bool channels;
    bool in_call;   /* the message is a tool call */
    bool eager;     /* may be set: what is content now is so to the end, and nothing is held */
    size_t n_head;  /* held, of a header or of what may end a message */
    char head[128]; /* [n_head], then a NUL */
    reasoning_emit_fn emit;
    void *context;
};

/* Whether a rendered prompt ends inside a reasoning block: in <think>, white space after it, or in
 * the header of an analysis. */
bool reasoning_prompt_opens(const char *prompt, size_t n);

/* Likewise, behind one: </think>, white space after it. */
bool reasoning_prompt_closes(const char *prompt, size_t n);

/* The text of a token that is a part of headers, and so counts where it is a control token. */
bool reasoning_is_channel_mark(const char *text, size_t n);

void reasoning_init(struct reasoning_splitter *splitter, bool opened, reasoning_emit_fn emit,
                    void *context);
/* For a model with channels; in_answer: the prompt ends inside of a message that is content. */
void reasoning_init_channels(struct reasoning_splitter *splitter, bool opened, bool in_answer,
                             reasoning_emit_fn emit, void *context);
/* The next n bytes. They need not end with a whole character. */
void reasoning_push(struct reasoning_splitter *splitter, const char *bytes, size_t n);
/* Bytes that are held back. */
size_t reasoning_held(const struct reasoning_splitter *splitter);
/* Nothing follows: emits what was held back and belongs to a part. */
void reasoning_finish(struct reasoning_splitter *splitter);

#endif
