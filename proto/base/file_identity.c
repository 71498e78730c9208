#include "proto/base/file_identity.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { PIECE_BYTES = FILE_IDENTITY_PIECE_BYTES };

static uint64_t head_of(int fd)
{
    char head[FILE_IDENTITY_HEAD_BYTES];
    const ssize_t n = pread(fd, head, sizeof(head), 0);
    return XXH3_64bits(head, n > 0 ? (size_t)n : 0);
}

/* Pieces begin at blocks; the last one ends with the file. */
static off_t piece_at(const struct file_identity *identity, unsigned i)
{
    const uint64_t last =
        identity->n_bytes < PIECE_BYTES ? 0 : (identity->n_bytes - 1) / PIECE_BYTES;
    return (off_t)(last * (i + 1) / FILE_IDENTITY_N_PIECE * PIECE_BYTES);
}

/* False: the file does not reach that far any more. */
static bool read_piece(const struct file_identity *identity, int fd, unsigned i, uint32_t *out)
{
    char piece[PIECE_BYTES];
    const off_t at = piece_at(identity, i);
    const uint64_t left = identity->n_bytes - (uint64_t)at;
    const size_t n = left < sizeof(piece) ? (size_t)left : sizeof(piece);
    if (pread(fd, piece, n, at) != (ssize_t)n) return false;
    *out = (uint32_t)XXH3_64bits(piece, n);
    return true;
}

struct file_identity file_identity_of(int fd)
{
    struct stat info;
    struct file_identity identity = {.regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode)};
    if (!identity.regular) return identity;
    identity.modified = info.st_mtim;
    identity.n_bytes = (uint64_t)info.st_size;
    for (unsigned i = 0; i < FILE_IDENTITY_N_PIECE; i++) /* read them together */
        posix_fadvise(fd, piece_at(&identity, i), PIECE_BYTES, POSIX_FADV_WILLNEED);
    identity.head = head_of(fd);
    for (unsigned i = 0; i < FILE_IDENTITY_N_PIECE; i++)
        read_piece(&identity, fd, i,
                   &identity.piece[i]); /* cut off just now: then it is no other */
    return identity;
}

bool file_identity_holds(struct file_identity *identity, int fd)
{
    struct stat info;
    bool whole = true;
    if (!identity->regular || fstat(fd, &info)) return true;
    if (identity->modified.tv_sec == info.st_mtim.tv_sec &&
        identity->modified.tv_nsec == info.st_mtim.tv_nsec)
        return true;
    if (head_of(fd) != identity->head) return false;
    for (unsigned i = 0; i < FILE_IDENTITY_N_PIECE; i++) {
        uint32_t piece;
        if (!read_piece(identity, fd, i, &piece))
            whole = false;
        else if (piece != identity->piece[i])
            return false;
    }
    if (whole) identity->modified = info.st_mtim; /* else it may still be being written */
    return true;
}
