/* Thread pool. How a region is dispatched, and why it is safe:
 *
 * The claim word holds (epoch, next task). A thread takes a task by compare-and-swap from
 * (e, i) to (e, i + 1), so a thread that is late by a region fails instead of taking a task of
 * another. Before the fields of the next region are written the claim word is closed, (e + 1,
 * none): a thread that sees a new field (acquire, released by the caller) can no longer claim by
 * the old epoch. And a thread that has claimed holds the region open, since the caller moves on
 * only when all tasks are done.
 *
 * Sleeping is Dekker's pattern: a worker counts itself as a sleeper, then looks at the epoch once
 * more; the caller moves the epoch, then looks at the sleepers. All four are seq_cst, so one of
 * the two sees the other. The caller's wait for the last tasks does the same with `done`. */
#include "kernels/cpu/pool.h"

#include <assert.h>
#include <hwloc.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/cgroup.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SPIN_US = 50, CACHE_LINE = 64 };
#define CLAIM_NONE UINT32_MAX

struct worker {
    struct pool *pool;
    uint32_t index;
    pthread_t thread;
};

struct pool {
    uint32_t n_thread;
    uint32_t n_started; /* own threads, workers 1 .. n_started */
    struct worker *workers;

    /* The open region; valid while its epoch is. */
    _Atomic(pool_task_fn) task;
    _Atomic(void *) context;
    _Atomic uint32_t n_task;

    _Alignas(CACHE_LINE) _Atomic uint64_t claim; /* epoch << 32 | next task */
    _Alignas(CACHE_LINE) _Atomic uint32_t epoch; /* futex of the workers */
    _Atomic uint32_t n_sleeper;
    _Alignas(CACHE_LINE) _Atomic uint32_t done; /* tasks of this epoch; futex of the caller */
    _Atomic bool caller_sleeps;
    _Atomic bool stop;
    _Atomic bool float_mode_bad;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#endif
}

/* Rounding to nearest, denormals kept; the sticky exception flags do not matter. */
static bool float_mode_is_default(void)
{
#if defined(__x86_64__)
    return (_mm_getcsr() & 0xffc0u) == 0x1f80u;
#else
    return true;
#endif
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* Spins while *word == seen, for SPIN_US at most. False: the time is up. */
static bool spin_while_equal(const _Atomic uint32_t *word, uint32_t seen)
{
    const uint64_t deadline_us = now_us() + SPIN_US;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
            relax();
        }
    } while (now_us() < deadline_us);
    return false;
}

/* Takes part in the region of an epoch until its tasks are all claimed. */
static void work(struct pool *pool, uint32_t epoch, uint32_t worker)
{
    const pool_task_fn task = atomic_load_explicit(&pool->task, memory_order_acquire);
    void *const context = atomic_load_explicit(&pool->context, memory_order_acquire);
    const uint32_t n_task = atomic_load_explicit(&pool->n_task, memory_order_acquire);
    uint32_t n_done = 0;
    uint64_t claim = atomic_load_explicit(&pool->claim, memory_order_acquire);
    while ((uint32_t)(claim >> 32) == epoch && (uint32_t)claim < n_task) {
        if (!atomic_compare_exchange_weak_explicit(&pool->claim, &claim, claim + 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        task(context, (uint32_t)claim, worker);
        n_done++;
        claim = atomic_load_explicit(&pool->claim, memory_order_acquire);
    }
    if (!n_done) return;
    if (!float_mode_is_default()) atomic_store(&pool->float_mode_bad, true);
    /* The last task may be the caller's own, which then does not sleep. */
    const bool last = atomic_fetch_add(&pool->done, n_done) + n_done == n_task;
    if (last && atomic_load(&pool->caller_sleeps)) futex_wake_all(&pool->done);
}

static void *worker_main(void *argument)
{
    const struct worker *self = argument;
    struct pool *pool = self->pool;
    uint32_t seen = 0;
    while (!atomic_load(&pool->stop)) {
        if (!spin_while_equal(&pool->epoch, seen)) {
            atomic_fetch_add(&pool->n_sleeper, 1);
            while (atomic_load(&pool->epoch) == seen)
                futex_wait(&pool->epoch, seen);
            atomic_fetch_sub(&pool->n_sleeper, 1);
        }
        seen = atomic_load_explicit(&pool->epoch, memory_order_acquire);
        work(pool, seen, self->index);
    }
    return NULL;
}

/* Publishes a region as the next epoch and wakes who sleeps. Returns the epoch. */
static uint32_t open_region(struct pool *pool, pool_task_fn task, void *context, uint32_t n_task)
{
    const uint32_t epoch = atomic_load_explicit(&pool->epoch, memory_order_relaxed) + 1;
    atomic_store(&pool->claim, (uint64_t)epoch << 32 | CLAIM_NONE);
    atomic_store_explicit(&pool->task, task, memory_order_release);
    atomic_store_explicit(&pool->context, context, memory_order_release);
    atomic_store_explicit(&pool->n_task, n_task, memory_order_release);
    atomic_store_explicit(&pool->done, 0, memory_order_release);
    atomic_store(&pool->claim, (uint64_t)epoch << 32);
    atomic_store(&pool->epoch, epoch);
    if (atomic_load(&pool->n_sleeper)) futex_wake_all(&pool->epoch);
    return epoch;
}

void pool_run(struct pool *pool, pool_task_fn task, void *context, uint32_t n_task)
{
    assert(n_task < CLAIM_NONE);
    if (!n_task) return;
    if (n_task == 1 || pool->n_thread == 1) {
        for (uint32_t i = 0; i < n_task; i++)
            task(context, i, 0);
        if (!float_mode_is_default()) atomic_store(&pool->float_mode_bad, true);
        return;
    }
    const uint32_t epoch = open_region(pool, task, context, n_task);
    work(pool, epoch, 0);

    uint32_t done = atomic_load_explicit(&pool->done, memory_order_acquire);
    while (done != n_task) {
        if (!spin_while_equal(&pool->done, done)) {
            atomic_store(&pool->caller_sleeps, true);
            while ((done = atomic_load(&pool->done)) != n_task)
                futex_wait(&pool->done, done);
            atomic_store(&pool->caller_sleeps, false);
        }
        done = atomic_load_explicit(&pool->done, memory_order_acquire);
    }
}

/* The first processing unit of each core this process may run on, as a new array; 0 if the
 * machine does not tell. */
static uint32_t find_cores(int **out_cpu)
{
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology)) return 0;
    uint32_t n = 0;
    hwloc_bitmap_t allowed = NULL;
    if (hwloc_topology_load(topology)) goto destroy;
    allowed = hwloc_bitmap_alloc();
    if (!allowed || hwloc_get_cpubind(topology, allowed, HWLOC_CPUBIND_PROCESS)) goto destroy;
    hwloc_bitmap_and(allowed, allowed, hwloc_topology_get_allowed_cpuset(topology));
    const int n_core = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
    int *cpu = n_core > 0 ? malloc((size_t)n_core * sizeof(*cpu)) : NULL;
    if (!cpu) goto destroy;
    for (int i = 0; i < n_core; i++) {
        hwloc_obj_t core = hwloc_get_obj_by_type(topology, HWLOC_OBJ_CORE, (unsigned)i);
        hwloc_bitmap_t units = hwloc_bitmap_dup(core->cpuset);
        if (!units) continue;
        hwloc_bitmap_and(units, units, allowed);
        if (!hwloc_bitmap_iszero(units)) cpu[n++] = hwloc_bitmap_first(units);
        hwloc_bitmap_free(units);
    }
    *out_cpu = cpu;
destroy:
    hwloc_bitmap_free(allowed);
    hwloc_topology_destroy(topology);
    return n;
}

static void pin_thread(pthread_t thread, int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
    /* A refusal costs speed, not correctness. */
    (void)pthread_setaffinity_np(thread, sizeof(set), &set);
}

enum lm_status pool_create(struct pool **out, uint32_t n_thread, bool pin, struct lm_error *err)
{
    int *cpu = NULL;
    const uint32_t n_core = n_thread && !pin ? 0 : find_cores(&cpu);
    if (!n_thread) {
        const long n_online = sysconf(_SC_NPROCESSORS_ONLN);
        n_thread = n_core ? n_core : n_online > 0 ? (uint32_t)n_online : 1;
        /* Threads beyond a quota are all stopped together for the rest of each period. */
        const uint32_t limit = cgroup_cpu_limit("");
        if (n_thread > limit) n_thread = limit;
    }
    enum lm_status status = LM_E_NO_MEM;
    struct pool *pool = aligned_alloc(CACHE_LINE, sizeof(*pool));
    if (!pool) goto no_memory;
    memset(pool, 0, sizeof(*pool));
    pool->n_thread = n_thread;
    pool->workers = calloc(n_thread, sizeof(*pool->workers));
    if (!pool->workers) goto no_memory;
    for (uint32_t i = 1; i < n_thread; i++) {
        struct worker *worker = &pool->workers[i];
        *worker = (struct worker){.pool = pool, .index = i};
        const int code = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (code) {
            status =
                lm_fail(err, LM_E_FAIL, "thread %u of %u: %s", i + 1, n_thread, strerror(code));
            goto destroy;
        }
        pool->n_started++;
        if (pin && n_core) pin_thread(worker->thread, cpu[i % n_core]);
    }
    free(cpu);
    *out = pool;
    return LM_OK;

no_memory:
    lm_fail(err, LM_E_NO_MEM, "no memory for %u threads", n_thread);
destroy:
    pool_destroy(pool);
    free(cpu);
    return status;
}

void pool_destroy(struct pool *pool)
{
    if (!pool) return;
    atomic_store(&pool->stop, true);
    open_region(pool, NULL, NULL, 0);
    for (uint32_t i = 1; i <= pool->n_started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    free(pool);
}

uint32_t pool_n_thread(const struct pool *pool)
{
    return pool->n_thread;
}

bool pool_float_mode_ok(const struct pool *pool)
{
    return !atomic_load(&pool->float_mode_bad);
}
