/* What the disk reader and its engines share; private to disk_*.c.
 *
 * The reader keeps the queues and cuts reads into pieces, an engine runs the pieces:
 *
 *   take --> call --> advance --again--> call ...
 *                        +--over--> end --last of its read--> deliver
 *
 * Threads: an engine's threads call everything here; `lock` guards what is listed under it. */
#ifndef LEAN_WORKER_PAGER_DISK_ENGINE_H
#define LEAN_WORKER_PAGER_DISK_ENGINE_H

#include <pthread.h>

#include "proto/base/file_identity.h"
#include "worker/pager/disk_reader.h"

/* A run of bytes that is read by one call, or by several if one brings less. */
struct disk_piece {
    struct disk_read *read;
    uint32_t extent; /* of the read */
    uint32_t file;
    bool direct;
    /* the next call */
    char *to;
    uint64_t offset, n_bytes;
    uint64_t n_needed; /* <= n_bytes: a direct call asks for whole blocks, also past the end */

    uint64_t n_counted; /* of the reader's piece_bytes */
    uint64_t n_tail;    /* bytes at `to` that the last call brought: a part of a block */
    uint32_t n_retry;   /* calls in a row that were interrupted */
    enum read_failure failure;
    int os_error;
};

struct disk_file {
    int buffered_fd, direct_fd; /* direct_fd -1: not possible, or not wanted */
    bool owns_buffered;
    struct file_identity identity; /* under lock */
};

struct disk_read_list {
    struct disk_read *first, *last;
};

struct disk_engine_ops {
    const char *name;
    /* LM_E_UNSUPPORTED: the system does not allow it. */
    enum lm_status (*start)(struct disk_reader *reader, struct lm_error *err);
    void (*wake)(struct disk_reader *reader); /* something was queued */
    void (*stop)(struct disk_reader *reader); /* `stop` is set: returns when nothing runs */
};
extern const struct disk_engine_ops disk_engine_threads, disk_engine_uring;

struct disk_reader {
    const struct disk_engine_ops *engine;
    void *engine_state;
    struct progress *progress; /* or NULL */
    struct disk_file *file;    /* [n_file] */
    size_t n_file;
    char *arena;
    size_t arena_bytes;
    uint32_t depth;
    bool drop_cached;
    bool direct;          /* changes only while nothing is queued or running */
    bool shallow_is_fast; /* the caller's thread */

    pthread_mutex_t lock;
    pthread_cond_t work;  /* the threads engine waits for reads, or for stop */
    pthread_cond_t ended; /* reap waits for a read */

    /* under lock */
    struct disk_read_list queue[READ_PRIORITY_COUNT], done;
    uint32_t n_piece;     /* running */
    uint64_t piece_bytes; /* of them */
    bool shallow;
    size_t n_submitted;   /* reads queued or running */
    uint32_t n_rewritten; /* times that a file was written to and still was the same */
    bool stop;
    double busy_since_s; /* while n_piece > 0 */
    struct disk_reader_stats stats;
};

enum disk_take { DISK_TAKE_PIECE, DISK_TAKE_NOTHING, DISK_TAKE_STOP };
/* The next piece to run. wait: waits for one, so that NOTHING is never the answer. */
enum disk_take disk_engine_take(struct disk_reader *reader, bool wait, struct disk_piece *out);

static inline int disk_piece_fd(const struct disk_reader *reader, const struct disk_piece *piece)
{
    const struct disk_file *file = &reader->file[piece->file];
    return piece->direct ? file->direct_fd : file->buffered_fd;
}

/* What a call brought: bytes, or -errno. True: the piece is over; false: call again. */
bool disk_piece_advance(struct disk_piece *piece, int64_t result);

/* The piece is over. Returns its read if nothing of it is left, to be delivered; else NULL. */
struct disk_read *disk_engine_end(struct disk_reader *reader, const struct disk_piece *piece);
/* Checks the bytes and hands the read back to the caller. */
void disk_engine_deliver(struct disk_reader *reader, struct disk_read *read);

/* Starts a thread that no signal interrupts, and that runs at once when it has something to do: its
 * time slice is the shortest there is, so that it need not wait for the end of those of the threads
 * that compute, 1 to 3 ms in which the disk would idle. */
enum lm_status disk_engine_thread(pthread_t *out, void *(*run)(void *), void *context,
                                  struct lm_error *err);

#endif
