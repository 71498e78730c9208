/* What goes on behind a download: its bytes are synced, journaled and hashed while more arrive.
 *
 * A file's hash follows the part of it that is whole from its start, so that little is left to hash
 * when the last byte comes, and what it reads is still in memory. Every 5 s or 256 MiB, whichever
 * comes first, a file is synced and its journal goes on; more often where that is quick, down to
 * every quarter of a second, so that it takes no more than a twentieth of the time.
 *
 * Threads: one hashes and one syncs, since a sync may wait for the disk for long; all functions are
 * for the downloader's. */
#ifndef LEAN_COORDINATOR_HUB_PART_KEEPER_H
#define LEAN_COORDINATOR_HUB_PART_KEEPER_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/error.h"

struct part_file;
struct part_keeper;

enum part_verdict {
    PART_PENDING,
    PART_GOOD, /* whole, on the disk, and its hash is right or was not asked for */
    PART_BAD   /* whole, with another hash */
};

enum lm_status part_keeper_start(struct part_keeper **out, size_t n_file, struct lm_error *err);
/* From now on file i is this one, from its start. hash: what is expected, NULL: not to be checked.
 * Both are borrowed until the verdict is known or the keeper stops. part NULL: none, from now on. */
void part_keeper_add(struct part_keeper *keeper, size_t i, struct part_file *part,
                     const char *hash);
void part_keeper_wake(struct part_keeper *keeper); /* bytes have come */
/* Once it is not pending the keeper is done with the file. Not LM_OK: a sync or a read failed. */
enum lm_status part_keeper_verdict(struct part_keeper *keeper, size_t i, enum part_verdict *out,
                                   struct lm_error *err);
/* Syncs what there is and ends the thread. NULL is legal. */
enum lm_status part_keeper_stop(struct part_keeper *keeper, struct lm_error *err);

#endif
