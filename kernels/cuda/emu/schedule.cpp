/* When work runs: as late as possible, or in simulated time. */
#include "kernels/cuda/emu/schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <algorithm>
#include <condition_variable>
#include <thread>
#include <vector>

static const double POLL_US = 1, KERNEL_US = 10;

struct work_queue {
    int device, stream;
    std::deque<work> waiting;
    bool busy;               /* in simulated time: the first has begun */
    double begin_us, end_us; /* of that */
    double free_us;          /* the end of the one before */
    int error;               /* the first since somebody waited */
    uint64_t n_poll;
    bool running; /* a piece, by a thread that may have given up the lock for it */
    bool driven;  /* by a thread of its own, until ended */
    bool ended;
};

/* One for each direction of each device. */
struct engine {
    bool busy;
    double free_us;
};

static struct schedule_state {
    std::condition_variable_any changed; /* a queue: more work, or done */
    bool timed;
    double latency_us, bytes_per_us, kernel_us;
    double host_us;
    std::vector<std::weak_ptr<work_queue>> queues;
    std::vector<engine> engines; /* two for each device */
    uint64_t n_put;
    int n_stream;
    FILE *trace;
} &schedule = *new schedule_state(); /* leaked, as the machine */

std::recursive_mutex &schedule_lock(void)
{
    static std::recursive_mutex &lock = *new std::recursive_mutex(); /* wanted before the rest */
    return lock;
}

void schedule_configure(void)
{
    const char *copy = getenv("LEAN_EMU_COPY"), *trace = getenv("LEAN_EMU_TRACE");
    double gb_s = 0;
    schedule.kernel_us = KERNEL_US;
    schedule.timed =
        copy && sscanf(copy, "%lf,%lf,%lf", &schedule.latency_us, &gb_s, &schedule.kernel_us) >= 2;
    schedule.bytes_per_us = gb_s * 1e3;
    if (schedule.trace) fclose(schedule.trace);
    schedule.trace = trace ? fopen(trace, "w") : nullptr;
    schedule.n_stream = 0;
}

std::shared_ptr<work_queue> schedule_open(int device)
{
    const std::shared_ptr<work_queue> queue(new work_queue());
    queue->device = device;
    queue->stream = schedule.n_stream++;
    queue->free_us = schedule.host_us;
    schedule.queues.push_back(queue);
    if (schedule.engines.size() < 2 * (size_t)device + 2)
        schedule.engines.resize(2 * (size_t)device + 2);
    return queue;
}

bool schedule_is_empty(const work_queue *queue)
{
    return queue->waiting.empty() && !queue->running;
}

double schedule_now_us(void)
{
    struct timespec t;
    if (schedule.timed) return schedule.host_us;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

void schedule_put(work_queue *queue, const work &piece)
{
    queue->waiting.push_back(piece);
    queue->waiting.back().asked_us = schedule.host_us;
    queue->waiting.back().number = schedule.n_put++;
    if (queue->driven) schedule.changed.notify_all();
}

static void run_queue(work_queue *queue);

/* The thread of a queue that is driven. */
static void drive(std::shared_ptr<work_queue> queue)
{
    std::lock_guard<std::recursive_mutex> held(schedule_lock());
    while (!queue->ended) {
        if (queue->running || queue->waiting.empty())
            schedule.changed.wait(schedule_lock());
        else
            run_queue(queue.get());
    }
}

void schedule_call(const std::shared_ptr<work_queue> &queue, const std::function<void()> &function)
{
    work call = {};
    call.kind = WORK_OTHER;
    call.run = [function]() -> int {
        schedule_lock().unlock();
        function();
        schedule_lock().lock();
        return 0;
    };
    schedule_put(queue.get(), call);
    if (!queue->driven) std::thread(drive, queue).detach();
    queue->driven = true;
}

void schedule_close(work_queue *queue)
{
    queue->ended = true;
    if (queue->driven) schedule.changed.notify_all();
}

static void write_trace(const work_queue *queue, const work &piece)
{
    static const char *const names[] = {"kernel", "copy_in", "copy_out", "other"};
    if (!schedule.trace || piece.kind == WORK_WAIT || piece.end) return;
    fprintf(schedule.trace, "%d %.3f %.3f %s ", queue->stream, queue->begin_us, queue->end_us,
            names[piece.kind]);
    if (piece.kind == WORK_KERNEL)
        fprintf(schedule.trace, "%s\n", piece.name.c_str());
    else
        fprintf(schedule.trace, "%zu\n", piece.n_bytes);
    fflush(schedule.trace);
}

/* The effect of the first piece, which leaves the queue. */
static void run_first(work_queue *queue, double end_us)
{
    const work piece = std::move(queue->waiting.front());
    queue->waiting.pop_front();
    queue->running = true;
    const int error = piece.run ? piece.run() : 0;
    queue->running = false;
    write_trace(queue, piece);
    if (!queue->error) queue->error = error;
    if (piece.end && piece.kind != WORK_WAIT) *piece.end = {true, end_us};
    schedule.changed.notify_all();
}

static int take_error(work_queue *queue)
{
    const int error = queue->error;
    queue->error = 0;
    return error;
}

/* ---- as late as possible ---- */

static void run_late(work_queue *queue)
{
    if (queue->running) {
        schedule.changed.wait(schedule_lock());
        return;
    }
    if (queue->waiting.front().kind == WORK_WAIT) {
        const std::shared_ptr<work_queue> of = queue->waiting.front().of;
        const std::shared_ptr<moment> end = queue->waiting.front().end;
        queue->running = true; /* here: nobody else takes the piece */
        while (!end->done)
            run_late(of.get());
    }
    queue->begin_us = queue->end_us = schedule_now_us();
    run_first(queue, queue->end_us);
}

/* ---- in simulated time ---- */

static engine *engine_of(const work_queue *queue, const work &piece)
{
    if (piece.kind != WORK_COPY_IN && piece.kind != WORK_COPY_OUT) return nullptr;
    return &schedule.engines[2 * (size_t)queue->device + (piece.kind == WORK_COPY_OUT)];
}

static double length_us(const work &piece)
{
    switch (piece.kind) {
    case WORK_KERNEL:
        return schedule.kernel_us;
    case WORK_COPY_IN:
    case WORK_COPY_OUT:
        return schedule.latency_us + (double)piece.n_bytes / schedule.bytes_per_us;
    default:
        return 0;
    }
}

/* The next that can happen: a piece of a queue ends, or the first one begins. Ends come first, then
 * what could have begun earliest, then what was asked for first. */
struct happening {
    work_queue *queue;
    double us, ready_us;
    uint64_t number;
};

static bool comes_before(const happening &a, const happening &b)
{
    if (!b.queue || a.us != b.us) return !b.queue || a.us < b.us;
    if (a.queue->busy != b.queue->busy) return a.queue->busy;
    return a.ready_us != b.ready_us ? a.ready_us < b.ready_us : a.number < b.number;
}

static happening next_of(work_queue *queue)
{
    const work &first = queue->waiting.front();
    if (queue->busy) return {queue, queue->end_us, 0, first.number};
    double ready_us = std::max(queue->free_us, first.asked_us);
    if (first.kind == WORK_WAIT) {
        if (!first.end->done) return {};
        ready_us = std::max(ready_us, first.end->us);
    }
    const engine *e = engine_of(queue, first);
    if (e && e->busy) return {};
    return {queue, e ? std::max(ready_us, e->free_us) : ready_us, ready_us, first.number};
}

static happening find_next(void)
{
    happening next = {};
    for (const auto &weak : schedule.queues) {
        const std::shared_ptr<work_queue> queue = weak.lock();
        if (!queue || queue->waiting.empty() || queue->running) continue;
        const happening h = next_of(queue.get());
        if (h.queue && comes_before(h, next)) next = h;
    }
    return next;
}

static void begin(work_queue *queue, double us)
{
    const work &piece = queue->waiting.front();
    queue->busy = true;
    queue->begin_us = us;
    queue->end_us = us + length_us(piece);
    if (engine *e = engine_of(queue, piece)) e->busy = true;
    if (piece.spoil) piece.spoil();
}

static void end(work_queue *queue)
{
    const work &piece = queue->waiting.front();
    if (engine *e = engine_of(queue, piece)) *e = {false, queue->end_us};
    queue->busy = false;
    queue->free_us = queue->end_us;
    run_first(queue, queue->end_us);
}

static void step(const happening &next)
{
    if (next.queue->busy)
        end(next.queue);
    else
        begin(next.queue, next.us);
}

/* Whether a function of the host is running, which may go on with anything. */
static bool is_anything_running(void)
{
    for (const auto &weak : schedule.queues) {
        const std::shared_ptr<work_queue> queue = weak.lock();
        if (queue && queue->running) return true;
    }
    return false;
}

static void go_on(void)
{
    const happening next = find_next();
    if (next.queue) {
        step(next);
    } else if (is_anything_running()) {
        schedule.changed.wait(schedule_lock());
    } else {
        fprintf(stderr, "emulator: streams that wait for each other\n");
        abort();
    }
}

/* ---- waiting and asking ---- */

static void run_queue(work_queue *queue)
{
    while (!schedule_is_empty(queue)) {
        if (schedule.timed)
            go_on();
        else
            run_late(queue);
    }
}

int schedule_finish(work_queue *queue)
{
    run_queue(queue);
    schedule.host_us = std::max(schedule.host_us, queue->free_us);
    return take_error(queue);
}

int schedule_reach(work_queue *queue, const moment *end)
{
    while (!end->done) {
        if (schedule.timed)
            go_on();
        else
            run_late(queue);
    }
    if (schedule.timed) schedule.host_us = std::max(schedule.host_us, end->us);
    return take_error(queue);
}

/* One piece that need not wait. */
static void run_one_late(work_queue *queue)
{
    if (queue->waiting.empty() || queue->running || queue->driven) return;
    const work &first = queue->waiting.front();
    if (first.kind == WORK_WAIT && !first.end->done)
        run_one_late(first.of.get());
    else
        run_late(queue);
}

void schedule_poll(work_queue *queue)
{
    if (!schedule.timed) {
        if (queue->n_poll++ % 2) run_one_late(queue);
        return;
    }
    schedule.host_us += POLL_US;
    for (happening next = find_next(); next.queue && next.us <= schedule.host_us;
         next = find_next())
        step(next);
}
