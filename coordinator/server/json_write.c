#include "coordinator/server/json_write.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/unicode.h"

void json_writer_clear(struct json_writer *writer)
{
    byte_buffer_clear(&writer->text);
    writer->comma = false;
}

static void put_comma(struct json_writer *writer)
{
    if (writer->comma) byte_buffer_put(&writer->text, ",", 1);
    writer->comma = true;
}

void json_put_value(struct json_writer *writer, const char *json, size_t n)
{
    put_comma(writer);
    byte_buffer_put(&writer->text, json, n);
}

void json_open(struct json_writer *writer, char bracket)
{
    json_put_value(writer, &bracket, 1);
    writer->comma = false;
}

void json_close(struct json_writer *writer, char bracket)
{
    byte_buffer_put(&writer->text, &bracket, 1);
    writer->comma = true;
}

void json_put_string(struct json_writer *writer, const char *text, size_t n)
{
    put_comma(writer);
    byte_buffer_put(&writer->text, "\"", 1);
    while (n) {
        const size_t n_good = unicode_well_formed(text, n);
        byte_buffer_put_json(&writer->text, text, n_good);
        text += n_good;
        n -= n_good;
        if (!n) break;
        byte_buffer_put(&writer->text, UNICODE_REPLACEMENT, 3);
        /* a sequence that breaks off is one replacement, as decoders have it */
        size_t n_bad = 1;
        while (n_bad < n && unicode_sequence(text, n_bad + 1) == 0)
            n_bad++;
        text += n_bad;
        n -= n_bad;
    }
    byte_buffer_put(&writer->text, "\"", 1);
}

void json_put_text(struct json_writer *writer, const char *text)
{
    if (text)
        json_put_string(writer, text, strlen(text));
    else
        json_put_null(writer);
}

void json_put_key(struct json_writer *writer, const char *name)
{
    json_put_text(writer, name);
    byte_buffer_put(&writer->text, ":", 1);
    writer->comma = false;
}

void json_put_int(struct json_writer *writer, int64_t value)
{
    char text[24];
    json_put_value(writer, text, (size_t)snprintf(text, sizeof(text), "%lld", (long long)value));
}

void json_put_bool(struct json_writer *writer, bool value)
{
    json_put_value(writer, value ? "true" : "false", value ? 4 : 5);
}

void json_put_null(struct json_writer *writer)
{
    json_put_value(writer, "null", 4);
}

static void put_digits(struct json_writer *writer, char *text, size_t n)
{
    if (!memchr(text, '.', n) && !memchr(text, 'e', n)) {
        memcpy(text + n, ".0", 2);
        n += 2;
    }
    json_put_value(writer, text, n);
}

/* A float32 survives any 6 digits, a float64 any 15: where fewer do, these end in zeros, which %g
 * leaves out. 9 and 17 always suffice. */
void json_put_float(struct json_writer *writer, float value)
{
    char text[40];
    int n = 0;
    assert(isfinite(value));
    for (int digits = 6; digits <= 9; digits++) {
        n = snprintf(text, sizeof(text) - 2, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    put_digits(writer, text, (size_t)n);
}

void json_put_real(struct json_writer *writer, double value)
{
    char text[40];
    int n = 0;
    assert(isfinite(value));
    for (int digits = 15; digits <= 17; digits++) {
        n = snprintf(text, sizeof(text) - 2, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    put_digits(writer, text, (size_t)n);
}

void json_put_key_text(struct json_writer *writer, const char *name, const char *text)
{
    json_put_key(writer, name);
    json_put_text(writer, text);
}

void json_put_key_int(struct json_writer *writer, const char *name, int64_t value)
{
    json_put_key(writer, name);
    json_put_int(writer, value);
}

void json_put_key_list(struct json_writer *writer, const char *name,
                       const struct json_writer *elements)
{
    json_put_key(writer, name);
    json_open(writer, '[');
    byte_buffer_put(&writer->text, elements->text.data, elements->text.n);
    json_close(writer, ']');
    writer->text.failed |= elements->text.failed;
}
