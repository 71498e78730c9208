/* A reader kept busy with reads. */
#include "launch/bench/disk_probe.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "worker/pager/disk_reader.h"

enum { READ_BYTES = 1 << 20, N_SLOT = 40 /* more than any depth */ };
#define PROBE_S 0.1

struct probe {
    struct expert_file file;
    uint64_t n_place, n_taken;
    char *arena; /* [N_SLOT][READ_BYTES] */
};

static void submit_next(struct probe *probe, struct disk_reader *reader, struct disk_read *read,
                        char *slot)
{
    const uint64_t place = probe->n_taken++ * 7919 % probe->n_place;
    *read = (struct disk_read){
        .n_extent = 1, .extent = {{0, place * READ_BYTES, READ_BYTES}}, .to = {slot}};
    disk_reader_submit(reader, read, READ_DEMAND);
}

/* Bytes/s; 0: a read failed. */
static double keep_busy(struct probe *probe, struct disk_reader *reader)
{
    struct disk_read read[N_SLOT], *ended;
    double n_byte = 0, now_s = 0;
    bool failed = false;
    const double begin_s = log_now_s();
    for (size_t i = 0; i < N_SLOT; i++)
        submit_next(probe, reader, &read[i], probe->arena + i * READ_BYTES);
    while (disk_reader_reap(reader, &ended, 1, true)) {
        now_s = log_now_s();
        failed |= ended->failure != READ_OK;
        n_byte += READ_BYTES;
        if (now_s - begin_s < PROBE_S && !failed) submit_next(probe, reader, ended, ended->to[0]);
    }
    return failed ? 0 : n_byte / (now_s - begin_s);
}

static double measure(struct probe *probe, const char *io, uint32_t depth)
{
    struct disk_reader *reader;
    const bool buffered = !strcmp(io, "buffered");
    const struct disk_reader_config config = {.file = &probe->file,
                                              .n_file = 1,
                                              .arena = probe->arena,
                                              .arena_bytes = (size_t)N_SLOT * READ_BYTES,
                                              .depth = depth,
                                              .engine = !strcmp(io, "uring")   ? DISK_ENGINE_URING
                                                        : !strcmp(io, "pread") ? DISK_ENGINE_THREADS
                                                                               : DISK_ENGINE_AUTO,
                                              .access = buffered ? DISK_ACCESS_BUFFERED
                                                                 : DISK_ACCESS_DIRECT,
                                              .drop_cached = true};
    if (disk_reader_create(&reader, &config, NULL) != LM_OK) return 0;
    const double rate = disk_reader_stats(reader).direct != buffered ? keep_busy(probe, reader) : 0;
    disk_reader_destroy(reader);
    return rate;
}

enum lm_status disk_probe_run(struct disk_rate out[DISK_RATE_MAX], size_t *n, const char *path,
                              struct lm_error *err)
{
    static const struct disk_rate tried[] = {
        {"uring", 1, 0}, {"uring", 4, 0}, {"uring", 8, 0}, {"uring", 16, 0},  {"uring", 32, 0},
        {"pread", 1, 0}, {"pread", 4, 0}, {"pread", 8, 0}, {"buffered", 8, 0}};
    struct stat info;
    struct probe probe = {.file = {.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)}};
    enum lm_status status = LM_OK;
    *n = 0;
    if (probe.file.fd < 0 || fstat(probe.file.fd, &info))
        return lm_fail_errno(err, "%s: open", path);
    probe.file.n_bytes = (uint64_t)info.st_size;
    probe.n_place = probe.file.n_bytes / READ_BYTES;
    if (posix_memalign((void **)&probe.arena, DISK_ALIGN, (size_t)N_SLOT * READ_BYTES))
        status = lm_fail(err, LM_E_NO_MEM, "no memory to measure the disk");
    for (size_t i = 0; status == LM_OK && probe.n_place && i < sizeof(tried) / sizeof(tried[0]);
         i++) {
        out[*n] = tried[i];
        out[*n].bytes_s = measure(&probe, tried[i].io, tried[i].depth);
        *n += out[*n].bytes_s > 0;
    }
    free(probe.arena);
    close(probe.file.fd);
    return status;
}
