/* The stages in a row, and the count of what each holds back. */
#include "coordinator/text/answer_stream.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/char_counter.h"
#include "coordinator/text/stop_strings.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tool_parser.h"

/* A token whose bytes are not all decided. Positions count the answer's bytes before any stage. */
struct open_token {
    struct sampled_token sampled;
    size_t begin, end, offset;
    bool has_part; /* some of its text was passed on, as this part: */
    enum answer_part part;
};

struct answer_stream {
    struct answer_config config;
    struct answer_sink sink;
    struct stop_strings *stops;
    struct token_decoder decoder;
    struct reasoning_splitter splitter;
    struct tool_parser *tools; /* or NULL */
    int32_t marks[2];          /* tokens of the marks of reasoning, or -1 */
    enum answer_end end;
    const char *stop_string;
    size_t n_token, n_reasoning;
    bool stops_done; /* found one, or nothing is held in them any more */
    bool finished;

    /* settling */
    struct open_token *open; /* [n_open] of room */
    size_t n_open, room;
    size_t n_in;               /* bytes of all tokens */
    bool passed[2];            /* text went to the sink with this token, by enum answer_part */
    struct char_counter chars; /* of all tokens */
    size_t n_char_out;         /* of the text passed on */
    bool called;               /* a call was read with this token */
};

static const char *const mark_texts[] = {"<think>", "</think>"};
enum { N_MARK = sizeof(mark_texts) / sizeof(mark_texts[0]) };

/* ---- the stages ---- */

static void pass_on(struct answer_stream *stream, enum answer_part part, const char *text, size_t n)
{
    stream->passed[part] = true;
    stream->n_char_out += char_counter_count(text, n);
    stream->sink.on_text(stream->sink.context, part, text, n);
}

static void emit(void *context, enum reasoning_part part, const char *text, size_t n)
{
    struct answer_stream *stream = context;
    if (part == PART_REASONING)
        pass_on(stream, ANSWER_REASONING, text, n);
    else if (stream->tools)
        tool_parser_push(stream->tools, text, n);
    else
        pass_on(stream, ANSWER_CONTENT, text, n);
}

static void emit_content(void *context, const char *text, size_t n)
{
    pass_on(context, ANSWER_CONTENT, text, n);
}

static void emit_call(void *context, const char *name, size_t n)
{
    struct answer_stream *stream = context;
    stream->called = true;
    stream->sink.on_call(stream->sink.context, name, n);
}

static void emit_arguments(void *context, const char *bytes, size_t n)
{
    const struct answer_stream *stream = context;
    stream->sink.on_arguments(stream->sink.context, bytes, n);
}

static void emit_call_end(void *context)
{
    struct answer_stream *stream = context;
    stream->called = true;
    if (stream->config.single_call && stream->end == ANSWER_OPEN) stream->end = ANSWER_CALLED;
    stream->sink.on_call_end(stream->sink.context);
}

/* Bytes that no stop string can take back. last: none follow. */
static void take_bytes(struct answer_stream *stream, const char *bytes, size_t n, bool last)
{
    char small[1024], *text = small;
    if (3 * (n + 4) > sizeof(small) && !(text = malloc(3 * (n + 4)))) {
        stream->end = ANSWER_NO_MEMORY;
        return;
    }
    const size_t n_text = token_decoder_push(&stream->decoder, bytes, n, last, text);
    if (stream->config.split) {
        reasoning_push(&stream->splitter, text, n_text);
        if (last) reasoning_finish(&stream->splitter);
    } else if (n_text) {
        emit(stream, PART_CONTENT, text, n_text);
    }
    if (last && stream->tools) {
        const bool cut = stream->end == ANSWER_OPEN;
        tool_parser_finish(stream->tools, cut);
    }
    if (stream->tools && tool_parser_failed(stream->tools)) stream->end = ANSWER_NO_MEMORY;
    if (text != small) free(text);
}

/* As take_bytes, but the stop strings come first. */
static void take_token_bytes(struct answer_stream *stream, const char *bytes, size_t n, bool last)
{
    const char *text;
    size_t n_text;
    const bool found = stop_strings_push(stream->stops, bytes, n, last, &text, &n_text);
    stream->stops_done = found || last;
    if (found && !text) {
        stream->end = ANSWER_NO_MEMORY;
        return;
    }
    take_bytes(stream, text ? text : "", n_text, false);
    if (!found) return;
    stream->end = ANSWER_STOP_STRING;
    stream->stop_string = stop_strings_found(stream->stops);
    if (stream->config.include_stop)
        take_bytes(stream, stream->stop_string, strlen(stream->stop_string), false);
}

/* Bytes that have come in and are neither passed on nor dropped. */
static size_t n_held(const struct answer_stream *stream)
{
    return stop_strings_held(stream->stops) + stream->decoder.n_pending +
           (stream->config.split ? reasoning_held(&stream->splitter) : 0) +
           (stream->tools ? tool_parser_held(stream->tools) : 0);
}

/* ---- settling ---- */

/* The part of a token none of whose bytes was passed on. */
static enum answer_part dropped_part(const struct answer_stream *stream, int state_before)
{
    const int state = stream->splitter.state;
    if (stream->called) return ANSWER_MARKUP;
    if (!stream->config.split || state == REASONING_PLAIN) return ANSWER_CONTENT;
    if (state != state_before) return ANSWER_MARKUP;
    return state == REASONING_INSIDE ? ANSWER_REASONING : ANSWER_CONTENT;
}

/* Reports the tokens that are decided. state_before: the splitter's, before what was last taken. */
static void settle(struct answer_stream *stream, int state_before, bool all)
{
    /* What took the place of malformed bytes may be longer than they are. */
    const size_t held = all ? 0 : n_held(stream);
    const size_t n_decided = held < stream->n_in ? stream->n_in - held : 0;
    const bool passed = stream->passed[ANSWER_REASONING] || stream->passed[ANSWER_CONTENT];
    const enum answer_part part =
        stream->passed[ANSWER_CONTENT] ? ANSWER_CONTENT : ANSWER_REASONING;
    size_t n_settled = 0;
    for (size_t i = 0; i < stream->n_open; i++) {
        struct open_token *token = &stream->open[i];
        /* Text that came with the end of a call is of the last token only. */
        const bool of_call = stream->called && i + 1 < stream->n_open;
        if (passed && !of_call && !token->has_part && token->begin < n_decided &&
            token->begin < token->end) {
            token->has_part = true;
            token->part = part;
        }
        if (token->end > n_decided) break;
        if (token->begin == token->end)
            token->part = ANSWER_MARKUP;
        else if (!token->has_part)
            token->part = dropped_part(stream, state_before);
        if (all && token->offset > stream->n_char_out) token->offset = stream->n_char_out;
        const struct answer_token settled = {&token->sampled, token->part, token->offset};
        stream->sink.on_token(stream->sink.context, &settled);
        n_settled++;
    }
    stream->n_open -= n_settled;
    if (n_settled)
        memmove(stream->open, stream->open + n_settled, stream->n_open * sizeof(*stream->open));
    stream->passed[ANSWER_REASONING] = stream->passed[ANSWER_CONTENT] = stream->called = false;
}

static void open_token(struct answer_stream *stream, const struct sampled_token *sampled,
                       const char *bytes, size_t n)
{
    if (!stream->sink.on_token) return;
    if (stream->n_open == stream->room) {
        const size_t room = stream->room ? 2 * stream->room : 4;
        struct open_token *grown = realloc(stream->open, room * sizeof(*grown));
        if (!grown) {
            stream->end = ANSWER_NO_MEMORY;
            return;
        }
        stream->open = grown;
        stream->room = room;
    }
    stream->open[stream->n_open++] = (struct open_token){
        .sampled = *sampled,
        .begin = stream->n_in,
        .end = stream->n_in + n,
        .offset = char_counter_add(&stream->chars, bytes, n),
    };
    stream->n_in += n;
}

/* ---- life ---- */

enum lm_status answer_stream_create(struct answer_stream **out, const struct answer_config *config,
                                    const struct answer_sink *sink, struct lm_error *err)
{
    struct answer_stream *stream = calloc(1, sizeof(*stream));
    if (!stream) return lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    stream->config = *config;
    stream->sink = *sink;
    for (int i = 0; i < N_MARK; i++)
        stream->marks[i] = tokenizer_find(config->tokenizer, mark_texts[i], strlen(mark_texts[i]));
    if (config->channels)
        reasoning_init_channels(&stream->splitter, config->opened, config->in_answer, emit, stream);
    else
        reasoning_init(&stream->splitter, config->opened, emit, stream);
    const struct tool_sink tool_sink = {emit_content, emit_call, emit_arguments, emit_call_end,
                                        stream};
    enum lm_status status = LM_OK;
    if (config->tools)
        status = tool_parser_create(&stream->tools, config->tool_format, config->tools,
                                    config->single_call, &tool_sink, err);
    if (status == LM_OK)
        status = stop_strings_create(&stream->stops, config->stops, config->n_stop, err);
    if (status != LM_OK) {
        answer_stream_destroy(stream);
        return status;
    }
    *out = stream;
    return LM_OK;
}

void answer_stream_destroy(struct answer_stream *stream)
{
    if (!stream) return;
    stop_strings_destroy(stream->stops);
    tool_parser_destroy(stream->tools);
    free(stream->open);
    free(stream);
}

/* ---- tokens ---- */

/* Whether the token ends the answer by its id. */
static enum answer_end end_of_id(struct answer_stream *stream, int32_t id)
{
    const struct answer_config *config = &stream->config;
    for (size_t i = 0; i < config->n_stop_id; i++)
        if (config->stop_ids[i] == id) return ANSWER_STOP_TOKEN;
    if (tokenizer_token_kind(config->tokenizer, id) == TOKEN_CONTROL) {
        size_t n;
        const char *text = tokenizer_token_bytes(config->tokenizer, id, true, &n);
        stream->stop_string = stop_strings_find(stream->stops, text, n);
        if (stream->stop_string) return ANSWER_STOP_STRING;
    }
    return tokenizer_is_end(config->tokenizer, id) ? ANSWER_END_TOKEN : ANSWER_OPEN;
}

/* What was held back comes out first; it may turn out to hold a stop string itself. */
static void end_by_token(struct answer_stream *stream, enum answer_end end)
{
    const char *const string = stream->stop_string;
    take_token_bytes(stream, "", 0, true);
    if (stream->end != ANSWER_OPEN) return;
    stream->end = end;
    stream->stop_string = string;
    if (end == ANSWER_STOP_STRING && stream->config.include_stop)
        take_bytes(stream, string, strlen(string), false);
}

/* Whether a control token appears as its text. In some vocabularies the marks of reasoning and of
 * calls are control tokens; the splitter and the parser want them. */
static bool is_shown(const struct answer_stream *stream, int32_t id)
{
    const struct answer_config *config = &stream->config;
    size_t n;
    if (config->show_special || !config->show_marks ||
        tokenizer_token_kind(config->tokenizer, id) != TOKEN_CONTROL)
        return config->show_special;
    for (int i = 0; i < N_MARK; i++)
        if (id == stream->marks[i]) return true;
    const char *const text = tokenizer_token_bytes(config->tokenizer, id, true, &n);
    return (config->channels && reasoning_is_channel_mark(text, n)) ||
           (config->tools && tool_format_mentions(config->tool_format, text, n));
}

static bool is_inside(const struct answer_stream *stream)
{
    return stream->config.split && stream->splitter.state == REASONING_INSIDE;
}

enum answer_end answer_stream_push(struct answer_stream *stream, const struct sampled_token *token)
{
    const struct answer_config *config = &stream->config;
    const int state_before = stream->splitter.state;
    const bool was_inside = is_inside(stream);
    const bool may_end = stream->n_token++ >= config->min_tokens;
    assert(stream->end == ANSWER_OPEN && !stream->finished);

    const enum answer_end end = may_end ? end_of_id(stream, token->id) : ANSWER_OPEN;
    size_t n = 0;
    const char *bytes = "";
    if (end == ANSWER_OPEN) bytes = answer_stream_token_bytes(stream, token->id, &n);
    open_token(stream, token, bytes, n);
    if (!may_end)
        take_bytes(stream, bytes, n, false);
    else if (end == ANSWER_OPEN)
        take_token_bytes(stream, bytes, n, false);
    else
        end_by_token(stream, end);
    stream->n_reasoning += was_inside || is_inside(stream);
    if (stream->sink.on_token) settle(stream, state_before, false);
    return stream->end;
}

void answer_stream_finish(struct answer_stream *stream)
{
    const int state_before = stream->splitter.state;
    assert(!stream->finished);
    stream->finished = true;
    if (!stream->stops_done) take_token_bytes(stream, "", 0, true);
    take_bytes(stream, "", 0, true);
    if (stream->sink.on_token) settle(stream, state_before, true);
}

enum answer_end answer_stream_end(const struct answer_stream *stream)
{
    return stream->end;
}

const char *answer_stream_stop_string(const struct answer_stream *stream)
{
    return stream->end == ANSWER_STOP_STRING ? stream->stop_string : NULL;
}

size_t answer_stream_n_reasoning(const struct answer_stream *stream)
{
    return stream->n_reasoning;
}

const char *answer_stream_token_bytes(const struct answer_stream *stream, int32_t id, size_t *n)
{
    return tokenizer_token_bytes(stream->config.tokenizer, id, is_shown(stream, id), n);
}

struct tool_parser *answer_stream_tools(const struct answer_stream *stream)
{
    return stream->tools;
}
