/* lean doctor: what of this machine helps or hinders: memory, pages, NUMA nodes, accelerators, MPI,
 * disk, clock, limits. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/plan/memory_plan.h"
#include "kernels/backend_cuda.h"
#include "kernels/kernels.h"
#include "launch/command.h"
#include "launch/config.h"
#include "launch/find_program.h"
#include "launch/hub_settings.h"
#include "launch/inventory.h"
#include "proto/base/cgroup.h"
#include "proto/base/log.h"
#include "proto/transport/mpi/mpi_plugin.h"

enum state { STATE_OK, STATE_NOTE, STATE_FAILED };

static const char *const state_names[] = {"ok", "note", "failed"};

/* What must hold: less and nothing of use runs. */
enum { MIN_FREE_BYTES = 512 << 20, MIN_OPEN_FILES = 64, GOOD_OPEN_FILES = 1024 };

struct doctor {
    struct json_object *checks;
    bool json;
    uint32_t n_failed;
};

/* One line: what was looked at, what was found, and with a note what follows from it. */
static void tell(struct doctor *doctor, enum state state, const char *name, const char *advice,
                 const char *format, ...) LM_PRINTF(5, 6);

static void tell(struct doctor *doctor, enum state state, const char *name, const char *advice,
                 const char *format, ...)
{
    char found[1200], shown[4 * sizeof(found)];
    va_list args;
    va_start(args, format);
    vsnprintf(found, sizeof(found), format, args);
    va_end(args);
    log_printable(found, strlen(found), shown, sizeof(shown));
    doctor->n_failed += state == STATE_FAILED;
    if (doctor->json) {
        struct json_object *check = json_object_new_object();
        json_object_object_add(check, "name", json_object_new_string(name));
        json_object_object_add(check, "state", json_object_new_string(state_names[state]));
        json_object_object_add(check, "found", json_object_new_string(shown));
        json_object_object_add(check, "advice",
                               state == STATE_OK ? NULL : json_object_new_string(advice));
        json_object_array_add(doctor->checks, check);
        return;
    }
    printf("%-7s %-13s %s\n", state_names[state], name, shown);
    if (state != STATE_OK) printf("%-7s %-13s %s\n", "", "", advice);
}

/* The first line of a file; "" if there is none. */
static const char *first_line(const char *path, char line[200])
{
    FILE *file = fopen(path, "re");
    *line = 0;
    if (file && fgets(line, 200, file)) line[strcspn(line, "\n")] = 0;
    if (file) fclose(file);
    return line;
}

/* ---- processor and memory ----------------------------------------------------------------- */

static void check_processor(struct doctor *doctor)
{
    char list[200] = "";
    const char *best = "ref";
    for (const char *const *name = kernels_available(); *name; name++) {
        if (!strcmp(*name, "reference")) continue;
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", *list ? ", " : "",
                 *name);
        if (!strncmp(*name, "avx", 3)) best = *name;
    }
    const uint32_t limit = cgroup_cpu_limit("");
    const long n_processor = sysconf(_SC_NPROCESSORS_ONLN);
    tell(doctor, strcmp(best, "ref") ? STATE_OK : STATE_NOTE, "processor",
         "no AVX2: only the scalar kernels run, which are slow", "%ld processors; kernels: %s",
         n_processor, list);
    if (limit < (uint64_t)n_processor)
        tell(doctor, STATE_NOTE, "processor time", "more threads than that wait for each other",
             "a control group allows %u processors' time", limit);
}

static void check_memory(struct doctor *doctor, const struct inventory *inventory)
{
    char total[24], free_text[24];
    const uint64_t n_total = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t n_free = host_memory_available();
    tell(doctor, n_free >= MIN_FREE_BYTES ? STATE_OK : STATE_FAILED, "memory",
         "at least 512 MiB must be free", "%s, of which %s can be had",
         log_format_bytes(n_total, total), log_format_bytes(n_free, free_text));
    tell(doctor, STATE_OK, "memory speed", "", "%.1f GB/s read by %u threads",
         inventory->memory_bytes_s / 1e9, inventory->n_thread);
}

static void check_pages(struct doctor *doctor)
{
    char line[200];
    first_line("/sys/kernel/mm/transparent_hugepage/enabled", line);
    tell(doctor, *line && !strstr(line, "[never]") ? STATE_OK : STATE_NOTE, "huge pages",
         "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes large models a little "
         "faster",
         "transparent huge pages: %s", *line ? line : "not there");
}

static void check_numa(struct doctor *doctor)
{
    uint32_t n = 0;
    for (char path[80]; n < 1024; n++) {
        snprintf(path, sizeof(path), "/sys/devices/system/node/node%u", n);
        if (access(path, F_OK)) break;
    }
    tell(doctor, n <= 1 ? STATE_OK : STATE_NOTE, "NUMA",
         "--ranks with as many ranks as nodes keeps each node's weights in its own memory",
         "%u node%s", n ? n : 1, n > 1 ? "s" : "");
}

/* ---- accelerators and MPI ----------------------------------------------------------------- */

static void check_accelerators(struct doctor *doctor)
{
    enum { MAX_DEVICES = 16 };
    struct cuda_device_info devices[MAX_DEVICES];
    struct lm_error err;
    uint32_t n = 0;
    if (backend_cuda_devices(NULL, devices, MAX_DEVICES, &n, &err) != LM_OK) {
        tell(doctor, STATE_NOTE, "accelerators", "models run on the processor", "none: %s",
             err.message);
        return;
    }
    for (uint32_t i = 0; i < n && i < MAX_DEVICES; i++) {
        char total[24], text[24], left[32] = "busy";
        uint64_t free_bytes;
        if (backend_cuda_free_bytes(NULL, i, &free_bytes, NULL) == LM_OK)
            snprintf(left, sizeof(left), "%s free", log_format_bytes(free_bytes, text));
        tell(doctor, devices[i].major >= 8 ? STATE_OK : STATE_NOTE, "accelerator",
             "needs compute capability 8.0", "%s, compute capability %u.%u, %s, %s",
             devices[i].name, devices[i].major, devices[i].minor,
             log_format_bytes(devices[i].total_bytes, total), left);
    }
}

static void check_mpi(struct doctor *doctor)
{
    const struct plugin_head *head;
    struct lm_error err;
    if (!find_program("mpirun"))
        tell(doctor, STATE_NOTE, "MPI", "--ranks needs Open MPI (Debian: openmpi-bin)",
             "there is no mpirun");
    else if (plugin_open(&head, MPI_PLUGIN_FILE, sizeof(struct mpi_plugin), &err) != LM_OK)
        tell(doctor, STATE_NOTE, "MPI", "launch/setup.sh installs what --ranks needs", "%s",
             err.message);
    else
        tell(doctor, STATE_OK, "MPI", "", "mpirun and %s", MPI_PLUGIN_FILE);
}

/* ---- the disk ----------------------------------------------------------------------------- */

/* The folder, or the nearest one above it that is there. */
static void find_existing(const char *path, char out[PATH_MAX])
{
    struct stat info;
    snprintf(out, PATH_MAX, "%s", path);
    while (stat(out, &info) || !S_ISDIR(info.st_mode)) {
        char *const slash = strrchr(out, '/');
        if (!slash || slash == out) break;
        *slash = 0;
    }
    if (stat(out, &info)) strcpy(out, "/");
}

struct disk_speed {
    double write_bytes_s, read_bytes_s; /* past the page cache; 0: it cannot be told */
};

/* One block after the other, for a short while or to the end. Returns bytes per second. */
static double move(int fd, bool write, char *block, size_t n_block, uint64_t n_max)
{
    const double begin_s = log_now_s();
    uint64_t n = 0;
    while (n < n_max && log_now_s() - begin_s < 0.5) {
        const ssize_t done =
            write ? pwrite(fd, block, n_block, (off_t)n) : pread(fd, block, n_block, (off_t)n);
        if (done != (ssize_t)n_block) break;
        n += n_block;
    }
    if (write && fsync(fd)) return 0;
    return (double)n / (log_now_s() - begin_s);
}

/* By a file without a name, which is gone with its descriptor. */
static enum lm_status measure_disk(const char *folder, struct disk_speed *out, struct lm_error *err)
{
    enum { BLOCK_BYTES = 1 << 20, FILE_BYTES = 256 << 20 };
    char name[PATH_MAX + 40];
    snprintf(name, sizeof(name), "%s/.lean-doctor-%d", folder, (int)getpid());
    const int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return lm_fail_errno(err, "%s: create a file", folder);
    const int direct = open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
    unlink(name);
    char *block = aligned_alloc(4096, BLOCK_BYTES);
    if (block) {
        memset(block, 0x5a, BLOCK_BYTES);
        out->write_bytes_s = move(fd, true, block, BLOCK_BYTES, FILE_BYTES);
        if (direct >= 0) out->read_bytes_s = move(direct, false, block, BLOCK_BYTES, FILE_BYTES);
    }
    free(block);
    if (direct >= 0) close(direct);
    close(fd);
    return LM_OK;
}

static void check_disk(struct doctor *doctor, const char *cache)
{
    char folder[PATH_MAX], free_text[24], write_text[24], read_text[24];
    struct disk_speed speed = {0, 0};
    struct statvfs space;
    struct lm_error err;
    find_existing(cache, folder);
    if (measure_disk(folder, &speed, &err) != LM_OK) {
        tell(doctor, STATE_FAILED, "cache folder", "name another with LEAN_CACHE or --cache-dir",
             "%s", err.message);
        return;
    }
    const uint64_t n_free =
        statvfs(folder, &space) ? 0 : (uint64_t)space.f_bavail * (uint64_t)space.f_frsize;
    tell(doctor, STATE_OK, "cache folder", "", "%s, %s free", cache,
         log_format_bytes(n_free, free_text));
    tell(
        doctor, speed.read_bytes_s > 0 ? STATE_OK : STATE_NOTE, "disk speed",
        "this file system has no direct reads: models larger than memory are read through the page "
        "cache",
        "writes %s/s, reads %s/s past the page cache, one at a time",
        log_format_bytes((uint64_t)speed.write_bytes_s, write_text),
        log_format_bytes((uint64_t)speed.read_bytes_s, read_text));
}

static void check_io(struct doctor *doctor)
{
    char parameters[256] = {0}; /* struct io_uring_params is smaller */
    const long fd = syscall(__NR_io_uring_setup, 1, parameters);
    if (fd >= 0) close((int)fd);
    tell(doctor, fd >= 0 ? STATE_OK : STATE_NOTE, "io_uring",
         "experts are read by threads instead, which is about as fast", "%s",
         fd >= 0 ? "can be used" : strerror(errno));
}

/* ---- clock and limits --------------------------------------------------------------------- */

static void check_clock(struct doctor *doctor)
{
    char source[200], governor[200];
    struct timespec step;
    first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", source);
    first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", governor);
    const bool fine =
        clock_getres(CLOCK_MONOTONIC, &step) == 0 && step.tv_sec == 0 && step.tv_nsec <= 1000000;
    tell(doctor, fine ? STATE_OK : STATE_FAILED, "clock", "measurements mean nothing",
         "%s, steps of %ld ns", *source ? source : "no source is told", step.tv_nsec);
    if (*governor)
        tell(doctor, strcmp(governor, "powersave") ? STATE_OK : STATE_NOTE, "frequency",
             "cpupower frequency-set -g performance makes measurements steadier", "governor %s",
             governor);
}

static void check_limits(struct doctor *doctor)
{
    struct rlimit files = {0}, locked = {0};
    char text[24];
    getrlimit(RLIMIT_NOFILE, &files);
    getrlimit(RLIMIT_MEMLOCK, &locked);
    tell(doctor,
         files.rlim_cur < MIN_OPEN_FILES    ? STATE_FAILED
         : files.rlim_cur < GOOD_OPEN_FILES ? STATE_NOTE
                                            : STATE_OK,
         "open files", "ulimit -n 1024: a server needs one for each connection", "%llu",
         (unsigned long long)files.rlim_cur);
    tell(doctor, STATE_OK, "locked memory", "", "%s",
         locked.rlim_cur == RLIM_INFINITY ? "no limit"
                                          : log_format_bytes((uint64_t)locked.rlim_cur, text));
}

/* ---- the command -------------------------------------------------------------------------- */

static enum lm_status run_doctor(struct options *options, struct lm_error *err)
{
    struct doctor doctor = {.checks = json_object_new_array(),
                            .json = options_flag(options, "json")};
    struct hub_settings hub;
    struct inventory inventory;
    const enum lm_status status =
        hub_settings_read(&hub, options_string(options, "cache-dir"), NULL, NULL, err);
    if (status != LM_OK) {
        json_object_put(doctor.checks);
        return status;
    }
    inventory_measure(&inventory, "/proc/self/exe", 0);
    check_processor(&doctor);
    check_memory(&doctor, &inventory);
    check_pages(&doctor);
    check_numa(&doctor);
    check_accelerators(&doctor);
    check_mpi(&doctor);
    check_disk(&doctor, hub.cache);
    check_io(&doctor);
    check_clock(&doctor);
    check_limits(&doctor);
    hub_settings_free(&hub);
    if (doctor.json) {
        struct json_object *all = json_object_new_object();
        json_object_object_add(all, "checks", json_object_get(doctor.checks));
        json_object_object_add(all, "failed", json_object_new_int64(doctor.n_failed));
        puts(json_object_to_json_string_ext(all, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                     JSON_C_TO_STRING_NOSLASHESCAPE));
        json_object_put(all);
    }
    json_object_put(doctor.checks);
    return doctor.n_failed ? lm_fail(err, LM_E_MISMATCH, "%u requirement%s not met",
                                     doctor.n_failed, doctor.n_failed == 1 ? " is" : "s are")
                           : LM_OK;
}

static const struct option_spec doctor_options[] = {
    {"cache-dir", 0, OPTION_PATH, "DIR",
     .help = "whose disk is measured; default: the cache of "
             "models, as lean pull finds it"},
    {0},
};

const struct command command_doctor = {
    .name = "doctor",
    .usage = "",
    .summary = "what of this machine helps or hinders",
    .details =
        "Looks at memory, huge pages, NUMA nodes, accelerators, MPI, the disk of the models'\n"
        "cache, the clock and limits. A note says what could be better; exit code 10 if\n"
        "something fails without which nothing of use runs.",
    .options = (const struct option_spec *const[]){doctor_options, NULL},
    .run = run_doctor,
};
