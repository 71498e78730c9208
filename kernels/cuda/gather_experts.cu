/* gather_experts: experts that are in pinned host memory alone come to the device's, in two
 * launches that never ask the host and are the same for every token, so that a graph replays them:
 *
 *   resolve   which distinct experts of the ids are remote, and the places that they get: first
 *             come, first served, in the order of rows and ranks; and where each expert is read
 *   pull      the bytes, over the link, by loads of 16 bytes from some blocks for each place
 *
 * Experts beyond the room keep their host address, which ffn's kernels read as any other. */
#include "kernels/cuda/backend_cuda.cuh"
#include "kernels/cuda/ptx.cuh"

enum {
    RESOLVE_THREADS = 256,
    PULL_THREADS = 256,
    PULL_BLOCKS = 16, /* for an expert: with LOADS of 16 bytes each, 256 KiB are under way */
    PULL_LOADS = 4,
    MATRICES = 3,
};

struct resolve_args {
    const int32_t *ids;              /* [n_pair] */
    const struct expert_view *table; /* [n_expert] */
    const uint8_t *remote;           /* [n_expert] */
    struct expert_view *view;        /* out, [n_expert] for the ids that occur */
    uint32_t *wanted;                /* out, [n_room]: the expert of each place, or UINT32_MAX */
    uint8_t *room;
    size_t up_begin, down_begin, n_bytes; /* of an expert in the room */
    uint32_t n_pair, n_expert, n_room, fused;
};

/* One block. */
KERNEL(RESOLVE_THREADS) resolve_kernel(const struct resolve_args a)
{
    DYNAMIC_SHARED(uint32_t, first); /* [n_expert]: the first pair that has it */
    __shared__ uint32_t n_of_warp[RESOLVE_THREADS / WARP];
    const uint32_t warp = threadIdx.x / WARP, lanes_before = (1u << threadIdx.x % WARP) - 1;
    for (uint32_t ie = threadIdx.x; ie < a.n_expert; ie += RESOLVE_THREADS)
        first[ie] = UINT32_MAX;
    for (uint32_t i = threadIdx.x; i < a.n_room; i += RESOLVE_THREADS)
        a.wanted[i] = UINT32_MAX;
    __syncthreads();
    for (uint32_t p = threadIdx.x; p < a.n_pair; p += RESOLVE_THREADS)
        atomicMin(&first[a.ids[p]], p);
    __syncthreads();
    uint32_t n_before = 0; /* remote experts before this round's pairs */
    for (uint32_t begin = 0; begin < a.n_pair; begin += RESOLVE_THREADS) {
        const uint32_t p = begin + threadIdx.x, ie = p < a.n_pair ? (uint32_t)a.ids[p] : 0;
        const bool is_first = p < a.n_pair && first[ie] == p;
        const bool is_remote = is_first && a.remote[ie];
        const uint32_t votes = __ballot_sync(ALL_LANES, is_remote);
        if (threadIdx.x % WARP == 0) n_of_warp[warp] = (uint32_t)__popc(votes);
        __syncthreads();
        uint32_t place = n_before + (uint32_t)__popc(votes & lanes_before);
        for (uint32_t w = 0; w < RESOLVE_THREADS / WARP; w++) {
            if (w < warp) place += n_of_warp[w];
            n_before += n_of_warp[w];
        }
        __syncthreads();
        if (!is_first) continue;
        struct expert_view view = a.table[ie];
        if (is_remote && place < a.n_room) {
            uint8_t *const at = a.room + place * a.n_bytes;
            view = {at, a.fused ? NULL : at + a.up_begin, at + a.down_begin};
            a.wanted[place] = ie;
        }
        a.view[ie] = view;
    }
}

struct pull_args {
    const struct expert_view *table;
    const uint32_t *wanted;
    uint8_t *room;
    size_t n_bytes; /* of an expert in the room */
    size_t begin[MATRICES], matrix_bytes[MATRICES];
};

/* Pieces of Unit, strided by all threads of a place; from is aligned for Unit, to for any. */
template <class Unit, class Load>
DEVICE void pull_units(uint8_t *to, const uint8_t *from, size_t n_bytes, Load load)
{
    const size_t n = n_bytes / sizeof(Unit), step = (size_t)gridDim.x * PULL_THREADS;
    for (size_t i = (size_t)blockIdx.x * PULL_THREADS + threadIdx.x; i < n;
         i += PULL_LOADS * step) {
        Unit value[PULL_LOADS];
#pragma unroll
        for (uint32_t k = 0; k < PULL_LOADS; k++)
            if (i + k * step < n) value[k] = load(from + (i + k * step) * sizeof(Unit));
#pragma unroll
        for (uint32_t k = 0; k < PULL_LOADS; k++)
            if (i + k * step < n) ((Unit *)to)[i + k * step] = value[k];
    }
}

/* Files align experts by 32 bytes at the start of a tensor; from there on by what a matrix has. */
DEVICE void pull(uint8_t *to, const uint8_t *from, size_t n_bytes)
{
    const uint32_t unit = (uintptr_t)from % 16 == 0 ? 16 : (uintptr_t)from % 4 == 0 ? 4 : 1;
    const size_t n_whole = n_bytes / unit * unit;
    if (unit == 16)
        pull_units<uint4>(to, from, n_whole, [](const uint8_t *at) { return load_once_128(at); });
    else if (unit == 4)
        pull_units<uint32_t>(to, from, n_whole, [](const uint8_t *at) { return load_once_32(at); });
    pull_units<uint8_t>(to + (unit == 1 ? 0 : n_whole), from + (unit == 1 ? 0 : n_whole),
                        unit == 1 ? n_bytes : n_bytes - n_whole,
                        [](const uint8_t *at) { return *at; });
}

/* Grid (PULL_BLOCKS, n_room). */
KERNEL(PULL_THREADS) pull_kernel(const struct pull_args a)
{
    const uint32_t ie = a.wanted[blockIdx.y];
    if (ie == UINT32_MAX) return;
    const struct expert_view view = a.table[ie];
    const void *const from[MATRICES] = {view.gate, view.up, view.down};
    uint8_t *const to = a.room + blockIdx.y * a.n_bytes;
#pragma unroll
    for (uint32_t i = 0; i < MATRICES; i++)
        pull(to + a.begin[i], (const uint8_t *)from[i], a.matrix_bytes[i]);
}

void cuda_gather_experts(struct backend *backend, const struct expert_gather_args *args)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    const size_t up_begin = expert_room_bytes(args->gate_bytes, 0, 0);
    const size_t down_begin = expert_room_bytes(args->gate_bytes, args->up_bytes, 0);
    const size_t n_bytes = expert_room_bytes(args->gate_bytes, args->up_bytes, args->down_bytes);
    if (!args->n_pair) return;
    uint32_t *const wanted = (uint32_t *)scratch(cuda, args->n_room * sizeof(*wanted));
    if (!wanted) return;
    struct resolve_args resolve = {};
    resolve.ids = args->ids;
    resolve.table = args->table;
    resolve.remote = args->remote;
    resolve.view = args->view;
    resolve.wanted = wanted;
    resolve.room = (uint8_t *)args->room;
    resolve.up_begin = up_begin;
    resolve.down_begin = down_begin;
    resolve.n_bytes = n_bytes;
    resolve.n_pair = args->n_pair;
    resolve.n_expert = args->n_expert;
    resolve.n_room = args->n_room;
    resolve.fused = !args->up_bytes;
    launch(cuda, resolve_kernel, dim3(1), dim3(RESOLVE_THREADS), args->n_expert * sizeof(uint32_t),
           resolve);
    struct pull_args pull = {};
    pull.table = args->table;
    pull.wanted = wanted;
    pull.room = (uint8_t *)args->room;
    pull.n_bytes = n_bytes;
    pull.begin[1] = up_begin;
    pull.begin[2] = down_begin;
    pull.matrix_bytes[0] = args->gate_bytes;
    pull.matrix_bytes[1] = args->up_bytes;
    pull.matrix_bytes[2] = args->down_bytes;
    launch(cuda, pull_kernel, dim3(PULL_BLOCKS, args->n_room), dim3(PULL_THREADS), 0, pull);
}
