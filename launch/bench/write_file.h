/* A file that is there whole or not at all. */
#ifndef LEAN_LAUNCH_BENCH_WRITE_FILE_H
#define LEAN_LAUNCH_BENCH_WRITE_FILE_H

#include <stddef.h>

#include "proto/base/error.h"

/* Written beside and renamed, so an old file stays until the new one is complete. LM_E_NO_SPACE,
 * LM_E_IO, LM_E_NOT_FOUND: no such folder. */
enum lm_status write_file(const char *path, const char *bytes, size_t n, struct lm_error *err);

#endif
