/* Two probes, and the file that remembers them. */
#include "launch/inventory.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/plan/memory_plan.h"
#include "kernels/cpu/pool.h"
#include "launch/config.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/machine.pb-c.h"
#include "proto/text/textproto.h"

#define PROBE_S 0.2
#define USUAL_MEMORY_RATE 10e9
#define USUAL_DISK_RATE 1e9
enum { KEPT_S = 7 * 24 * 3600, LOCK_S = 5 };

/* ---- memory ------------------------------------------------------------------------------- */

enum { PIECE_BYTES = 4 << 20, N_PIECE_MIN = 64 };

struct memory_probe {
    uint64_t *memory;
    _Atomic uint64_t sum; /* so that reading is not left out */
};

static void touch_piece(void *context, uint32_t task, uint32_t worker)
{
    struct memory_probe *probe = context;
    (void)worker;
    memset((char *)probe->memory + (size_t)task * PIECE_BYTES, 1, PIECE_BYTES);
}

static void read_piece(void *context, uint32_t task, uint32_t worker)
{
    struct memory_probe *probe = context;
    const uint64_t *piece = probe->memory + (size_t)task * (PIECE_BYTES / sizeof(uint64_t));
    uint64_t sum = 0;
    (void)worker;
    for (size_t i = 0; i < PIECE_BYTES / sizeof(uint64_t); i++)
        sum += piece[i];
    atomic_fetch_add_explicit(&probe->sum, sum, memory_order_relaxed);
}

/* Twice the last cache, which may be one of many guests', unless memory is short. */
static uint32_t choose_n_piece(void)
{
    const long cache_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const uint64_t most = host_memory_available() / 4 / PIECE_BYTES;
    uint64_t n = cache_bytes > 0 ? 2 * (uint64_t)cache_bytes / PIECE_BYTES : 0;
    if (n > most) n = most;
    return n < N_PIECE_MIN ? N_PIECE_MIN : (uint32_t)n;
}

/* Bytes/s; 0: no memory. */
static double measure_memory(struct pool *pool)
{
    struct memory_probe probe = {.sum = 0};
    const uint32_t n_piece = choose_n_piece();
    const size_t n_bytes = (size_t)n_piece * PIECE_BYTES;
    probe.memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (probe.memory == MAP_FAILED) return 0;
    madvise(probe.memory, n_bytes, MADV_HUGEPAGE);
    pool_run(pool, touch_piece, &probe, n_piece);
    const double begin_s = log_now_s();
    double seconds, n_read = 0;
    do {
        pool_run(pool, read_piece, &probe, n_piece);
        n_read += (double)n_bytes;
        seconds = log_now_s() - begin_s;
    } while (seconds < PROBE_S);
    munmap(probe.memory, n_bytes);
    return n_read / seconds;
}

/* ---- disk --------------------------------------------------------------------------------- */

enum { READ_BYTES = 1 << 20, N_READER = 8 };

struct disk_probe {
    int fd;
    uint64_t n_place; /* of READ_BYTES in the file */
    double end_s;
    _Atomic uint64_t n_taken, n_read; /* places, bytes */
};

/* Places far apart, each once. */
static void *read_places(void *context)
{
    struct disk_probe *probe = context;
    void *memory;
    if (posix_memalign(&memory, 4096, READ_BYTES)) return NULL;
    while (log_now_s() < probe->end_s) {
        const uint64_t i = atomic_fetch_add(&probe->n_taken, 1);
        const uint64_t place = i * 7919 % probe->n_place;
        if (i >= probe->n_place) break;
        const ssize_t n = pread(probe->fd, memory, READ_BYTES, (off_t)(place * READ_BYTES));
        if (n <= 0) break;
        atomic_fetch_add(&probe->n_read, (uint64_t)n);
    }
    free(memory);
    return NULL;
}

/* Bytes/s; 0: it cannot be told. */
static double measure_disk(const char *path)
{
    pthread_t thread[N_READER];
    struct stat info;
    uint32_t n = 0;
    struct disk_probe probe = {.fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC)};
    if (probe.fd < 0) return 0;
    if (fstat(probe.fd, &info) == 0) probe.n_place = (uint64_t)info.st_size / READ_BYTES;
    const double begin_s = log_now_s();
    probe.end_s = begin_s + PROBE_S;
    while (probe.n_place && n < N_READER && !pthread_create(&thread[n], NULL, read_places, &probe))
        n++;
    for (uint32_t i = 0; i < n; i++)
        pthread_join(thread[i], NULL);
    close(probe.fd);
    return (double)atomic_load(&probe.n_read) / (log_now_s() - begin_s);
}

/* ---- what is remembered ------------------------------------------------------------------- */

/* Of the host, the threads and the disk; malloc'ed, NULL: there is nowhere to keep it. */
static char *machine_path(const struct inventory *inventory, const char *model_path)
{
    char suffix[160];
    struct stat info = {.st_dev = 0};
    (void)!stat(model_path, &info);
    snprintf(suffix, sizeof(suffix), "lean/machines/%s-%u-%llx.textproto", inventory->host,
             inventory->n_thread, (unsigned long long)info.st_dev);
    return config_user_path("XDG_CACHE_HOME", ".cache", suffix);
}

/* False: it is not there, not to be read, or old. */
static bool read_rates(struct inventory *inventory, int fd)
{
    Lean__Machine *machine = (Lean__Machine *)textproto_create(&lean__machine__descriptor);
    char *text = NULL;
    size_t n;
    bool found = machine && read_all(fd, "machine", 4096, &text, &n, NULL) == LM_OK &&
                 textproto_merge(&machine->base, "machine", text, n, NULL, NULL, NULL) == LM_OK;
    const int64_t age_s = found ? (int64_t)time(NULL) - machine->time : 0;
    found =
        found && age_s >= 0 && age_s < KEPT_S && machine->memory_rate > 0 && machine->disk_rate > 0;
    if (found) {
        inventory->memory_bytes_s = machine->memory_rate;
        inventory->disk_bytes_s = machine->disk_rate;
    }
    free(text);
    if (machine) lean__machine__free_unpacked(machine, NULL);
    return found;
}

static void write_rates(const struct inventory *inventory, int fd)
{
    Lean__Machine machine = LEAN__MACHINE__INIT;
    machine.has_memory_rate = machine.has_disk_rate = machine.has_time = true;
    machine.memory_rate = inventory->memory_bytes_s;
    machine.disk_rate = inventory->disk_bytes_s;
    machine.time = (int64_t)time(NULL);
    char *text = textproto_write(&machine.base, NULL, NULL);
    /* half a file is measured again */
    if (text && ftruncate(fd, 0) == 0) (void)!pwrite(fd, text, strlen(text), 0);
    free(text);
}

static void measure(struct inventory *inventory, const char *model_path, struct pool *pool)
{
    inventory->memory_bytes_s = measure_memory(pool);
    inventory->disk_bytes_s = measure_disk(model_path);
    if (inventory->memory_bytes_s <= 0) {
        log_warning("the memory's speed could not be measured: taken as %g GB/s",
                    USUAL_MEMORY_RATE / 1e9);
        inventory->memory_bytes_s = USUAL_MEMORY_RATE;
    }
    if (inventory->disk_bytes_s <= 0) {
        log_verbose("%s: direct reads could not be measured: taken as %g GB/s", model_path,
                    USUAL_DISK_RATE / 1e9);
        inventory->disk_bytes_s = USUAL_DISK_RATE;
    }
}

/* Waits for whoever measures, but not for one that was stopped: then both do. */
static void lock(int fd)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    const double end_s = log_now_s() + LOCK_S;
    while (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK && log_now_s() < end_s)
        nanosleep(&pause, NULL);
}

static void take(struct inventory *out, const char *model_path, uint32_t n_thread, bool afresh)
{
    struct pool *pool;
    *out = (struct inventory){.ram_bytes = host_memory_available(),
                              .memory_bytes_s = USUAL_MEMORY_RATE,
                              .disk_bytes_s = USUAL_DISK_RATE};
    if (gethostname(out->host, sizeof(out->host) - 1)) strcpy(out->host, "localhost");
    if (pool_create(&pool, n_thread, false, NULL) != LM_OK) return;
    out->n_thread = pool_n_thread(pool);
    char *path = machine_path(out, model_path);
    if (path) config_make_parents(path);
    const int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd >= 0) lock(fd); /* who waits finds what the other has measured */
    if (fd < 0 || afresh || !read_rates(out, fd)) {
        measure(out, model_path, pool);
        if (fd >= 0) write_rates(out, fd);
    }
    if (fd >= 0) close(fd);
    free(path);
    pool_destroy(pool);
}

void inventory_take(struct inventory *out, const char *model_path, uint32_t n_thread)
{
    take(out, model_path, n_thread, false);
}

void inventory_measure(struct inventory *out, const char *model_path, uint32_t n_thread)
{
    take(out, model_path, n_thread, true);
}
