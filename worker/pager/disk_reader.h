/* Disk reader: reads runs of bytes of files into memory, many at a time, by priority.
 *
 *   submit --> QUEUED --> RUNNING --> DONE or FAILED --reap--> the caller's again
 *                 +--cancel--> the caller's again
 *
 * Demand goes before speculative, that before background; inside a priority in the order of
 * submission. `depth` reads of extents run at once, or fewer if asked for
 * (disk_reader_set_shallow). The reads run by io_uring where the kernel allows it, else by a few
 * threads with pread; both behave alike. Files are read past the page cache (O_DIRECT) or through
 * it, as a probe at create finds faster or the caller decides.
 *
 * Ownership: a struct disk_read belongs to the caller, but must stay where it is and its memory
 *            untouched from submit until it is reaped or cancelled, or the reader destroyed. The
 *            arena outlives the reader.
 * Threads:   submit, promote, cancel and reap from one thread; internal threads run the reads.
 * Errors:    a failed read says what happened; other reads go on. */
#ifndef LEAN_WORKER_PAGER_DISK_READER_H
#define LEAN_WORKER_PAGER_DISK_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "worker/pager/expert_store.h"

struct disk_reader;
struct progress;

/* Direct reads start and end at multiples of this: memory from `to` rounded down to `to + n_bytes`
 * rounded up is written, and to % DISK_ALIGN == offset % DISK_ALIGN. */
enum { DISK_ALIGN = 4096 };

enum read_priority { READ_DEMAND, READ_SPECULATIVE, READ_BACKGROUND, READ_PRIORITY_COUNT };
enum read_failure {
    READ_OK,
    READ_ERROR,   /* os_error says which */
    READ_SHORT,   /* the file ends before the extent does */
    READ_CHANGED, /* the file begins otherwise than at create; not looked at with a checksum */
    READ_CHECKSUM
};

struct disk_read {
    /* set by the caller */
    uint32_t n_extent;
    struct expert_extent extent[EXPERT_PART_MAX];
    void *to[EXPERT_PART_MAX];
    bool has_checksum;
    uint64_t checksum; /* XXH3-64 over the extents in order */
    void *owner;       /* whatever the caller wants to find again */

    /* set by the reader */
    enum read_failure failure;
    int os_error;
    uint32_t failed_extent;

    /* private to the reader */
    struct disk_read *next, *previous;
    uint8_t state, priority;
    uint32_t at_extent, n_running; /* what has not begun starts at at_offset of at_extent */
    uint64_t at_offset;
    uint32_t n_rewritten; /* of the reader when it began */
};

enum disk_engine { DISK_ENGINE_AUTO, DISK_ENGINE_URING, DISK_ENGINE_THREADS };
enum disk_access { DISK_ACCESS_AUTO, DISK_ACCESS_DIRECT, DISK_ACCESS_BUFFERED };

struct disk_reader_config {
    const struct expert_file *file; /* [n_file] borrowed */
    size_t n_file;
    void *arena; /* memory that all reads go to, to be registered with the kernel; or NULL */
    size_t arena_bytes;
    uint32_t depth; /* 0: 8; at most 32 */
    enum disk_engine engine;
    enum disk_access access;
    bool drop_cached;          /* buffered: what has been read leaves the page cache */
    struct progress *progress; /* moved by every piece that has come; NULL: nobody watches */
};

struct disk_reader_stats {
    const char *engine; /* "io_uring", "threads" */
    bool direct;
    double probe_direct_rate, probe_buffered_rate; /* bytes/s; 0: not probed */
    double probe_shallow_rate;                     /* of direct reads */
    uint64_t n_read[READ_PRIORITY_COUNT], read_bytes[READ_PRIORITY_COUNT]; /* by final priority */
    double busy_s; /* time with at least one read running */
};

/* LM_E_LIMIT: depth over 32; LM_E_UNSUPPORTED: DISK_ENGINE_URING, and the kernel refuses it;
 * LM_E_NO_MEM. */
enum lm_status disk_reader_create(struct disk_reader **out, const struct disk_reader_config *config,
                                  struct lm_error *err);
/* Waits for what is running; what is queued never runs. NULL is legal. */
void disk_reader_destroy(struct disk_reader *reader);

void disk_reader_submit(struct disk_reader *reader, struct disk_read *read,
                        enum read_priority priority);
/* Raises the priority of a read that was submitted: what of it has not begun goes earlier. */
void disk_reader_promote(struct disk_reader *reader, struct disk_read *read,
                         enum read_priority priority);
/* True: it had not begun and never will. False: it runs or is over, and will be reaped. */
bool disk_reader_cancel(struct disk_reader *reader, struct disk_read *read);
/* Reads that are over, in the order in which they ended; at most n_max. wait: if there is none,
 * waits for one, unless nothing is queued or running. */
size_t disk_reader_reap(struct disk_reader *reader, struct disk_read **out, size_t n_max,
                        bool wait);

/* shallow: no more runs at once than keeps the disk busy, so that each read is over sooner, and few
 * are under way when another becomes more urgent: for callers that wait for single reads. Has an
 * effect only where the probe at create found that the disk is then nearly as fast. Not so at
 * create. */
void disk_reader_set_shallow(struct disk_reader *reader, bool shallow);

struct disk_reader_stats disk_reader_stats(struct disk_reader *reader);
/* What is queued and running, in a line of the log. From any thread. */
void disk_reader_log(struct disk_reader *reader);

#endif
