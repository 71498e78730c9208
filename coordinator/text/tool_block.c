#include "coordinator/text/tool_block.h"

#include <json-c/json.h>
#include <string.h>

#include "coordinator/text/tool_schema.h"

enum state {
    AT_FORM, /* behind <tool_call> */
    XML_NAME,
    XML_BETWEEN, /* a parameter or the end comes */
    XML_KEY,
    XML_VALUE_START, /* one line break is dropped */
    XML_VALUE,
    JSON_FIRST_KEY,
    JSON_KEY,
    JSON_IN_KEY,
    JSON_COLON,
    JSON_VALUE_START,
    JSON_VALUE,
    JSON_NEXT,
    AT_CLOSER /* </tool_call> may come */
};

enum { N_NAME_MAX = 256, N_SPACE_MAX = 64 };

static const char call_open[] = "<tool_call>", call_close[] = "</tool_call>",
                  function_open[] = "<function=", function_close[] = "</function>",
                  parameter_open[] = "<parameter=", parameter_close[] = "</parameter>";

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

void tool_block_begin(struct tool_block *block, bool in_function)
{
    block->function = NULL;
    byte_buffer_clear(&block->name);
    byte_buffer_clear(&block->arguments);
    byte_buffer_clear(&block->pending);
    byte_buffer_clear(&block->seen);
    block->has_arguments = false;
    block->in_xml = in_function;
    block->state = in_function ? XML_NAME : AT_FORM;
}

void tool_block_free(struct tool_block *block)
{
    byte_buffer_free(&block->name);
    byte_buffer_free(&block->arguments);
    byte_buffer_free(&block->pending);
    byte_buffer_free(&block->key);
    byte_buffer_free(&block->seen);
    byte_buffer_free(&block->value);
}

static enum tool_block_status end(struct tool_block *block, enum tool_block_status status,
                                  size_t n_back)
{
    block->n_back = n_back;
    return status;
}

static bool set_function(struct tool_block *block)
{
    block->function = tool_schema_find(block->tools, block->name.data, block->name.n);
    return block->function != NULL;
}

/* ---- tags */

enum match { MATCH_NO, MATCH_PART, MATCH_YES };

/* Whether text begins with a tag, or is the beginning of one. */
static enum match match_tag(const char *text, size_t n, const char *tag)
{
    const size_t n_tag = strlen(tag);
    if (memcmp(text, tag, n < n_tag ? n : n_tag) != 0) return MATCH_NO;
    return n < n_tag ? MATCH_PART : MATCH_YES;
}

static enum match better(enum match a, enum match b)
{
    return a > b ? a : b;
}

/* Adds c to a tag that is being read, white space before it dropped; n_tag tags are possible.
 * *i_tag: which one is complete. */
static enum match take_tag(struct tool_block *block, char c, const char *const *tags, size_t n_tag,
                           size_t *i_tag)
{
    enum match found = MATCH_NO;
    if (!block->pending.n && is_space(c)) return MATCH_PART;
    byte_buffer_put(&block->pending, &c, 1);
    for (*i_tag = 0; *i_tag < n_tag; ++*i_tag) {
        found = better(found, match_tag(block->pending.data, block->pending.n, tags[*i_tag]));
        if (found == MATCH_YES) break;
    }
    return found;
}

/* ---- XML */

/* NAME or KEY up to '>', in out. */
static enum match take_word(struct byte_buffer *out, char c)
{
    if (c == '>') return out->n ? MATCH_YES : MATCH_NO;
    if (c == '\n' || c == '<' || !c || out->n == N_NAME_MAX) return MATCH_NO;
    byte_buffer_put(out, &c, 1);
    return MATCH_PART;
}

static enum tool_block_status take_name(struct tool_block *block, char c)
{
    const enum match match = take_word(&block->name, c);
    if (match == MATCH_PART) return TOOL_BLOCK_MORE;
    if (match == MATCH_NO) return end(block, TOOL_BLOCK_BAD, 1);
    if (!set_function(block)) return end(block, TOOL_BLOCK_BAD, 0);
    block->state = XML_BETWEEN;
    return TOOL_BLOCK_MORE;
}

static void close_arguments(struct tool_block *block)
{
    byte_buffer_put_text(&block->arguments, block->has_arguments ? "}" : "{}");
    block->has_arguments = true;
}

static enum tool_block_status take_between(struct tool_block *block, char c)
{
    static const char *const tags[] = {parameter_open, function_close, call_close, call_open,
                                       function_open};
    size_t i_tag;
    const enum match match = take_tag(block, c, tags, 5, &i_tag);
    if (match == MATCH_PART) return TOOL_BLOCK_MORE;
    if (match == MATCH_NO) return end(block, TOOL_BLOCK_BAD, block->pending.n);
    if (i_tag > 0) close_arguments(block);
    if (i_tag == 2) return end(block, TOOL_BLOCK_DONE, 0);
    if (i_tag > 2) return end(block, TOOL_BLOCK_DONE, block->pending.n);
    byte_buffer_clear(&block->pending);
    byte_buffer_clear(&block->key);
    block->state = i_tag == 0 ? XML_KEY : AT_CLOSER;
    return TOOL_BLOCK_MORE;
}

static enum tool_block_status take_key(struct tool_block *block, char c)
{
    const enum match match = take_word(&block->key, c);
    if (match == MATCH_PART) return TOOL_BLOCK_MORE;
    if (match == MATCH_NO) return end(block, TOOL_BLOCK_BAD, 1);
    byte_buffer_put_text(&block->arguments, block->has_arguments ? ",\"" : "{\"");
    byte_buffer_put_json(&block->arguments, block->key.data, block->key.n);
    byte_buffer_put_text(&block->arguments, "\":");
    block->has_arguments = true;
    block->types = tool_schema_types(block->function, block->key.data);
    if (block->types == TOOL_TYPE_STRING) byte_buffer_put_text(&block->arguments, "\"");
    byte_buffer_put(&block->seen, "", 1);
    byte_buffer_put(&block->seen, block->key.data, block->key.n);
    byte_buffer_clear(&block->value);
    block->state = XML_VALUE_START;
    return TOOL_BLOCK_MORE;
}

static void put_value(struct tool_block *block, const char *bytes, size_t n)
{
    if (block->types == TOOL_TYPE_STRING)
        byte_buffer_put_json(&block->arguments, bytes, n);
    else
        byte_buffer_put(&block->value, bytes, n);
}

static void end_value(struct tool_block *block)
{
    if (block->types == TOOL_TYPE_STRING)
        byte_buffer_put_text(&block->arguments, "\"");
    else
        tool_schema_put_value(block->types, block->value.data ? block->value.data : "",
                              block->value.n, &block->arguments);
}

static bool was_seen(const struct tool_block *block, const char *key, size_t n)
{
    for (size_t i = 0; i + n < block->seen.n; i++) { /* a NUL before each, and one behind all */
        if (!block->seen.data[i] && !block->seen.data[i + 1 + n] &&
            !memcmp(block->seen.data + i + 1, key, n))
            return true;
    }
    return false;
}

/* </parameter>, then a tag of the call. */
static enum match match_close(const char *text, size_t n)
{
    enum match match = match_tag(text, n, parameter_close);
    if (match != MATCH_YES) return match;
    size_t at = sizeof(parameter_close) - 1;
    const size_t n_max = at + N_SPACE_MAX;
    while (at < n && at < n_max && is_space(text[at]))
        at++;
    match = match_tag(text + at, n - at, parameter_open);
    match = better(match, match_tag(text + at, n - at, function_close));
    match = better(match, match_tag(text + at, n - at, call_open));
    return better(match, match_tag(text + at, n - at, call_close));
}

/* </function> and </tool_call>, where </parameter> is missing. */
static enum match match_function_close(const char *text, size_t n)
{
    const enum match match = match_tag(text, n, function_close);
    if (match != MATCH_YES) return match;
    size_t at = sizeof(function_close) - 1;
    const size_t n_max = at + N_SPACE_MAX;
    while (at < n && at < n_max && is_space(text[at]))
        at++;
    return match_tag(text + at, n - at, call_close);
}

/* <parameter=KEY> with a key that the tool declares and that was not there yet. */
static enum match match_next_parameter(const struct tool_block *block, const char *text, size_t n)
{
    char key[N_NAME_MAX + 1];
    const enum match match = match_tag(text, n, parameter_open);
    if (match != MATCH_YES) return match;
    text += sizeof(parameter_open) - 1;
    n -= sizeof(parameter_open) - 1;
    const char *const close = memchr(text, '>', n);
    if (!close)
        return n > N_NAME_MAX || memchr(text, '\n', n) || memchr(text, '<', n) ? MATCH_NO
                                                                               : MATCH_PART;
    const size_t n_key = (size_t)(close - text);
    if (n_key > N_NAME_MAX || was_seen(block, text, n_key)) return MATCH_NO;
    memcpy(key, text, n_key);
    key[n_key] = '\0';
    return tool_schema_declares(block->function, key) ? MATCH_YES : MATCH_NO;
}

/* Whether the pending bytes end the value. *n_gone: those that are read and done with then. */
static enum match match_value_end(const struct tool_block *block, size_t *n_gone)
{
    const size_t n_break = block->pending.data[0] == '\n';
    const char *const text = block->pending.data + n_break;
    const size_t n = block->pending.n - n_break;
    const enum match close = match_close(text, n);
    enum match other = match_function_close(text, n);
    if (n_break) other = better(other, match_next_parameter(block, text, n));
    *n_gone = n_break + (close == MATCH_YES ? sizeof(parameter_close) - 1 : 0);
    return better(close, other);
}

/* The pending bytes are part of the value, up to the next one that may begin its end. */
static void release_value(struct tool_block *block)
{
    struct byte_buffer *const pending = &block->pending;
    size_t n = 1;
    while (n < pending->n && pending->data[n] != '\n' && pending->data[n] != '<')
        n++;
    put_value(block, pending->data, n);
    memmove(pending->data, pending->data + n, pending->n - n + 1);
    pending->n -= n;
}

static enum tool_block_status take_value(struct tool_block *block, char c)
{
    struct byte_buffer *const pending = &block->pending;
    if (!pending->n && c != '\n' && c != '<') {
        put_value(block, &c, 1);
        return TOOL_BLOCK_MORE;
    }
    byte_buffer_put(pending, &c, 1);
    while (pending->n && !pending->failed) {
        size_t n_gone;
        const enum match match = match_value_end(block, &n_gone);
        if (match == MATCH_PART) break;
        if (match == MATCH_NO) {
            release_value(block);
            continue;
        }
        end_value(block);
        block->state = XML_BETWEEN;
        char rest[N_SPACE_MAX + N_NAME_MAX + 64]; /* of bounded tags and white space */
        const size_t n_rest = pending->n - n_gone;
        memcpy(rest, pending->data + n_gone, n_rest);
        byte_buffer_clear(pending);
        enum tool_block_status status = TOOL_BLOCK_MORE;
        for (size_t i = 0; i < n_rest && status == TOOL_BLOCK_MORE; i++)
            status = tool_block_take(block, rest[i]);
        return status;
    }
    return TOOL_BLOCK_MORE;
}

/* ---- JSON */

static enum tool_block_status take_form(struct tool_block *block, char c)
{
    static const char *const tags[] = {function_open};
    size_t i_tag;
    if (!block->pending.n && c == '{') {
        block->state = JSON_FIRST_KEY;
        return TOOL_BLOCK_MORE;
    }
    const enum match match = take_tag(block, c, tags, 1, &i_tag);
    if (match == MATCH_NO) return end(block, TOOL_BLOCK_BAD, block->pending.n);
    if (match == MATCH_PART) return TOOL_BLOCK_MORE;
    byte_buffer_clear(&block->pending);
    block->in_xml = true;
    block->state = XML_NAME;
    return TOOL_BLOCK_MORE;
}

static enum tool_block_status begin_json_key(struct tool_block *block)
{
    byte_buffer_clear(&block->key);
    block->json = (struct json_compactor){0};
    block->state = JSON_IN_KEY;
    return json_compactor_take(&block->json, '"', &block->key) ? TOOL_BLOCK_MORE : TOOL_BLOCK_BAD;
}

static bool key_is(const struct tool_block *block, const char *quoted)
{
    return !strcmp(block->key.data ? block->key.data : "", quoted);
}

static bool key_is_arguments(const struct tool_block *block)
{
    return key_is(block, "\"arguments\"") || key_is(block, "\"parameters\"");
}

/* An object of arguments goes out as it comes; other values are read as a whole. */
static enum tool_block_status begin_json_value(struct tool_block *block, char c)
{
    block->json = (struct json_compactor){0};
    byte_buffer_clear(&block->value);
    block->json_out = &block->value;
    if (key_is_arguments(block)) {
        if (block->has_arguments) return end(block, TOOL_BLOCK_BAD, 1);
        block->has_arguments = true;
        if (c == '{') block->json_out = &block->arguments;
    }
    if (!json_compactor_take(&block->json, c, block->json_out))
        return end(block, TOOL_BLOCK_BAD, 1);
    block->state = JSON_VALUE;
    return TOOL_BLOCK_MORE;
}

/* "{\"x\": 1}": an object that was written as a string. */
static bool put_quoted_arguments(struct tool_block *block)
{
    struct json_object *const text = json_tokener_parse(block->value.data);
    const char *const bytes = json_object_get_string(text);
    struct byte_buffer compact = {0};
    const bool good = bytes &&
                      json_compact(bytes, (size_t)json_object_get_string_len(text), &compact) &&
                      !compact.failed && compact.data[0] == '{';
    if (good) byte_buffer_put(&block->arguments, compact.data, compact.n);
    byte_buffer_free(&compact);
    json_object_put(text);
    return good;
}

/* The value of a key is whole. */
static bool end_json_value(struct tool_block *block)
{
    const struct byte_buffer *const value = &block->value;
    block->state = JSON_NEXT;
    if (value->failed) return false;
    if (key_is(block, "\"name\"")) {
        if (block->function || value->n < 2 || value->data[0] != '"') return false;
        byte_buffer_put(&block->name, value->data + 1, value->n - 2);
        return set_function(block);
    }
    if (!key_is_arguments(block) || block->json_out != value) return true;
    if (!strcmp(value->data, "null")) {
        block->has_arguments = false;
        return true;
    }
    return value->data[0] == '"' && put_quoted_arguments(block);
}

static enum tool_block_status take_json(struct tool_block *block, char c)
{
    if (block->state == JSON_IN_KEY) {
        /* A string that stands alone is complete at its closing quote. */
        if (!json_compactor_take(&block->json, c, &block->key))
            return end(block, TOOL_BLOCK_BAD, 1);
        if (json_compactor_complete(&block->json)) block->state = JSON_COLON;
        return TOOL_BLOCK_MORE;
    }
    if (block->state == JSON_VALUE) {
        if (json_compactor_take(&block->json, c, block->json_out)) {
            if (!json_compactor_complete(&block->json) || strchr("0123456789", c))
                return TOOL_BLOCK_MORE; /* a number ends with the byte after it */
            return end_json_value(block) ? TOOL_BLOCK_MORE : end(block, TOOL_BLOCK_BAD, 0);
        }
        if (!json_compactor_complete(&block->json) || !end_json_value(block))
            return end(block, TOOL_BLOCK_BAD, 1);
    }
    if (is_space(c)) return TOOL_BLOCK_MORE;
    switch (block->state) {
    case JSON_FIRST_KEY:
    case JSON_KEY:
        if (c == '"') return begin_json_key(block);
        break;
    case JSON_COLON:
        if (c != ':') break;
        block->state = JSON_VALUE_START;
        return TOOL_BLOCK_MORE;
    case JSON_VALUE_START:
        return begin_json_value(block, c);
    case JSON_NEXT:
        if (c != ',' && c != '}') break;
        block->state = c == ',' ? JSON_KEY : AT_CLOSER;
        if (c == ',') return TOOL_BLOCK_MORE;
        if (!block->function) return end(block, TOOL_BLOCK_BAD, 0);
        if (!block->has_arguments) close_arguments(block);
        return TOOL_BLOCK_MORE;
    }
    return end(block, TOOL_BLOCK_BAD, 1);
}

/* ---- both */

enum tool_block_status tool_block_take(struct tool_block *block, char byte)
{
    static const char *const closers[] = {call_close};
    size_t i_tag;
    switch (block->state) {
    case AT_FORM:
        return take_form(block, byte);
    case XML_NAME:
        return take_name(block, byte);
    case XML_BETWEEN:
        return take_between(block, byte);
    case XML_KEY:
        return take_key(block, byte);
    case XML_VALUE_START:
        block->state = XML_VALUE;
        return byte == '\n' ? TOOL_BLOCK_MORE : take_value(block, byte);
    case XML_VALUE:
        return take_value(block, byte);
    case AT_CLOSER:
        switch (take_tag(block, byte, closers, 1, &i_tag)) {
        case MATCH_PART:
            return TOOL_BLOCK_MORE;
        case MATCH_YES:
            return end(block, TOOL_BLOCK_DONE, 0);
        case MATCH_NO:
            break;
        }
        return end(block, TOOL_BLOCK_DONE, block->pending.n);
    default:
        return take_json(block, byte);
    }
}

enum tool_block_status tool_block_finish(struct tool_block *block, bool cut)
{
    if (block->state == AT_CLOSER) return end(block, TOOL_BLOCK_DONE, 0);
    if (cut) return block->function ? TOOL_BLOCK_MORE : end(block, TOOL_BLOCK_BAD, 0);
    if (!block->in_xml || block->state == XML_NAME || block->state == XML_KEY)
        return end(block, TOOL_BLOCK_BAD, 0);
    if (block->state != XML_BETWEEN) end_value(block); /* pending: the beginning of closing tags */
    close_arguments(block);
    return end(block, TOOL_BLOCK_DONE, 0);
}
