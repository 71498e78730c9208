/* Devices, their memory, streams and events. */
#include "kernels/cuda/emu/schedule.h" /* before the words of CUDA */

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "kernels/cuda/emu/cuemu.h" /* and runtime.h */

static const size_t DEVICE_SPAN_BYTES = (size_t)64 << 30; /* addresses of a device */
static const size_t DEVICES_MAX = EMU_DEVICES_SPAN_BYTES / DEVICE_SPAN_BYTES;
static const size_t PAGE_BYTES = 4096;
static const size_t SHARED_BYTES_OPTIN = 101376; /* as the weakest: 8.6, 8.9, 12.0 */
static const size_t GARBAGE_BYTES_MAX = (size_t)64 << 20;

struct emu_stream {
    int device;
    std::shared_ptr<work_queue> queue;
};
struct emu_event {
    int device;
    std::shared_ptr<work_queue> queue; /* of the last record, or none */
    std::shared_ptr<moment> at;
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
    std::recursive_mutex &lock = schedule_lock();
    std::vector<device> devices;
    std::map<const void *, kernel_entry> kernels;
    std::map<const unsigned char *, size_t> pinned;
    size_t vram_bytes;
    emu_order order;
    bool no_driver, old_driver, no_image, no_function;
    long busy; /* a device that others have for themselves; -1: none */
    countdown fails[4] = {{"malloc:", 0}, {"host:", 0}, {"launch:", 0}, {"lost:", 0}};
    int n_open; /* depth of open_memory */
} &machine = *new struct machine();
enum { FAIL_MALLOC, FAIL_HOST, FAIL_LAUNCH, FAIL_LOST };

unsigned char *emu_devices;

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
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
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
    machine.busy = fail && !strncmp(fail, "busy:", 5) ? strtol(fail + 5, nullptr, 10) : -1;
    for (countdown &c : machine.fails) {
        const size_t n = strlen(c.name);
        c.left = fail && !strncmp(fail, c.name, n) ? strtol(fail + n, nullptr, 10) : 0;
    }
    size_t n_device = 0;
    if (!emu_devices) {
        void *span = mmap(nullptr, EMU_DEVICES_SPAN_BYTES, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (span == MAP_FAILED) abort();
        emu_devices = (unsigned char *)span;
    }
    for (const char *at = devices ? devices : "8.6"; *at && n_device < DEVICES_MAX; n_device++) {
        char *end;
        const long major = strtol(at, &end, 10);
        const long minor = *end == '.' ? strtol(end + 1, &end, 10) : 0;
        if (n_device == machine.devices.size()) {
            machine.devices.push_back({});
            machine.devices.back().base = emu_devices + n_device * DEVICE_SPAN_BYTES;
        }
        machine.devices[n_device].major = (int)major;
        machine.devices[n_device].minor = (int)minor;
        machine.devices[n_device].lost = cudaSuccess;
        at = *end == ',' ? end + 1 : "";
    }
    schedule_configure();
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
    if (device == machine.busy) return set_error(cudaErrorDevicesUnavailable);
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

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    guard held(machine.lock);
    if (device < 0 || (size_t)device >= machine.devices.size())
        return set_error(cudaErrorInvalidDevice);
    *value = attribute == cudaDevAttrCanUseHostPointerForRegisteredMem ||
             attribute == cudaDevAttrHostRegisterReadOnlySupported;
    return cudaSuccess;
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

/* Pinned memory that shares a page with [memory, memory + n_bytes), or with a byte of it. */
static bool is_pinned(const void *memory, size_t n_bytes, size_t page_bytes)
{
    const uintptr_t begin = (uintptr_t)memory / page_bytes * page_bytes;
    const uintptr_t end = ((uintptr_t)memory + n_bytes + page_bytes - 1) / page_bytes * page_bytes;
    auto next = machine.pinned.lower_bound((const unsigned char *)end);
    if (next == machine.pinned.begin()) return false;
    --next;
    return (uintptr_t)next->first + next->second > begin;
}

/* Of the mapping where memory begins. */
static bool is_writable(const void *memory)
{
    char line[512], protection[8] = "";
    unsigned long begin, end;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof(line), maps))
        if (sscanf(line, "%lx-%lx %4s", &begin, &end, protection) == 3 &&
            begin <= (uintptr_t)memory && (uintptr_t)memory < end)
            break;
    if (maps) fclose(maps);
    return protection[0] && protection[1] == 'w';
}

cudaError_t cudaHostRegister(void *memory, size_t n_bytes, unsigned flags)
{
    guard held(machine.lock);
    if (fails_now(FAIL_HOST)) return set_error(cudaErrorMemoryAllocation);
    if (is_pinned(memory, n_bytes, PAGE_BYTES))
        return set_error(cudaErrorHostMemoryAlreadyRegistered);
    if (!(flags & cudaHostRegisterReadOnly) && !is_writable(memory))
        return set_error(cudaErrorInvalidValue);
    machine.pinned[(unsigned char *)memory] = n_bytes;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    guard held(machine.lock);
    return machine.pinned.erase((unsigned char *)memory)
               ? cudaSuccess
               : set_error(cudaErrorHostMemoryNotRegistered);
}

void emu_check_host_read(const void *from)
{
    if (is_pinned(from, 1, 1)) return;
    emu_give_up("reads memory of the host that is not pinned");
}

/* ---- streams and events ---- */

/* A lost device does nothing any more, and the moments behind that come all the same. */
static void put(cudaStream_t stream, work piece)
{
    const int on = stream->device;
    const std::function<int()> run = piece.run;
    const std::function<void()> spoil = piece.spoil;
    if (run)
        piece.run = [on, run]() -> int {
            if (machine.devices[on].lost) return machine.devices[on].lost;
            open_memory();
            const int error = run();
            close_memory();
            return error;
        };
    if (spoil)
        piece.spoil = [on, spoil] {
            if (machine.devices[on].lost) return;
            open_memory();
            spoil();
            close_memory();
        };
    schedule_put(stream->queue.get(), piece);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    guard held(machine.lock);
    schedule_call(stream->queue, [function, data] { function(data); });
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
    *out = new emu_stream{current_device, schedule_open(current_device)};
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    guard held(machine.lock);
    schedule_finish(stream->queue.get());
    schedule_close(stream->queue.get());
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    guard held(machine.lock);
    open_memory(); /* once for all pieces */
    const cudaError_t error = (cudaError_t)schedule_finish(stream->queue.get());
    close_memory();
    if (machine.devices[stream->device].lost)
        return set_error(machine.devices[stream->device].lost);
    return set_error(error);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    guard held(machine.lock);
    if (machine.devices[stream->device].lost) return machine.devices[stream->device].lost;
    return schedule_is_empty(stream->queue.get()) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    guard held(machine.lock);
    work wait = {};
    wait.kind = WORK_WAIT;
    wait.end = event->at;
    wait.of = event->queue;
    if (event->at) put(stream, wait);
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
    work record = {};
    record.kind = WORK_OTHER;
    record.end = std::make_shared<moment>();
    put(stream, record);
    *event = {stream->device, stream->queue, record.end};
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    guard held(machine.lock);
    if (!event->at) return cudaSuccess;
    const int error = schedule_reach(event->queue.get(), event->at.get());
    const cudaError_t lost = machine.devices[event->device].lost;
    return set_error(lost ? lost : (cudaError_t)error);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    guard held(machine.lock);
    if (!event->at) return cudaSuccess;
    if (machine.devices[event->device].lost) return set_error(machine.devices[event->device].lost);
    const bool done = event->at->done;
    if (!done) schedule_poll(event->queue.get()); /* who asks again and again gets there */
    return done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    if (!begin->at || !end->at || !begin->at->done || !end->at->done)
        return set_error(cudaErrorInvalidResourceHandle);
    *ms = (float)((end->at->us - begin->at->us) * 1e-3);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    guard held(machine.lock);
    if (machine.devices[stream->device].lost)
        return set_error(machine.devices[stream->device].lost);
    if (!n_bytes) return cudaSuccess;
    work copy = {};
    copy.kind = kind == cudaMemcpyHostToDevice   ? WORK_COPY_IN
                : kind == cudaMemcpyDeviceToHost ? WORK_COPY_OUT
                                                 : WORK_OTHER;
    copy.n_bytes = n_bytes;
    /* whatever the host's memory is: of pageable memory, too, CUDA promises no more */
    copy.run = [to, from, n_bytes] {
        memmove(to, from, n_bytes);
        return cudaSuccess;
    };
    if (copy.kind != WORK_OTHER) copy.spoil = [to, n_bytes] { memset(to, 0xff, n_bytes); };
    put(stream, copy);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t n_bytes, cudaStream_t stream)
{
    guard held(machine.lock);
    work set = {};
    set.kind = WORK_OTHER;
    set.n_bytes = n_bytes;
    set.run = [to, value, n_bytes] {
        memset(to, value, n_bytes);
        return cudaSuccess;
    };
    put(stream, set);
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
    work kernel = {};
    kernel.kind = WORK_KERNEL;
    kernel.name = node.entry.name;
    kernel.run = [d, node]() -> int {
        const emu_launch launch = {node.entry.call, node.kernel, node.args.data(), node.entry.name,
                                   node.grid,       node.block,  node.shared_bytes};
        if (fails_now(FAIL_LOST) || !emu_run(&launch, machine.order))
            d->lost = cudaErrorLaunchFailure;
        return d->lost;
    };
    put(stream, kernel);
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
    work of_library = {};
    of_library.kind = WORK_KERNEL;
    of_library.name = "a_library";
    of_library.run = [run, kept] { return run(kept.data()); };
    put(stream, of_library);
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
