/* Whether an open file is still the one it was, though others may write to it: a model that is
 * copied over another keeps its file, and may have weights where the other had.
 *
 * What a file begins with and pieces from all over it tell models apart, also two of the same kind,
 * whose headers may be alike; the time of the last write tells when to look. A file that is written
 * again with the same pieces counts as the same. So does one that was cut off, as far as it is
 * still there: whoever reads more of it than that finds out.
 *
 * Threads: none of its own; one caller at a time. */
#ifndef LEAN_PROTO_BASE_FILE_IDENTITY_H
#define LEAN_PROTO_BASE_FILE_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum {
    FILE_IDENTITY_HEAD_BYTES = 16384,
    FILE_IDENTITY_N_PIECE = 32, /* of 4096 bytes, at even distances */
    FILE_IDENTITY_PIECE_BYTES = 4096
};

struct file_identity {
    bool regular; /* no other kind of file can be told */
    struct timespec modified;
    uint64_t n_bytes;
    uint64_t head;
    uint32_t piece[FILE_IDENTITY_N_PIECE];
};

struct file_identity file_identity_of(int fd);
/* After bytes were read, so that they cannot have been written since. Costs a system call, and some
 * small reads when the file was written. */
bool file_identity_holds(struct file_identity *identity, int fd);

#endif
