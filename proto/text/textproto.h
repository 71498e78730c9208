/* Protocol-buffer text format, read and written through protobuf-c's descriptors.
 *
 * Reading merges: fields of the text replace those of the message, messages merge, a repeated
 * field replaces the whole of what was there. So layers of configuration are texts merged one
 * after another, the weakest first.
 *
 * The format is that of `protoc --encode`: comments, { } and < >, lists [a, b], maps as entries,
 * adjacent string pieces, escapes, separators , and ;. Beyond it, a numeric field named size,
 * *_size, *_body, *_ram, *_time, *_timeout or *_ping takes a string with a unit: "24GiB", "150ms"
 * (seconds). Stricter than it: numbers that do not fit their type and strings that are not UTF-8 or
 * hold a NUL are errors. Extensions, Any and groups are not supported; required fields are not
 * checked.
 *
 * Errors are LM_E_USAGE, "NAME:LINE:COLUMN: MESSAGE" with the nearest known name, columns counted
 * in characters. A deprecated field gives a warning on the log.
 *
 * Ownership: messages come from textproto_create and go to protobuf_c_message_free_unpacked.
 * Threads:   functions of their arguments. */
#ifndef LEAN_PROTO_TEXT_TEXTPROTO_H
#define LEAN_PROTO_TEXT_TEXTPROTO_H

#include <stddef.h>

#include <protobuf-c/protobuf-c.h>

#include "proto/base/error.h"

/* A message with every field absent; NULL: no memory. */
ProtobufCMessage *textproto_create(const ProtobufCMessageDescriptor *descriptor);

/* Called for each field that a text sets, with its path: "compute.threads". */
typedef void (*textproto_on_set_fn)(void *context, const char *path);

/* Merges n bytes of text into message; name stands for them in errors. on_set may be NULL.
 * On an error the message may hold part of the text. */
enum lm_status textproto_merge(ProtobufCMessage *message, const char *name, const char *text,
                               size_t n, textproto_on_set_fn on_set, void *context,
                               struct lm_error *err);

/* Text to write after the field at path as a comment, or NULL for none. */
typedef const char *(*textproto_comment_fn)(void *context, const char *path);

/* The message as text that textproto_merge reads back; comment may be NULL. Malloc'ed; NULL: no
 * memory. */
char *textproto_write(const ProtobufCMessage *message, textproto_comment_fn comment, void *context);

/* The field at a dotted path, NULL if there is none. */
const ProtobufCFieldDescriptor *textproto_find(const ProtobufCMessageDescriptor *descriptor,
                                               const char *path);

/* Single values as the command line spells them: enums in lower case, on and off for bools,
 * strings bare, sizes and times with units. path names a scalar field.
 *
 * set: replaces a singular field, adds to a repeated one. LM_E_USAGE: not a value of its type.
 * get: *text is the i-th value, malloc'ed, or NULL when there is none. */
enum lm_status textproto_set_plain(ProtobufCMessage *message, const char *path, const char *text,
                                   struct lm_error *err);
enum lm_status textproto_get_plain(const ProtobufCMessage *message, const char *path, size_t i,
                                   char **text, struct lm_error *err);

/* Makes the field at path absent again. */
void textproto_clear(ProtobufCMessage *message, const char *path);

#endif
