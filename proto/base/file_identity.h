/* Whether an open file is still the one it was, though others may write to it: a model that is
 * copied over another keeps its file, and may have weights where the other had.
 *
 * What a file begins with tells models apart; the time of the last write tells when to look. A file
 * that is written again with the same beginning counts as the same.
 *
 * Threads: none of its own; one caller at a time. */
#ifndef LEAN_PROTO_BASE_FILE_IDENTITY_H
#define LEAN_PROTO_BASE_FILE_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct file_identity {
    bool regular; /* no other kind of file can be told */
    struct timespec modified;
    uint64_t head;
};

struct file_identity file_identity_of(int fd);
/* After bytes were read, so that they cannot have been written since. Costs a system call. */
bool file_identity_holds(struct file_identity *identity, int fd);

#endif
