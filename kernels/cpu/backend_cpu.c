/* The CPU backend: creation, memory, kept errors, and the operations without arithmetic of their
 * own. */
#include "kernels/cpu/backend_cpu.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Memory of alloc carries its size in the 64 bytes before it. */
enum { HEADER_BYTES = 64, MMAP_BYTES_MIN = 1 << 20 };

static void *cpu_alloc(struct backend *backend, size_t n_bytes, struct lm_error *err)
{
    (void)backend;
    const size_t total = round_up_64(n_bytes) + HEADER_BYTES;
    void *memory = NULL;
    if (total < n_bytes) {
        lm_fail(err, LM_E_NO_MEM, "no memory for %zu bytes", n_bytes);
        return NULL;
    }
    if (total >= MMAP_BYTES_MIN) { /* zero pages, in place when they are first touched */
        memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) memory = NULL;
        /* Else a state that is read before it is written costs two faults per 4 KiB. */
        if (memory) madvise(memory, total, MADV_HUGEPAGE);
    } else {
        memory = aligned_alloc(64, total);
        if (memory) memset(memory, 0, total);
    }
    if (!memory) {
        lm_fail(err, LM_E_NO_MEM, "no memory for %zu bytes", n_bytes);
        return NULL;
    }
    memcpy(memory, &total, sizeof(total));
    return (uint8_t *)memory + HEADER_BYTES;
}

static void cpu_free(struct backend *backend, void *memory)
{
    (void)backend;
    if (!memory) return;
    uint8_t *start = (uint8_t *)memory - HEADER_BYTES;
    size_t total;
    memcpy(&total, start, sizeof(total));
    if (total >= MMAP_BYTES_MIN)
        munmap(start, total);
    else
        free(start);
}

static void cpu_copy(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    (void)backend;
    memcpy(to, from, n_bytes);
}

static enum lm_status cpu_sync(struct backend *backend, struct lm_error *err)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    const char *const no_memory_in = atomic_exchange(&cpu->no_memory_in, NULL);
    const char *const not_finite_in = atomic_exchange(&cpu->not_finite_in, NULL);
    if (no_memory_in) return lm_fail(err, LM_E_NO_MEM, "%s: no memory for scratch", no_memory_in);
    if (!pool_float_mode_ok(cpu->pool))
        return lm_fail(err, LM_E_FAIL,
                       "a thread flushes denormals or rounds differently: another library changed "
                       "its floating-point mode");
    if (not_finite_in)
        return lm_fail(err, LM_E_FAIL, "%s: an activation is a NaN or an infinity", not_finite_in);
    return LM_OK;
}

void *buffer_reserve(struct cpu_backend *cpu, struct buffer *buffer, size_t n_bytes,
                     const char *operation)
{
    if (n_bytes <= buffer->n_bytes && buffer->data) return buffer->data;
    free(buffer->data);
    n_bytes = round_up_64(n_bytes + !n_bytes);
    buffer->data = aligned_alloc(64, n_bytes);
    buffer->n_bytes = buffer->data ? n_bytes : 0;
    if (!buffer->data) atomic_store(&cpu->no_memory_in, operation);
    return buffer->data;
}

bool reserve_workers(struct cpu_backend *cpu, size_t n_bytes, const char *operation)
{
    for (uint32_t i = 0; i < pool_n_thread(cpu->pool); i++)
        if (!buffer_reserve(cpu, &cpu->worker[i], n_bytes, operation)) return false;
    return true;
}

struct prepare_context {
    struct cpu_backend *cpu;
    const char *operation;
    const float *x, *norm;
    uint32_t n_col;
    float eps;
    unsigned types;
};

static void prepare_row(void *context, uint32_t it, uint32_t worker)
{
    const struct prepare_context *c = context;
    const struct kernel_table *kernels = c->cpu->kernels;
    const float *x = c->x + (size_t)it * c->n_col;
    if (c->norm) {
        float *normed = c->cpu->worker[worker].data;
        kernels->rms_norm(x, c->norm, c->n_col, c->eps, normed);
        x = normed;
    }
    for (int type = 0; type < ACT_TYPE_COUNT; type++) {
        if (!(c->types >> type & 1)) continue;
        uint8_t *out = (uint8_t *)c->cpu->act[type].data + it * act_row_bytes(type, c->n_col);
        if (!kernels->quantize_act[type](x, c->n_col, out))
            atomic_store(&c->cpu->not_finite_in, c->operation);
    }
}

bool prepare_activations(struct cpu_backend *cpu, const char *operation, const float *x,
                         uint32_t n_token, uint32_t n_col, const float *norm, float eps,
                         unsigned types)
{
    for (int type = 0; type < ACT_TYPE_COUNT; type++) {
        if (!(types >> type & 1)) continue;
        const size_t row_bytes = act_row_bytes(type, n_col);
        const uint8_t *rows = buffer_reserve(cpu, &cpu->act[type], n_token * row_bytes, operation);
        const void **pointers =
            buffer_reserve(cpu, &cpu->act_rows[type], n_token * sizeof(*pointers), operation);
        if (!rows || !pointers) return false;
        for (uint32_t it = 0; it < n_token; it++)
            pointers[it] = rows + it * row_bytes;
    }
    if (norm && !reserve_workers(cpu, n_col * sizeof(float), operation)) return false;
    struct prepare_context context = {cpu, operation, x, norm, n_col, eps, types};
    pool_run(cpu->pool, prepare_row, &context, n_token);
    return true;
}

uint32_t rows_per_task(const struct cpu_backend *cpu, uint64_t total_bytes, size_t row_bytes)
{
    enum { TASK_BYTES_MIN = 16 << 10, TASK_BYTES_MAX = 256 << 10, TASKS_PER_THREAD = 4 };
    uint64_t task_bytes = total_bytes / (TASKS_PER_THREAD * pool_n_thread(cpu->pool));
    if (task_bytes < TASK_BYTES_MIN) task_bytes = TASK_BYTES_MIN;
    if (task_bytes > TASK_BYTES_MAX) task_bytes = TASK_BYTES_MAX;
    const uint64_t n_row = task_bytes / row_bytes / ROWS_PER_TASK_STEP * ROWS_PER_TASK_STEP;
    return n_row ? (uint32_t)n_row : ROWS_PER_TASK_STEP;
}

struct finish_context {
    const struct kernel_table *kernels;
    const struct epilogue *epilogue;
    uint32_t n;
    float *y;
    size_t y_stride;
};

static void finish_row(void *context, uint32_t it, uint32_t worker)
{
    (void)worker;
    const struct finish_context *c = context;
    const struct epilogue *epilogue = c->epilogue;
    float *y = c->y + it * c->y_stride;
    if (epilogue->post_norm) c->kernels->rms_norm(y, epilogue->post_norm, c->n, epilogue->eps, y);
    if (epilogue->residual) c->kernels->add(y, c->n, epilogue->residual + (size_t)it * c->n);
}

void finish_rows(struct cpu_backend *cpu, const struct epilogue *epilogue, uint32_t n_token,
                 uint32_t n, float *y, size_t y_stride)
{
    if (!epilogue->post_norm && !epilogue->residual) return;
    struct finish_context context = {cpu->kernels, epilogue, n, y, y_stride};
    pool_run(cpu->pool, finish_row, &context, n_token);
}

struct embed_context {
    const struct kernel_table *kernels;
    const struct weight *table;
    const int32_t *ids;
    float scale;
    float *x;
};

static void embed_row(void *context, uint32_t it, uint32_t worker)
{
    (void)worker;
    const struct embed_context *c = context;
    const uint32_t n = c->table->n_col;
    float *x = c->x + (size_t)it * n;
    const uint8_t *rows = c->table->data;
    c->kernels->dequant_row[c->table->type](rows + (size_t)c->ids[it] * c->table->row_bytes, n, x);
    for (uint32_t i = 0; i < n; i++)
        x[i] *= c->scale;
}

static void cpu_embed(struct backend *backend, const struct weight *table, const int32_t *ids,
                      uint32_t n_token, float scale, float *x)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    struct embed_context context = {cpu->kernels, table, ids, scale, x};
    pool_run(cpu->pool, embed_row, &context, n_token);
}

struct norm_context {
    const struct kernel_table *kernels;
    const float *x, *norm;
    float eps;
    uint32_t n;
    float *y;
};

static void norm_row(void *context, uint32_t it, uint32_t worker)
{
    (void)worker;
    const struct norm_context *c = context;
    const size_t offset = (size_t)it * c->n;
    c->kernels->rms_norm(c->x + offset, c->norm, c->n, c->eps, c->y + offset);
}

static void cpu_rms_norm(struct backend *backend, const float *x, const float *norm, float eps,
                         uint32_t n_token, uint32_t n, float *y)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    struct norm_context context = {cpu->kernels, x, norm, eps, n, y};
    pool_run(cpu->pool, norm_row, &context, n_token);
}

static void cpu_gather(struct backend *backend, const float *x, const uint32_t *rows,
                       uint32_t n_row, uint32_t n, float *y)
{
    (void)backend;
    for (uint32_t i = 0; i < n_row; i++)
        memcpy(y + (size_t)i * n, x + (size_t)rows[i] * n, n * sizeof(float));
}

static void cpu_copy_rows(struct backend *backend, const float *x, const uint32_t *rows,
                          uint32_t n_row, uint32_t n, float *y)
{
    (void)backend;
    for (uint32_t i = 0; i < n_row; i++)
        memcpy(y + (size_t)rows[i] * n, x + (size_t)rows[i] * n, n * sizeof(float));
}

/* Where an expert is, it can be read. */
static void cpu_gather_experts(struct backend *backend, const struct expert_gather_args *args)
{
    (void)backend;
    for (uint32_t i = 0; i < args->n_pair; i++)
        args->view[args->ids[i]] = args->table[args->ids[i]];
}

/* ---- copies beside the operations: nothing is beside anything here ---- */

static enum lm_status cpu_pin(struct backend *backend, void *memory, size_t n_bytes,
                              struct lm_error *err)
{
    (void)backend;
    (void)memory;
    (void)n_bytes;
    (void)err;
    return LM_OK;
}

static void cpu_unpin(struct backend *backend, void *memory)
{
    (void)backend;
    (void)memory;
}

static void cpu_start(struct backend *backend)
{
    (void)backend;
}

static uint64_t cpu_mark(struct backend *backend)
{
    (void)backend;
    return 1;
}

static uint64_t cpu_fetch(struct backend *backend, void *to, const void *from_host, size_t n_bytes,
                          uint64_t after, enum copy_lane lane)
{
    (void)after;
    (void)lane;
    cpu_copy(backend, to, from_host, n_bytes);
    return 1;
}

static uint64_t cpu_write_back(struct backend *backend, void *to_host, const void *from,
                               size_t n_bytes)
{
    cpu_copy(backend, to_host, from, n_bytes);
    return 1;
}

static bool cpu_fetched(struct backend *backend, uint64_t ticket)
{
    (void)backend;
    (void)ticket;
    return true;
}

static void cpu_await(struct backend *backend, uint64_t ticket)
{
    (void)backend;
    (void)ticket;
}

static void cpu_destroy(struct backend *backend)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    if (!cpu) return;
    for (uint32_t i = 0; cpu->worker && i < pool_n_thread(cpu->pool); i++)
        free(cpu->worker[i].data);
    free(cpu->worker);
    for (int type = 0; type < ACT_TYPE_COUNT; type++) {
        free(cpu->act[type].data);
        free(cpu->act_rows[type].data);
    }
    struct buffer *const buffers[] = {&cpu->y,     &cpu->y_rows, &cpu->plan,   &cpu->h,
                                      &cpu->h_act, &cpu->q,      &cpu->partial};
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
        free(buffers[i]->data);
    pool_destroy(cpu->pool);
    free(cpu);
}

static const struct backend_ops cpu_ops = {
    .name = "cpu",
    .destroy = cpu_destroy,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .sync = cpu_sync,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .gather = cpu_gather,
    .copy_rows = cpu_copy_rows,
    .linear = cpu_linear,
    .attention = cpu_attention,
    .delta_net = cpu_delta_net,
    .route = cpu_route,
    .ffn = cpu_ffn,
    .ffn_experts = cpu_ffn_experts,
    .ffn_finish = cpu_ffn_finish,
    .gather_experts = cpu_gather_experts,
    .pin = cpu_pin,
    .unpin = cpu_unpin,
    .start = cpu_start,
    .mark = cpu_mark,
    .fetch = cpu_fetch,
    .write_back = cpu_write_back,
    .fetched = cpu_fetched,
    .await = cpu_await,
};

/* "ref, avx2, avx512" for the error message. */
static void list_variants(char text[64])
{
    text[0] = '\0';
    for (const char *const *name = kernels_available(); *name; name++) {
        if (text[0]) strcat(text, ", ");
        strcat(text, *name);
    }
}

enum lm_status backend_cpu_create(struct backend **out, const struct backend_cpu_config *config,
                                  struct lm_error *err)
{
    const struct kernel_table *kernels = kernels_select(config->kernels);
    if (!kernels) {
        char names[64];
        list_variants(names);
        return lm_fail(err, LM_E_USAGE, "kernels \"%s\": unknown or not for this CPU, which has %s",
                       config->kernels, names);
    }
    struct cpu_backend *cpu = calloc(1, sizeof(*cpu));
    if (!cpu) return lm_fail(err, LM_E_NO_MEM, "no memory for %zu bytes", sizeof(*cpu));
    cpu->base.ops = &cpu_ops;
    cpu->kernels = kernels;
    enum lm_status status = pool_create(&cpu->pool, config->n_thread, config->pin, err);
    if (status != LM_OK) goto free_cpu;
    cpu->worker = calloc(pool_n_thread(cpu->pool), sizeof(*cpu->worker));
    if (!cpu->worker) {
        status = lm_fail(err, LM_E_NO_MEM, "no memory for %u threads", pool_n_thread(cpu->pool));
        goto destroy_pool;
    }
    *out = &cpu->base;
    return LM_OK;

destroy_pool:
    pool_destroy(cpu->pool);
free_cpu:
    free(cpu);
    return status;
}

uint32_t backend_cpu_n_thread(const struct backend *backend)
{
    return pool_n_thread(((const struct cpu_backend *)backend)->pool);
}

const char *backend_cpu_kernels(const struct backend *backend)
{
    return ((const struct cpu_backend *)backend)->kernels->name;
}
