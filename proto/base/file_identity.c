#include "proto/base/file_identity.h"

#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static uint64_t head_of(int fd)
{
    char head[16384];
    const ssize_t n = pread(fd, head, sizeof(head), 0);
    return XXH3_64bits(head, n > 0 ? (size_t)n : 0);
}

struct file_identity file_identity_of(int fd)
{
    struct stat info;
    struct file_identity identity = {.regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode)};
    if (!identity.regular) return identity;
    identity.modified = info.st_mtim;
    identity.head = head_of(fd);
    return identity;
}

bool file_identity_holds(struct file_identity *identity, int fd)
{
    struct stat info;
    if (!identity->regular || fstat(fd, &info)) return true;
    if (identity->modified.tv_sec == info.st_mtim.tv_sec &&
        identity->modified.tv_nsec == info.st_mtim.tv_nsec)
        return true;
    if (head_of(fd) != identity->head) return false;
    identity->modified = info.st_mtim;
    return true;
}
