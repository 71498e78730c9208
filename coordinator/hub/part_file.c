/* Ranges, the journal, and the file they are of. */
#include "coordinator/hub/part_file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/read_all.h"

/* A journal is written anew, with ranges that have met as one, after so many lines: of a download
 * of a day there are millions. */
enum { JOURNAL_MAX = 64 << 20, JOURNAL_LINES = 4096, PUNCH_BYTES = 4 << 20 };

/* Ascending, apart from each other. */
struct ranges {
    struct byte_range *at;
    size_t n, n_max;
    uint64_t n_bytes; /* in all of them */
};

struct part_file {
    char *path, *part_path, *journal_path, *name, *hash;
    int fd, journal;
    uint64_t n_bytes;
    size_t n_line; /* in the journal, under journal_lock */

    pthread_mutex_t lock; /* guards what follows */
    struct ranges done;
    struct ranges unsynced;
    struct ranges released; /* of done: not needed any more */
    struct ranges gone;     /* of those: punched out */
    uint64_t n_hashed;

    pthread_mutex_t journal_lock; /* held while the journal is written; taken before lock */
};

/* ---- ranges ---- */

static bool ranges_add(struct ranges *ranges, uint64_t start, uint64_t end)
{
    size_t first = 0, last;
    if (start >= end) return true;
    for (size_t high = ranges->n; first < high;) {
        const size_t middle = first + (high - first) / 2;
        if (ranges->at[middle].end < start)
            first = middle + 1;
        else
            high = middle;
    }
    last = first; /* [first, last): those that the new one touches */
    while (last < ranges->n && ranges->at[last].start <= end)
        last++;
    if (first == last && ranges->n == ranges->n_max) {
        const size_t n_max = ranges->n_max ? 2 * ranges->n_max : 32;
        struct byte_range *grown = realloc(ranges->at, n_max * sizeof(*grown));
        if (!grown) return false;
        ranges->at = grown;
        ranges->n_max = n_max;
    }
    struct byte_range whole = {start, end};
    for (size_t i = first; i < last; i++) {
        ranges->n_bytes -= ranges->at[i].end - ranges->at[i].start;
        if (ranges->at[i].start < whole.start) whole.start = ranges->at[i].start;
        if (ranges->at[i].end > whole.end) whole.end = ranges->at[i].end;
    }
    memmove(&ranges->at[first + 1], &ranges->at[last], (ranges->n - last) * sizeof(*ranges->at));
    ranges->n = ranges->n - (last - first) + 1;
    ranges->at[first] = whole;
    ranges->n_bytes += whole.end - whole.start;
    return true;
}

static void ranges_clear(struct ranges *ranges)
{
    ranges->n = 0;
    ranges->n_bytes = 0;
}

/* ---- the journal ---- */

static char *suffixed(const char *path, const char *suffix)
{
    char *out;
    return asprintf(&out, "%s%s", path, suffix) < 0 ? NULL : out;
}

/* "START END" and the end of the line, which is returned; NULL: it is not that. Not by sscanf,
 * which would look for the end of all of the text at each line. */
static const char *parse_range(const char *line, struct byte_range *range)
{
    char *end;
    if (!isdigit((unsigned char)*line)) return NULL;
    range->start = strtoull(line, &end, 10);
    if (*end != ' ' || !isdigit((unsigned char)end[1])) return NULL;
    range->end = strtoull(end + 1, &end, 10);
    return *end == '\n' ? end : NULL;
}

/* The journal's ranges, if its first line is of this file (hash NULL: of any), else none. */
static bool parse_journal(const char *text, const char *hash, struct ranges *ranges,
                          uint64_t *n_bytes, char **name)
{
    struct byte_range range;
    unsigned long long size;
    char found[80];
    int used = 0;
    if (sscanf(text, "lean-part 1 %llu %79s %n", &size, found, &used) < 2 || !used) return false;
    if (hash && strcmp(found, hash)) return false;
    const char *line = strchr(text, '\n');
    if (!line) return false;
    if (name) *name = strndup(text + used, (size_t)(line - text) - (size_t)used);
    *n_bytes = size;
    while ((line = parse_range(line + 1, &range)) && range.start < range.end && range.end <= size)
        if (!ranges_add(ranges, range.start, range.end)) return false;
    return true;
}

static bool read_journal(const char *journal_path, const char *hash, struct ranges *ranges,
                         uint64_t *n_bytes, char **name)
{
    char *text;
    size_t n;
    if (read_all_path(journal_path, JOURNAL_MAX, &text, &n, NULL) != LM_OK) return false;
    const bool good = parse_journal(text, hash, ranges, n_bytes, name);
    free(text);
    return good;
}

static enum lm_status write_all(int fd, const char *text, size_t n, const char *path,
                                struct lm_error *err)
{
    while (n) {
        const ssize_t written = write(fd, text, n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return lm_fail_errno(err, "%s", path);
        text += written;
        n -= (size_t)written;
    }
    return LM_OK;
}

static enum lm_status append_ranges(struct part_file *part, const struct byte_range *at, size_t n,
                                    struct lm_error *err)
{
    enum lm_status status = LM_OK;
    char line[64];
    for (size_t i = 0; i < n && status == LM_OK; i++) {
        const int length = snprintf(line, sizeof(line), "%llu %llu\n",
                                    (unsigned long long)at[i].start, (unsigned long long)at[i].end);
        status = write_all(part->journal, line, (size_t)length, part->journal_path, err);
    }
    if (status == LM_OK && fdatasync(part->journal))
        status = lm_fail_errno(err, "%s", part->journal_path);
    part->n_line += n;
    return status;
}

/* What of a is not in b, in order; out has room for a->n + b->n. Returns how many. */
static size_t ranges_subtract(const struct ranges *a, const struct ranges *b,
                              struct byte_range *out)
{
    size_t n = 0, k = 0;
    for (size_t i = 0; i < a->n; i++) {
        uint64_t at = a->at[i].start;
        while (k < b->n && b->at[k].end <= at)
            k++;
        for (size_t j = k; j < b->n && b->at[j].start < a->at[i].end; j++) {
            if (b->at[j].start > at) out[n++] = (struct byte_range){at, b->at[j].start};
            if (b->at[j].end > at) at = b->at[j].end;
        }
        if (at < a->at[i].end) out[n++] = (struct byte_range){at, a->at[i].end};
    }
    return n;
}

/* Ranges that are there and synced, but those that were punched out. */
static enum lm_status append_kept(struct part_file *part, struct lm_error *err)
{
    pthread_mutex_lock(&part->lock);
    struct ranges lacks = {0};
    bool good = true;
    for (size_t i = 0; i < part->unsynced.n; i++)
        good = good && ranges_add(&lacks, part->unsynced.at[i].start, part->unsynced.at[i].end);
    for (size_t i = 0; i < part->gone.n; i++)
        good = good && ranges_add(&lacks, part->gone.at[i].start, part->gone.at[i].end);
    struct byte_range *kept = malloc((part->done.n + lacks.n + 1) * sizeof(*kept));
    const size_t n = good && kept ? ranges_subtract(&part->done, &lacks, kept) : 0;
    pthread_mutex_unlock(&part->lock);
    const enum lm_status status = good && kept
                                      ? append_ranges(part, kept, n, err)
                                      : lm_fail(err, LM_E_NO_MEM, "no memory for a journal");
    free(kept);
    free(lacks.at);
    return status;
}

/* A new journal with what is done, in the place of the one that is there. */
static enum lm_status start_journal(struct part_file *part, struct lm_error *err)
{
    char *fresh = suffixed(part->journal_path, ".new"), *head = NULL;
    if (!fresh || asprintf(&head, "lean-part 1 %llu %s %s\n", (unsigned long long)part->n_bytes,
                           part->hash, part->name) < 0) {
        free(fresh);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a journal");
    }
    enum lm_status status = LM_OK;
    if (part->journal >= 0) close(part->journal);
    part->n_line = 0;
    part->journal = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    if (part->journal < 0) status = lm_fail_errno(err, "%s", fresh);
    if (status == LM_OK) status = write_all(part->journal, head, strlen(head), fresh, err);
    if (status == LM_OK) status = append_kept(part, err);
    if (status == LM_OK && rename(fresh, part->journal_path))
        status = lm_fail_errno(err, "%s", part->journal_path);
    free(fresh);
    free(head);
    return status;
}

/* ---- open and close ---- */

static enum lm_status open_files(struct part_file *part, struct lm_error *err)
{
    struct stat info;
    uint64_t n_bytes = 0;
    part->fd = open(part->part_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (part->fd < 0 || fstat(part->fd, &info)) return lm_fail_errno(err, "%s", part->part_path);
    if ((uint64_t)info.st_size != part->n_bytes ||
        !read_journal(part->journal_path, part->hash, &part->done, &n_bytes, NULL) ||
        n_bytes != part->n_bytes)
        ranges_clear(&part->done);
    /* the journal first: it must not speak of bytes of another file */
    enum lm_status status = start_journal(part, err);
    if (status == LM_OK && ftruncate(part->fd, (off_t)part->n_bytes))
        status = lm_fail_errno(err, "%s", part->part_path);
    return status;
}

enum lm_status part_file_open(struct part_file **out, const char *path, const char *name,
                              uint64_t n_bytes, const char *hash, struct lm_error *err)
{
    struct part_file *part = calloc(1, sizeof(*part));
    if (!part) return lm_fail(err, LM_E_NO_MEM, "no memory for a download");
    part->fd = part->journal = -1;
    part->n_bytes = n_bytes;
    pthread_mutex_init(&part->lock, NULL);
    pthread_mutex_init(&part->journal_lock, NULL);
    part->path = strdup(path);
    part->part_path = suffixed(path, ".lean-part");
    part->journal_path = suffixed(path, ".lean-part.j");
    part->name = strdup(name);
    part->hash = strdup(*hash ? hash : "-");
    enum lm_status status =
        part->path && part->part_path && part->journal_path && part->name && part->hash
            ? open_files(part, err)
            : lm_fail(err, LM_E_NO_MEM, "no memory for a download");
    if (status == LM_OK)
        *out = part;
    else
        part_file_close(part);
    return status;
}

void part_file_close(struct part_file *part)
{
    if (!part) return;
    if (part->fd >= 0) close(part->fd);
    if (part->journal >= 0) close(part->journal);
    pthread_mutex_destroy(&part->lock);
    pthread_mutex_destroy(&part->journal_lock);
    free(part->released.at);
    free(part->gone.at);
    free(part->done.at);
    free(part->unsynced.at);
    free(part->path);
    free(part->part_path);
    free(part->journal_path);
    free(part->name);
    free(part->hash);
    free(part);
}

/* ---- bytes ---- */

enum lm_status part_file_write(struct part_file *part, uint64_t offset, const void *bytes, size_t n,
                               struct lm_error *err)
{
    for (size_t used = 0; used < n;) {
        const ssize_t written =
            pwrite(part->fd, (const char *)bytes + used, n - used, (off_t)(offset + used));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return lm_fail_errno(err, "%s: write", part->name);
        used += (size_t)written;
    }
    pthread_mutex_lock(&part->lock);
    const bool good = ranges_add(&part->done, offset, offset + n) &&
                      ranges_add(&part->unsynced, offset, offset + n);
    pthread_mutex_unlock(&part->lock);
    return good ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a journal");
}

enum lm_status part_file_read(struct part_file *part, uint64_t offset, void *bytes, size_t n,
                              struct lm_error *err)
{
    for (size_t used = 0; used < n;) {
        const ssize_t got = pread(part->fd, (char *)bytes + used, n - used, (off_t)(offset + used));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return lm_fail_errno(err, "%s: read", part->part_path);
        if (!got) return lm_fail(err, LM_E_IO, "%s: was cut off meanwhile", part->part_path);
        used += (size_t)got;
    }
    return LM_OK;
}

uint64_t part_file_size(const struct part_file *part)
{
    return part->n_bytes;
}

uint64_t part_file_done(struct part_file *part)
{
    pthread_mutex_lock(&part->lock);
    const uint64_t n = part->done.n_bytes;
    pthread_mutex_unlock(&part->lock);
    return n;
}

uint64_t part_file_unsynced(struct part_file *part)
{
    pthread_mutex_lock(&part->lock);
    const uint64_t n = part->unsynced.n_bytes;
    pthread_mutex_unlock(&part->lock);
    return n;
}

uint64_t part_file_prefix(struct part_file *part)
{
    pthread_mutex_lock(&part->lock);
    const uint64_t n = part->done.n && !part->done.at[0].start ? part->done.at[0].end : 0;
    pthread_mutex_unlock(&part->lock);
    return n;
}

bool part_file_next_gap(struct part_file *part, uint64_t offset, struct byte_range *gap)
{
    pthread_mutex_lock(&part->lock);
    size_t i = 0;
    for (; i < part->done.n && part->done.at[i].start <= offset; i++)
        if (part->done.at[i].end > offset) offset = part->done.at[i].end;
    *gap = (struct byte_range){offset, i < part->done.n ? part->done.at[i].start : part->n_bytes};
    pthread_mutex_unlock(&part->lock);
    return gap->start < gap->end;
}

/* ---- sync ---- */

void part_file_set_hashed(struct part_file *part, uint64_t n_bytes)
{
    pthread_mutex_lock(&part->lock);
    part->n_hashed = n_bytes;
    pthread_mutex_unlock(&part->lock);
}

static enum lm_status sync_locked(struct part_file *part, struct lm_error *err)
{
    pthread_mutex_lock(&part->lock);
    struct ranges taken = part->unsynced;
    part->unsynced = (struct ranges){0};
    pthread_mutex_unlock(&part->lock);
    enum lm_status status = LM_OK;
    if (taken.n && fdatasync(part->fd)) status = lm_fail_errno(err, "%s", part->part_path);
    if (taken.n && status == LM_OK) status = append_ranges(part, taken.at, taken.n, err);
    free(taken.at);
    return status;
}

static bool is_journal_long(struct part_file *part)
{
    pthread_mutex_lock(&part->lock);
    const size_t n_least = part->done.n + part->gone.n;
    pthread_mutex_unlock(&part->lock);
    return part->n_line > JOURNAL_LINES && part->n_line > 2 * n_least;
}

enum lm_status part_file_sync(struct part_file *part, struct lm_error *err)
{
    pthread_mutex_lock(&part->journal_lock);
    enum lm_status status = sync_locked(part, err);
    if (status == LM_OK && is_journal_long(part)) status = start_journal(part, err);
    pthread_mutex_unlock(&part->journal_lock);
    return status;
}

enum lm_status part_file_release(struct part_file *part, struct byte_range range,
                                 struct lm_error *err)
{
    pthread_mutex_lock(&part->lock);
    const bool good = ranges_add(&part->released, range.start, range.end);
    pthread_mutex_unlock(&part->lock);
    return good ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a journal");
}

/* What can be punched out now: released, hashed, and not gone yet. *out: malloc'ed [*n]. */
static bool list_useless(struct part_file *part, struct byte_range **out, size_t *n,
                         uint64_t *n_bytes)
{
    pthread_mutex_lock(&part->lock);
    *out = malloc((part->released.n + part->gone.n + 1) * sizeof(**out));
    *n_bytes = 0;
    size_t n_all = *out ? ranges_subtract(&part->released, &part->gone, *out) : 0, n_kept = 0;
    for (size_t i = 0; i < n_all; i++) {
        struct byte_range range = (*out)[i];
        if (range.end > part->n_hashed) range.end = part->n_hashed;
        if (range.start >= range.end) continue;
        *n_bytes += range.end - range.start;
        (*out)[n_kept++] = range;
    }
    *n = n_kept;
    pthread_mutex_unlock(&part->lock);
    return *out != NULL;
}

static enum lm_status punch_locked(struct part_file *part, const struct byte_range *at, size_t n,
                                   struct lm_error *err)
{
    /* what is not in the journal yet must not come into it afterwards */
    enum lm_status status = sync_locked(part, err);
    bool good = true;
    pthread_mutex_lock(&part->lock);
    for (size_t i = 0; i < n; i++)
        good = good && ranges_add(&part->gone, at[i].start, at[i].end);
    pthread_mutex_unlock(&part->lock);
    if (!good) status = lm_fail(err, LM_E_NO_MEM, "no memory for a journal");
    if (status == LM_OK) status = start_journal(part, err);
    for (size_t i = 0; i < n && status == LM_OK; i++)
        if (fallocate(part->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at[i].start,
                      (off_t)(at[i].end - at[i].start)) &&
            errno != EOPNOTSUPP) /* where it is not possible it takes more room */
            status = lm_fail_errno(err, "%s", part->part_path);
    return status;
}

enum lm_status part_file_punch(struct part_file *part, struct lm_error *err)
{
    struct byte_range *useless;
    size_t n;
    uint64_t n_bytes;
    enum lm_status status = LM_OK;
    pthread_mutex_lock(&part->journal_lock);
    if (!list_useless(part, &useless, &n, &n_bytes))
        status = lm_fail(err, LM_E_NO_MEM, "no memory for a journal");
    else if (n_bytes >= PUNCH_BYTES)
        status = punch_locked(part, useless, n, err);
    pthread_mutex_unlock(&part->journal_lock);
    free(useless);
    return status;
}

enum lm_status part_file_discard(struct part_file *part, struct lm_error *err)
{
    pthread_mutex_lock(&part->journal_lock);
    pthread_mutex_lock(&part->lock);
    ranges_clear(&part->done);
    ranges_clear(&part->unsynced);
    ranges_clear(&part->released);
    ranges_clear(&part->gone);
    part->n_hashed = 0;
    pthread_mutex_unlock(&part->lock);
    const enum lm_status status = start_journal(part, err);
    pthread_mutex_unlock(&part->journal_lock);
    if (ftruncate(part->fd, 0) || ftruncate(part->fd, (off_t)part->n_bytes))
        return lm_fail_errno(err, "%s", part->part_path);
    return status;
}

enum lm_status part_file_publish(struct part_file *part, struct lm_error *err)
{
    if (fdatasync(part->fd)) return lm_fail_errno(err, "%s", part->part_path);
    if (rename(part->part_path, part->path)) return lm_fail_errno(err, "%s", part->path);
    unlink(part->journal_path);
    return LM_OK;
}

bool part_file_peek(const char *path, const char *hash, uint64_t *n_done, uint64_t *n_all,
                    char **name)
{
    struct ranges ranges = {0};
    char *journal_path = suffixed(path, ".lean-part.j");
    if (name) *name = NULL;
    const bool good = journal_path && read_journal(journal_path, hash, &ranges, n_all, name);
    *n_done = ranges.n_bytes;
    free(ranges.at);
    free(journal_path);
    return good;
}

void part_file_remove(const char *path)
{
    static const char *const suffixes[] = {".lean-part", ".lean-part.j", ".lean-part.j.new"};
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        char *name = suffixed(path, suffixes[i]);
        if (name) unlink(name);
        free(name);
    }
}
