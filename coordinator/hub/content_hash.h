/* The hash that the hub knows a file by: SHA-256 of large files, of small ones the SHA-1 that git
 * gives a blob, which is of "blob SIZE", a NUL and the bytes.
 *
 * libcrypto does the arithmetic: it uses the processor's SHA instructions where there are any, and
 * comes with libcurl's TLS anyway.
 *
 * Threads: one owner each. */
#ifndef LEAN_COORDINATOR_HUB_CONTENT_HASH_H
#define LEAN_COORDINATOR_HUB_CONTENT_HASH_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct content_hash;

/* expected: 64 or 40 hexadecimal digits, which tell the kind; n_bytes: size of the whole file. */
enum lm_status content_hash_begin(struct content_hash **out, const char *expected, uint64_t n_bytes,
                                  struct lm_error *err);
void content_hash_add(struct content_hash *hash, const void *bytes, size_t n);
/* Ends it: whether all bytes together are as expected. hash is gone. */
bool content_hash_end(struct content_hash *hash);
void content_hash_destroy(struct content_hash *hash); /* NULL is legal */

/* A file on disk: LM_OK, LM_E_FORMAT: another hash or size; LM_E_IO, LM_E_INTERRUPTED. */
enum lm_status content_hash_check_file(const char *path, const char *expected, uint64_t n_bytes,
                                       const volatile sig_atomic_t *is_interrupted,
                                       struct lm_error *err);

#endif
