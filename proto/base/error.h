/* An error is a status and one line of text, written once, where the cause is known.
 *
 * The message names the thing (file, tensor, key, option) and the numbers, starts in lower case
 * and has no full stop: "tensor blk.7.ffn_up_exps: ends at 81264640, file has 81264128 bytes".
 * hint, when not empty, says what the user can do about it. Callers pass the status on and stay
 * silent; only launch/ prints. err may be NULL where the caller does not want the text.
 *
 * Threads: an lm_error belongs to its caller; nothing here is shared. */
#ifndef LEAN_PROTO_BASE_ERROR_H
#define LEAN_PROTO_BASE_ERROR_H

#include "proto/base/status.h"

struct lm_error {
    enum lm_status status;
    char message[1000];
    char hint[240];
};

#define LM_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Fills err and returns status, so that failing is one statement: return lm_fail(err, ...). */
enum lm_status lm_fail(struct lm_error *err, enum lm_status status, const char *format, ...)
    LM_PRINTF(3, 4);

/* As lm_fail, with ": " and the text of errno appended; the status is chosen from errno
 * (ENOENT and ENOTDIR: LM_E_NOT_FOUND, ENOMEM: LM_E_NO_MEM, ENOSPC and EDQUOT: LM_E_NO_SPACE, else
 * LM_E_IO). */
enum lm_status lm_fail_errno(struct lm_error *err, const char *format, ...) LM_PRINTF(2, 3);

/* Adds the hint line to an error that has been filled. Returns err->status. */
enum lm_status lm_hint(struct lm_error *err, const char *format, ...) LM_PRINTF(2, 3);

#endif
