/* The CUDA backend: creation, memory, the list of launches, and errors. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "kernels/cuda/backend_cuda.cuh"
#include "kernels/cuda/copies.cuh"
#include "kernels/cuda/cublas.cuh"
#include "kernels/cuda/graph_cache.cuh"
#include "kernels/cuda/loads.cuh"

extern "C" {
#include "kernels/cuda/cuda_plugin.h"
}

enum {
    ALIGNMENT = 256,
    CHUNK_MAX = 24,
    /* More must be asked for, once per kernel: all has 48 KiB, of which a kernel's own variables
     * and, since 9.0, the driver take a part. */
    SHARED_BYTES_PLAIN = 40 << 10,
    LAUNCHES_PER_LIST = 8192,
    COMPUTE_MAJOR_MIN = 8,
};
static const size_t SCRATCH_CHUNK_BYTES = (size_t)8 << 20, STAGE_CHUNK_BYTES = (size_t)1 << 20;

/* Memory is lent from chunks, the first with room; it grows by further ones, and in steady state
 * not at all. Equal requests in equal order get equal addresses. Those of scratch become one behind
 * the operation that grew them, so that prompts of rising length leave no row of chunks, each too
 * small for the next. */
struct chunk {
    uint8_t *device;
    uint8_t *host[2]; /* staging: pinned; one is filled while the other may still be copied */
    size_t n_bytes, used_bytes;
};
struct chunk_list {
    struct chunk chunk[CHUNK_MAX];
    uint32_t n;
};

struct cuda_backend {
    struct cuda_backend_head head;
    int device;
    uint32_t n_multiprocessor;
    cudaStream_t stream;
    struct device_stream *side; /* NULL: nobody has asked for it */
    struct chunk_list scratch, stage;
    cudaEvent_t staged[2]; /* the copies out of host[0], host[1] are done */
    uint32_t stage_turn;   /* which of host is being filled */
    bool stage_free;       /* host[stage_turn] may be written */
    int32_t *not_finite;   /* pinned, seen by kernels */
    struct launch_list list;
    size_t n_record_max, args_bytes_max; /* that list has room for */
    struct graph_cache *graphs;
    struct cublas *cublas; /* NULL: EXACT */
    struct copies *copies;
    size_t shared_bytes_max;   /* that a block may be allowed on this device */
    const void **large_kernel; /* [n_large], those that are allowed them */
    size_t n_large, n_large_max;
    struct lm_error kept; /* status LM_OK: none */
};

static const char *const not_finite_names[] = {"linear", "attention", "delta_net",
                                               "route",  "ffn",       "ffn, between its products"};

static struct cuda_backend *self(struct backend *backend)
{
    return (struct cuda_backend *)backend;
}

/* ---- errors ---- */

/* Whether the device gives an error also to who did nothing wrong: it does not recover. */
static bool is_lost(const struct cuda_backend *cuda)
{
    if (!cuda->stream) return false;
    const cudaError_t code = cudaStreamQuery(cuda->stream);
    cudaGetLastError();
    return code != cudaSuccess && code != cudaErrorNotReady;
}

/* Notes the first failure for sync. false if code is one. */
bool check(struct cuda_backend *cuda, cudaError_t code, const char *call)
{
    if (code == cudaSuccess) return true;
    cudaGetLastError(); /* kept here, not there */
    if (is_lost(cuda)) cuda->head.counters.lost = true;
    if (cuda->kept.status != LM_OK) return false;
    const bool lost = cuda->head.counters.lost;
    lm_fail(&cuda->kept,
            lost                                ? LM_E_DEVICE_LOST
            : code == cudaErrorMemoryAllocation ? LM_E_NO_MEM
                                                : LM_E_FAIL,
            "gpu %d: %.*s: %s%s", cuda->device, (int)strcspn(call, "("), call,
            cudaGetErrorString(code), lost ? "; the device is lost" : "");
    if (lost) lm_hint(&cuda->kept, "--device cpu computes the same without it");
    return false;
}

/* The device is the thread's, and another backend may have been used by it. */
static void use_device(const struct cuda_backend *cuda)
{
    cudaSetDevice(cuda->device); /* its error is that of the next call */
}

void fail(struct cuda_backend *cuda, const char *what)
{
    if (cuda->kept.status == LM_OK)
        lm_fail(&cuda->kept, LM_E_FAIL, "gpu %d: %s", cuda->device, what);
}

/* ---- scratch and staging ---- */

static enum lm_status fail_memory(struct cuda_backend *cuda, size_t n_bytes, struct lm_error *err)
{
    size_t free_bytes = 0, total_bytes = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return lm_fail(err, LM_E_NO_MEM, "gpu %d: no memory for %zu bytes: %zu of %zu are free",
                   cuda->device, n_bytes, free_bytes, total_bytes);
}

static void note_memory(struct cuda_backend *cuda, size_t n_bytes)
{
    if (cuda->kept.status == LM_OK) fail_memory(cuda, n_bytes, &cuda->kept);
}

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static bool grow(struct cuda_backend *cuda, struct chunk_list *list, size_t n_bytes, bool pinned)
{
    if (list->n == CHUNK_MAX) {
        note_memory(cuda, n_bytes);
        return false;
    }
    struct chunk *c = &list->chunk[list->n];
    memset(c, 0, sizeof(*c));
    cudaError_t code = cudaMalloc(&c->device, n_bytes);
    for (int i = 0; i < 2 && pinned && code == cudaSuccess; i++)
        code = cudaHostAlloc(&c->host[i], n_bytes, cudaHostAllocPortable);
    if (code != cudaSuccess) {
        for (int i = 0; i < 2; i++)
            cudaFreeHost(c->host[i]);
        cudaFree(c->device);
        if (code == cudaErrorMemoryAllocation)
            note_memory(cuda, n_bytes);
        else
            check(cuda, code, "cudaMalloc");
        return false;
    }
    c->n_bytes = n_bytes;
    cuda->head.counters.n_alloc += pinned ? 3 : 1;
    cuda->head.counters.inner_bytes += n_bytes;
    list->n++;
    return true;
}

/* The first chunk with room; a new one of at least least_bytes if there is none. */
static struct chunk *find_chunk(struct cuda_backend *cuda, struct chunk_list *list, size_t n_bytes,
                                size_t least_bytes, bool pinned)
{
    for (uint32_t i = 0; i < list->n; i++)
        if (list->chunk[i].n_bytes - list->chunk[i].used_bytes >= n_bytes) return &list->chunk[i];
    const size_t wanted = n_bytes > least_bytes ? round_up(n_bytes, (size_t)2 << 20) : least_bytes;
    return grow(cuda, list, wanted, pinned) ? &list->chunk[list->n - 1] : NULL;
}

void *scratch(struct cuda_backend *cuda, size_t n_bytes)
{
    n_bytes = round_up(n_bytes + !n_bytes, ALIGNMENT);
    struct chunk *c = find_chunk(cuda, &cuda->scratch, n_bytes, SCRATCH_CHUNK_BYTES, false);
    if (!c) return NULL;
    void *piece = c->device + c->used_bytes;
    c->used_bytes += n_bytes;
    return piece;
}

void *stage_room(struct cuda_backend *cuda, size_t n_bytes, const void **device)
{
    n_bytes = round_up(n_bytes + !n_bytes, ALIGNMENT);
    struct chunk *c = find_chunk(cuda, &cuda->stage, n_bytes, STAGE_CHUNK_BYTES, true);
    if (!c) return NULL;
    if (!cuda->stage_free &&
        !CUDA_CHECK(cuda, cudaEventSynchronize(cuda->staged[cuda->stage_turn])))
        return NULL;
    cuda->stage_free = true;
    void *room = c->host[cuda->stage_turn] + c->used_bytes;
    *device = c->device + c->used_bytes;
    c->used_bytes += n_bytes;
    return room;
}

const void *stage(struct cuda_backend *cuda, const void *host, size_t n_bytes)
{
    const void *device = NULL;
    void *room = stage_room(cuda, n_bytes, &device);
    if (room) memcpy(room, host, n_bytes);
    return device;
}

static void free_chunks(struct chunk_list *list)
{
    for (uint32_t i = 0; i < list->n; i++) {
        cudaFree(list->chunk[i].device);
        for (int k = 0; k < 2; k++)
            cudaFreeHost(list->chunk[i].host[k]);
    }
}

int32_t *not_finite_flag(struct cuda_backend *cuda)
{
    return cuda->not_finite;
}

uint32_t n_multiprocessor(const struct cuda_backend *cuda)
{
    return cuda->n_multiprocessor;
}

/* ---- the list of launches ---- */

/* Doubles an array until it has room for n of size. */
static bool reserve(struct cuda_backend *cuda, void **array, size_t *n_max, size_t n, size_t size)
{
    if (n <= *n_max) return true;
    size_t grown = *n_max ? *n_max : 256;
    while (grown < n)
        grown *= 2;
    void *moved = realloc(*array, grown * size);
    if (!moved) {
        if (cuda->kept.status == LM_OK)
            lm_fail(&cuda->kept, LM_E_NO_MEM, "no memory for %zu bytes", grown * size);
        return false;
    }
    *array = moved;
    *n_max = grown;
    return true;
}

/* A kernel that wants more than any may have is allowed all that there is: the attribute is the
 * function's, so whatever another backend of the device sets, it is the same. */
static bool allow_shared(struct cuda_backend *cuda, const void *kernel, size_t n_bytes)
{
    if (n_bytes <= SHARED_BYTES_PLAIN) return true;
    for (size_t i = 0; i < cuda->n_large; i++)
        if (cuda->large_kernel[i] == kernel) return true;
    struct cudaFuncAttributes attributes;
    if (!reserve(cuda, (void **)&cuda->large_kernel, &cuda->n_large_max, cuda->n_large + 1,
                 sizeof(*cuda->large_kernel)) ||
        !CUDA_CHECK(cuda, cudaFuncGetAttributes(&attributes, kernel)) ||
        !CUDA_CHECK(
            cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       (int)(cuda->shared_bytes_max - attributes.sharedSizeBytes))))
        return false;
    cuda->large_kernel[cuda->n_large++] = kernel;
    return true;
}

/* The record's arguments are copied. */
static bool append(struct cuda_backend *cuda, struct launch_record record, const void *args)
{
    record.args_offset = round_up(cuda->list.args_bytes, 16);
    const size_t end = record.args_offset + record.args_bytes;
    if (!reserve(cuda, (void **)&cuda->list.record, &cuda->n_record_max, cuda->list.n_record + 1,
                 sizeof(*cuda->list.record)) ||
        !reserve(cuda, (void **)&cuda->list.args, &cuda->args_bytes_max, end, 1))
        return false;
    memset(cuda->list.args + cuda->list.args_bytes, 0, record.args_offset - cuda->list.args_bytes);
    memcpy(cuda->list.args + record.args_offset, args, record.args_bytes);
    cuda->list.args_bytes = end;
    cuda->list.record[cuda->list.n_record++] = record;
    return true;
}

void launch_raw(struct cuda_backend *cuda, const void *kernel, dim3 grid, dim3 block,
                size_t shared_bytes, const void *args, size_t args_bytes)
{
    if (!grid.x || !grid.y || !grid.z)
        return; /* of no rows: no work, and no launch that CUDA has */
    if (allow_shared(cuda, kernel, shared_bytes) &&
        append(cuda, launch_record{kernel, NULL, grid, block, shared_bytes, 0, args_bytes}, args))
        cuda->head.counters.n_launch++;
}

void call_later(struct cuda_backend *cuda, library_call *call, const void *args, size_t args_bytes)
{
    const dim3 none;
    if (!append(cuda, launch_record{NULL, call, none, none, 0, 0, args_bytes}, args)) return;
    cuda->list.has_call = true;
    cuda->head.counters.n_product++;
}

struct cublas *cublas_of(const struct cuda_backend *cuda)
{
    return cuda->cublas;
}

/* false: what the list needs is not on the device. */
static bool copy_staged(struct cuda_backend *cuda)
{
    bool any = false, done = true;
    for (uint32_t i = 0; i < cuda->stage.n; i++) {
        struct chunk *c = &cuda->stage.chunk[i];
        if (!c->used_bytes) continue;
        done = CUDA_CHECK(cuda, cudaMemcpyAsync(c->device, c->host[cuda->stage_turn], c->used_bytes,
                                                cudaMemcpyHostToDevice, cuda->stream)) &&
               done;
        c->used_bytes = 0;
        any = true;
    }
    if (!any) return true;
    done = CUDA_CHECK(cuda, cudaEventRecord(cuda->staged[cuda->stage_turn], cuda->stream)) && done;
    cuda->stage_turn ^= 1;
    cuda->stage_free = false;
    return done;
}

static void flush(struct cuda_backend *cuda)
{
    if (!cuda->list.n_record) return;
    enum graph_use use = GRAPH_NONE;
    if (copy_staged(cuda) && !cuda->head.counters.lost)
        check(cuda, graph_cache_run(cuda->graphs, &cuda->list, cuda->stream, &use), "launch");
    cuda->list.n_record = cuda->list.args_bytes = 0;
    cuda->list.has_call = false;
    cuda->head.counters.n_flush++;
    cuda->head.counters.n_capture += use == GRAPH_CAPTURED;
    cuda->head.counters.n_update += use == GRAPH_UPDATED;
    cuda->head.counters.n_replay += use == GRAPH_REPLAYED;
}

/* Nothing that is still to run reads or writes memory of the caller. */
static void finish_all(struct cuda_backend *cuda)
{
    if (cuda->head.counters.lost) return;
    flush(cuda);
    CUDA_CHECK(cuda, cudaStreamSynchronize(cuda->stream));
    CUDA_CHECK(cuda, copies_wait(cuda->copies));
}

cudaStream_t operations_stream(struct cuda_backend *cuda)
{
    use_device(cuda);
    flush(cuda);
    return cuda->stream;
}

/* One chunk of scratch with room for n_bytes instead of all, which what runs still uses. A graph
 * that names one of those is replayed only if its addresses are lent once more. */
static void merge_scratch(struct cuda_backend *cuda, size_t n_bytes)
{
    flush(cuda);
    if (!CUDA_CHECK(cuda, cudaStreamSynchronize(cuda->stream))) return;
    for (uint32_t i = 0; i < cuda->scratch.n; i++)
        cuda->head.counters.inner_bytes -= cuda->scratch.chunk[i].n_bytes;
    free_chunks(&cuda->scratch);
    cuda->scratch.n = 0;
    find_chunk(cuda, &cuda->scratch, n_bytes, SCRATCH_CHUNK_BYTES, false);
}

/* Before each operation: scratch is free again. false: the device is lost, nothing is done. */
static bool begin(struct cuda_backend *cuda)
{
    if (cuda->head.counters.lost) return false;
    use_device(cuda);
    const bool much_staged = cuda->stage.n > 1 && cuda->stage.chunk[1].used_bytes;
    if (cuda->list.n_record >= LAUNCHES_PER_LIST || much_staged) flush(cuda);
    size_t used_bytes = 0;
    for (uint32_t i = 0; i < cuda->scratch.n; i++) {
        used_bytes += cuda->scratch.chunk[i].used_bytes;
        cuda->scratch.chunk[i].used_bytes = 0;
    }
    if (cuda->scratch.n > 1) merge_scratch(cuda, used_bytes);
    return !cuda->head.counters.lost;
}

/* ---- memory ---- */

static void *op_alloc(struct backend *backend, size_t n_bytes, struct lm_error *err)
{
    struct cuda_backend *cuda = self(backend);
    void *memory = NULL;
    use_device(cuda);
    const cudaError_t code = cudaMalloc(&memory, n_bytes + !n_bytes);
    if (code == cudaErrorMemoryAllocation) {
        fail_memory(cuda, n_bytes, err);
        return NULL;
    }
    if (code == cudaSuccess) {
        cuda->head.counters.n_alloc++;
        CUDA_CHECK(cuda, cudaMemsetAsync(memory, 0, n_bytes, cuda->stream));
        CUDA_CHECK(cuda, copies_hold_back(cuda->copies, cuda->stream)); /* it is zero first */
        return memory;
    }
    cudaGetLastError();
    if (is_lost(cuda)) cuda->head.counters.lost = true;
    lm_fail(err, cuda->head.counters.lost ? LM_E_DEVICE_LOST : LM_E_FAIL, "gpu %d: %zu bytes: %s",
            cuda->device, n_bytes, cudaGetErrorString(code));
    return NULL;
}

static void op_free(struct backend *backend, void *memory)
{
    struct cuda_backend *cuda = self(backend);
    if (!memory) return;
    use_device(cuda);
    finish_all(cuda);
    cudaFree(memory);
}

static void op_upload(struct backend *backend, void *to, const void *from_host, size_t n_bytes)
{
    struct cuda_backend *cuda = self(backend);
    if (cuda->head.counters.lost) return;
    use_device(cuda);
    flush(cuda);
    CUDA_CHECK(cuda, cudaMemcpyAsync(to, from_host, n_bytes, cudaMemcpyHostToDevice, cuda->stream));
    /* of pageable memory CUDA does not promise that it has been read when the call returns */
    CUDA_CHECK(cuda, cudaStreamSynchronize(cuda->stream));
}

static void op_download(struct backend *backend, void *to_host, const void *from, size_t n_bytes)
{
    struct cuda_backend *cuda = self(backend);
    if (cuda->head.counters.lost) return;
    use_device(cuda);
    flush(cuda);
    CUDA_CHECK(cuda, cudaMemcpyAsync(to_host, from, n_bytes, cudaMemcpyDeviceToHost, cuda->stream));
}

static enum lm_status op_sync(struct backend *backend, struct lm_error *err)
{
    struct cuda_backend *cuda = self(backend);
    if (!cuda->head.counters.lost) {
        use_device(cuda);
        flush(cuda);
        CUDA_CHECK(cuda, copies_pump(cuda->copies));
        CUDA_CHECK(cuda, cudaStreamSynchronize(cuda->stream));
    }
    const int32_t where = *cuda->not_finite;
    *cuda->not_finite = 0;
    if (cuda->kept.status != LM_OK) {
        const struct lm_error kept = cuda->kept;
        if (!cuda->head.counters.lost) cuda->kept.status = LM_OK;
        if (err) *err = kept;
        return kept.status;
    }
    if (where)
        return lm_fail(err, LM_E_FAIL, "%s: an activation is a NaN or an infinity",
                       not_finite_names[where - 1]);
    return LM_OK;
}

/* ---- the operations, each with begin before it ---- */

static void op_copy(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    if (begin(self(backend))) cuda_copy(backend, to, from, n_bytes);
}

static void op_embed(struct backend *backend, const struct weight *table, const int32_t *ids,
                     uint32_t n_token, float scale, float *x)
{
    if (begin(self(backend))) cuda_embed(backend, table, ids, n_token, scale, x);
}

static void op_rms_norm(struct backend *backend, const float *x, const float *norm, float eps,
                        uint32_t n_token, uint32_t n, float *y)
{
    if (begin(self(backend))) cuda_rms_norm(backend, x, norm, eps, n_token, n, y);
}

static void op_gather(struct backend *backend, const float *x, const uint32_t *rows, uint32_t n_row,
                      uint32_t n, float *y)
{
    if (begin(self(backend))) cuda_gather(backend, x, rows, n_row, n, y);
}

static void op_copy_rows(struct backend *backend, const float *x, const uint32_t *rows,
                         uint32_t n_row, uint32_t n, float *y)
{
    if (begin(self(backend))) cuda_copy_rows(backend, x, rows, n_row, n, y);
}

static void op_linear(struct backend *backend, const struct linear_args *args)
{
    if (begin(self(backend))) cuda_linear(backend, args);
}

static void op_attention(struct backend *backend, const struct attention_args *args)
{
    if (begin(self(backend))) cuda_attention(backend, args);
}

static void op_delta_net(struct backend *backend, const struct delta_net_args *args)
{
    if (begin(self(backend))) cuda_delta_net(backend, args);
}

static void op_route(struct backend *backend, const struct route_args *args)
{
    if (begin(self(backend))) cuda_route(backend, args);
}

static void op_ffn(struct backend *backend, const struct ffn_args *args)
{
    if (begin(self(backend))) cuda_ffn(backend, args);
}

static void op_ffn_experts(struct backend *backend, const struct ffn_args *args,
                           const bool *selected)
{
    if (begin(self(backend))) cuda_ffn_experts(backend, args, selected);
}

static void op_ffn_finish(struct backend *backend, const struct ffn_args *args)
{
    if (begin(self(backend))) cuda_ffn_finish(backend, args);
}

static void op_gather_experts(struct backend *backend, const struct expert_gather_args *args)
{
    if (begin(self(backend))) cuda_gather_experts(backend, args);
}

static void op_read(struct backend *backend, const void *memory, size_t n_bytes, void *sink)
{
    if (begin(self(backend))) cuda_read(backend, memory, n_bytes, sink);
}

static uint64_t op_multiply(struct backend *backend, uint32_t n_round, void *sink)
{
    return begin(self(backend)) ? cuda_multiply(backend, n_round, sink) : 0;
}

/* ---- copies beside the operations ---- */

static enum lm_status op_pin(struct backend *backend, void *memory, size_t n_bytes,
                             struct lm_error *err)
{
    struct cuda_backend *cuda = self(backend);
    struct rlimit limit;
    use_device(cuda);
    const cudaError_t code = copies_pin(cuda->copies, memory, n_bytes);
    if (code == cudaSuccess) return LM_OK;
    cudaGetLastError();
    lm_fail(err, LM_E_NO_MEM, "gpu %d: %zu bytes of host memory cannot be page-locked: %s",
            cuda->device, n_bytes, cudaGetErrorString(code));
    if (!getrlimit(RLIMIT_MEMLOCK, &limit) && limit.rlim_cur < n_bytes)
        lm_hint(err, "RLIMIT_MEMLOCK allows %llu bytes: \"ulimit -l unlimited\" lifts it",
                (unsigned long long)limit.rlim_cur);
    return LM_E_NO_MEM;
}

static void op_unpin(struct backend *backend, void *memory)
{
    struct cuda_backend *cuda = self(backend);
    use_device(cuda);
    finish_all(cuda);
    CUDA_CHECK(cuda, copies_unpin(cuda->copies, memory));
}

static void op_start(struct backend *backend)
{
    struct cuda_backend *cuda = self(backend);
    if (cuda->head.counters.lost) return;
    use_device(cuda);
    flush(cuda);
    CUDA_CHECK(cuda, copies_pump(cuda->copies));
}

static uint64_t op_mark(struct backend *backend)
{
    struct cuda_backend *cuda = self(backend);
    uint64_t mark = 0;
    if (cuda->head.counters.lost) return 0;
    use_device(cuda);
    flush(cuda);
    CUDA_CHECK(cuda, copies_mark(cuda->copies, cuda->stream, &mark));
    return mark;
}

static uint64_t op_fetch(struct backend *backend, void *to, const void *from_host, size_t n_bytes,
                         uint64_t after, enum copy_lane lane)
{
    struct cuda_backend *cuda = self(backend);
    uint64_t ticket = 1; /* of a lost device: any */
    if (cuda->head.counters.lost) return ticket;
    use_device(cuda);
    CUDA_CHECK(cuda, copies_put(cuda->copies, to, from_host, n_bytes, after, lane, &ticket));
    return ticket;
}

static uint64_t op_write_back(struct backend *backend, void *to_host, const void *from,
                              size_t n_bytes)
{
    struct cuda_backend *cuda = self(backend);
    uint64_t ticket = 1; /* of a lost device: any */
    if (cuda->head.counters.lost) return ticket;
    use_device(cuda);
    CUDA_CHECK(cuda, copies_put_back(cuda->copies, to_host, from, n_bytes, &ticket));
    return ticket;
}

static bool op_fetched(struct backend *backend, uint64_t ticket)
{
    struct cuda_backend *cuda = self(backend);
    if (cuda->head.counters.lost) return true;
    use_device(cuda);
    const cudaError_t code = copies_query(cuda->copies, ticket);
    if (code == cudaErrorNotReady) {
        cudaGetLastError(); /* it is no error */
        return false;
    }
    check(cuda, code, "cudaEventQuery");
    return true;
}

static void op_await(struct backend *backend, uint64_t ticket)
{
    struct cuda_backend *cuda = self(backend);
    if (cuda->head.counters.lost || copies_known_done(cuda->copies, ticket)) return;
    use_device(cuda);
    flush(cuda); /* what has been called does not wait */
    CUDA_CHECK(cuda, copies_await(cuda->copies, ticket, cuda->stream));
}

/* ---- creation ---- */

static void op_destroy(struct backend *backend)
{
    struct cuda_backend *cuda = self(backend);
    if (!cuda) return;
    use_device(cuda);
    if (cuda->stream) cudaStreamSynchronize(cuda->stream);
    copies_destroy(cuda->copies);
    side_stream_destroy(cuda->side);
    graph_cache_destroy(cuda->graphs);
    cublas_close(cuda->cublas);
    free_chunks(&cuda->scratch);
    free_chunks(&cuda->stage);
    cudaFreeHost(cuda->not_finite);
    for (int i = 0; i < 2; i++)
        if (cuda->staged[i]) cudaEventDestroy(cuda->staged[i]);
    if (cuda->stream) cudaStreamDestroy(cuda->stream);
    free(cuda->list.record);
    free(cuda->list.args);
    free(cuda->large_kernel);
    free(cuda);
    cudaGetLastError();
}

static const struct backend_ops cuda_ops = {
    .name = "cuda",
    .destroy = op_destroy,
    .alloc = op_alloc,
    .free = op_free,
    .upload = op_upload,
    .download = op_download,
    .copy = op_copy,
    .sync = op_sync,
    .embed = op_embed,
    .rms_norm = op_rms_norm,
    .gather = op_gather,
    .copy_rows = op_copy_rows,
    .linear = op_linear,
    .attention = op_attention,
    .delta_net = op_delta_net,
    .route = op_route,
    .ffn = op_ffn,
    .ffn_experts = op_ffn_experts,
    .ffn_finish = op_ffn_finish,
    .gather_experts = op_gather_experts,
    .pin = op_pin,
    .unpin = op_unpin,
    .start = op_start,
    .mark = op_mark,
    .fetch = op_fetch,
    .write_back = op_write_back,
    .fetched = op_fetched,
    .await = op_await,
};

static enum lm_status count_devices(int *n_device, struct lm_error *err)
{
    int driver = 0, runtime = 0;
    const cudaError_t code = cudaGetDeviceCount(n_device);
    if (code == cudaSuccess && *n_device > 0) return LM_OK;
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (code == cudaErrorInsufficientDriver && !driver)
        return lm_fail(err, LM_E_UNSUPPORTED, "no NVIDIA driver is loaded on this machine");
    if (code == cudaErrorInsufficientDriver)
        return lm_fail(err, LM_E_UNSUPPORTED,
                       "the NVIDIA driver is of CUDA %d.%d: CUDA %d needs NVIDIA driver R580 or "
                       "newer",
                       driver / 1000, driver % 1000 / 10, runtime / 1000);
    if (code == cudaSuccess || code == cudaErrorNoDevice)
        return lm_fail(err, LM_E_UNSUPPORTED, "no CUDA device is visible");
    return lm_fail(err, LM_E_FAIL, "cudaGetDeviceCount: %s", cudaGetErrorString(code));
}

static enum lm_status find_device(uint32_t device, struct lm_error *err)
{
    int n_device;
    const enum lm_status status = count_devices(&n_device, err);
    if (status != LM_OK || device < (uint32_t)n_device) return status;
    return lm_fail(err, LM_E_USAGE, "gpu %u: there are %d, numbered from 0", device, n_device);
}

static enum lm_status choose_device(struct cuda_backend *cuda,
                                    const struct backend_cuda_config *config, struct lm_error *err)
{
    const uint32_t device = config->device;
    struct cudaDeviceProp properties;
    const enum lm_status status = find_device(device, err);
    if (status != LM_OK) return status;
    cuda->device = (int)device;
    cudaError_t code = cudaGetDeviceProperties(&properties, cuda->device);
    if (code == cudaSuccess && properties.major < COMPUTE_MAJOR_MIN)
        return lm_fail(err, LM_E_UNSUPPORTED,
                       "gpu %u: %s has compute capability %d.%d; 8.0 is the least (Ampere)", device,
                       properties.name, properties.major, properties.minor);
    if (code == cudaSuccess) code = cudaSetDevice(cuda->device);
    if (code == cudaSuccess) code = cuda_probe_rows();
    /* Which of the two it is depends on the driver. */
    if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction) {
        lm_fail(err, LM_E_UNSUPPORTED,
                "gpu %u: the plugin holds no code for %s, compute capability %d.%d", device,
                properties.name, properties.major, properties.minor);
        return lm_hint(err, "LEAN_CUDA_ARCHITECTURES=%d%d launch/setup.sh builds it",
                       properties.major, properties.minor);
    }
    if (code == cudaSuccess) {
        cuda->n_multiprocessor = config->n_multiprocessor
                                     ? config->n_multiprocessor
                                     : (uint32_t)properties.multiProcessorCount;
        cuda->shared_bytes_max = properties.sharedMemPerBlockOptin;
        return LM_OK;
    }
    return lm_fail(err, LM_E_FAIL, "gpu %u: %s", device, cudaGetErrorString(code));
}

extern const struct cuda_plugin cuda_plugin_table;

static enum lm_status create(struct backend **out, const struct backend_cuda_config *config,
                             struct lm_error *err)
{
    struct cuda_backend *cuda = (struct cuda_backend *)calloc(1, sizeof(*cuda));
    if (!cuda) return lm_fail(err, LM_E_NO_MEM, "no memory for %zu bytes", sizeof(*cuda));
    cuda->head.base.ops = &cuda_ops;
    cuda->head.plugin = &cuda_plugin_table;
    const enum lm_status status = choose_device(cuda, config, err);
    if (status != LM_OK) {
        free(cuda);
        return status;
    }
    cuda->graphs = graph_cache_create();
    cuda->copies = copies_create(&cuda->head.counters);
    if (!cuda->graphs || !cuda->copies)
        lm_fail(&cuda->kept, LM_E_NO_MEM, "no memory for a cuda backend");
    CUDA_CHECK(cuda, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking)) &&
        CUDA_CHECK(cuda, cudaEventCreateWithFlags(&cuda->staged[0], cudaEventDisableTiming)) &&
        CUDA_CHECK(cuda, cudaEventCreateWithFlags(&cuda->staged[1], cudaEventDisableTiming)) &&
        CUDA_CHECK(cuda, cudaHostAlloc(&cuda->not_finite, sizeof(int32_t), cudaHostAllocMapped)) &&
        cuda->copies &&CUDA_CHECK(cuda, copies_open(cuda->copies));
    if (config->fast && cuda->kept.status == LM_OK)
        cublas_open(&cuda->cublas, cuda->stream, &cuda->kept);
    if (cuda->kept.status != LM_OK) {
        const struct lm_error kept = cuda->kept;
        if (err) *err = kept;
        op_destroy(&cuda->head.base);
        return kept.status;
    }
    *cuda->not_finite = 0;
    cuda->stage_free = true;
    *out = &cuda->head.base;
    return LM_OK;
}

static enum lm_status open_stream(struct backend *backend, struct device_stream **out,
                                  struct lm_error *err)
{
    struct cuda_backend *cuda = self(backend);
    const enum lm_status status = cuda->side ? LM_OK : side_stream_create(&cuda->side, cuda, err);
    *out = cuda->side;
    return status;
}

static void print_uuid(const char bytes[16], char out[40])
{
    char *at = out;
    for (int i = 0; i < 16; i++)
        at += sprintf(at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x",
                      (unsigned char)bytes[i]);
}

static enum lm_status list_devices(struct cuda_device_info *out, uint32_t n_max, uint32_t *n,
                                   struct lm_error *err)
{
    int n_device;
    const enum lm_status status = count_devices(&n_device, err);
    if (status != LM_OK) return status;
    for (int i = 0; i < n_device && (uint32_t)i < n_max; i++) {
        struct cudaDeviceProp p;
        const cudaError_t code = cudaGetDeviceProperties(&p, i);
        if (code != cudaSuccess)
            return lm_fail(err, LM_E_FAIL, "gpu %d: %s", i, cudaGetErrorString(code));
        struct cuda_device_info *info = &out[i];
        memset(info, 0, sizeof(*info));
        snprintf(info->name, sizeof(info->name), "%.63s", p.name);
        print_uuid(p.uuid.bytes, info->uuid);
        info->major = (uint32_t)p.major;
        info->minor = (uint32_t)p.minor;
        info->n_multiprocessor = (uint32_t)p.multiProcessorCount;
        info->total_bytes = p.totalGlobalMem;
    }
    *n = (uint32_t)n_device;
    return LM_OK;
}

static enum lm_status ask_free_bytes(uint32_t device, uint64_t *out, struct lm_error *err)
{
    const enum lm_status status = find_device(device, err);
    if (status != LM_OK) return status;
    size_t free_bytes = 0, total_bytes = 0;
    cudaError_t code = cudaSetDevice((int)device);
    if (code == cudaSuccess) code = cudaMemGetInfo(&free_bytes, &total_bytes);
    if (code != cudaSuccess)
        return lm_fail(err, LM_E_FAIL, "gpu %u: %s", device, cudaGetErrorString(code));
    *out = free_bytes;
    return LM_OK;
}

const struct cuda_plugin cuda_plugin_table = {
    .head = {.size = sizeof(struct cuda_plugin), .build_id = LEAN_BUILD_ID},
    .create = create,
    .devices = list_devices,
    .free_bytes = ask_free_bytes,
    .read = op_read,
    .multiply = op_multiply,
    .open_stream = open_stream,
    .nccl_file = nccl_file,
};

extern "C" PLUGIN_EXPORT const struct plugin_head *lean_plugin_v1(void)
{
    return &cuda_plugin_table.head;
}
