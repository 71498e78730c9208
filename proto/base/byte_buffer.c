#include "proto/base/byte_buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Makes room for n bytes and a NUL behind what is there. */
static bool reserve(struct byte_buffer *buffer, size_t n)
{
    if (buffer->failed) return false;
    if (n < buffer->size - buffer->n) return true; /* size > n where there is memory */
    size_t size = buffer->size ? buffer->size : 64;
    while (size - buffer->n <= n && size <= SIZE_MAX / 2)
        size *= 2;
    char *data = size - buffer->n > n ? realloc(buffer->data, size) : NULL;
    buffer->failed = !data;
    if (!data) return false;
    buffer->data = data;
    buffer->size = size;
    return true;
}

void byte_buffer_put(struct byte_buffer *buffer, const char *bytes, size_t n)
{
    if (!reserve(buffer, n)) return;
    if (n) memcpy(buffer->data + buffer->n, bytes, n);
    buffer->n += n;
    buffer->data[buffer->n] = '\0';
}

void byte_buffer_put_text(struct byte_buffer *buffer, const char *text)
{
    byte_buffer_put(buffer, text, strlen(text));
}

void byte_buffer_printf(struct byte_buffer *buffer, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    const int n = vsnprintf(NULL, 0, format, list);
    va_end(list);
    if (n < 0 || !reserve(buffer, (size_t)n)) return;
    va_start(list, format);
    vsnprintf(buffer->data + buffer->n, (size_t)n + 1, format, list);
    va_end(list);
    buffer->n += (size_t)n;
}

void byte_buffer_put_json(struct byte_buffer *buffer, const char *bytes, size_t n)
{
    static const char short_escapes[] = "btn?fr"; /* from 8 on */
    size_t begin = 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        byte_buffer_put(buffer, bytes + begin, i - begin);
        begin = i + 1;
        if (c >= 0x20)
            byte_buffer_printf(buffer, "\\%c", c);
        else if (c >= 8 && c <= 13 && c != 11)
            byte_buffer_printf(buffer, "\\%c", short_escapes[c - 8]);
        else
            byte_buffer_printf(buffer, "\\u%04x", c);
    }
    byte_buffer_put(buffer, bytes + begin, n - begin);
}

void byte_buffer_clear(struct byte_buffer *buffer)
{
    buffer->n = 0;
    if (buffer->data) buffer->data[0] = '\0';
}

void byte_buffer_free(struct byte_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct byte_buffer){0};
}
