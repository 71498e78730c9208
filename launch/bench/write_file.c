/* PATH.partial, then PATH. */
#include "launch/bench/write_file.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum lm_status write_file(const char *path, const char *bytes, size_t n, struct lm_error *err)
{
    char *partial;
    if (asprintf(&partial, "%s.partial", path) < 0)
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    FILE *file = fopen(partial, "we");
    if (!file) {
        free(partial);
        return lm_fail_errno(err, "%s: create", path);
    }
    errno = 0;
    const bool written = fwrite(bytes, 1, n, file) == n && !fflush(file) && !fsync(fileno(file));
    enum lm_status status = written ? LM_OK : lm_fail_errno(err, "%s: write", path);
    if (fclose(file) && status == LM_OK) status = lm_fail_errno(err, "%s: close", path);
    if (status == LM_OK && rename(partial, path)) status = lm_fail_errno(err, "%s: rename", path);
    if (status != LM_OK) unlink(partial);
    free(partial);
    return status;
}
