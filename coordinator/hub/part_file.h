/* A file while it is downloaded: PATH.lean-part, and PATH.lean-part.j, which tells what of it is
 * there.
 *
 * Bytes arrive in any order and are written where they belong. The journal names ranges only after
 * their bytes are on the disk: a sync writes the data, then the lines, then the lines to the disk.
 * So what the journal has survives kill -9 and a power cut, on this host and any other that sees
 * the disk; what arrived since the last sync is fetched again.
 *
 *   lean-part 1 SIZE HASH NAME     the first line: of which file
 *   START END                      bytes START to END are there; a last line without its end, or
 *                                  anything that is no such line, ends the journal
 *
 * A journal of another size or hash starts over.
 *
 * Threads: one writes, another syncs and reads; what both look at is behind a lock. */
#ifndef LEAN_COORDINATOR_HUB_PART_FILE_H
#define LEAN_COORDINATOR_HUB_PART_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct part_file;

struct byte_range {
    uint64_t start, end; /* end is not in it */
};

/* path: the name that the file will have. name: for messages and the journal. */
enum lm_status part_file_open(struct part_file **out, const char *path, const char *name,
                              uint64_t n_bytes, const char *hash, struct lm_error *err);
/* Does not sync. NULL is legal. */
void part_file_close(struct part_file *part);

/* LM_E_NO_SPACE among others. */
enum lm_status part_file_write(struct part_file *part, uint64_t offset, const void *bytes, size_t n,
                               struct lm_error *err);
enum lm_status part_file_read(struct part_file *part, uint64_t offset, void *bytes, size_t n,
                              struct lm_error *err);

uint64_t part_file_size(const struct part_file *part);
uint64_t part_file_done(struct part_file *part);     /* bytes that are there */
uint64_t part_file_prefix(struct part_file *part);   /* of those, from the start on */
uint64_t part_file_unsynced(struct part_file *part); /* bytes that the journal lacks */
/* The first range that is missing at or behind offset; false: none. */
bool part_file_next_gap(struct part_file *part, uint64_t offset, struct byte_range *gap);

/* For a file that is used up while it arrives. What was hashed from the start on and is released
 * gives its disk space back at the next punch. For the rest of this run it counts as there; the
 * journal lacks it before it is gone, so another run fetches it again. */
void part_file_set_hashed(struct part_file *part, uint64_t n_bytes);
enum lm_status part_file_release(struct part_file *part, struct byte_range range,
                                 struct lm_error *err);
/* Nothing happens while it is not worth it. */
enum lm_status part_file_punch(struct part_file *part, struct lm_error *err);

enum lm_status part_file_sync(struct part_file *part, struct lm_error *err);
/* Forgets and removes all that was written. */
enum lm_status part_file_discard(struct part_file *part, struct lm_error *err);
/* Gives the whole and synced file its name, and removes the journal. */
enum lm_status part_file_publish(struct part_file *part, struct lm_error *err);

/* What the journal beside a path says without opening it: false if there is none of this file.
 * n_bytes and hash may be NULL: any. n_all: the whole size. name: malloc'ed; may be NULL. */
bool part_file_peek(const char *path, const char *hash, uint64_t *n_done, uint64_t *n_all,
                    char **name);
/* Removes what is there of a file that is not being downloaded. */
void part_file_remove(const char *path);

#endif
