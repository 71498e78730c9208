/* Keeps a file that is written front to back from filling memory with pages that nobody reads.
 *
 * What has been written is sent to the disk in windows; the writer waits only when it is several
 * windows ahead, and the page cache keeps no more than those. Only a matter of speed and memory:
 * nothing is promised about what survives a crash before fsync, and file systems that cannot do it
 * are left alone.
 *
 * Threads: one owner. */
#ifndef LEAN_PROTO_BASE_WRITE_BEHIND_H
#define LEAN_PROTO_BASE_WRITE_BEHIND_H

#include <stdint.h>

/* Zero-initialised at the start of a file. */
struct write_behind {
    uint64_t begun; /* bytes whose writing has begun */
};

/* n_written: bytes of fd written so far, from its start. */
void write_behind_advance(struct write_behind *behind, int fd, uint64_t n_written);
/* After fsync: the rest leaves the page cache too. */
void write_behind_end(int fd);

#endif
