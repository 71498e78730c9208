/* Bytes that grow: for text that is put together piece by piece.
 *
 * Zero-initialised it is empty. Running out of memory is remembered instead of reported: what is
 * put afterwards is lost, and whoever put it together asks `failed` once at the end. */
#ifndef LEAN_PROTO_BASE_BYTE_BUFFER_H
#define LEAN_PROTO_BASE_BYTE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

struct byte_buffer {
    char *data; /* n bytes and a NUL; NULL while nothing was put */
    size_t n, size;
    bool failed;
};

void byte_buffer_put(struct byte_buffer *buffer, const char *bytes, size_t n);
void byte_buffer_put_text(struct byte_buffer *buffer, const char *text);
void byte_buffer_printf(struct byte_buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The inside of a JSON string: quotes, backslashes and control characters are escaped. bytes are
 * UTF-8; a character may be put in pieces. */
void byte_buffer_put_json(struct byte_buffer *buffer, const char *bytes, size_t n);
/* Empty again; keeps the memory. */
void byte_buffer_clear(struct byte_buffer *buffer);
void byte_buffer_free(struct byte_buffer *buffer); /* and empty again */

#endif
