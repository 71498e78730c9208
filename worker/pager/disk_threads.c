/* The engine for systems that refuse io_uring: a few threads, each with one pread at a time. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "worker/pager/disk_engine.h"

enum { THREADS_MAX = 8 };

struct threads {
    uint32_t n;
    pthread_t thread[THREADS_MAX];
};

static void *run(void *context)
{
    struct disk_reader *reader = context;
    struct disk_piece piece;
    while (disk_engine_take(reader, true, &piece) == DISK_TAKE_PIECE) {
        int64_t result;
        do {
            result =
                pread(disk_piece_fd(reader, &piece), piece.to, piece.n_bytes, (off_t)piece.offset);
        } while (!disk_piece_advance(&piece, result < 0 ? -errno : result));
        struct disk_read *read = disk_engine_end(reader, &piece);
        if (read) disk_engine_deliver(reader, read);
    }
    return NULL;
}

static void threads_stop(struct disk_reader *reader)
{
    struct threads *threads = reader->engine_state;
    pthread_cond_broadcast(&reader->work);
    for (uint32_t i = 0; i < threads->n; i++)
        pthread_join(threads->thread[i], NULL);
    free(threads);
}

static enum lm_status threads_start(struct disk_reader *reader, struct lm_error *err)
{
    const uint32_t n = reader->depth < THREADS_MAX ? reader->depth : THREADS_MAX;
    struct threads *threads = calloc(1, sizeof(*threads));
    if (!threads) return lm_fail(err, LM_E_NO_MEM, "disk reader: no memory");
    reader->engine_state = threads;
    for (; threads->n < n; threads->n++) {
        struct lm_error reason;
        if (disk_engine_thread(&threads->thread[threads->n], run, reader, &reason) == LM_OK)
            continue;
        if (threads->n) break; /* fewer will do */
        free(threads);
        if (err) *err = reason;
        return reason.status;
    }
    return LM_OK;
}

static void threads_wake(struct disk_reader *reader)
{
    pthread_cond_signal(&reader->work);
}

const struct disk_engine_ops disk_engine_threads = {
    .name = "threads", .start = threads_start, .wake = threads_wake, .stop = threads_stop};
