/* What an answer with tool calls turns out to be, noted as it comes, for call_memory.h.
 *
 * Running out of memory is remembered; such a record is not saved.
 * Threads: one owner. Zero-initialised is empty. */
#ifndef LEAN_COORDINATOR_SERVER_CALL_RECORD_H
#define LEAN_COORDINATOR_SERVER_CALL_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/byte_buffer.h"

struct call_memory;
struct tokenizer;

struct call_record {
    struct byte_buffer ids;     /* int32_t each */
    struct byte_buffer content; /* text outside of calls */
    struct byte_buffer calls;   /* id, name and arguments of each, with a NUL behind each of them */
    size_t n_call;
};

void call_record_token(struct call_record *record, int32_t id);
void call_record_content(struct call_record *record, const char *text, size_t n);
void call_record_call(struct call_record *record, const char *id, const char *name, size_t n);
void call_record_arguments(struct call_record *record, const char *text, size_t n);
/* has_reasoning: the answer begins inside of a block of it, or with one. Once. */
void call_record_save(struct call_record *record, struct call_memory *memory,
                      const struct tokenizer *tokenizer, bool has_reasoning);
void call_record_fini(struct call_record *record);

#endif
