#include "proto/base/read_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

enum lm_status read_all(int fd, const char *name, size_t n_max, char **bytes, size_t *n,
                        struct lm_error *err)
{
    char *data = NULL;
    size_t n_data = 0, room = 0;
    enum lm_status status;
    for (;;) {
        if (room - n_data < 2) {
            const size_t more = room ? 2 * room : 65536;
            char *const grown = realloc(data, more);
            if (!grown) {
                status = lm_fail(err, LM_E_NO_MEM, "%s: no memory for %zu bytes", name, more);
                goto free_data;
            }
            data = grown;
            room = more;
        }
        const ssize_t got = read(fd, data + n_data, room - n_data - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            status = lm_fail_errno(err, "%s: read", name);
            goto free_data;
        }
        if (!got) break;
        n_data += (size_t)got;
        if (n_data > n_max) {
            status = lm_fail(err, LM_E_LIMIT, "%s: more than %zu bytes", name, n_max);
            goto free_data;
        }
    }
    data[n_data] = '\0';
    *bytes = data;
    *n = n_data;
    return LM_OK;

free_data:
    free(data);
    return status;
}

enum lm_status read_all_path(const char *path, size_t n_max, char **bytes, size_t *n,
                             struct lm_error *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return lm_fail_errno(err, "%s: open", path);
    const enum lm_status status = read_all(fd, path, n_max, bytes, n, err);
    close(fd);
    return status;
}
