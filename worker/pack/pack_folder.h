/* The folder of a pack while it is written: FOLDER.partial, which becomes FOLDER when it is whole.
 *
 * Threads: one owner. */
#ifndef LEAN_WORKER_PACK_PACK_FOLDER_H
#define LEAN_WORKER_PACK_PACK_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

struct pack_folder {
    char *path;    /* that it will have */
    char *partial; /* that it has */
    int fd;        /* of partial, locked */
};

/* Makes FOLDER.partial, or takes what an earlier run left; keeps of that the files of experts whose
 * layer is_wanted. LM_E_BUSY: another process works on it. LM_E_USAGE: FOLDER is there and is not a
 * pack. */
enum lm_status pack_folder_open(struct pack_folder *folder, const char *path,
                                bool (*is_wanted)(const void *context, uint32_t il),
                                const void *context, struct lm_error *err);
void pack_folder_close(struct pack_folder *folder);

/* LM_E_NO_SPACE: the file system has less than n_bytes left. */
enum lm_status pack_folder_check_space(const struct pack_folder *folder, uint64_t n_bytes,
                                       struct lm_error *err);

/* Syncs the folder and gives it its name, in the place of a pack that has it. */
enum lm_status pack_folder_publish(struct pack_folder *folder, struct lm_error *err);

#endif
