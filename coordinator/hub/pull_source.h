/* The files of a pull while they arrive, for a thread that uses them up meanwhile (`--pack`).
 *
 * The pull opens it, tells how it ended and waits until whoever uses it has ended. The user waits
 * for ranges, gives them back, and in the end waits for the word that all of it is right.
 *
 * Threads: as said at each function; what both touch is behind a lock. */
#ifndef LEAN_COORDINATOR_HUB_PULL_SOURCE_H
#define LEAN_COORDINATOR_HUB_PULL_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct part_file;
struct pull_source;

/* ---- for the pull ---- */

enum lm_status pull_source_create(struct pull_source **out, size_t n_file, struct lm_error *err);
void pull_source_destroy(struct pull_source *source); /* NULL is legal */
/* name: in the repository; path: where its bytes are or will be; part NULL: they are all there. */
enum lm_status pull_source_set(struct pull_source *source, size_t i, const char *name,
                               const char *path, uint64_t n_bytes, struct part_file *part,
                               struct lm_error *err);
/* Gives disk space back. LM_E_*: what the user failed with. */
enum lm_status pull_source_tend(struct pull_source *source, struct lm_error *err);
/* status: LM_OK, all of it is right; else whoever waits is woken and fails. */
void pull_source_conclude(struct pull_source *source, enum lm_status status);

/* ---- for the user ---- */

size_t pull_source_n_file(const struct pull_source *source);
const char *pull_source_name(const struct pull_source *source, size_t i);
const char *pull_source_path(const struct pull_source *source, size_t i);
uint64_t pull_source_size(const struct pull_source *source, size_t i);
/* Returns once bytes start to end of file i are there. LM_E_INTERRUPTED: they will not be. */
enum lm_status pull_source_wait(struct pull_source *source, size_t i, uint64_t start, uint64_t end,
                                struct lm_error *err);
void pull_source_release(struct pull_source *source, size_t i, uint64_t start, uint64_t end);
/* Returns once all of it has arrived and is right. */
enum lm_status pull_source_wait_for_end(struct pull_source *source, struct lm_error *err);
/* The user has failed, and the pull is to end with this. */
void pull_source_fail(struct pull_source *source, const struct lm_error *error);

#endif
