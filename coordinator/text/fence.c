#include "coordinator/text/fence.h"

#include <json-c/json.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/tokenizer.h"
#include "proto/base/byte_buffer.h"
#include "proto/base/utf8.h"

/* The private-use characters of plane 16: all of them are four bytes that begin like this. */
enum { MARK_FIRST = 0x100000, MARK_LAST = 0x10FFFD, MARK_BYTE = 0xF4 };

/* ---- choosing ---- */

static void note_text(unsigned char *used, const char *text, size_t n)
{
    const char *const end = text + n;
    while ((text = memchr(text, MARK_BYTE, (size_t)(end - text)))) {
        uint32_t code;
        if (utf8_decode(text, (size_t)(end - text), &code) && code >= MARK_FIRST)
            used[(code - MARK_FIRST) / 8] |= (unsigned char)(1u << code % 8);
        text++;
    }
}

static void note_value(unsigned char *used, struct json_object *value)
{
    switch (json_object_get_type(value)) {
    case json_type_string:
        note_text(used, json_object_get_string(value), (size_t)json_object_get_string_len(value));
        break;
    case json_type_array:
        for (size_t i = 0; i < json_object_array_length(value); i++)
            note_value(used, json_object_array_get_idx(value, i));
        break;
    case json_type_object: {
        json_object_object_foreach(value, key, member)
        {
            note_text(used, key, strlen(key));
            note_value(used, member);
        }
        break;
    }
    default:
        break;
    }
}

enum lm_status fence_init(struct fence *fence, const struct tokenizer *tokenizer,
                          struct json_object *const *values, size_t n_value, struct lm_error *err)
{
    char *const marks[] = {fence->mark, fence->end_mark};
    size_t n_chosen = 0;
    *fence = (struct fence){.tokenizer = tokenizer};
    unsigned char *used = calloc((MARK_LAST - MARK_FIRST) / 8 + 1, 1);
    if (!used) return lm_fail(err, LM_E_NO_MEM, "no memory for a prompt");
    for (size_t i = 0; i < n_value; i++)
        note_value(used, values[i]);
    for (uint32_t code = MARK_FIRST; code <= MARK_LAST && n_chosen < 2; code++)
        if (!(used[(code - MARK_FIRST) / 8] >> code % 8 & 1)) utf8_encode(code, marks[n_chosen++]);
    free(used);
    return n_chosen == 2
               ? LM_OK
               : lm_fail(err, LM_E_LIMIT, "the messages use every private character of Unicode");
}

void fence_fini(struct fence *fence)
{
    free(fence->places);
}

/* ---- marking ---- */

static bool is_think_mark(const char *text, size_t n)
{
    return (n == 7 && !memcmp(text, "<think>", 7)) || (n == 8 && !memcmp(text, "</think>", 8));
}

/* Appends the text with its marks; false: it needs none, and nothing was appended. */
static bool mark_text(const struct fence *fence, const char *text, size_t n, bool keep_thinking,
                      struct byte_buffer *marked)
{
    size_t done = 0, n_control;
    for (size_t at = 0; fence->tokenizer && at < n; at++) {
        if (!tokenizer_control_at(fence->tokenizer, text + at, n - at, &n_control)) continue;
        if (keep_thinking && is_think_mark(text + at, n_control)) continue;
        const size_t n_first = utf8_decode(text + at, n - at, NULL);
        if (n_first >= n_control || !n_first) continue; /* no place inside */
        byte_buffer_put(marked, text + done, at + n_first - done);
        byte_buffer_put(marked, fence->mark, FENCE_MARK_BYTES);
        done = at + n_first;
    }
    if (done) byte_buffer_put(marked, text + done, n - done);
    return done > 0;
}

static struct json_object *mark_string(const struct fence *fence, struct json_object *value,
                                       bool keep_thinking)
{
    const char *text = json_object_get_string(value);
    const size_t n = (size_t)json_object_get_string_len(value);
    struct byte_buffer marked = {0};
    struct json_object *copy = NULL;
    if (!mark_text(fence, text, n, keep_thinking, &marked))
        copy = json_object_get(value);
    else if (!marked.failed)
        copy = json_object_new_string_len(marked.data, (int)marked.n);
    byte_buffer_free(&marked);
    return copy;
}

static struct json_object *mark_array(const struct fence *fence, struct json_object *value,
                                      bool keep_thinking)
{
    struct json_object *copy = json_object_new_array();
    for (size_t i = 0; copy && i < json_object_array_length(value); i++) {
        struct json_object *element = json_object_array_get_idx(value, i);
        struct json_object *marked = fence_mark(fence, element, keep_thinking);
        if ((element && !marked) || json_object_array_add(copy, marked)) {
            json_object_put(marked);
            json_object_put(copy);
            return NULL;
        }
    }
    return copy;
}

/* Arguments and schemas have keys that a user or the model chose, and templates write them. */
static struct json_object *mark_object(const struct fence *fence, struct json_object *value,
                                       bool keep_thinking)
{
    struct json_object *copy = json_object_new_object();
    struct byte_buffer name = {0};
    bool good = copy != NULL;
    json_object_object_foreach(value, key, member)
    {
        struct json_object *marked = good ? fence_mark(fence, member, keep_thinking) : NULL;
        byte_buffer_clear(&name);
        const bool has_mark = mark_text(fence, key, strlen(key), false, &name);
        good = good && (marked || !member) && !name.failed &&
               !json_object_object_add(copy, has_mark ? name.data : key, marked);
        if (!good) {
            json_object_put(marked);
            break;
        }
    }
    byte_buffer_free(&name);
    if (good) return copy;
    json_object_put(copy);
    return NULL;
}

struct json_object *fence_mark(const struct fence *fence, struct json_object *value,
                               bool keep_thinking)
{
    switch (json_object_get_type(value)) {
    case json_type_string:
        return mark_string(fence, value, keep_thinking);
    case json_type_array:
        return mark_array(fence, value, keep_thinking);
    case json_type_object:
        return mark_object(fence, value, keep_thinking);
    default:
        return json_object_get(value);
    }
}

/* ---- stripping ---- */

static bool add_place(struct fence *fence, size_t place)
{
    if (fence->n_place == fence->room) {
        const size_t room = fence->room ? 2 * fence->room : 16;
        size_t *grown = realloc(fence->places, room * sizeof(*grown));
        if (!grown) return false;
        fence->places = grown;
        fence->room = room;
    }
    fence->places[fence->n_place++] = place;
    return true;
}

enum lm_status fence_strip(struct fence *fence, char *text, size_t *n, size_t *end,
                           struct lm_error *err)
{
    size_t to = 0;
    *end = SIZE_MAX;
    for (size_t from = 0; from < *n;) {
        const bool may_be = *n - from >= FENCE_MARK_BYTES && (unsigned char)text[from] == MARK_BYTE;
        if (may_be && !memcmp(text + from, fence->mark, FENCE_MARK_BYTES)) {
            if (!add_place(fence, to)) return lm_fail(err, LM_E_NO_MEM, "no memory for a prompt");
            from += FENCE_MARK_BYTES;
        } else if (may_be && !memcmp(text + from, fence->end_mark, FENCE_MARK_BYTES)) {
            *end = to;
            from += FENCE_MARK_BYTES;
        } else {
            text[to++] = text[from++];
        }
    }
    *n = to;
    return LM_OK;
}
