/* NCCL's interface between processes with emulated devices: what the program calls of it, with its
 * manners, so that what would hang there hangs here.
 *
 *   - An operation runs in its stream's order, begins without being asked, and blocks the stream
 *     until the other end has put its half; data moves only then.
 *   - A communicator that does not block is in progress until both ends are there.
 *   - Operations of a group begin together. A send and a receive of a rank to itself must be in
 * one.
 *   - Halves of different lengths do not match: neither ends.
 *   - One device twice in a communicator is refused.
 *   - When a process is gone, its partner's operations stand still until they are aborted.
 *
 * Communicators have one or two ranks. Ranks find each other by a socket that the id names, which
 * works among processes of one machine.
 *
 *   LEAN_EMU_NCCL   comma-separated: "delay:MS" before each operation's data, "rate:BYTES" a
 * second, "lose:N" the N-th operation of this process never ends, "error:N" likewise, and its
 * communicator tells of an error, "refuse" no communicator comes about, "file:NAME" another library
 * is to be opened instead of this one
 *
 * Threads: as NCCL's. */
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/emu/cuemu.h" /* and runtime.h */

#define EXPORT extern "C" __attribute__((visibility("default")))

enum ncclResult_t {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
};
struct ncclUniqueId {
    char internal[128];
};
struct ncclConfig_t {
    size_t size;
    unsigned magic, version;
    int blocking, cgaClusterSize, minCTAs, maxCTAs;
    const char *netName;
};

static const char ID_MAGIC[] = "emulated-nccl-";

/* What both ends tell each other before anything else. */
struct greeting {
    char uuid[16];
    int n_rank, rank;
};

enum { SEND, RECV };
struct operation {
    int kind;
    unsigned char *buffer; /* of the device */
    size_t n_bytes;
    int peer;
};

/* Lives as long as the communicator or an operation of it. */
struct link {
    int n_rank, rank;
    int fd = -1;
    std::atomic<int> state{ncclInProgress}; /* ncclResult_t */
    std::atomic<bool> aborted{false};
    ~link()
    {
        if (fd >= 0) close(fd);
    }
};
struct ncclComm {
    std::shared_ptr<struct link> link;
};
typedef ncclComm *ncclComm_t;

/* Settings, counted over all communicators of the process. */
static struct network {
    std::mutex lock;
    std::map<std::string, int> listeners; /* by name, of ids made here that nobody has used yet */
    std::string last_error;
    double delay_s, bytes_per_s;
    long lose, error; /* how many operations are left until one is lost, fails; 0: none does */
    std::atomic<bool> refuse; /* read without the lock */
} &network = *new struct network();

typedef std::lock_guard<std::mutex> guard;

/* Within a group: what has been called so far. */
static thread_local int group_depth;
struct grouped {
    std::shared_ptr<struct link> link;
    cudaStream_t stream;
    operation op;
};
static thread_local std::vector<grouped> group;

static ncclResult_t fail(ncclResult_t result, const char *text)
{
    guard held(network.lock);
    network.last_error = text;
    return result;
}

/* The value of a setting; NULL: it is not given. */
static const char *setting(const char *name)
{
    const char *at = getenv("LEAN_EMU_NCCL");
    while (at && strncmp(at, name, strlen(name))) {
        at = strchr(at, ',');
        if (at) at++;
    }
    return at ? at + strlen(name) : nullptr;
}

static void read_settings(void)
{
    guard held(network.lock);
    const char *delay = setting("delay:"), *rate = setting("rate:"), *lose = setting("lose:"),
               *error = setting("error:");
    network.delay_s = delay ? strtod(delay, nullptr) * 1e-3 : 0;
    network.bytes_per_s = rate ? strtod(rate, nullptr) : 0;
    network.lose = lose ? strtol(lose, nullptr, 10) : 0;
    network.error = error ? strtol(error, nullptr, 10) : 0;
    network.refuse = setting("refuse") != nullptr;
}

const char *nccl_file(void)
{
    static thread_local char name[512];
    const char *const other = setting("file:");
    Dl_info self;
    if (other)
        snprintf(name, sizeof(name), "%.*s", (int)strcspn(other, ","), other);
    else if (dladdr((void *)nccl_file, &self))
        snprintf(name, sizeof(name), "%s", self.dli_fname);
    return name;
}

/* ---- what goes between two processes ---- */

/* All n_bytes in or out; false: aborted, or the other process is gone. */
static bool move(const struct link *link, bool out, void *data, size_t n_bytes)
{
    unsigned char *at = (unsigned char *)data;
    while (n_bytes) {
        struct pollfd ready = {link->fd, (short)(out ? POLLOUT : POLLIN), 0};
        if (link->aborted) return false;
        if (poll(&ready, 1, 10) <= 0) continue;
        const ssize_t n = out ? send(link->fd, at, n_bytes, MSG_DONTWAIT | MSG_NOSIGNAL)
                              : recv(link->fd, at, n_bytes, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
        if (n > 0) {
            at += n;
            n_bytes -= (size_t)n;
        }
    }
    return true;
}

static void stand_still(const struct link *link)
{
    while (!link->aborted)
        usleep(1000);
}

/* The receiver tells that it is there, and for how much; the sender answers with the data. */
static bool transfer(const struct link *link, const operation &op)
{
    std::vector<unsigned char> data(op.n_bytes);
    uint64_t n_posted = op.n_bytes;
    if (op.kind == RECV) {
        if (!move(link, true, &n_posted, sizeof(n_posted))) return false;
        if (!move(link, false, data.data(), op.n_bytes)) return false;
        emu_copy(op.buffer, data.data(), op.n_bytes);
        return true;
    }
    if (!move(link, false, &n_posted, sizeof(n_posted)) || n_posted != op.n_bytes) return false;
    emu_copy(data.data(), op.buffer, op.n_bytes);
    return move(link, true, data.data(), op.n_bytes);
}

/* The delay, and whether this operation is one that never ends. */
static bool is_lost(struct link *link, size_t n_bytes)
{
    double pause_s;
    bool lost, failed;
    {
        guard held(network.lock);
        pause_s = network.delay_s;
        if (network.bytes_per_s > 0) pause_s += (double)n_bytes / network.bytes_per_s;
        lost = network.lose && !--network.lose;
        failed = network.error && !--network.error;
    }
    if (pause_s > 0) usleep((useconds_t)(pause_s * 1e6));
    if (failed) link->state = fail(ncclRemoteError, "the other rank is gone");
    return lost || failed;
}

/* ---- operations in a stream ---- */

struct launch {
    std::shared_ptr<struct link> link;
    std::vector<operation> ops;
};

/* Those of a rank with itself, in pairs, then those with the other in order. */
static bool run_operations(const launch *l)
{
    std::vector<operation> sends;
    for (const operation &op : l->ops)
        if (op.peer == l->link->rank && op.kind == SEND) sends.push_back(op);
    size_t n_paired = 0;
    for (const operation &op : l->ops) {
        if (op.peer != l->link->rank || op.kind != RECV) continue;
        if (n_paired == sends.size() || sends[n_paired].n_bytes != op.n_bytes) return false;
        emu_copy(op.buffer, sends[n_paired++].buffer, op.n_bytes);
    }
    if (n_paired != sends.size()) return false;
    for (const operation &op : l->ops)
        if (op.peer != l->link->rank && !transfer(l->link.get(), op)) return false;
    return true;
}

static void run_launch(void *data)
{
    launch *const l = (launch *)data;
    size_t n_bytes = 0;
    for (const operation &op : l->ops)
        n_bytes += op.n_bytes;
    if (l->link->aborted || is_lost(l->link.get(), n_bytes) || !run_operations(l))
        stand_still(l->link.get());
    delete l;
}

/* One launch for each communicator and stream of the group. */
static ncclResult_t launch_group(void)
{
    std::vector<grouped> calls;
    calls.swap(group);
    while (!calls.empty()) {
        const grouped first = calls[0];
        launch *const l = new launch{first.link, {}};
        std::vector<grouped> others;
        for (const grouped &call : calls) {
            if (call.link == first.link && call.stream == first.stream)
                l->ops.push_back(call.op);
            else
                others.push_back(call);
        }
        calls.swap(others);
        if (cudaLaunchHostFunc(first.stream, run_launch, l) != cudaSuccess) {
            delete l;
            return fail(ncclUnhandledCudaError, "the stream takes nothing");
        }
    }
    return ncclSuccess;
}

static ncclResult_t add(ncclComm_t comm, cudaStream_t stream, const operation &op, int type)
{
    if (!comm || type != 0) return fail(ncclInvalidArgument, "no communicator, or not of bytes");
    if (op.peer < 0 || op.peer >= comm->link->n_rank)
        return fail(ncclInvalidArgument, "no such rank");
    const int state = comm->link->state;
    if (state != ncclSuccess)
        return state == ncclInProgress
                   ? fail(ncclInvalidArgument, "the communicator is not yet complete")
                   : (ncclResult_t)state;
    group.push_back({comm->link, stream, op});
    return group_depth ? ncclSuccess : launch_group();
}

EXPORT ncclResult_t ncclSend(const void *buffer, size_t n, int type, int peer, ncclComm_t comm,
                             cudaStream_t stream)
{
    return add(comm, stream, {SEND, (unsigned char *)buffer, n, peer}, type);
}

EXPORT ncclResult_t ncclRecv(void *buffer, size_t n, int type, int peer, ncclComm_t comm,
                             cudaStream_t stream)
{
    return add(comm, stream, {RECV, (unsigned char *)buffer, n, peer}, type);
}

EXPORT ncclResult_t ncclGroupStart(void)
{
    group_depth++;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGroupEnd(void)
{
    if (!group_depth) return fail(ncclInvalidUsage, "no group was begun");
    return --group_depth ? ncclSuccess : launch_group();
}

/* ---- communicators ---- */

static socklen_t address_of(const char *name, struct sockaddr_un *out)
{
    *out = {};
    out->sun_family = AF_UNIX; /* the name begins with a zero: no file */
    const size_t n = strnlen(name, sizeof(out->sun_path) - 2);
    memcpy(out->sun_path + 1, name, n);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
}

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *out)
{
    struct sockaddr_un address;
    uint64_t number;
    read_settings();
    if (getrandom(&number, sizeof(number), 0) != sizeof(number))
        return fail(ncclSystemError, "no random number");
    *out = {};
    snprintf(out->internal, sizeof(out->internal), "%s%016llx", ID_MAGIC,
             (unsigned long long)number);
    const socklen_t n = address_of(out->internal, &address);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, n) || listen(fd, 1)) {
        if (fd >= 0) close(fd);
        return fail(ncclSystemError, "no socket for the other rank");
    }
    guard held(network.lock);
    network.listeners[out->internal] = fd;
    return ncclSuccess;
}

/* A connected socket; -1: aborted. */
static int meet(const struct link *link, const std::string &name, int listener)
{
    struct sockaddr_un address;
    const socklen_t n = address_of(name.c_str(), &address);
    while (!link->aborted && !network.refuse) {
        if (listener >= 0) {
            struct pollfd ready = {listener, POLLIN, 0};
            if (poll(&ready, 1, 10) > 0) return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
            continue;
        }
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && !connect(fd, (struct sockaddr *)&address, n)) return fd;
        if (fd >= 0) close(fd);
        usleep(10000);
    }
    return -1;
}

/* NCCL's thread that makes a communicator. */
static void complete(std::shared_ptr<struct link> link, std::string name, int listener,
                     greeting own)
{
    greeting other = {};
    link->fd = meet(link.get(), name, listener);
    if (listener >= 0) close(listener);
    if (link->fd < 0 || !move(link.get(), true, &own, sizeof(own)) ||
        !move(link.get(), false, &other, sizeof(other)))
        link->state = fail(ncclSystemError, "the other rank does not answer");
    else if (!memcmp(own.uuid, other.uuid, sizeof(own.uuid)))
        link->state = fail(ncclInvalidUsage, "the two ranks are on the same device");
    else if (other.n_rank != own.n_rank || other.rank == own.rank)
        link->state = fail(ncclInvalidArgument, "the ranks do not make up a communicator");
    else
        link->state = ncclSuccess;
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int n_rank, ncclUniqueId id, int rank,
                                           ncclConfig_t *config)
{
    int device, listener = -1;
    struct cudaDeviceProp properties;
    read_settings();
    if (config->magic != 0xcafebeef || strncmp(id.internal, ID_MAGIC, strlen(ID_MAGIC)) ||
        n_rank < 1 || n_rank > 2 || rank < 0 || rank >= n_rank)
        return fail(ncclInvalidArgument, "an argument that the emulator does not know");
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaGetDeviceProperties(&properties, device) != cudaSuccess)
        return fail(ncclUnhandledCudaError, "no device");
    auto link = std::make_shared<struct link>();
    link->n_rank = n_rank;
    link->rank = rank;
    *out = new ncclComm{link};
    greeting own = {};
    memcpy(own.uuid, properties.uuid.bytes, sizeof(own.uuid));
    own.n_rank = n_rank;
    own.rank = rank;
    {
        guard held(network.lock);
        const auto made = network.listeners.find(id.internal);
        if (made != network.listeners.end()) {
            listener = made->second;
            network.listeners.erase(made);
        }
    }
    if (n_rank == 1) {
        if (listener >= 0) close(listener);
        link->state = ncclSuccess;
        return ncclSuccess;
    }
    std::thread maker(complete, link, std::string(id.internal), listener, own);
    if (config->blocking == 0) {
        maker.detach();
        return ncclInProgress;
    }
    maker.join();
    return (ncclResult_t)link->state.load();
}

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    *error = (ncclResult_t)comm->link->state.load();
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    comm->link->aborted = true;
    delete comm;
    return ncclSuccess;
}

/* What is under way goes on. */
EXPORT ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    delete comm;
    return ncclSuccess;
}

/* ---- texts ---- */

EXPORT ncclResult_t ncclGetVersion(int *version)
{
    *version = 22809;
    return ncclSuccess;
}

EXPORT const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return texts[result];
}

EXPORT const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    static thread_local std::string copy;
    guard held(network.lock);
    copy = network.last_error;
    return copy.c_str();
}
