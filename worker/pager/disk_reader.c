/* The queues of the disk reader, how reads are cut into pieces, and the choice between direct and
 * buffered. The pieces are run by disk_uring.c or disk_threads.c. */
#define XXH_STATIC_LINKING_ONLY /* the state of a checksum on the stack */
#include "worker/pager/disk_reader.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include "proto/base/log.h"
#include "proto/base/progress.h"
#include "worker/pager/disk_engine.h"

enum {
    DEPTH_DEFAULT = 8,
    DEPTH_MAX = 32,
    RETRY_MAX = 1000,
    SPLIT_BYTES = 4 << 20,   /* a larger extent is read in four pieces at once */
    SHALLOW_BYTES = 2 << 20, /* at once when shallow, */
    SHALLOW_PIECES = 2,      /* but at least so many */
    PIECE_BYTES_MAX = 64 << 20,
    SLOW_S = 10 /* without any read coming back, this is worth a line */
};

enum read_state { READ_IDLE, READ_QUEUED, READ_RUNNING /* all of it */, READ_ENDED };

static uint64_t round_down(uint64_t n)
{
    return n / DISK_ALIGN * DISK_ALIGN;
}

static uint64_t round_up(uint64_t n)
{
    return round_down(n + DISK_ALIGN - 1);
}

/* Lists. */

static void append(struct disk_read_list *list, struct disk_read *read)
{
    read->next = NULL;
    read->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = read;
    list->last = read;
}

static void unlink_read(struct disk_read_list *list, struct disk_read *read)
{
    *(read->previous ? &read->previous->next : &list->first) = read->next;
    *(read->next ? &read->next->previous : &list->last) = read->previous;
}

/* Pieces. */

static uint64_t piece_bytes_of(uint64_t n_bytes)
{
    if (n_bytes <= SPLIT_BYTES) return round_up(n_bytes) + DISK_ALIGN; /* wherever it starts */
    const uint64_t quarter = round_up(n_bytes / 4) + DISK_ALIGN;
    return quarter < PIECE_BYTES_MAX ? quarter : PIECE_BYTES_MAX;
}

/* Cuts off the next piece of a read. Cuts lie at multiples of DISK_ALIGN in the file, so that
 * direct pieces do not write to each other's memory. */
static void cut_piece(const struct disk_reader *reader, struct disk_read *read,
                      struct disk_piece *out)
{
    const struct expert_extent *extent = &read->extent[read->at_extent];
    const uint64_t extent_end = extent->offset + extent->n_bytes;
    const uint64_t begin = extent->offset + read->at_offset;
    uint64_t end = round_down(begin) + piece_bytes_of(extent->n_bytes);
    if (end > extent_end) end = extent_end;

    const bool direct = reader->direct && reader->file[extent->file].direct_fd >= 0;
    const uint64_t before = direct ? begin - round_down(begin) : 0;
    *out = (struct disk_piece){
        .read = read,
        .extent = read->at_extent,
        .file = extent->file,
        .direct = direct,
        .to = (char *)read->to[read->at_extent] + read->at_offset - before,
        .offset = begin - before,
        .n_bytes = (direct ? round_up(end) : end) - (begin - before),
        .n_needed = end - (begin - before),
    };
    read->at_offset += end - begin;
    if (end < extent_end) return;
    read->at_extent++;
    read->at_offset = 0;
}

bool disk_piece_advance(struct disk_piece *piece, int64_t result)
{
    if (result == -EINVAL && piece->direct) { /* the file system allows it to open only */
        piece->direct = false;
        return false;
    }
    if ((result == -EINTR || result == -EAGAIN) && piece->n_retry++ < RETRY_MAX) return false;
    if (result < 0) {
        piece->failure = READ_ERROR;
        piece->os_error = (int)-result;
        return true;
    }
    const uint64_t n_bytes = (uint64_t)result;
    if (n_bytes >= piece->n_needed) return true;
    if (n_bytes <= piece->n_tail) { /* no more than before: here it ends */
        piece->failure = READ_SHORT;
        return true;
    }
    /* The next call starts at a whole block again. */
    const uint64_t step = piece->direct ? round_down(n_bytes) : n_bytes;
    piece->to += step;
    piece->offset += step;
    piece->n_bytes -= step;
    piece->n_needed -= step;
    piece->n_tail = n_bytes - step;
    piece->n_retry = 0;
    return false;
}

/* For the engines. */

static struct disk_read *first_queued_locked(struct disk_reader *reader)
{
    for (int i = 0; i < READ_PRIORITY_COUNT; i++)
        if (reader->queue[i].first) return reader->queue[i].first;
    return NULL;
}

/* Whether another piece may run beside those that do. */
static bool has_room_locked(const struct disk_reader *reader)
{
    return !reader->shallow || reader->n_piece < SHALLOW_PIECES ||
           reader->piece_bytes < SHALLOW_BYTES;
}

static struct disk_read *next_read_locked(struct disk_reader *reader)
{
    return has_room_locked(reader) ? first_queued_locked(reader) : NULL;
}

enum disk_take disk_engine_take(struct disk_reader *reader, bool wait, struct disk_piece *out)
{
    enum disk_take take = DISK_TAKE_PIECE;
    pthread_mutex_lock(&reader->lock);
    struct disk_read *read = next_read_locked(reader);
    while (wait && !read && !reader->stop) {
        pthread_cond_wait(&reader->work, &reader->lock);
        read = next_read_locked(reader);
    }
    if (reader->stop) {
        take = DISK_TAKE_STOP;
    } else if (!read) {
        take = DISK_TAKE_NOTHING;
    } else {
        if (!read->at_extent && !read->at_offset) read->n_rewritten = reader->n_rewritten;
        cut_piece(reader, read, out);
        read->n_running++;
        if (read->at_extent == read->n_extent) {
            unlink_read(&reader->queue[read->priority], read);
            read->state = READ_RUNNING;
        }
        if (!reader->n_piece++) reader->busy_since_s = log_now_s();
        reader->piece_bytes += out->n_needed;
        out->n_counted = out->n_needed;
        /* A wake-up is for one thread: pass it on if there is more to do. */
        if (wait && next_read_locked(reader)) pthread_cond_signal(&reader->work);
    }
    pthread_mutex_unlock(&reader->lock);
    return take;
}

struct disk_read *disk_engine_end(struct disk_reader *reader, const struct disk_piece *piece)
{
    struct disk_read *read = piece->read;
    pthread_mutex_lock(&reader->lock);
    if (!--reader->n_piece) reader->stats.busy_s += log_now_s() - reader->busy_since_s;
    reader->piece_bytes -= piece->n_counted;
    progress_move(reader->progress);
    if (reader->shallow && first_queued_locked(reader)) pthread_cond_signal(&reader->work);
    if (piece->failure && !read->failure) {
        read->failure = piece->failure;
        read->os_error = piece->os_error;
        read->failed_extent = piece->extent;
    }
    if (read->failure && read->state == READ_QUEUED) { /* the rest is of no use */
        unlink_read(&reader->queue[read->priority], read);
        read->state = READ_RUNNING;
    }
    const bool over = !--read->n_running && read->state == READ_RUNNING;
    pthread_mutex_unlock(&reader->lock);
    return over ? read : NULL;
}

/* Pages that the read shares with its neighbours go too: they cost at most two reads of a page. */
static void drop_from_cache(const struct disk_reader *reader, const struct disk_read *read)
{
    for (uint32_t i = 0; i < read->n_extent; i++) {
        const struct expert_extent *extent = &read->extent[i];
        const uint64_t begin = round_down(extent->offset);
        posix_fadvise(reader->file[extent->file].buffered_fd, (off_t)begin,
                      (off_t)(round_up(extent->offset + extent->n_bytes) - begin),
                      POSIX_FADV_DONTNEED);
    }
}

static uint64_t checksum_of(const struct disk_read *read)
{
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    for (uint32_t i = 0; i < read->n_extent; i++)
        XXH3_64bits_update(&state, read->to[i], read->extent[i].n_bytes);
    return XXH3_64bits_digest(&state);
}

static bool is_other_file(struct disk_reader *reader, struct disk_file *file)
{
    pthread_mutex_lock(&reader->lock);
    const struct timespec before = file->identity.modified;
    const bool same = file_identity_holds(&file->identity, file->buffered_fd);
    const struct timespec after = file->identity.modified;
    if (before.tv_sec != after.tv_sec || before.tv_nsec != after.tv_nsec) reader->n_rewritten++;
    pthread_mutex_unlock(&reader->lock);
    return !same;
}

static void check_bytes(struct disk_reader *reader, struct disk_read *read)
{
    if (read->has_checksum) {
        if (checksum_of(read) != read->checksum) read->failure = READ_CHECKSUM;
        return;
    }
    for (uint32_t i = 0; i < read->n_extent && !read->failure; i++) {
        if (!is_other_file(reader, &reader->file[read->extent[i].file])) continue;
        read->failure = READ_CHANGED;
        read->failed_extent = i;
    }
}

/* Nothing of it has begun. */
static void rewind_read(struct disk_read *read)
{
    read->failure = READ_OK;
    read->os_error = 0;
    read->failed_extent = 0;
    read->at_extent = read->n_running = 0;
    read->at_offset = 0;
    read->state = READ_QUEUED;
}

/* A file that is the same again may have been another while it was read: then it is read again. */
static bool read_again(struct disk_reader *reader, struct disk_read *read)
{
    pthread_mutex_lock(&reader->lock);
    const bool again =
        !read->failure && !read->has_checksum && read->n_rewritten != reader->n_rewritten;
    if (again) {
        rewind_read(read);
        append(&reader->queue[read->priority], read);
    }
    pthread_mutex_unlock(&reader->lock);
    return again;
}

void disk_engine_deliver(struct disk_reader *reader, struct disk_read *read)
{
    if (!read->failure) check_bytes(reader, read);
    if (read_again(reader, read)) return;
    if (reader->drop_cached && !reader->direct) drop_from_cache(reader, read);

    pthread_mutex_lock(&reader->lock);
    reader->stats.n_read[read->priority]++;
    for (uint32_t i = 0; i < read->n_extent; i++)
        reader->stats.read_bytes[read->priority] += read->extent[i].n_bytes;
    read->state = READ_ENDED;
    reader->n_submitted--;
    append(&reader->done, read);
    pthread_cond_signal(&reader->ended);
    pthread_mutex_unlock(&reader->lock);
}

/* What of struct sched_attr the kernel knew first; <linux/sched/types.h> clashes with <sched.h>. */
struct slice_attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

struct thread_start {
    void *(*run)(void *);
    void *context;
};

/* Kernels before 6.12 take it for the slice of another class of scheduling, and ignore it. */
static void *run_hastily(void *argument)
{
    enum { SLICE_NS = 100000 /* the least */ };
    const struct thread_start start = *(struct thread_start *)argument;
    struct slice_attributes attributes;
    free(argument);
    if (!syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) &&
        attributes.policy == SCHED_OTHER) {
        attributes.runtime_ns = SLICE_NS;
        syscall(SYS_sched_setattr, 0, &attributes, 0);
    }
    return start.run(start.context);
}

enum lm_status disk_engine_thread(pthread_t *out, void *(*run)(void *), void *context,
                                  struct lm_error *err)
{
    sigset_t all, before;
    struct thread_start *start = malloc(sizeof(*start));
    if (!start) return lm_fail(err, LM_E_NO_MEM, "disk reader: no memory for a thread");
    *start = (struct thread_start){run, context};
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(out, NULL, run_hastily, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        free(start);
        return lm_fail(err, LM_E_NO_MEM, "disk reader: no thread: %s", strerror(failed));
    }
    pthread_setname_np(*out, "lean-disk");
    return LM_OK;
}

/* Reading, for the caller. */

void disk_reader_submit(struct disk_reader *reader, struct disk_read *read,
                        enum read_priority priority)
{
    assert(read->n_extent && read->n_extent <= EXPERT_PART_MAX);
    for (uint32_t i = 0; i < read->n_extent; i++) {
        assert(read->extent[i].n_bytes && read->extent[i].file < reader->n_file);
        assert(((uintptr_t)read->to[i] - read->extent[i].offset) % DISK_ALIGN == 0);
    }
    rewind_read(read);
    read->priority = (uint8_t)priority;
    pthread_mutex_lock(&reader->lock);
    append(&reader->queue[priority], read);
    reader->n_submitted++;
    pthread_mutex_unlock(&reader->lock);
    reader->engine->wake(reader);
}

void disk_reader_promote(struct disk_reader *reader, struct disk_read *read,
                         enum read_priority priority)
{
    pthread_mutex_lock(&reader->lock);
    if (priority < read->priority && read->state != READ_ENDED) {
        if (read->state == READ_QUEUED) {
            unlink_read(&reader->queue[read->priority], read);
            append(&reader->queue[priority], read);
        }
        read->priority = (uint8_t)priority;
    }
    pthread_mutex_unlock(&reader->lock);
}

bool disk_reader_cancel(struct disk_reader *reader, struct disk_read *read)
{
    pthread_mutex_lock(&reader->lock);
    const bool begun = read->n_running || read->at_extent || read->at_offset;
    const bool cancelled = read->state == READ_QUEUED && !begun;
    if (cancelled) {
        unlink_read(&reader->queue[read->priority], read);
        read->state = READ_IDLE;
        reader->n_submitted--;
    }
    pthread_mutex_unlock(&reader->lock);
    return cancelled;
}

/* Waits for a read to end; says so when the disk takes very long. */
static void wait_for_end_locked(struct disk_reader *reader)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += SLOW_S;
    bool said = false;
    while (!reader->done.first && reader->n_submitted) {
        if (said)
            pthread_cond_wait(&reader->ended, &reader->lock);
        else if (pthread_cond_timedwait(&reader->ended, &reader->lock, &until) == ETIMEDOUT) {
            said = true;
            log_warning("disk: no read has ended for %d seconds, still waiting for %zu", SLOW_S,
                        reader->n_submitted);
        }
    }
}

size_t disk_reader_reap(struct disk_reader *reader, struct disk_read **out, size_t n_max, bool wait)
{
    size_t n = 0;
    pthread_mutex_lock(&reader->lock);
    if (wait) wait_for_end_locked(reader);
    for (; n < n_max && reader->done.first; n++) {
        out[n] = reader->done.first;
        unlink_read(&reader->done, out[n]);
        out[n]->state = READ_IDLE;
    }
    pthread_mutex_unlock(&reader->lock);
    return n;
}

static void set_shallow(struct disk_reader *reader, bool shallow)
{
    pthread_mutex_lock(&reader->lock);
    const bool deeper = reader->shallow && !shallow;
    reader->shallow = shallow;
    pthread_mutex_unlock(&reader->lock);
    if (deeper) reader->engine->wake(reader);
}

void disk_reader_set_shallow(struct disk_reader *reader, bool shallow)
{
    set_shallow(reader, shallow && reader->shallow_is_fast);
}

struct disk_reader_stats disk_reader_stats(struct disk_reader *reader)
{
    pthread_mutex_lock(&reader->lock);
    struct disk_reader_stats stats = reader->stats;
    if (reader->n_piece) stats.busy_s += log_now_s() - reader->busy_since_s;
    pthread_mutex_unlock(&reader->lock);
    return stats;
}

static size_t length_of(const struct disk_read_list *list)
{
    size_t n = 0;
    for (const struct disk_read *read = list->first; read; read = read->next)
        n++;
    return n;
}

void disk_reader_log(struct disk_reader *reader)
{
    char size[24], time[24];
    pthread_mutex_lock(&reader->lock);
    log_info("disk: %zu reads submitted; queued %zu demanded, %zu predicted, %zu others; %u pieces "
             "of %s run, some since %s; %zu ended and not fetched",
             reader->n_submitted, length_of(&reader->queue[READ_DEMAND]),
             length_of(&reader->queue[READ_SPECULATIVE]),
             length_of(&reader->queue[READ_BACKGROUND]), reader->n_piece,
             log_format_bytes(reader->piece_bytes, size),
             log_format_seconds(reader->n_piece ? log_now_s() - reader->busy_since_s : 0, time),
             length_of(&reader->done));
    pthread_mutex_unlock(&reader->lock);
}

/* Files. */

/* Opens a file again with other flags. The descriptor leads to the same file even if another has
 * taken its name; without /proc the name must still be its. */
static int reopen(const struct expert_file *file, int flags)
{
    char self[40];
    struct stat held, named;
    snprintf(self, sizeof(self), "/proc/self/fd/%d", file->fd);
    int fd = open(self, flags | O_RDONLY | O_CLOEXEC);
    if (fd >= 0 || errno != ENOENT) return fd;
    fd = open(file->path, flags | O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (fstat(file->fd, &held) == 0 && fstat(fd, &named) == 0 &&
                   held.st_dev == named.st_dev && held.st_ino == named.st_ino))
        return fd;
    close(fd);
    return -1;
}

/* A descriptor of our own for buffered reads, since advice belongs to it: reads are whole extents
 * anywhere in the file, so what the system would read ahead is never wanted. */
static void open_file(const struct expert_file *file, enum disk_access access,
                      struct disk_file *out)
{
    out->direct_fd = access == DISK_ACCESS_BUFFERED ? -1 : reopen(file, O_DIRECT);
    out->buffered_fd = reopen(file, 0);
    out->owns_buffered = out->buffered_fd >= 0;
    if (out->owns_buffered)
        posix_fadvise(out->buffered_fd, 0, 0, POSIX_FADV_RANDOM);
    else
        out->buffered_fd = file->fd;
    out->identity = file_identity_of(out->buffered_fd);
}

static void close_files(struct disk_reader *reader)
{
    for (size_t i = 0; i < reader->n_file; i++) {
        if (reader->file[i].direct_fd >= 0) close(reader->file[i].direct_fd);
        if (reader->file[i].owns_buffered) close(reader->file[i].buffered_fd);
    }
    free(reader->file);
}

/* Whether any file can be read directly. */
static bool any_direct(const struct disk_reader *reader)
{
    for (size_t i = 0; i < reader->n_file; i++)
        if (reader->file[i].direct_fd >= 0) return true;
    return false;
}

/* The probe: a few rounds of reads at places spread over the largest file, buffered, direct and
 * direct but shallow in turn, until all have had PROBE_S. */

enum {
    PROBE_READ_BYTES = 512 << 10,
    PROBE_READS = 8,
    PROBE_ROUNDS = 4,
    PROBE_ALIGN = 2 << 20 /* huge pages, as an arena has: the disk is given fewer, larger runs */
};
#define PROBE_S 0.015
#define PROBE_FILE_BYTES (64ull << 20) /* a smaller file is read directly */
#define PROBE_SHALLOW 0.75 /* of the rate: disks vary by more than a tenth from round to round */
#define PROBE_GAIN 1.25    /* buffered copies everything and competes for the cache: it must pay */

enum probe_way { PROBE_BUFFERED, PROBE_DIRECT, PROBE_DIRECT_SHALLOW, PROBE_WAYS };

static struct expert_extent largest_file(const struct disk_reader *reader)
{
    struct expert_extent largest = {0};
    for (size_t i = 0; i < reader->n_file; i++) {
        struct stat info;
        if (fstat(reader->file[i].buffered_fd, &info) || !S_ISREG(info.st_mode)) continue;
        if (reader->file[i].direct_fd < 0 || (uint64_t)info.st_size <= largest.n_bytes) continue;
        largest.file = (uint32_t)i;
        largest.n_bytes = (uint64_t)info.st_size;
    }
    return largest;
}

static void advise_unneeded(const struct disk_reader *reader, const struct disk_read *read)
{
    for (int i = 0; i < PROBE_READS; i++)
        drop_from_cache(reader, &read[i]);
}

/* Seconds for one round; 0: a read failed. place: fraction of the file, distinct in each round. */
static double probe_round(struct disk_reader *reader, const struct expert_extent *file, char *to,
                          int round)
{
    struct disk_read read[PROBE_READS], *ended;
    bool failed = false;
    for (int i = 0; i < PROBE_READS; i++) {
        const uint64_t place = (uint64_t)(i * PROBE_WAYS * PROBE_ROUNDS + round);
        const uint64_t n_place = PROBE_READS * PROBE_WAYS * PROBE_ROUNDS;
        read[i] = (struct disk_read){.n_extent = 1};
        read[i].extent[0].file = file->file;
        read[i].extent[0].offset = round_down(file->n_bytes / n_place * place);
        read[i].extent[0].n_bytes = PROBE_READ_BYTES;
        read[i].to[0] = to + (size_t)i * PROBE_READ_BYTES;
    }
    advise_unneeded(reader, read);
    const double start_s = log_now_s();
    for (int i = 0; i < PROBE_READS; i++)
        disk_reader_submit(reader, &read[i], READ_DEMAND);
    while (disk_reader_reap(reader, &ended, 1, true))
        failed |= ended->failure != READ_OK;
    const double seconds = log_now_s() - start_s;
    advise_unneeded(reader, read);
    return failed ? 0 : seconds;
}

static bool probed_enough(const double seconds[PROBE_WAYS])
{
    for (int way = 0; way < PROBE_WAYS; way++)
        if (seconds[way] < PROBE_S) return false;
    return true;
}

/* Runs the rounds. Returns their number; 0: a read failed. */
static int probe_rounds(struct disk_reader *reader, const struct expert_extent *file, char *to,
                        double seconds[PROBE_WAYS])
{
    int n_round = 0;
    for (int way = 0; way < PROBE_WAYS; way++)
        seconds[way] = 0;
    for (; n_round < PROBE_ROUNDS && !probed_enough(seconds); n_round++) {
        for (int way = PROBE_WAYS; way-- > 0;) {
            reader->direct = way != PROBE_BUFFERED;
            set_shallow(reader, way == PROBE_DIRECT_SHALLOW);
            const double s = probe_round(reader, file, to, PROBE_WAYS * n_round + way);
            if (s <= 0) return 0; /* the reads proper will say what is wrong */
            seconds[way] += s;
        }
    }
    return n_round;
}

/* Sets direct, shallow_is_fast, and the rates of stats. */
static void probe(struct disk_reader *reader)
{
    const struct expert_extent file = largest_file(reader);
    char *to = NULL;
    double seconds[PROBE_WAYS];
    if (file.n_bytes < PROBE_FILE_BYTES ||
        posix_memalign((void **)&to, PROBE_ALIGN, PROBE_READS * PROBE_READ_BYTES))
        return;
    madvise(to, PROBE_READS * PROBE_READ_BYTES, MADV_HUGEPAGE);
    memset(to, 0, PROBE_READS * PROBE_READ_BYTES); /* the first round should not pay for faults */
    const int n_round = probe_rounds(reader, &file, to, seconds);
    set_shallow(reader, false);
    const double n_bytes = (double)n_round * PROBE_READS * PROBE_READ_BYTES;
    reader->stats = (struct disk_reader_stats){0}; /* the probe's own reads do not count */
    reader->stats.probe_direct_rate = n_round ? n_bytes / seconds[PROBE_DIRECT] : 0;
    reader->stats.probe_buffered_rate = n_round ? n_bytes / seconds[PROBE_BUFFERED] : 0;
    reader->stats.probe_shallow_rate = n_round ? n_bytes / seconds[PROBE_DIRECT_SHALLOW] : 0;
    reader->direct = !n_round || seconds[PROBE_DIRECT] <= seconds[PROBE_BUFFERED] * PROBE_GAIN;
    reader->shallow_is_fast =
        n_round && seconds[PROBE_DIRECT] >= seconds[PROBE_DIRECT_SHALLOW] * PROBE_SHALLOW;
    free(to);
}

/* Create and destroy. */

static enum lm_status start_engine(struct disk_reader *reader, enum disk_engine engine,
                                   struct lm_error *err)
{
    struct lm_error refused;
    if (engine != DISK_ENGINE_THREADS) {
        reader->engine = &disk_engine_uring;
        const enum lm_status status = reader->engine->start(reader, &refused);
        if (status == LM_OK) return LM_OK;
        if (engine == DISK_ENGINE_URING) {
            if (err) *err = refused;
            return status;
        }
        log_debug("disk reader: threads instead of %s", refused.message);
    }
    reader->engine = &disk_engine_threads;
    return reader->engine->start(reader, err);
}

static void init_locks(struct disk_reader *reader)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&reader->lock, NULL);
    pthread_cond_init(&reader->work, NULL);
    pthread_cond_init(&reader->ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static void fini_locks(struct disk_reader *reader)
{
    pthread_cond_destroy(&reader->ended);
    pthread_cond_destroy(&reader->work);
    pthread_mutex_destroy(&reader->lock);
}

enum lm_status disk_reader_create(struct disk_reader **out, const struct disk_reader_config *config,
                                  struct lm_error *err)
{
    if (config->depth > DEPTH_MAX)
        return lm_fail(err, LM_E_LIMIT, "disk reader: depth %u, at most %d", config->depth,
                       DEPTH_MAX);
    struct disk_reader *reader = calloc(1, sizeof(*reader));
    if (reader) reader->file = calloc(config->n_file, sizeof(*reader->file));
    if (!reader || !reader->file) {
        free(reader);
        return lm_fail(err, LM_E_NO_MEM, "disk reader: no memory for %zu files", config->n_file);
    }
    reader->n_file = config->n_file;
    reader->arena = config->arena;
    reader->arena_bytes = config->arena_bytes;
    reader->depth = config->depth ? config->depth : DEPTH_DEFAULT;
    reader->drop_cached = config->drop_cached;
    reader->progress = config->progress;
    for (size_t i = 0; i < config->n_file; i++)
        open_file(&config->file[i], config->access, &reader->file[i]);
    init_locks(reader);
    const enum lm_status status = start_engine(reader, config->engine, err);
    if (status != LM_OK) {
        fini_locks(reader);
        close_files(reader);
        free(reader);
        return status;
    }
    reader->direct = any_direct(reader);
    if (reader->direct && config->access == DISK_ACCESS_AUTO) probe(reader);
    reader->stats.engine = reader->engine->name;
    reader->stats.direct = reader->direct;
    *out = reader;
    return LM_OK;
}

void disk_reader_destroy(struct disk_reader *reader)
{
    if (!reader) return;
    pthread_mutex_lock(&reader->lock);
    reader->stop = true;
    pthread_mutex_unlock(&reader->lock);
    reader->engine->stop(reader);
    fini_locks(reader);
    close_files(reader);
    free(reader);
}
