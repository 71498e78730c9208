/* Streams that copy, their events, and what is held back; pinned memory. */
#include "kernels/cuda/copies.cuh"

#include <stdlib.h>
#include <string.h>

enum {
    LANE_BACK = COPY_AHEAD + 1, /* beside those of enum copy_lane */
    N_LANE,
    EVENTS = 128, /* of a stream, in turn */
    HELD_MAX = 512,
    PIECES = 4,
};
static const size_t PIECE_BYTES = (size_t)4 << 20; /* larger copies gain nothing from a link */
/* Ahead, given to the device and not done: at 25 GB/s a demand waits 0.7 ms for them. */
static const size_t AHEAD_BYTES_MAX = (size_t)16 << 20;
/* Back, in pieces: a download waits 80 us at most. */
static const size_t BACK_PIECE_BYTES = (size_t)1 << 20, BACK_BYTES_MAX = (size_t)2 << 20;

struct request {
    void *to;
    const void *from;
    size_t n_bytes;
    uint64_t after;
};

/* Copies are numbered from 1: n_done <= n_sent <= n_put; those in (n_sent, n_put] are held. */
struct lane {
    cudaStream_t stream;
    cudaEvent_t done[EVENTS]; /* of copy n: n % EVENTS */
    uint64_t end[EVENTS];     /* bytes sent up to the end of the copy */
    uint64_t n_put, n_sent, n_done;
    uint64_t sent_bytes, done_bytes;
    struct request held[HELD_MAX]; /* n % HELD_MAX */
    uint8_t *piece[PIECES];        /* pinned; NULL until needed */
    cudaEvent_t read[PIECES];      /* the piece may be written */
    uint32_t turn;
    bool no_pieces; /* the system refused */
    uint64_t floor; /* a mark that it is behind */
};

struct pinned {
    const uint8_t *memory;
    size_t n_bytes;
};

struct copies {
    struct backend_cuda_counters *counters;
    struct lane lane[N_LANE];
    cudaEvent_t mark[EVENTS];
    uint64_t n_mark;
    uint64_t floor;        /* that every lane must be behind */
    struct pinned *pinned; /* in rising order */
    size_t n_pinned, n_pinned_max;
};

/* Returns the first error. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        const cudaError_t code_ = (call);                                                          \
        if (code_ != cudaSuccess) return code_;                                                    \
    } while (0)

static uint64_t ticket_of(uint64_t n, uint32_t lane)
{
    return n * N_LANE + lane;
}
static struct lane *lane_of_ticket(struct copies *copies, uint64_t ticket)
{
    return &copies->lane[ticket % N_LANE];
}

/* ---- pinned memory ---- */

/* How many begin at or before memory. */
static size_t count_before(const struct copies *copies, const void *memory)
{
    size_t begin = 0, end = copies->n_pinned;
    while (begin < end) {
        const size_t middle = begin + (end - begin) / 2;
        if (copies->pinned[middle].memory <= (const uint8_t *)memory)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

static bool is_pinned(const struct copies *copies, const void *memory, size_t n_bytes)
{
    const size_t n = count_before(copies, memory);
    if (!n) return false;
    const struct pinned *p = &copies->pinned[n - 1];
    const size_t at = (size_t)((const uint8_t *)memory - p->memory);
    return at <= p->n_bytes && n_bytes <= p->n_bytes - at;
}

static bool can_use_host_address(int device)
{
    int can = 0;
    return cudaDeviceGetAttribute(&can, cudaDevAttrCanUseHostPointerForRegisteredMem, device) ==
               cudaSuccess &&
           can;
}

/* A mapping that cannot be written is pinned as such, where the device knows how. */
static cudaError_t register_memory(void *memory, size_t n_bytes)
{
    const unsigned flags = cudaHostRegisterPortable | cudaHostRegisterMapped;
    int device = 0, knows = 0;
    TRY(cudaGetDevice(&device));
    if (!can_use_host_address(device)) return cudaErrorNotSupported;
    const cudaError_t code = cudaHostRegister(memory, n_bytes, flags);
    if (code == cudaSuccess || code == cudaErrorMemoryAllocation) return code;
    if (cudaDeviceGetAttribute(&knows, cudaDevAttrHostRegisterReadOnlySupported, device) !=
            cudaSuccess ||
        !knows)
        return code;
    return cudaHostRegister(memory, n_bytes, flags | cudaHostRegisterReadOnly) == cudaSuccess
               ? cudaSuccess
               : code;
}

cudaError_t copies_pin(struct copies *copies, void *memory, size_t n_bytes)
{
    if (copies->n_pinned == copies->n_pinned_max) {
        const size_t n_max = copies->n_pinned_max ? 2 * copies->n_pinned_max : 64;
        struct pinned *grown =
            (struct pinned *)realloc(copies->pinned, n_max * sizeof(*copies->pinned));
        if (!grown) return cudaErrorMemoryAllocation;
        copies->pinned = grown;
        copies->n_pinned_max = n_max;
    }
    TRY(register_memory(memory, n_bytes));
    const size_t at = count_before(copies, memory);
    memmove(copies->pinned + at + 1, copies->pinned + at,
            (copies->n_pinned - at) * sizeof(*copies->pinned));
    copies->pinned[at] = pinned{(const uint8_t *)memory, n_bytes};
    copies->n_pinned++;
    copies->counters->n_alloc++;
    return cudaSuccess;
}

cudaError_t copies_unpin(struct copies *copies, void *memory)
{
    const size_t n = count_before(copies, memory);
    if (!n || copies->pinned[n - 1].memory != memory) return cudaErrorInvalidValue;
    memmove(copies->pinned + n - 1, copies->pinned + n,
            (copies->n_pinned - n) * sizeof(*copies->pinned));
    copies->n_pinned--;
    return cudaHostUnregister(memory);
}

/* ---- what the device has been given ---- */

/* Of the copies that have used the event of copy n, the latest. */
static uint64_t latest_of_event(const struct lane *lane, uint64_t n)
{
    return n + (lane->n_sent - n) / EVENTS * EVENTS;
}

static cudaError_t query(struct lane *lane, uint64_t n)
{
    if (n <= lane->n_done) return cudaSuccess;
    if (n > lane->n_sent) return cudaErrorNotReady;
    TRY(cudaEventQuery(lane->done[n % EVENTS]));
    lane->n_done = latest_of_event(lane, n);
    lane->done_bytes = lane->end[n % EVENTS];
    return cudaSuccess;
}

static cudaError_t take_pieces(struct copies *copies, struct lane *lane)
{
    if (lane->piece[0] || lane->no_pieces) return cudaSuccess;
    uint8_t *memory = NULL;
    if (cudaHostAlloc(&memory, PIECES * PIECE_BYTES, cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError();
        lane->no_pieces = true; /* CUDA has small ones of its own */
        return cudaSuccess;
    }
    copies->counters->n_alloc++;
    for (uint32_t i = 0; i < PIECES; i++) {
        lane->piece[i] = memory + i * PIECE_BYTES;
        TRY(cudaEventCreateWithFlags(&lane->read[i], cudaEventDisableTiming));
    }
    return cudaSuccess;
}

static cudaError_t copy_through_pieces(struct lane *lane, const struct request *r)
{
    size_t n_bytes;
    for (size_t at = 0; at < r->n_bytes; at += n_bytes) {
        const uint32_t i = lane->turn++ % PIECES;
        n_bytes = r->n_bytes - at < PIECE_BYTES ? r->n_bytes - at : PIECE_BYTES;
        TRY(cudaEventSynchronize(lane->read[i]));
        memcpy(lane->piece[i], (const uint8_t *)r->from + at, n_bytes);
        TRY(cudaMemcpyAsync((uint8_t *)r->to + at, lane->piece[i], n_bytes, cudaMemcpyHostToDevice,
                            lane->stream));
        TRY(cudaEventRecord(lane->read[i], lane->stream));
    }
    return cudaSuccess;
}

static cudaError_t copy_bytes(struct copies *copies, struct lane *lane, const struct request *r)
{
    if (lane == &copies->lane[LANE_BACK]) {
        copies->counters->back_bytes += r->n_bytes;
        return cudaMemcpyAsync(r->to, r->from, r->n_bytes, cudaMemcpyDeviceToHost, lane->stream);
    }
    copies->counters->n_fetch++;
    copies->counters->fetch_bytes += r->n_bytes;
    if (!is_pinned(copies, r->from, r->n_bytes)) {
        copies->counters->staged_bytes += r->n_bytes;
        TRY(take_pieces(copies, lane));
        if (lane->piece[0]) return copy_through_pieces(lane, r);
    }
    return cudaMemcpyAsync(r->to, r->from, r->n_bytes, cudaMemcpyHostToDevice, lane->stream);
}

static cudaError_t send(struct copies *copies, struct lane *lane, const struct request *r)
{
    const struct lane *demand = &copies->lane[COPY_DEMAND];
    const uint64_t n = ++lane->n_sent;
    lane->sent_bytes += r->n_bytes;
    lane->end[n % EVENTS] = lane->sent_bytes;
    if (lane->floor != copies->floor) {
        TRY(cudaStreamWaitEvent(lane->stream, copies->mark[copies->floor % EVENTS], 0));
        lane->floor = copies->floor;
    }
    if (r->after) TRY(cudaStreamWaitEvent(lane->stream, copies->mark[r->after % EVENTS], 0));
    if (lane == &copies->lane[COPY_AHEAD] && demand->n_done < demand->n_sent)
        TRY(cudaStreamWaitEvent(lane->stream, demand->done[demand->n_sent % EVENTS], 0));
    TRY(copy_bytes(copies, lane, r));
    return cudaEventRecord(lane->done[n % EVENTS], lane->stream);
}

/* Whether one more may be given to the device now. */
static bool has_room(const struct lane *lane, size_t n_bytes, size_t bytes_max)
{
    const uint64_t sent_bytes = lane->sent_bytes - lane->done_bytes;
    return !sent_bytes ||
           (sent_bytes + n_bytes <= bytes_max && lane->n_sent - lane->n_done < EVENTS);
}

/* Sends what a lane holds: up to copy n in any case, then as far as there is room. */
static cudaError_t send_held(struct copies *copies, struct lane *lane, uint64_t n)
{
    const size_t bytes_max = lane == &copies->lane[LANE_BACK] ? BACK_BYTES_MAX : AHEAD_BYTES_MAX;
    if (lane->n_sent == lane->n_put) return cudaSuccess;
    cudaError_t code = cudaSuccess;
    while (lane->n_done < lane->n_sent && code == cudaSuccess)
        code = query(lane, lane->n_done + 1);
    if (code != cudaErrorNotReady) TRY(code);
    while (lane->n_sent < lane->n_put) {
        const struct request *r = &lane->held[(lane->n_sent + 1) % HELD_MAX];
        if (lane->n_sent >= n && !has_room(lane, r->n_bytes, bytes_max)) break;
        TRY(send(copies, lane, r));
    }
    return cudaSuccess;
}

/* ---- creation ---- */

struct copies *copies_create(struct backend_cuda_counters *counters)
{
    struct copies *copies = (struct copies *)calloc(1, sizeof(*copies));
    if (copies) copies->counters = counters;
    return copies;
}

cudaError_t copies_open(struct copies *copies)
{
    for (uint32_t il = 0; il < N_LANE; il++) {
        struct lane *lane = &copies->lane[il];
        TRY(cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking));
        for (uint32_t i = 0; i < EVENTS; i++)
            TRY(cudaEventCreateWithFlags(&lane->done[i], cudaEventDisableTiming));
    }
    for (uint32_t i = 0; i < EVENTS; i++)
        TRY(cudaEventCreateWithFlags(&copies->mark[i], cudaEventDisableTiming));
    return cudaSuccess;
}

static void destroy_events(cudaEvent_t *event, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (event[i]) cudaEventDestroy(event[i]);
}

void copies_destroy(struct copies *copies)
{
    if (!copies) return;
    for (uint32_t il = 0; il < N_LANE; il++) {
        struct lane *lane = &copies->lane[il];
        if (lane->stream) cudaStreamSynchronize(lane->stream);
        destroy_events(lane->done, EVENTS);
        destroy_events(lane->read, PIECES);
        cudaFreeHost(lane->piece[0]);
        if (lane->stream) cudaStreamDestroy(lane->stream);
    }
    destroy_events(copies->mark, EVENTS);
    for (size_t i = 0; i < copies->n_pinned; i++)
        cudaHostUnregister(const_cast<uint8_t *>(copies->pinned[i].memory));
    free(copies->pinned);
    free(copies);
}

/* ---- copies ---- */

cudaError_t copies_mark(struct copies *copies, cudaStream_t operations, uint64_t *mark)
{
    *mark = ++copies->n_mark;
    return cudaEventRecord(copies->mark[*mark % EVENTS], operations);
}

cudaError_t copies_hold_back(struct copies *copies, cudaStream_t operations)
{
    return copies_mark(copies, operations, &copies->floor);
}

static cudaError_t put_held(struct copies *copies, uint32_t which, const struct request *request,
                            uint64_t *ticket)
{
    struct lane *lane = &copies->lane[which];
    if (lane->n_put - lane->n_sent == HELD_MAX - 1) TRY(send_held(copies, lane, lane->n_sent + 1));
    *ticket = ticket_of(++lane->n_put, which);
    lane->held[lane->n_put % HELD_MAX] = *request;
    return send_held(copies, lane, 0);
}

cudaError_t copies_put(struct copies *copies, void *to, const void *from_host, size_t n_bytes,
                       uint64_t after, enum copy_lane which, uint64_t *ticket)
{
    struct lane *lane = &copies->lane[which];
    const struct request request = {to, from_host, n_bytes, after};
    if (which != COPY_DEMAND) return put_held(copies, which, &request, ticket);
    *ticket = ticket_of(++lane->n_put, which);
    return send(copies, lane, &request);
}

cudaError_t copies_put_back(struct copies *copies, void *to_host, const void *from, size_t n_bytes,
                            uint64_t *ticket)
{
    for (size_t at = 0, n; at < n_bytes; at += n) {
        n = n_bytes - at < BACK_PIECE_BYTES ? n_bytes - at : BACK_PIECE_BYTES;
        const struct request piece = {(uint8_t *)to_host + at, (const uint8_t *)from + at, n, 0};
        TRY(put_held(copies, LANE_BACK, &piece, ticket));
    }
    return cudaSuccess;
}

cudaError_t copies_pump(struct copies *copies)
{
    TRY(send_held(copies, &copies->lane[COPY_AHEAD], 0));
    return send_held(copies, &copies->lane[LANE_BACK], 0);
}

bool copies_known_done(const struct copies *copies, uint64_t ticket)
{
    return ticket / N_LANE <= copies->lane[ticket % N_LANE].n_done;
}

cudaError_t copies_query(struct copies *copies, uint64_t ticket)
{
    TRY(copies_pump(copies));
    return query(lane_of_ticket(copies, ticket), ticket / N_LANE);
}

cudaError_t copies_await(struct copies *copies, uint64_t ticket, cudaStream_t operations)
{
    const uint64_t n = ticket / N_LANE;
    struct lane *lane = lane_of_ticket(copies, ticket);
    if (n > lane->n_sent) TRY(send_held(copies, lane, n));
    return cudaStreamWaitEvent(operations, lane->done[n % EVENTS], 0);
}

cudaError_t copies_wait(struct copies *copies)
{
    for (uint32_t il = 0; il < N_LANE; il++) {
        struct lane *lane = &copies->lane[il];
        TRY(send_held(copies, lane, lane->n_put));
        TRY(cudaStreamSynchronize(lane->stream));
    }
    return cudaSuccess;
}
