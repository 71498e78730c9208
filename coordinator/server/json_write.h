/* Writing JSON text into memory that grows.
 *
 * Commas are set by the writer: after a value, the next key or value is preceded by one. Strings
 * are UTF-8 and escaped only where JSON demands it; bytes that are no UTF-8 become U+FFFD. Floats
 * are the shortest decimal text that reads back to the same value: of float32 by json_put_float, of
 * float64 by json_put_real; whole ones end in ".0".
 *
 * Running out of memory is remembered in text.failed.
 * Threads: a writer belongs to one thread. Zero-initialized is empty; byte_buffer_free(&text) ends
 *          it. */
#ifndef LEAN_COORDINATOR_SERVER_JSON_WRITE_H
#define LEAN_COORDINATOR_SERVER_JSON_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/byte_buffer.h"

struct json_writer {
    struct byte_buffer text;
    bool comma; /* stands before the next key or value */
};

/* Empties it, keeping the memory. */
void json_writer_clear(struct json_writer *writer);

void json_open(struct json_writer *writer, char bracket);  /* '{' or '[' */
void json_close(struct json_writer *writer, char bracket); /* '}' or ']' */
void json_put_key(struct json_writer *writer, const char *name);
void json_put_string(struct json_writer *writer, const char *text, size_t n);
void json_put_text(struct json_writer *writer, const char *text); /* NULL: null */
void json_put_int(struct json_writer *writer, int64_t value);
void json_put_bool(struct json_writer *writer, bool value);
void json_put_null(struct json_writer *writer);
void json_put_float(struct json_writer *writer, float value); /* finite */
void json_put_real(struct json_writer *writer, double value); /* finite */
/* A value that is JSON text already. */
void json_put_value(struct json_writer *writer, const char *json, size_t n);

/* Members: the key and its value. */
void json_put_key_text(struct json_writer *writer, const char *name, const char *text);
void json_put_key_int(struct json_writer *writer, const char *name, int64_t value);
/* An array of what another writer has: elements without the brackets. */
void json_put_key_list(struct json_writer *writer, const char *name,
                       const struct json_writer *elements);

#endif
