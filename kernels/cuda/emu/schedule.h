/* Streams as queues of work, and when a piece of it runs.
 *
 * By default as late as CUDA allows: when somebody waits for it, and by one piece for every second
 * time that somebody asks. Copies beside operations then come too late for whoever does not wait.
 *
 * LEAN_EMU_COPY="latency_us,GB/s[,kernel_us]" makes time pass instead, without anybody sleeping:
 * every piece has a length, streams run beside each other, the copies of a direction take turns at
 * a device's one engine in the order in which they could begin. What a piece does, it does at its
 * end, and a copy from or to the host spoils its destination when it begins. So, with slow copies,
 * an operation that did not wait for one reads what is not there yet; with slow kernels, one whose
 * input was overwritten too early reads what came after. The host takes no time except to wait
 * and, 1 us, to ask.
 *
 * LEAN_EMU_TRACE=FILE: a line for each piece of work, when it ends:
 *   stream begin_us end_us copy_in|copy_out|kernel|other bytes_or_name
 * Streams are numbered as they are made. Without simulated time both are when it began.
 *
 * Threads: under schedule_lock, which is given up while a function of the host runs: whoever runs
 * work has taken it once. */
#ifndef LEAN_KERNELS_CUDA_EMU_SCHEDULE_H
#define LEAN_KERNELS_CUDA_EMU_SCHEDULE_H

#include <stdint.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

enum work_kind { WORK_KERNEL, WORK_COPY_IN, WORK_COPY_OUT, WORK_OTHER, WORK_WAIT };

/* The end of a piece of work. */
struct moment {
    bool done;
    double us;
};

struct work_queue;

struct work {
    work_kind kind;
    size_t n_bytes;                 /* of a copy */
    std::string name;               /* of a kernel */
    std::function<void()> spoil;    /* may be empty */
    std::function<int()> run;       /* empty for a wait; returns a cudaError_t */
    std::shared_ptr<moment> end;    /* may be NULL; of WORK_WAIT: what is waited for */
    std::shared_ptr<work_queue> of; /* of WORK_WAIT: the queue that it is in */
    double asked_us;                /* set by schedule_put */
    uint64_t number;
};

std::recursive_mutex &schedule_lock(void);
/* Settings from the environment. */
void schedule_configure(void);
std::shared_ptr<work_queue> schedule_open(int device);
void schedule_put(work_queue *queue, const work &piece);
/* A function that may block, and take no part in simulated time; from here on a thread of its own
 * runs the queue, until it is closed. */
void schedule_call(const std::shared_ptr<work_queue> &queue, const std::function<void()> &function);
void schedule_close(work_queue *queue);
bool schedule_is_empty(const work_queue *queue);
/* Runs what is on the queue; the first error. */
int schedule_finish(work_queue *queue);
/* Runs what is needed for the moment to come. */
int schedule_reach(work_queue *queue, const moment *end);
/* Somebody asks how far the queue is. */
void schedule_poll(work_queue *queue);
/* Simulated, or the machine's. */
double schedule_now_us(void);

#endif
