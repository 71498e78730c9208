/* The CPU backend's inside: what its operations share. Each operation is a file of this folder.
 *
 * An operation is a few parallel regions over the leaf kernels. Its scratch lives in buffers that
 * grow to the largest call and stay, so a running model allocates nothing. An operation that
 * cannot get memory, or meets a NaN, notes the error for the next sync and returns. */
#ifndef LEAN_KERNELS_CPU_BACKEND_CPU_H
#define LEAN_KERNELS_CPU_BACKEND_CPU_H

#include <stdatomic.h>

#include "kernels/backend.h"
#include "kernels/cpu/pool.h"
#include "kernels/kernels.h"

struct buffer {
    void *data; /* 64-byte aligned */
    size_t n_bytes;
};

struct cpu_backend {
    struct backend base;
    struct pool *pool;
    const struct kernel_table *kernels;

    /* Kept errors; the operation's name says where. Set from any worker. */
    _Atomic(const char *) not_finite_in;
    _Atomic(const char *) no_memory_in;

    /* Scratch, owned by the operation that runs. Pointer arrays and rows in one. */
    struct buffer act[ACT_TYPE_COUNT];      /* rows of activations */
    struct buffer act_rows[ACT_TYPE_COUNT]; /* pointers to them */
    struct buffer y, y_rows;                /* results before an epilogue; pointers */
    struct buffer plan;                     /* task lists */
    struct buffer h, h_act;                 /* ffn: products of gate and up, and quantized */
    struct buffer q, partial;               /* attention */
    struct buffer *worker;                  /* [n_thread] each thread's own */
};

/* The buffer's memory, at least n_bytes of it; contents are kept only if it does not grow.
 * NULL: no memory, noted under the operation's name. */
void *buffer_reserve(struct cpu_backend *cpu, struct buffer *buffer, size_t n_bytes,
                     const char *operation);
/* The same for each worker's buffer. */
bool reserve_workers(struct cpu_backend *cpu, size_t n_bytes, const char *operation);

static inline size_t round_up_64(size_t n_bytes)
{
    return (n_bytes + 63) / 64 * 64;
}

/* Quantizes n_token rows of x, RMSNormed first unless norm is NULL, for each type in types (a
 * bit set of 1u << ACT_...); the rows are then cpu->act_rows[type]. */
bool prepare_activations(struct cpu_backend *cpu, const char *operation, const float *x,
                         uint32_t n_token, uint32_t n_col, const float *norm, float eps,
                         unsigned types);

static inline const void *const *activation_rows(const struct cpu_backend *cpu, enum act_type type)
{
    return cpu->act_rows[type].data;
}

static inline unsigned act_bit(const struct cpu_backend *cpu, enum tensor_type type)
{
    return 1u << cpu->kernels->act_type[type];
}

/* The leaf kernels work on blocks of up to 32 rows. */
enum { ROWS_PER_TASK_STEP = 32 };

/* Rows for one task: a multiple of that step such that all of total_bytes make some tasks for every
 * thread, each worth the claim. */
uint32_t rows_per_task(const struct cpu_backend *cpu, uint64_t total_bytes, size_t row_bytes);

/* The epilogue over whole rows: y [n_token][n] is normed in place if post_norm, then added to
 * the residual if there is one. */
void finish_rows(struct cpu_backend *cpu, const struct epilogue *epilogue, uint32_t n_token,
                 uint32_t n, float *y, size_t y_stride);

void cpu_linear(struct backend *backend, const struct linear_args *args);
void cpu_route(struct backend *backend, const struct route_args *args);
void cpu_attention(struct backend *backend, const struct attention_args *args);
void cpu_delta_net(struct backend *backend, const struct delta_net_args *args);
void cpu_ffn(struct backend *backend, const struct ffn_args *args);
void cpu_ffn_experts(struct backend *backend, const struct ffn_args *args, const bool *selected);
void cpu_ffn_finish(struct backend *backend, const struct ffn_args *args);

#endif
