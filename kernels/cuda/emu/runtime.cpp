/* Devices, their memory, streams and events. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/cuda/emu/cuemu.h" /* and runtime.h */

static const size_t DEVICE_SPAN_BYTES = (size_t)64 << 30; /* addresses of a device */
static const size_t PAGE_BYTES = 4096;
static const size_t SHARED_BYTES_OPTIN = 101376; /* as the weakest: 8.6, 8.9, 12.0 */
static const size_t GARBAGE_BYTES_MAX = (size_t)64 << 20;

typedef std::function<cudaError_t()> work;

/* What a stream and the events on it share. */
struct work_queue {
    std::deque<work> waiting;
    uint64_t n_queued, n_run;
    bool running; /* a piece, by a thread that may have given up the lock for it */
    bool driven;  /* by a thread of its own, until ended */
    bool ended;
};
struct emu_stream {
    int device;
    std::shared_ptr<work_queue> queue;
};
struct emu_event {
    std::shared_ptr<work_queue> queue; /* of the last record, or none */
    uint64_t at;                       /* done when the queue has run this many */
    double time_ms;
};

struct block {
    size_t n_bytes, n_page_bytes;
    unsigned char *pages;
};
struct device {
    int major, minor;
    unsigned char *base; /* DEVICE_SPAN_BYTES, accessible where a block is, while kernels run */
    size_t cursor;       /* next allocations are sought from here: addresses are reused late */
    size_t used_bytes;
    std::map<size_t, block> blocks; /* by offset of the first page */
    cudaError_t lost;
};

struct kernel_entry {
    emu_call_fn *call;
    size_t args_bytes;
    const char *name;
    size_t shared_bytes_max;
};

/* Fails on demand. */
struct countdown {
    const char *name;
    long left; /* 0: never */
};

/* A leaked singleton: a library is not unloaded, and no order of destructors bothers it. */
static struct machine {
    std::recursive_mutex lock;           /* taken once at most while work runs */
    std::condition_variable_any changed; /* a queue */
    std::vector<device> devices;
    std::map<const void *, kernel_entry> kernels;
    std::map<const unsigned char *, size_t> pinned;
    size_t vram_bytes;
    emu_order order;
    bool no_driver, old_driver, no_image, no_function;
    countdown fails[4] = {{"malloc:", 0}, {"host:", 0}, {"launch:", 0}, {"lost:", 0}};
    int n_open; /* depth of open_memory */
} &machine = *new struct machine();
enum { FAIL_MALLOC, FAIL_HOST, FAIL_LAUNCH, FAIL_LOST };

static thread_local int current_device;
static thread_local cudaError_t last_error;

typedef std::lock_guard<std::recursive_mutex> guard;

static cudaError_t set_error(cudaError_t error)
{
    if (error != cudaSuccess) last_error = error;
    return error;
}

static bool fails_now(int what)
{
    countdown *c = &machine.fails[what];
    return c->left && !--c->left;
}

/* ---- errors ---- */

static const struct {
    cudaError_t error;
    const char *name, *text;
} error_table[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorDevicesUnavailable, "cudaErrorDevicesUnavailable",
     "CUDA-capable device(s) is/are busy or unavailable"},
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (const auto &entry : error_table)
        if (entry.error == error) return entry.name;
    return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (const auto &entry : error_table)
        if (entry.error == error) return entry.text;
    return "unknown error";
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

/* ---- devices ---- */

static void read_settings(void)
{
    const char *order = getenv("LEAN_EMU_ORDER"), *vram = getenv("LEAN_EMU_VRAM");
    const char *devices = getenv("LEAN_EMU_DEVICES"), *fail = getenv("LEAN_EMU_FAIL");
    machine.order = EMU_FORWARD;
    if (order && !strcmp(order, "reverse")) machine.order = EMU_REVERSE;
    if (order && !strcmp(order, "random")) machine.order = EMU_RANDOM;
    machine.vram_bytes = vram ? strtoull(vram, nullptr, 0) : (size_t)1 << 30;
    machine.no_driver = fail && !strcmp(fail, "driver");
    machine.old_driver = fail && !strcmp(fail, "old_driver");
    machine.no_image = fail && !strcmp(fail, "image");
    machine.no_function = fail && !strcmp(fail, "function");
    for (countdown &c : machine.fails) {
        const size_t n = strlen(c.name);
        c.left = fail && !strncmp(fail, c.name, n) ? strtol(fail + n, nullptr, 10) : 0;
    }
    size_t n_device = 0;
    for (const char *at = devices ? devices : "8.6"; *at; n_device++) {
        char *end;
        const long major = strtol(at, &end, 10);
        const long minor = *end == '.' ? strtol(end + 1, &end, 10) : 0;
        if (n_device == machine.devices.size()) {
            void *base = mmap(nullptr, DEVICE_SPAN_BYTES, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (base == MAP_FAILED) abort();
            machine.devices.push_back({});
            machine.devices.back().base = (unsigned char *)base;
        }
        machine.devices[n_device].major = (int)major;
        machine.devices[n_device].minor = (int)minor;
        machine.devices[n_device].lost = cudaSuccess;
        at = *end == ',' ? end + 1 : "";
    }
    machine.devices.resize(n_device); /* fewer only in tests that use none */
}

cudaError_t cudaGetDeviceCount(int *count)
{
    guard held(machine.lock);
    read_settings();
    *count = 0;
    if (machine.no_driver || machine.old_driver) return set_error(cudaErrorInsufficientDriver);
    if (machine.devices.empty()) return set_error(cudaErrorNoDevice);
    *count = (int)machine.devices.size();
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = machine.no_driver ? 0 : machine.old_driver ? 12040 : 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device)
{
    guard held(machine.lock);
    if (device < 0 || (size_t)device >= machine.devices.size())
        return set_error(cudaErrorInvalidDevice);
    memset(out, 0, sizeof(*out));
    snprintf(out->name, sizeof(out->name), "emulated GPU %d", device);
    memcpy(out->uuid.bytes, "emulated-gpu-", 13);
    out->uuid.bytes[15] = (char)device;
    out->totalGlobalMem = machine.vram_bytes;
    out->sharedMemPerBlock = 48 << 10;
    out->sharedMemPerBlockOptin = SHARED_BYTES_OPTIN;
    out->major = machine.devices[device].major;
    out->minor = machine.devices[device].minor;
    out->multiProcessorCount = 3; /* so that persistent grids stay small, and come out uneven */
    out->l2CacheSize = 4 << 20;
    out->maxThreadsPerBlock = 1024;
    out->pciBusID = device + 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    guard held(machine.lock);
    if (device < 0 || (size_t)device >= machine.devices.size())
        return set_error(cudaErrorInvalidDevice);
    current_device = device;
    return set_error(machine.devices[device].lost);
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

static device *here(void)
{
    return &machine.devices[current_device];
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    guard held(machine.lock);
    *total_bytes = machine.vram_bytes;
    *free_bytes = machine.vram_bytes - here()->used_bytes;
    return set_error(here()->lost);
}

/* ---- memory ---- */

/* Device memory is there while kernels and copies run, and only then. */
static void protect_all(int protection)
{
    for (device &d : machine.devices)
        for (auto &entry : d.blocks)
            mprotect(entry.second.pages, entry.second.n_page_bytes, protection);
}
static void open_memory(void)
{
    if (!machine.n_open++) protect_all(PROT_READ | PROT_WRITE);
}
static void close_memory(void)
{
    if (!--machine.n_open) protect_all(PROT_NONE);
}

/* An offset where n_page_bytes fit and a guard page behind them, sought from the cursor on. */
static bool find_room(device *d, size_t n_page_bytes, size_t *out)
{
    for (int round = 0; round < 2; round++) {
        size_t at = round ? 0 : d->cursor;
        for (const auto &entry : d->blocks) {
            if (entry.first + entry.second.n_page_bytes < at) continue;
            if (entry.first >= at + n_page_bytes + PAGE_BYTES) break;
            at = entry.first + entry.second.n_page_bytes + PAGE_BYTES;
        }
        if (at + n_page_bytes + PAGE_BYTES <= DEVICE_SPAN_BYTES) {
            *out = at;
            return true;
        }
    }
    return false;
}

cudaError_t cudaMalloc(void **out, size_t n_bytes)
{
    guard held(machine.lock);
    device *d = here();
    *out = nullptr;
    if (d->lost) return set_error(d->lost);
    if (!n_bytes) return cudaSuccess;
    const size_t n = (n_bytes + 255) / 256 * 256;
    const size_t n_page_bytes = (n + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    size_t at;
    if (n < n_bytes || n > machine.vram_bytes - d->used_bytes || fails_now(FAIL_MALLOC) ||
        !find_room(d, n_page_bytes, &at))
        return set_error(cudaErrorMemoryAllocation);
    unsigned char *const pages = d->base + at;
    mprotect(pages, n_page_bytes, PROT_READ | PROT_WRITE);
    if (n_bytes <= GARBAGE_BYTES_MAX) memset(pages, 0xff, n_page_bytes);
    if (!machine.n_open) mprotect(pages, n_page_bytes, PROT_NONE);
    d->blocks[at] = {n, n_page_bytes, pages};
    d->cursor = at + n_page_bytes + PAGE_BYTES;
    d->used_bytes += n;
    *out = pages + n_page_bytes - n; /* so that the guard page begins where the memory ends */
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    guard held(machine.lock);
    if (!memory) return cudaSuccess;
    for (device &d : machine.devices)
        for (auto entry = d.blocks.begin(); entry != d.blocks.end(); ++entry) {
            const block &b = entry->second;
            if (b.pages + b.n_page_bytes - b.n_bytes != memory) continue;
            mmap(b.pages, b.n_page_bytes, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
            d.used_bytes -= b.n_bytes;
            d.blocks.erase(entry);
            return set_error(d.lost);
        }
    fprintf(stderr, "emulator: cudaFree of %p, which is no device memory\n", memory);
    return set_error(cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void **out, size_t n_bytes, unsigned flags)
{
    (void)flags;
    guard held(machine.lock);
    *out = fails_now(FAIL_HOST) ? nullptr : aligned_alloc(4096, (n_bytes + 4095) / 4096 * 4096);
    if (!*out) return set_error(cudaErrorMemoryAllocation);
    machine.pinned[(unsigned char *)*out] = n_bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    guard held(machine.lock);
    if (memory && !machine.pinned.erase((unsigned char *)memory))
        return set_error(cudaErrorInvalidValue);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *memory, size_t n_bytes, unsigned flags)
{
    (void)flags;
    guard held(machine.lock);
    if (fails_now(FAIL_HOST)) return set_error(cudaErrorMemoryAllocation);
    machine.pinned[(unsigned char *)memory] = n_bytes;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    guard held(machine.lock);
    return machine.pinned.erase((unsigned char *)memory) ? cudaSuccess
                                                         : set_error(cudaErrorInvalidValue);
}

/* ---- streams and events ---- */

/* Runs a queue up to and with its at-th piece. */
static cudaError_t run_until(work_queue *queue, uint64_t at)
{
    cudaError_t first = cudaSuccess;
    while (queue->n_run < at && (queue->running || !queue->waiting.empty())) {
        if (queue->running) {
            machine.changed.wait(machine.lock);
            continue;
        }
        const work next = std::move(queue->waiting.front());
        queue->waiting.pop_front();
        queue->running = true;
        const cudaError_t error = next();
        queue->running = false;
        queue->n_run++;
        machine.changed.notify_all();
        if (first == cudaSuccess) first = error;
    }
    return first;
}

static cudaError_t run_all(work_queue *queue)
{
    return run_until(queue, queue->n_queued);
}

static void put(cudaStream_t stream, work piece)
{
    const int on = stream->device;
    stream->queue->waiting.push_back([on, piece]() -> cudaError_t {
        device *d = &machine.devices[on];
        if (d->lost) return d->lost;
        open_memory();
        const cudaError_t error = piece();
        close_memory();
        return error;
    });
    stream->queue->n_queued++;
    if (stream->queue->driven) machine.changed.notify_all();
}

/* The thread of a queue that is driven. */
static void drive(std::shared_ptr<work_queue> queue)
{
    guard held(machine.lock);
    while (!queue->ended) {
        if (queue->running || queue->waiting.empty())
            machine.changed.wait(machine.lock);
        else
            run_all(queue.get());
    }
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    guard held(machine.lock);
    work_queue *const queue = stream->queue.get();
    queue->waiting.push_back([function, data]() -> cudaError_t {
        machine.lock.unlock();
        function(data);
        machine.lock.lock();
        return cudaSuccess;
    });
    queue->n_queued++;
    if (!queue->driven) std::thread(drive, stream->queue).detach();
    queue->driven = true;
    machine.changed.notify_all();
    return cudaSuccess;
}

cudaError_t emu_copy(void *to, const void *from, size_t n_bytes)
{
    guard held(machine.lock);
    open_memory();
    memmove(to, from, n_bytes);
    close_memory();
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    (void)flags;
    guard held(machine.lock);
    if (here()->lost) return set_error(here()->lost);
    *out = new emu_stream{current_device, std::make_shared<work_queue>()};
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    guard held(machine.lock);
    run_all(stream->queue.get());
    stream->queue->ended = true;
    if (stream->queue->driven) machine.changed.notify_all();
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    guard held(machine.lock);
    open_memory(); /* once for all pieces */
    const cudaError_t error = run_all(stream->queue.get());
    close_memory();
    if (machine.devices[stream->device].lost)
        return set_error(machine.devices[stream->device].lost);
    return set_error(error);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    guard held(machine.lock);
    if (machine.devices[stream->device].lost) return machine.devices[stream->device].lost;
    const work_queue &queue = *stream->queue;
    return queue.n_run == queue.n_queued ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    guard held(machine.lock);
    const std::shared_ptr<work_queue> queue = event->queue;
    const uint64_t at = event->at;
    if (queue) put(stream, [queue, at] { return run_until(queue.get(), at); });
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    (void)flags;
    *out = new emu_event{};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    guard held(machine.lock);
    put(stream, [] { return cudaSuccess; });
    event->queue = stream->queue;
    event->at = stream->queue->n_queued;
    return cudaSuccess;
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    guard held(machine.lock);
    const cudaError_t error = event->queue ? run_until(event->queue.get(), event->at) : cudaSuccess;
    event->time_ms = now_ms();
    return set_error(error);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    guard held(machine.lock);
    return !event->queue || event->queue->n_run >= event->at ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    *ms = (float)(end->time_ms - begin->time_ms);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    (void)kind;
    guard held(machine.lock);
    if (machine.devices[stream->device].lost)
        return set_error(machine.devices[stream->device].lost);
    if (!n_bytes) return cudaSuccess;
    /* whatever the host's memory is: of pageable memory, too, CUDA promises no more */
    put(stream, [to, from, n_bytes] {
        memmove(to, from, n_bytes);
        return cudaSuccess;
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t n_bytes, cudaStream_t stream)
{
    guard held(machine.lock);
    put(stream, [to, value, n_bytes] {
        memset(to, value, n_bytes);
        return cudaSuccess;
    });
    return cudaSuccess;
}

/* ---- kernels ---- */

/* "... [with Args = add_args]" of a compiler's text, cut down to what tells kernels apart. */
static char *shorten(const char *text)
{
    const char *from = strstr(text, "Args = ");
    from = from ? from + strlen("Args = ") : text;
    char *name = strndup(from, strcspn(from, "];"));
    if (!name) abort();
    return name;
}

void emu_register_kernel(const void *kernel, emu_call_fn *call, size_t args_bytes, const char *text)
{
    guard held(machine.lock);
    if (machine.kernels.count(kernel)) return;
    machine.kernels[kernel] = {call, args_bytes, shorten(text), 48 << 10};
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, const void *kernel)
{
    guard held(machine.lock);
    *out = {};
    if (machine.no_image) return set_error(cudaErrorNoKernelImageForDevice);
    if (machine.no_function) return set_error(cudaErrorInvalidDeviceFunction);
    return machine.kernels.count(kernel) ? cudaSuccess : set_error(cudaErrorInvalidValue);
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
    (void)attribute;
    guard held(machine.lock);
    const auto entry = machine.kernels.find(kernel);
    if (entry == machine.kernels.end() || value < 0 || (size_t)value > SHARED_BYTES_OPTIN)
        return set_error(cudaErrorInvalidValue);
    entry->second.shared_bytes_max = (size_t)value;
    return cudaSuccess;
}

static bool in_bounds(dim3 d, uint32_t x, uint32_t y, uint32_t z)
{
    return d.x && d.y && d.z && d.x <= x && d.y <= y && d.z <= z;
}

/* A launch with its own copy of the arguments. */
struct kernel_node {
    kernel_entry entry;
    const void *kernel;
    dim3 grid, block;
    size_t shared_bytes;
    std::vector<unsigned char> args;
};

static cudaError_t make_node(kernel_node *out, const void *kernel, dim3 grid, dim3 block,
                             void **args, size_t shared_bytes)
{
    const auto entry = machine.kernels.find(kernel);
    if (entry == machine.kernels.end()) return cudaErrorInvalidValue;
    if (!in_bounds(grid, 0x7fffffff, 65535, 65535) || !in_bounds(block, 1024, 1024, 64) ||
        block.x * block.y * block.z > 1024)
        return cudaErrorInvalidConfiguration;
    if (shared_bytes > entry->second.shared_bytes_max) return cudaErrorInvalidValue;
    const unsigned char *const bytes = (const unsigned char *)args[0];
    *out = {entry->second, kernel,
            grid,          block,
            shared_bytes,  std::vector<unsigned char>(bytes, bytes + entry->second.args_bytes)};
    return cudaSuccess;
}

static void put_node(cudaStream_t stream, const kernel_node &node)
{
    device *const d = &machine.devices[stream->device];
    put(stream, [d, node]() -> cudaError_t {
        const emu_launch launch = {node.entry.call, node.kernel, node.args.data(), node.entry.name,
                                   node.grid,       node.block,  node.shared_bytes};
        if (fails_now(FAIL_LOST) || !emu_run(&launch, machine.order))
            d->lost = cudaErrorLaunchFailure;
        return d->lost;
    });
}

/* What cannot be launched at all, or is not to be. */
static cudaError_t check_launch(cudaStream_t stream)
{
    const cudaError_t lost = machine.devices[stream->device].lost;
    if (lost) return lost;
    return fails_now(FAIL_LAUNCH) ? cudaErrorLaunchOutOfResources : cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args,
                             size_t shared_bytes, cudaStream_t stream)
{
    guard held(machine.lock);
    kernel_node node;
    cudaError_t error = make_node(&node, kernel, grid, block, args, shared_bytes);
    if (!error) error = check_launch(stream);
    if (!error) put_node(stream, node);
    return set_error(error);
}

cudaError_t emu_put(cudaStream_t stream, cudaError_t (*run)(const void *args), const void *args,
                    size_t args_bytes)
{
    guard held(machine.lock);
    const cudaError_t error = check_launch(stream);
    if (error) return set_error(error);
    const unsigned char *const bytes = (const unsigned char *)args;
    const std::vector<unsigned char> kept(bytes, bytes + args_bytes);
    put(stream, [run, kept] { return run(kept.data()); });
    return cudaSuccess;
}

/* ---- graphs ---- */

struct emu_graph_node {
    size_t index;
};
struct emu_graph {
    std::vector<kernel_node> nodes;
    std::deque<emu_graph_node> handles;
};
struct emu_graph_exec {
    std::vector<kernel_node> nodes;
};

cudaError_t cudaGraphCreate(cudaGraph_t *out, unsigned flags)
{
    (void)flags;
    *out = new emu_graph();
    return cudaSuccess;
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *out, cudaGraph_t graph,
                                   const cudaGraphNode_t *before, size_t n_before,
                                   const cudaKernelNodeParams *params)
{
    guard held(machine.lock);
    /* a row: the first depends on nothing, the others on their predecessor */
    const size_t n = graph->nodes.size();
    if (n_before != (n > 0) || (n && before[0]->index != n - 1))
        return set_error(cudaErrorInvalidValue);
    kernel_node node;
    const cudaError_t error = make_node(&node, params->func, params->gridDim, params->blockDim,
                                        params->kernelParams, params->sharedMemBytes);
    if (error) return set_error(error);
    graph->nodes.push_back(node);
    graph->handles.push_back({n});
    *out = &graph->handles.back();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    guard held(machine.lock);
    if (fails_now(FAIL_MALLOC)) return set_error(cudaErrorMemoryAllocation);
    *out = new emu_graph_exec{graph->nodes};
    return cudaSuccess;
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaKernelNodeParams *params)
{
    guard held(machine.lock);
    kernel_node *const old = &exec->nodes[node->index];
    if (old->kernel != params->func) return set_error(cudaErrorInvalidValue);
    return set_error(make_node(old, params->func, params->gridDim, params->blockDim,
                               params->kernelParams, params->sharedMemBytes));
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    guard held(machine.lock);
    const cudaError_t error = check_launch(stream);
    for (size_t i = 0; !error && i < exec->nodes.size(); i++)
        put_node(stream, exec->nodes[i]);
    return set_error(error);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}
