/* A whole file, pipe or terminal input in memory. */
#ifndef LEAN_PROTO_BASE_READ_ALL_H
#define LEAN_PROTO_BASE_READ_ALL_H

#include <stddef.h>

#include "proto/base/error.h"

/* Reads fd to its end. name: for messages. *bytes: malloc'ed, n bytes and a NUL after them; the
 * caller frees it. LM_E_IO: a read failed. LM_E_LIMIT: more than n_max bytes. LM_E_NO_MEM. */
enum lm_status read_all(int fd, const char *name, size_t n_max, char **bytes, size_t *n,
                        struct lm_error *err);

/* The same for a file. LM_E_NOT_FOUND too. */
enum lm_status read_all_path(const char *path, size_t n_max, char **bytes, size_t *n,
                             struct lm_error *err);

#endif
