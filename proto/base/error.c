/* Status names, exit codes and the one place that formats an error. */
#include "proto/base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int exit_code;
} status_table[LM_STATUS_COUNT] = {
    [LM_OK] = {"success", 0},
    [LM_E_FAIL] = {"failure", 1},
    [LM_E_USAGE] = {"usage error", 2},
    [LM_E_NOT_FOUND] = {"not found", 3},
    [LM_E_NETWORK] = {"network failure", 4},
    [LM_E_FORMAT] = {"malformed input", 5},
    [LM_E_NO_SPACE] = {"no space left", 6},
    [LM_E_AUTH] = {"not authorized", 7},
    [LM_E_BUSY] = {"busy", 8},
    [LM_E_UNSUPPORTED] = {"unsupported", 9},
    [LM_E_NO_MEM] = {"does not fit in memory", 9},
    [LM_E_LIMIT] = {"limit exceeded", 9},
    [LM_E_MISMATCH] = {"comparison failed", 10},
    [LM_E_RANK_LOST] = {"rank lost", 11},
    [LM_E_DEVICE_LOST] = {"device lost", 11},
    [LM_E_IO] = {"input/output error", 1},
    [LM_E_INTERRUPTED] = {"interrupted", 130},
};

const char *lm_status_name(enum lm_status status)
{
    return (unsigned)status < LM_STATUS_COUNT ? status_table[status].name : "unknown status";
}

int lm_exit_code(enum lm_status status)
{
    return (unsigned)status < LM_STATUS_COUNT ? status_table[status].exit_code : 1;
}

static void fill(struct lm_error *err, enum lm_status status, const char *format, va_list args)
{
    err->status = status;
    err->hint[0] = '\0';
    vsnprintf(err->message, sizeof(err->message), format, args);
}

enum lm_status lm_fail(struct lm_error *err, enum lm_status status, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, status, format, args);
        va_end(args);
    }
    return status;
}

enum lm_status lm_fail_errno(struct lm_error *err, const char *format, ...)
{
    const int code = errno;
    enum lm_status status = LM_E_IO;
    if (code == ENOENT || code == ENOTDIR) status = LM_E_NOT_FOUND;
    if (code == ENOMEM) status = LM_E_NO_MEM;
    if (code == ENOSPC || code == EDQUOT) status = LM_E_NO_SPACE;
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, status, format, args);
        va_end(args);
        const size_t used = strlen(err->message);
        snprintf(err->message + used, sizeof(err->message) - used, ": %s", strerror(code));
    }
    return status;
}

enum lm_status lm_hint(struct lm_error *err, const char *format, ...)
{
    if (!err) return LM_E_FAIL;
    va_list args;
    va_start(args, format);
    vsnprintf(err->hint, sizeof(err->hint), format, args);
    va_end(args);
    return err->status;
}
