/* Keeps a process alive when a file that it has mapped is cut off, or cannot be read any more, and
 * tells it when another has been written over the file.
 *
 * Such a page raises SIGBUS where it is touched, deep in a kernel, on any thread. Here zeros take
 * its place, so that whoever touched it goes on, and the loss is kept: who computed with the
 * mapping asks afterwards, and throws away what came of it.
 *
 *   mapped --touch of what is not there--> zeros --map_guard_check--> mapped again
 *
 * so that a file that is whole again is used again. Mappings that nobody guards raise SIGBUS as
 * ever: a writer must rather die than copy zeros.
 *
 * Ownership: mappings, descriptors and paths are borrowed until map_guard_remove. The handler of
 *            SIGBUS is the process's as long as anything is guarded.
 * Threads:   add, remove and check from any; an owner's check while nobody touches its mappings. */
#ifndef LEAN_PROTO_BASE_MAP_GUARD_H
#define LEAN_PROTO_BASE_MAP_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAP_GUARD_MAX = 4096 /* mappings; more are not guarded */ };

/* data: n_bytes of fd from its beginning, mapped for reading. owner: for the calls below. */
void map_guard_add(const void *owner, const void *data, uint64_t n_bytes, int fd, const char *path);
void map_guard_remove(const void *owner); /* all of its mappings */

struct map_loss {
    const char *path;
    int fd;
    bool replaced;   /* the file is another now (file_identity.h); else: */
    uint64_t offset; /* of a page whose place zeros took */
};
/* Whether anything of the owner's may have been read wrongly since the last check; out: what. Costs
 * a system call for each mapping. */
bool map_guard_check(const void *owner, struct map_loss *out);

#endif
