/* A block's threads as fibers: a stack each, a switch that saves what a call preserves, and the
 * waits of barriers and warps.
 *
 * A fiber that waits hands over to the next one that can run, in the order of the launch; the last
 * to arrive wakes the others and goes on itself. If nobody can run and somebody waits, the wait
 * cannot end: it is reported, and the block is given up. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "kernels/cuda/emu/cuemu.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

enum {
    THREADS_MAX = 1024,
    WARPS_MAX = THREADS_MAX / 32,
    STACK_BYTES = 256 << 10, /* committed as far as a kernel goes */
    SHARED_BYTES_MAX = 232448,
};

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
unsigned char *emu_dynamic_shared;

#if defined(__x86_64__)
typedef void *context;
/* Saves the running context in *from and goes on where `to` was saved. */
extern "C" void emu_switch(context *from, context to) __attribute__((visibility("hidden")));
asm(".text\n"
    ".hidden emu_switch\n"
    ".globl emu_switch\n"
    ".type emu_switch,@function\n"
    "emu_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size emu_switch,.-emu_switch\n");

static void make_context(context *out, unsigned char *stack, void (*entry)(void))
{
    void **top = (void **)(stack + STACK_BYTES) - 1; /* entry sees a stack as after a call */
    *top = nullptr;
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    *out = top;
}
#else
typedef ucontext_t context;
static void emu_switch(context *from, context &to)
{
    swapcontext(from, &to);
}
static void make_context(context *out, unsigned char *stack, void (*entry)(void))
{
    getcontext(out);
    out->uc_stack.ss_sp = stack;
    out->uc_stack.ss_size = STACK_BYTES;
    out->uc_link = nullptr;
    makecontext(out, entry, 0);
}
#endif

struct fiber {
    context at;
    uint3 idx;
    emu_wait wait; /* EMU_RUNS: can go on */
    bool done;
#if defined(__SANITIZE_ADDRESS__)
    void *fake_stack;
#endif
};

struct warp {
    emu_lanes lanes[2]; /* in turn: a lane may still read the last while others bring the next */
    uint32_t turn, n_arrived;
    emu_wait kind;
};

/* One block at a time, under the runtime's lock. */
static struct {
    const emu_launch *launch;
    uint32_t n_thread, n_done;
    uint32_t current;                                /* index into fiber */
    uint16_t order[THREADS_MAX], place[THREADS_MAX]; /* who runs at a place; a fiber's place */
    fiber fibers[THREADS_MAX];
    warp warps[WARPS_MAX];
    uint32_t block_n_arrived, block_n_true, block_result;
    emu_wait block_kind;
    context scheduler;
    bool failed;
    unsigned char *stacks;
#if defined(__SANITIZE_ADDRESS__)
    void *scheduler_fake_stack;
    const void *scheduler_stack;
    size_t scheduler_stack_bytes;
#endif
} emu;

static const char *const wait_names[] = {
    "runs",       "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count",
    "__syncwarp", "a shuffle",     "a vote",           "a reduction",       "a match",
    "an mma",
};

static unsigned char *stack_of(uint32_t i)
{
    return emu.stacks + (size_t)i * STACK_BYTES;
}

/* ---- switching ---- */

static void after_switch(void)
{
#if defined(__SANITIZE_ADDRESS__)
    const void *from;
    size_t n_bytes;
    __sanitizer_finish_switch_fiber(emu.fibers[emu.current].fake_stack, &from, &n_bytes);
    if (!emu.scheduler_stack) {
        emu.scheduler_stack = from;
        emu.scheduler_stack_bytes = n_bytes;
    }
#endif
    threadIdx = emu.fibers[emu.current].idx;
}

/* From a fiber, or from the scheduler (from == nullptr), to a fiber. */
static void switch_to(fiber *from, uint32_t to)
{
    emu.current = to;
    context *save = from ? &from->at : &emu.scheduler;
#if defined(__SANITIZE_ADDRESS__)
    void **fake = from ? &from->fake_stack : &emu.scheduler_fake_stack;
    __sanitizer_start_switch_fiber(from && from->done ? nullptr : fake, stack_of(to), STACK_BYTES);
#endif
    emu_switch(save, emu.fibers[to].at);
    if (from) after_switch();
}

static void switch_to_scheduler(fiber *from)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(from->done ? nullptr : &from->fake_stack, emu.scheduler_stack,
                                   emu.scheduler_stack_bytes);
#endif
    emu_switch(&from->at, emu.scheduler);
}

static void report(const char *what)
{
    const emu_launch *l = emu.launch;
    fprintf(stderr, "emulator: %s, block (%u,%u,%u) of %u threads: %s\n", l->name, blockIdx.x,
            blockIdx.y, blockIdx.z, emu.n_thread, what);
    uint32_t n_shown = 0;
    for (uint32_t i = 0; i < emu.n_thread && n_shown < 40;) { /* runs of threads in one state */
        const fiber *f = &emu.fibers[i];
        uint32_t end = i + 1;
        while (end < emu.n_thread && emu.fibers[end].wait == f->wait &&
               emu.fibers[end].done == f->done)
            end++;
        const char *state = f->done ? "has ended" : f->wait == EMU_RUNS ? "runs" : "waits at ";
        fprintf(stderr, "  thread %u", i);
        if (end > i + 1) fprintf(stderr, " to %u", end - 1);
        fprintf(stderr, " %s%s\n", state, f->done || !f->wait ? "" : wait_names[f->wait]);
        i = end;
        n_shown++;
    }
}

[[noreturn]] void emu_give_up(const char *what)
{
    report(what);
    emu.failed = true;
    switch_to_scheduler(&emu.fibers[emu.current]);
    abort(); /* a block that was given up does not go on */
}

/* Hands over to the next fiber that can run; comes back when the running one can. */
static void hand_over(void)
{
    fiber *const self = &emu.fibers[emu.current];
    const uint32_t here = emu.place[emu.current], n = emu.n_thread;
    uint32_t next = here;
    do {
        next = next + 1 == n ? 0 : next + 1;
        const uint32_t i = emu.order[next];
        if (!emu.fibers[i].done && emu.fibers[i].wait == EMU_RUNS) {
            if (i != emu.current) switch_to(self, i);
            return;
        }
    } while (next != here);
    if (emu.n_done < n) emu_give_up("a wait that cannot end");
    switch_to_scheduler(self);
}

/* ---- waits ---- */

static void wake_block(void)
{
    emu.block_result = emu.block_n_true;
    emu.block_n_arrived = emu.block_n_true = 0;
    for (uint32_t i = 0; i < emu.n_thread; i++)
        if (emu.fibers[i].wait == emu.block_kind) emu.fibers[i].wait = EMU_RUNS;
    emu.block_kind = EMU_RUNS;
}

uint32_t emu_block_wait(emu_wait kind, bool value)
{
    if (emu.block_n_arrived && emu.block_kind != kind) {
        emu.fibers[emu.current].wait = kind;
        emu_give_up("threads at different barriers");
    }
    emu.block_kind = kind;
    emu.block_n_arrived++;
    emu.block_n_true += value;
    emu.fibers[emu.current].wait = kind;
    if (emu.block_n_arrived + emu.n_done == emu.n_thread)
        wake_block();
    else
        hand_over();
    return emu.block_result; /* the next barrier cannot end before this thread is there */
}

uint32_t emu_lane(void)
{
    return emu.current % 32;
}

const emu_lanes *emu_warp_wait(emu_wait kind, uint32_t mask, const void *value, size_t n_bytes)
{
    const uint32_t self = emu.current;
    warp *const w = &emu.warps[self / 32];
    if (mask != 0xffffffffu) emu_give_up("a warp operation of some lanes only");
    if (w->n_arrived && w->kind != kind) {
        emu.fibers[self].wait = kind;
        emu_give_up("lanes of a warp at different operations");
    }
    emu_lanes *const lanes = &w->lanes[w->turn & 1];
    if (n_bytes) memcpy(lanes->lane[self % 32], value, n_bytes);
    w->kind = kind;
    emu.fibers[self].wait = kind;
    if (++w->n_arrived == 32) {
        w->n_arrived = 0;
        w->turn++;
        for (uint32_t i = self / 32 * 32; i < self / 32 * 32 + 32; i++)
            emu.fibers[i].wait = EMU_RUNS;
    } else {
        hand_over();
    }
    return lanes;
}

/* ---- blocks ---- */

#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize("address")))
#endif
static void
fiber_main(void)
{
    after_switch();
    emu.launch->call(emu.launch->kernel, emu.launch->args);
    fiber *const self = &emu.fibers[emu.current];
    self->done = true;
    emu.n_done++;
    /* Those at a barrier may have waited for this thread alone. */
    if (emu.block_n_arrived && emu.block_n_arrived + emu.n_done == emu.n_thread) wake_block();
    hand_over();
    abort(); /* nobody switches to a fiber that is done */
}

static uint32_t random_u32(void) /* xorshift */
{
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static void set_order(emu_order order)
{
    for (uint32_t i = 0; i < emu.n_thread; i++)
        emu.order[i] = (uint16_t)(order == EMU_REVERSE ? emu.n_thread - 1 - i : i);
    for (uint32_t i = emu.n_thread - 1; order == EMU_RANDOM && i > 0; i--) {
        const uint32_t j = random_u32() % (i + 1);
        const uint16_t swapped = emu.order[i];
        emu.order[i] = emu.order[j];
        emu.order[j] = swapped;
    }
    for (uint32_t i = 0; i < emu.n_thread; i++)
        emu.place[emu.order[i]] = (uint16_t)i;
}

static bool run_block(emu_order order)
{
    emu.n_done = emu.block_n_arrived = emu.block_n_true = 0;
    emu.block_kind = EMU_RUNS;
    set_order(order);
    memset(emu_dynamic_shared, 0xff, emu.launch->shared_bytes); /* NaN to whom does not write */
    for (uint32_t i = 0; i < emu.n_thread; i++) {
        fiber *f = &emu.fibers[i];
        make_context(&f->at, stack_of(i), fiber_main);
        f->idx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        f->wait = EMU_RUNS;
        f->done = false;
#if defined(__SANITIZE_ADDRESS__)
        f->fake_stack = nullptr;
#endif
    }
    for (uint32_t i = 0; i < (emu.n_thread + 31) / 32; i++)
        emu.warps[i].n_arrived = 0;
    switch_to(nullptr, emu.order[0]);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(emu.scheduler_fake_stack, nullptr, nullptr);
    if (emu.failed) /* frames that never returned */
        __asan_unpoison_memory_region(emu.stacks, (size_t)THREADS_MAX * STACK_BYTES);
    emu.scheduler_stack = nullptr; /* the next caller may be another thread */
#endif
    return !emu.failed;
}

static void *map(size_t n_bytes)
{
    void *memory = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fprintf(stderr, "emulator: no memory for %zu bytes\n", n_bytes);
        abort();
    }
    return memory;
}

bool emu_run(const emu_launch *launch, emu_order order)
{
    if (!emu.stacks) {
        emu.stacks = (unsigned char *)map((size_t)THREADS_MAX * STACK_BYTES);
        emu_dynamic_shared = (unsigned char *)map(SHARED_BYTES_MAX);
        /* The lowest page of each stack is there to be run into. */
        for (uint32_t i = 0; i < THREADS_MAX; i++)
            mprotect(stack_of(i), 4096, PROT_NONE);
    }
    emu.launch = launch;
    emu.n_thread = launch->block.x * launch->block.y * launch->block.z;
    emu.failed = false;
    blockDim = launch->block;
    gridDim = launch->grid;
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
                if (!run_block(order)) return false;
    return true;
}
