#include "coordinator/text/tool_parser.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/text/tool_block.h"
#include "proto/base/byte_buffer.h"

struct tool_parser {
    struct tool_sink sink;
    const char *markers[2]; /* or NULL; all begin with one and the same byte */
    char first;
    bool all_trusted;
    size_t n_call_max, n_call; /* complete ones */
    enum { IN_TEXT, IN_CALL, IN_REST /* dropped */ } state;
    bool at_edge;             /* no text since the beginning or the last call */
    struct byte_buffer space; /* at the edge, until it is known what follows */
    struct byte_buffer raw;   /* a marker or its beginning, and the call behind it */
    struct tool_block block;
    bool trusted, announced; /* the call */
    bool called;             /* any call was announced */
};

enum lm_status tool_parser_create(struct tool_parser **out, enum tool_format format,
                                  struct json_object *tools, size_t n_call_max,
                                  const struct tool_sink *sink, struct lm_error *err)
{
    struct tool_parser *parser = calloc(1, sizeof(*parser));
    if (!parser) return lm_fail(err, LM_E_NO_MEM, "no memory for a parser of tool calls");
    parser->sink = *sink;
    const struct tool_syntax *const syntax = tool_format_syntax(format);
    parser->block.syntax = syntax;
    parser->markers[0] = syntax->section_open;
    parser->markers[1] = syntax->is_marker ? syntax->call_open : NULL;
    parser->first = syntax->section_open ? syntax->section_open[0] : syntax->call_open[0];
    parser->n_call_max = n_call_max;
    parser->at_edge = true;
    parser->block.tools = tools;
    *out = parser;
    return LM_OK;
}

void tool_parser_destroy(struct tool_parser *parser)
{
    if (!parser) return;
    tool_block_free(&parser->block);
    byte_buffer_free(&parser->space);
    byte_buffer_free(&parser->raw);
    free(parser);
}

/* ---- what goes out */

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void emit(struct tool_parser *parser, const char *bytes, size_t n)
{
    if (n) parser->sink.on_text(parser->sink.context, bytes, n);
}

static void put_text(struct tool_parser *parser, const char *bytes, size_t n)
{
    if (parser->at_edge) {
        size_t n_space = 0;
        while (n_space < n && is_space(bytes[n_space]))
            n_space++;
        byte_buffer_put(&parser->space, bytes, n_space);
        if (n_space == n) return;
        emit(parser, parser->space.data, parser->space.n);
        byte_buffer_clear(&parser->space);
        parser->at_edge = false;
        bytes += n_space;
        n -= n_space;
    }
    emit(parser, bytes, n);
}

/* Hands on what is known of the call. */
static void put_call(struct tool_parser *parser)
{
    struct tool_block *const block = &parser->block;
    if (!block->function) return;
    if (!parser->announced) {
        byte_buffer_clear(&parser->space);
        parser->announced = parser->called = true;
        parser->sink.on_call(parser->sink.context, block->name.data, block->name.n);
    }
    if (block->arguments.n)
        parser->sink.on_arguments(parser->sink.context, block->arguments.data, block->arguments.n);
    byte_buffer_clear(&block->arguments);
}

/* ---- states */

static void begin_call(struct tool_parser *parser, enum tool_block_place place)
{
    parser->state = IN_CALL;
    parser->announced = false;
    tool_block_begin(&parser->block, place);
}

/* The call is read, or was none: raw is its text, of which the last n_back bytes do not count. */
static void end_call(struct tool_parser *parser, enum tool_block_status status,
                     const struct byte_buffer *raw)
{
    parser->state = IN_TEXT;
    if (status == TOOL_BLOCK_BAD && !parser->announced) {
        if (!raw->failed) put_text(parser, raw->data, raw->n - parser->block.n_back);
        return;
    }
    put_call(parser);
    parser->at_edge = true;
    if (status != TOOL_BLOCK_DONE) return; /* it stays without its end */
    parser->sink.on_call_end(parser->sink.context);
    parser->n_call++;
    if (parser->n_call_max && parser->n_call >= parser->n_call_max)
        parser->state = IN_REST;
    else if (parser->block.continues)
        begin_call(parser, TOOL_BLOCK_IN_LIST); /* as trusted as the one before */
}

/* Whether bytes begin a marker; *i: which one they are, if they are the whole of one. */
static bool begins_marker(const struct tool_parser *parser, const struct byte_buffer *bytes,
                          size_t *i)
{
    bool begins = false;
    *i = 2;
    for (size_t k = 0; k < 2; k++) {
        const char *const marker = parser->markers[k];
        const size_t n = marker ? strlen(marker) : 0;
        if (!n || bytes->n > n || memcmp(bytes->data, marker, bytes->n) != 0) continue;
        begins = true;
        if (bytes->n == n) *i = k;
    }
    return begins;
}

/* What looked like the beginning of a marker is text; another one may begin inside of it. */
static void release_text(struct tool_parser *parser)
{
    struct byte_buffer held = parser->raw;
    parser->raw = (struct byte_buffer){.failed = held.failed};
    if (!held.failed) {
        put_text(parser, held.data, 1);
        tool_parser_push(parser, held.data + 1, held.n - 1);
    }
    byte_buffer_free(&held);
}

/* Takes at least one byte. */
static size_t push_text(struct tool_parser *parser, const char *bytes, size_t n)
{
    struct byte_buffer *const raw = &parser->raw;
    size_t i_marker;
    if (!raw->n && *bytes != parser->first) {
        const char *const marker = memchr(bytes, parser->first, n);
        const size_t n_text = marker ? (size_t)(marker - bytes) : n;
        put_text(parser, bytes, n_text);
        return n_text;
    }
    if (parser->block.syntax->only_first && !parser->at_edge) {
        put_text(parser, bytes, 1);
        return 1;
    }
    byte_buffer_put(raw, bytes, 1);
    if (raw->failed) return 1;
    if (!begins_marker(parser, raw, &i_marker)) {
        release_text(parser);
    } else if (i_marker < 2) {
        parser->trusted = parser->all_trusted;
        begin_call(parser, i_marker ? TOOL_BLOCK_IN_CALL : TOOL_BLOCK_IN_SECTION);
    }
    return 1;
}

static size_t push_call(struct tool_parser *parser, const char *bytes)
{
    const enum tool_block_status status = tool_block_take(&parser->block, *bytes);
    byte_buffer_put(&parser->raw, bytes, 1);
    /* At once, so that what follows in the same piece finds it announced. */
    if (parser->trusted && !parser->announced) put_call(parser);
    if (status == TOOL_BLOCK_MORE) return 1;
    struct byte_buffer raw = parser->raw;
    parser->raw = (struct byte_buffer){.failed = raw.failed};
    end_call(parser, status, &raw);
    /* What does not belong to the call may begin the next one. */
    const size_t n_back = parser->block.n_back;
    if (!raw.failed) tool_parser_push(parser, raw.data + raw.n - n_back, n_back);
    byte_buffer_free(&raw);
    return 1;
}

void tool_parser_push(struct tool_parser *parser, const char *bytes, size_t n)
{
    while (n && parser->state != IN_REST) {
        const size_t n_taken =
            parser->state == IN_TEXT ? push_text(parser, bytes, n) : push_call(parser, bytes);
        bytes += n_taken;
        n -= n_taken;
    }
    if (parser->state == IN_CALL && parser->trusted) put_call(parser);
}

void tool_parser_finish(struct tool_parser *parser, bool cut)
{
    if (parser->state == IN_CALL) {
        end_call(parser, tool_block_finish(&parser->block, cut), &parser->raw);
    } else if (parser->raw.n) {
        put_text(parser, parser->raw.data, parser->raw.n);
    }
    byte_buffer_clear(&parser->raw);
    if (!parser->called) emit(parser, parser->space.data, parser->space.n);
    byte_buffer_clear(&parser->space);
    parser->state = IN_REST;
}

bool tool_parser_failed(const struct tool_parser *parser)
{
    const struct tool_block *const block = &parser->block;
    return parser->space.failed || parser->raw.failed || block->name.failed ||
           block->arguments.failed || block->pending.failed || block->key.failed ||
           block->seen.failed || block->value.failed;
}

/* ---- trust */

const char *tool_parser_untrusted(const struct tool_parser *parser, size_t *n)
{
    if (parser->state != IN_CALL || parser->trusted) return NULL;
    *n = parser->raw.n;
    return parser->raw.data;
}

void tool_parser_trust(struct tool_parser *parser, bool all)
{
    parser->all_trusted |= all;
    if (parser->state == IN_CALL) parser->trusted = true;
    if (parser->state == IN_CALL) put_call(parser);
}

bool tool_parser_in_call(const struct tool_parser *parser)
{
    return parser->state == IN_CALL;
}

size_t tool_parser_held(const struct tool_parser *parser)
{
    return parser->space.n + parser->raw.n;
}
