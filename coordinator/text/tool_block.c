#include "coordinator/text/tool_block.h"

#include <json-c/json.h>
#include <string.h>

#include "coordinator/text/tool_schema.h"

enum state {
    AT_FORM, /* behind section_open */
    AT_ITEM, /* of a list */
    AT_ITEM_END,
    IN_NAME,
    AT_NAME_CLOSE,
    AT_ARGUMENTS,
    TAGS_BETWEEN, /* a parameter or the end comes */
    TAGS_KEY,
    TAGS_KEY_CLOSE,
    TAGS_TYPE,
    TAGS_VALUE_OPEN,
    TAGS_VALUE_START, /* one line break is dropped */
    TAGS_VALUE,
    JSON_FIRST_KEY,
    JSON_KEY,
    JSON_IN_KEY,
    JSON_COLON,
    JSON_VALUE_START,
    JSON_VALUE,
    JSON_NEXT,
    AT_CLOSER /* closing texts may come */
};

enum { N_NAME_MAX = 256, N_SPACE_MAX = 64, N_WORDS_MAX = 128, N_TAG_MAX = 8 };

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

void tool_block_begin(struct tool_block *block, enum tool_block_place place)
{
    block->function = NULL;
    byte_buffer_clear(&block->name);
    byte_buffer_clear(&block->arguments);
    byte_buffer_clear(&block->pending);
    byte_buffer_clear(&block->key);
    byte_buffer_clear(&block->seen);
    block->has_arguments = block->continues = false;
    block->in_list = place == TOOL_BLOCK_IN_LIST;
    block->i_closer = 0;
    block->state = place == TOOL_BLOCK_IN_CALL   ? IN_NAME
                   : place == TOOL_BLOCK_IN_LIST ? AT_ITEM
                                                 : AT_FORM;
    if (!block->syntax->only_first) return;
    byte_buffer_put_text(&block->key, "\"name\""); /* the marker has read it */
    block->state = JSON_COLON;
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

/* By the name, which may have the prefix in front. */
static bool set_function(struct tool_block *block)
{
    struct byte_buffer *const name = &block->name;
    const char *const prefix = block->syntax->prefix;
    const size_t n_prefix = prefix ? strlen(prefix) : 0;
    if (!name->n || name->failed) return false;
    block->function = tool_schema_find(block->tools, name->data, name->n);
    if (block->function || !n_prefix || name->n <= n_prefix ||
        memcmp(name->data, prefix, n_prefix) != 0)
        return block->function != NULL;
    memmove(name->data, name->data + n_prefix, name->n - n_prefix + 1);
    name->n -= n_prefix;
    block->function = tool_schema_find(block->tools, name->data, name->n);
    return block->function != NULL;
}

static void close_arguments(struct tool_block *block)
{
    byte_buffer_put_text(&block->arguments, block->has_arguments ? "}" : "{}");
    block->has_arguments = true;
}

/* ---- tags */

enum match { MATCH_NO, MATCH_PART, MATCH_YES };

/* Whether text begins with a tag, or is the beginning of one. No tag: NULL. Line breaks at the ends
 * of a tag are white space. */
static enum match match_tag(const char *text, size_t n, const char *tag)
{
    if (!tag) return MATCH_NO;
    while (*tag == '\n')
        tag++;
    size_t n_tag = strlen(tag);
    while (tag[n_tag - 1] == '\n')
        n_tag--;
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

/* ---- the end */

enum { BODY_CLOSE, CALL_CLOSE, SECTION_CLOSE, N_CLOSER };

/* What is left of the closing texts from the first on, NULL for those that are not. *n: how many.
 */
static void find_closers(const struct tool_block *block, const char *closers[N_CLOSER], size_t *n)
{
    const struct tool_syntax *const syntax = block->syntax;
    const char *const all[N_CLOSER] = {syntax->body_close, syntax->call_close,
                                       syntax->section_close};
    *n = 0;
    for (unsigned i = 0; i < N_CLOSER; i++) {
        closers[i] = i >= block->i_closer ? all[i] : NULL;
        *n += closers[i] != NULL;
    }
}

/* The call is whole up to this closing text. */
static enum tool_block_status expect_closers(struct tool_block *block, unsigned first)
{
    const char *closers[N_CLOSER];
    size_t n;
    block->i_closer = first;
    block->state = AT_CLOSER;
    byte_buffer_clear(&block->pending);
    find_closers(block, closers, &n);
    return n ? TOOL_BLOCK_MORE : end(block, TOOL_BLOCK_DONE, 0);
}

static enum tool_block_status take_closer(struct tool_block *block, char c)
{
    const char *closers[N_CLOSER];
    size_t n, i_tag;
    find_closers(block, closers, &n);
    switch (take_tag(block, c, closers, N_CLOSER, &i_tag)) {
    case MATCH_PART:
        return TOOL_BLOCK_MORE;
    case MATCH_YES:
        return expect_closers(block, (unsigned)i_tag + 1);
    case MATCH_NO:
        break;
    }
    return end(block, TOOL_BLOCK_DONE, block->pending.n);
}

static enum tool_block_status take_item_end(struct tool_block *block, char c)
{
    if (is_space(c)) return TOOL_BLOCK_MORE;
    if (c == ']') return expect_closers(block, SECTION_CLOSE);
    block->continues = c == ',';
    return end(block, TOOL_BLOCK_DONE, c != ',');
}

/* ---- names */

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '.' || c == '-';
}

static enum tool_block_status end_name(struct tool_block *block)
{
    byte_buffer_clear(&block->pending);
    block->state = block->syntax->body == TOOL_BODY_ARGUMENTS ? AT_ARGUMENTS : TAGS_BETWEEN;
    return TOOL_BLOCK_MORE;
}

static enum tool_block_status take_name(struct tool_block *block, char c)
{
    if (!block->name.n && is_space(c)) return TOOL_BLOCK_MORE;
    if (is_name_byte(c) && block->name.n < N_NAME_MAX) {
        byte_buffer_put(&block->name, &c, 1);
        return TOOL_BLOCK_MORE;
    }
    if (!set_function(block)) return end(block, TOOL_BLOCK_BAD, 1);
    block->state = AT_NAME_CLOSE;
    if (!block->syntax->name_close) end_name(block);
    return tool_block_take(block, c);
}

/* Any words, then name_close. */
static enum tool_block_status take_words(struct tool_block *block, char c)
{
    struct byte_buffer *const pending = &block->pending;
    const size_t n_close = strlen(block->syntax->name_close);
    byte_buffer_put(pending, &c, 1);
    if (pending->n >= n_close && !pending->failed &&
        !memcmp(pending->data + pending->n - n_close, block->syntax->name_close, n_close))
        return end_name(block);
    return c == '\n' || c == '{' || pending->n > N_WORDS_MAX
               ? end(block, TOOL_BLOCK_BAD, pending->n)
               : TOOL_BLOCK_MORE;
}

static enum tool_block_status take_name_close(struct tool_block *block, char c)
{
    const struct tool_syntax *const syntax = block->syntax;
    size_t i_tag;
    if (syntax->described) return take_words(block, c);
    if (syntax->numbered && !block->pending.n && (c == ':' || (c >= '0' && c <= '9')))
        return TOOL_BLOCK_MORE;
    switch (take_tag(block, c, &syntax->name_close, 1, &i_tag)) {
    case MATCH_PART:
        return TOOL_BLOCK_MORE;
    case MATCH_YES:
        return end_name(block);
    case MATCH_NO:
        break;
    }
    return end(block, TOOL_BLOCK_BAD, block->pending.n);
}

/* ---- parameters in tags */

static enum tool_block_status take_between(struct tool_block *block, char c)
{
    const struct tool_syntax *const syntax = block->syntax;
    const char *const tags[] = {syntax->key_open, syntax->call_close, syntax->section_close,
                                syntax->section_open, syntax->call_open};
    size_t i_tag;
    const enum match match = take_tag(block, c, tags, 5, &i_tag);
    if (match == MATCH_PART) return TOOL_BLOCK_MORE;
    if (match == MATCH_NO) return end(block, TOOL_BLOCK_BAD, block->pending.n);
    if (i_tag > 0) close_arguments(block);
    if (i_tag == 1) return expect_closers(block, SECTION_CLOSE);
    if (i_tag == 2) return end(block, TOOL_BLOCK_DONE, 0);
    if (i_tag > 2) return end(block, TOOL_BLOCK_DONE, block->pending.n);
    byte_buffer_clear(&block->pending);
    byte_buffer_clear(&block->key);
    block->state = TAGS_KEY;
    return TOOL_BLOCK_MORE;
}

/* The key and what follows it are read. */
static enum tool_block_status begin_value(struct tool_block *block)
{
    byte_buffer_clear(&block->pending);
    byte_buffer_put_text(&block->arguments, block->has_arguments ? ",\"" : "{\"");
    byte_buffer_put_json(&block->arguments, block->key.data, block->key.n);
    byte_buffer_put_text(&block->arguments, "\":");
    block->has_arguments = true;
    if (block->types == TOOL_TYPE_STRING) byte_buffer_put_text(&block->arguments, "\"");
    byte_buffer_put(&block->seen, "", 1);
    byte_buffer_put(&block->seen, block->key.data, block->key.n);
    byte_buffer_clear(&block->value);
    block->state = block->syntax->line_breaks ? TAGS_VALUE_START : TAGS_VALUE;
    return TOOL_BLOCK_MORE;
}

static enum tool_block_status end_key(struct tool_block *block)
{
    byte_buffer_clear(&block->pending);
    block->types = tool_schema_types(block->function, block->key.data);
    if (block->syntax->typed)
        block->state = TAGS_TYPE;
    else if (block->syntax->value_open)
        block->state = TAGS_VALUE_OPEN;
    else
        return begin_value(block);
    return TOOL_BLOCK_MORE;
}

static enum tool_block_status take_key(struct tool_block *block, char c)
{
    if (c == block->syntax->key_close[0] && block->key.n) {
        block->state = TAGS_KEY_CLOSE;
        return tool_block_take(block, c);
    }
    if (c == '\n' || c == '<' || c == block->syntax->key_close[0] || !c ||
        block->key.n == N_NAME_MAX)
        return end(block, TOOL_BLOCK_BAD, 1);
    byte_buffer_put(&block->key, &c, 1);
    return TOOL_BLOCK_MORE;
}

/* What the model says of the type counts where the schema leaves the choice. */
static void narrow_types(struct tool_block *block, bool is_string)
{
    const unsigned strings = is_string ? TOOL_TYPE_STRING : ~(unsigned)TOOL_TYPE_STRING;
    if (!block->types && is_string) block->types = TOOL_TYPE_STRING;
    if (block->types & strings) block->types &= strings;
}

/* One of the texts between a key and its value. */
static enum tool_block_status take_lead(struct tool_block *block, char c)
{
    static const char *const types[] = {"true\">", "false\">"};
    const struct tool_syntax *const syntax = block->syntax;
    const bool is_type = block->state == TAGS_TYPE;
    const char *const *const tags = is_type                          ? types
                                    : block->state == TAGS_KEY_CLOSE ? &syntax->key_close
                                                                     : &syntax->value_open;
    size_t i_tag;
    const enum match match = take_tag(block, c, tags, is_type ? 2 : 1, &i_tag);
    if (match == MATCH_PART) return TOOL_BLOCK_MORE;
    if (match == MATCH_NO) return end(block, TOOL_BLOCK_BAD, block->pending.n);
    if (is_type) narrow_types(block, i_tag == 0);
    return block->state == TAGS_KEY_CLOSE ? end_key(block) : begin_value(block);
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

/* value_close, then a tag of the call. */
static enum match match_close(const struct tool_syntax *syntax, const char *text, size_t n)
{
    enum match match = match_tag(text, n, syntax->value_close);
    if (match != MATCH_YES) return match;
    size_t at = strlen(syntax->value_close);
    const size_t n_max = at + N_SPACE_MAX;
    while (at < n && at < n_max && is_space(text[at]))
        at++;
    match = match_tag(text + at, n - at, syntax->key_open);
    match = better(match, match_tag(text + at, n - at, syntax->call_close));
    match = better(match, match_tag(text + at, n - at, syntax->section_open));
    return better(match, match_tag(text + at, n - at, syntax->section_close));
}

/* call_close and section_close, where value_close is missing. */
static enum match match_call_close(const struct tool_syntax *syntax, const char *text, size_t n)
{
    const enum match match =
        syntax->section_close ? match_tag(text, n, syntax->call_close) : MATCH_NO;
    if (match != MATCH_YES) return match;
    size_t at = strlen(syntax->call_close);
    const size_t n_max = at + N_SPACE_MAX;
    while (at < n && at < n_max && is_space(text[at]))
        at++;
    return match_tag(text + at, n - at, syntax->section_close);
}

/* key_open KEY> with a key that the tool declares and that was not there yet. */
static enum match match_next_parameter(const struct tool_block *block, const char *text, size_t n)
{
    char key[N_NAME_MAX + 1];
    const char *const key_open = block->syntax->key_open;
    const enum match match = match_tag(text, n, key_open);
    if (match != MATCH_YES) return match;
    text += strlen(key_open);
    n -= strlen(key_open);
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
    const struct tool_syntax *const syntax = block->syntax;
    const size_t n_break = syntax->line_breaks && block->pending.data[0] == '\n';
    const char *const text = block->pending.data + n_break;
    const size_t n = block->pending.n - n_break;
    const enum match close = match_close(syntax, text, n);
    enum match other = match_call_close(syntax, text, n);
    if (n_break) other = better(other, match_next_parameter(block, text, n));
    *n_gone = n_break + (close == MATCH_YES ? strlen(syntax->value_close) : 0);
    return better(close, other);
}

static bool may_end_value(const struct tool_block *block, char c)
{
    return c == '<' || (c == '\n' && block->syntax->line_breaks);
}

/* The pending bytes are part of the value, up to the next one that may begin its end. */
static void release_value(struct tool_block *block)
{
    struct byte_buffer *const pending = &block->pending;
    size_t n = 1;
    while (n < pending->n && !may_end_value(block, pending->data[n]))
        n++;
    put_value(block, pending->data, n);
    memmove(pending->data, pending->data + n, pending->n - n + 1);
    pending->n -= n;
}

static enum tool_block_status take_value(struct tool_block *block, char c)
{
    struct byte_buffer *const pending = &block->pending;
    if (!pending->n && !may_end_value(block, c)) {
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
        block->state = TAGS_BETWEEN;
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
    const struct tool_syntax *const syntax = block->syntax;
    size_t i_tag;
    if (!block->pending.n && ((c == '{' && syntax->reads_object) || (c == '[' && syntax->list))) {
        block->in_list = c == '[';
        block->state = c == '[' ? AT_ITEM : JSON_FIRST_KEY;
        return TOOL_BLOCK_MORE;
    }
    const enum match match = take_tag(block, c, &syntax->call_open, 1, &i_tag);
    if (match == MATCH_NO) return end(block, TOOL_BLOCK_BAD, block->pending.n);
    if (match == MATCH_PART) return TOOL_BLOCK_MORE;
    byte_buffer_clear(&block->pending);
    block->state = IN_NAME;
    return TOOL_BLOCK_MORE;
}

static enum tool_block_status take_item(struct tool_block *block, char c)
{
    if (c == '{') block->state = JSON_FIRST_KEY;
    return c == '{' || is_space(c) ? TOOL_BLOCK_MORE : end(block, TOOL_BLOCK_BAD, 1);
}

/* The arguments by themselves. */
static enum tool_block_status take_arguments(struct tool_block *block, char c)
{
    if (is_space(c)) return TOOL_BLOCK_MORE;
    block->json = (struct json_compactor){0};
    if (c != '{' || !json_compactor_take(&block->json, c, &block->arguments))
        return end(block, TOOL_BLOCK_BAD, 1);
    block->json_out = &block->arguments;
    block->has_arguments = true;
    block->state = JSON_VALUE;
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
            if (block->syntax->body == TOOL_BODY_ARGUMENTS)
                return expect_closers(block, BODY_CLOSE);
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
        block->state = c == ',' ? JSON_KEY : AT_ITEM_END;
        if (c == ',') return TOOL_BLOCK_MORE;
        if (!block->function) return end(block, TOOL_BLOCK_BAD, 0);
        if (!block->has_arguments) close_arguments(block);
        return block->in_list ? TOOL_BLOCK_MORE : expect_closers(block, SECTION_CLOSE);
    }
    return end(block, TOOL_BLOCK_BAD, 1);
}

/* ---- all */

enum tool_block_status tool_block_take(struct tool_block *block, char byte)
{
    switch (block->state) {
    case AT_FORM:
        return take_form(block, byte);
    case AT_ITEM:
        return take_item(block, byte);
    case AT_ITEM_END:
        return take_item_end(block, byte);
    case IN_NAME:
        return take_name(block, byte);
    case AT_NAME_CLOSE:
        return take_name_close(block, byte);
    case AT_ARGUMENTS:
        return take_arguments(block, byte);
    case TAGS_BETWEEN:
        return take_between(block, byte);
    case TAGS_KEY:
        return take_key(block, byte);
    case TAGS_KEY_CLOSE:
    case TAGS_TYPE:
    case TAGS_VALUE_OPEN:
        return take_lead(block, byte);
    case TAGS_VALUE_START:
        block->state = TAGS_VALUE;
        return byte == '\n' ? TOOL_BLOCK_MORE : take_value(block, byte);
    case TAGS_VALUE:
        return take_value(block, byte);
    case AT_CLOSER:
        return take_closer(block, byte);
    default:
        return take_json(block, byte);
    }
}

enum tool_block_status tool_block_finish(struct tool_block *block, bool cut)
{
    const bool in_value = block->state == TAGS_VALUE_START || block->state == TAGS_VALUE;
    block->continues = false;
    if (block->state == AT_CLOSER || block->state == AT_ITEM_END)
        return end(block, TOOL_BLOCK_DONE, 0);
    if (cut) return block->function ? TOOL_BLOCK_MORE : end(block, TOOL_BLOCK_BAD, 0);
    if (!in_value && block->state != TAGS_BETWEEN) return end(block, TOOL_BLOCK_BAD, 0);
    if (in_value) end_value(block); /* pending: the beginning of closing tags */
    close_arguments(block);
    return end(block, TOOL_BLOCK_DONE, 0);
}
