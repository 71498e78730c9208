/* Packing: rewrites a model into a .lmpack directory (proto/lmpack/FORMAT.md), weights unchanged.
 *
 * The same source gives the same bytes, on every machine and with any number of jobs. The pack is
 * written into FOLDER.partial, layer by layer, and takes its name when it is whole. What an
 * interrupted run, a killed process or a full disk leaves there is kept: the next run compares
 * every layer it finds with the source and goes on with those that are missing or differ.
 *
 * Weights are read and written in batches that do not stay in memory or in the page cache.
 *
 * Threads: one caller; n_job threads work on different layers. */
#ifndef LEAN_WORKER_PACK_PACKER_H
#define LEAN_WORKER_PACK_PACKER_H

#include <signal.h>
#include <stdint.h>

#include "proto/base/error.h"

struct gguf_file;

/* A source that is still arriving. path: of the file of the source, as gguf_shard_at has it. Called
 * from any thread of the job. */
struct pack_arrival {
    void *context;
    /* Returns once n bytes at offset are there. */
    enum lm_status (*wait)(void *context, const char *path, uint64_t offset, uint64_t n,
                           struct lm_error *err);
    /* They are in the pack and on the disk; nobody reads them again. */
    void (*release)(void *context, const char *path, uint64_t offset, uint64_t n);
    /* Returns once all of the source has arrived and is known to be right. */
    enum lm_status (*finish)(void *context, struct lm_error *err);
};

struct pack_config {
    uint32_t n_job;                              /* layers at a time; 0: 2 */
    const char *profile_path;                    /* routing profile to put in, or NULL */
    const volatile sig_atomic_t *is_interrupted; /* looked at between batches; NULL: never */
    const struct pack_arrival *arrival;          /* NULL: the source is there */
};

/* Bytes of the weights' files that the pack of a source has: all but its manifest and profile. */
enum lm_status pack_plan(const struct gguf_file *source, uint64_t *n_bytes, struct lm_error *err);

/* Writes the pack; one that is at folder is replaced. LM_E_UNSUPPORTED: the source is no model that
 * runs here, or the dense part of a pack; LM_E_NO_SPACE: the disk is, or becomes, full; LM_E_BUSY:
 * another process writes this pack; LM_E_INTERRUPTED; LM_E_USAGE: folder is something else;
 * LM_E_FORMAT, LM_E_MISMATCH: the profile is none, or another model's. */
enum lm_status pack_write(const struct gguf_file *source, const char *folder,
                          const struct pack_config *config, struct lm_error *err);

/* Reads all of a pack and holds it against its checksums and, if source is not NULL, against the
 * source's bytes. LM_E_FORMAT: a file is damaged, the message names layer and expert or the tensor,
 * and further damage is logged; LM_E_MISMATCH: the pack is whole, but not of this source. n_bytes:
 * as pack_plan's. */
enum lm_status pack_verify(const char *folder, const struct gguf_file *source,
                           const struct pack_config *config, uint64_t *n_bytes,
                           struct lm_error *err);

#endif
