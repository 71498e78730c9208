/* Quantizing a file: a recipe gives the types, the pool quantizes a batch of rows at a time, the
 * writer appends the batch. */
#include "worker/pack/quantizer.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/cpu/pool.h"
#include "proto/base/half.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf_write.h"
#include "worker/pack/quantize_blocks.h"

enum {
    BATCH_BYTES = 32 << 20,    /* of output, at least one row */
    TASK_ELEMENTS = 64 * 1024, /* of input, at least one row */
};
static const float F16_MAX = 65504;

struct job {
    const struct gguf_file *source;
    struct recipe_tensor *planned; /* [gguf_n_tensor], in the order of the source */
    struct gguf_writer *writer;
    struct pool *pool;
    float *rows;         /* [n_thread][widest row] */
    uint8_t *batch;      /* [batch_capacity] */
    uint64_t widest_row; /* elements */
    uint64_t batch_capacity;
    struct log_bar bar;
    uint64_t n_done; /* source bytes */
};

/* A batch of rows of one tensor, split into tasks of rows_per_task. */
struct batch {
    const struct gguf_tensor *tensor;
    quantize_row_fn quantize;
    uint64_t row_begin, n_row, rows_per_task;
    uint64_t in_bytes, out_bytes; /* of a row */
    struct job *job;
    _Atomic uint64_t bad_row; /* the first row with a bad value; UINT64_MAX: none */
};

static void decode_row(const void *row, enum tensor_type type, uint64_t n, float *out)
{
    uint16_t half;
    if (type == TENSOR_F32) memcpy(out, row, n * sizeof(float));
    for (uint64_t i = 0; i < n && type != TENSOR_F32; i++) {
        memcpy(&half, (const uint8_t *)row + 2 * i, sizeof(half));
        out[i] = type == TENSOR_F16 ? f32_from_f16(half) : f32_from_bf16(half);
    }
}

/* Index of the first value that no quantizer can take, n if there is none. */
static uint64_t find_bad_value(const float *x, uint64_t n)
{
    float amax = 0;
    bool all_ordered = true;
    for (uint64_t i = 0; i < n; i++) {
        all_ordered &= x[i] == x[i];
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    }
    if (all_ordered && amax <= F16_MAX) return n;
    uint64_t i = 0;
    while (fabsf(x[i]) <= F16_MAX)
        i++;
    return i;
}

static const uint8_t *source_row(const struct batch *batch, uint64_t row)
{
    return (const uint8_t *)batch->tensor->data + (batch->row_begin + row) * batch->in_bytes;
}

static void quantize_task(void *context, uint32_t task, uint32_t worker)
{
    struct batch *batch = context;
    struct job *job = batch->job;
    const uint64_t n = batch->tensor->ne[0];
    float *x = job->rows + worker * job->widest_row;
    const uint64_t begin = task * batch->rows_per_task;
    for (uint64_t row = begin; row < begin + batch->rows_per_task && row < batch->n_row; row++) {
        decode_row(source_row(batch, row), batch->tensor->type, n, x);
        if (find_bad_value(x, n) != n) {
            uint64_t first = atomic_load(&batch->bad_row);
            while (row < first && !atomic_compare_exchange_weak(&batch->bad_row, &first, row)) {
            }
            return;
        }
        batch->quantize(x, n, job->batch + row * batch->out_bytes);
    }
}

static enum lm_status report_bad_value(const struct batch *batch, uint64_t row,
                                       struct lm_error *err)
{
    const struct gguf_tensor *tensor = batch->tensor;
    float *x = batch->job->rows;
    char name[256];
    decode_row(source_row(batch, row), tensor->type, tensor->ne[0], x);
    const uint64_t i = find_bad_value(x, tensor->ne[0]);
    return lm_fail(err, LM_E_FORMAT,
                   "%s: tensor %s: row %llu, element %llu is %g, must be within %g",
                   gguf_path(batch->job->source),
                   log_printable(tensor->name.data, tensor->name.n, name, sizeof(name)),
                   (unsigned long long)(batch->row_begin + row), (unsigned long long)i,
                   (double)x[i], (double)F16_MAX);
}

/* Source bytes are used once; dropping their pages keeps this process small. They stay in the page
 * cache as long as memory is free. */
static void drop_pages(const void *data, uint64_t n_bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + n_bytes) / page * page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static enum lm_status quantize_tensor(struct job *job, const struct gguf_tensor *tensor,
                                      enum tensor_type type,
                                      const volatile sig_atomic_t *is_interrupted,
                                      struct lm_error *err)
{
    const uint64_t n_row = tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
    struct batch batch = {
        .tensor = tensor,
        .quantize = quantize_row_for(type),
        .in_bytes = tensor_row_bytes(tensor->type, tensor->ne[0]),
        .out_bytes = tensor_row_bytes(type, tensor->ne[0]),
        .job = job,
    };
    const uint64_t rows_per_batch = job->batch_capacity / batch.out_bytes;
    batch.rows_per_task = TASK_ELEMENTS / tensor->ne[0] ? TASK_ELEMENTS / tensor->ne[0] : 1;
    for (; batch.row_begin < n_row; batch.row_begin += batch.n_row) {
        if (is_interrupted && *is_interrupted) return lm_fail(err, LM_E_INTERRUPTED, "interrupted");
        const uint64_t n_left = n_row - batch.row_begin;
        batch.n_row = n_left < rows_per_batch ? n_left : rows_per_batch;
        atomic_store(&batch.bad_row, UINT64_MAX);
        pool_run(job->pool, quantize_task, &batch,
                 (uint32_t)((batch.n_row + batch.rows_per_task - 1) / batch.rows_per_task));
        const uint64_t bad_row = atomic_load(&batch.bad_row);
        if (bad_row != UINT64_MAX) return report_bad_value(&batch, bad_row, err);
        const enum lm_status status =
            gguf_writer_data(job->writer, job->batch, batch.n_row * batch.out_bytes, err);
        if (status != LM_OK) return status;
        drop_pages(source_row(&batch, 0), batch.n_row * batch.in_bytes);
        job->n_done += batch.n_row * batch.in_bytes;
        log_bar_update(&job->bar, job->n_done);
    }
    return LM_OK;
}

/* Planning */

static enum lm_status model_sizes(const struct gguf_file *source, uint32_t *n_layer,
                                  uint32_t *n_expert, struct lm_error *err)
{
    struct gguf_string arch = {"", 0};
    char key[128];
    enum lm_status status = gguf_get_string(source, "general.architecture", &arch, NULL, err);
    *n_layer = *n_expert = 0;
    if (status != LM_OK || arch.n > 64) return status;
    snprintf(key, sizeof(key), "%.*s.block_count", (int)arch.n, arch.data);
    status = gguf_get_u32(source, key, n_layer, NULL, err);
    if (status != LM_OK) return status;
    snprintf(key, sizeof(key), "%.*s.expert_count", (int)arch.n, arch.data);
    return gguf_get_u32(source, key, n_expert, NULL, err);
}

static bool is_plain(enum tensor_type type)
{
    return type == TENSOR_F32 || type == TENSOR_F16 || type == TENSOR_BF16;
}

/* The tensors with their new types, in the order of the source. The caller frees. */
static enum lm_status plan(const struct gguf_file *source, const struct recipe *recipe,
                           struct recipe_tensor **out, struct lm_error *err)
{
    const size_t n_tensor = gguf_n_tensor(source);
    uint32_t n_layer, n_expert;
    if (gguf_is_pack(source))
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: is the dense part of a pack", gguf_path(source));
    enum lm_status status = model_sizes(source, &n_layer, &n_expert, err);
    if (status != LM_OK) return status;
    struct recipe_tensor *planned = calloc(n_tensor + 1, sizeof(*planned));
    if (!planned) return lm_fail(err, LM_E_NO_MEM, "no memory for %zu tensors", n_tensor);
    for (size_t i = 0; i < n_tensor; i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(source, i);
        memcpy(planned[i].name, tensor->name.data, tensor->name.n); /* < 64 by gguf_open */
        memcpy(planned[i].ne, tensor->ne, sizeof(planned[i].ne));
        planned[i].n_dims = tensor->n_dims;
        planned[i].type = tensor->type;
    }
    status = recipe_assign(recipe, planned, n_tensor, n_layer, n_expert, err);
    for (size_t i = 0; i < n_tensor && status == LM_OK; i++) {
        const enum tensor_type type = gguf_tensor_at(source, i)->type;
        char name[256];
        if (planned[i].type == type || is_plain(type)) continue;
        status =
            lm_fail(err, LM_E_UNSUPPORTED, "%s: tensor %s: is %s already", gguf_path(source),
                    log_printable(planned[i].name, strlen(planned[i].name), name, sizeof(name)),
                    tensor_type_info(type)->name);
        lm_hint(err, "quantize from a file of F32, F16 or BF16 weights");
    }
    if (status != LM_OK) {
        free(planned);
        return status;
    }
    *out = planned;
    return LM_OK;
}

static bool key_is(struct gguf_string key, const char *text)
{
    return key.n == strlen(text) && !memcmp(key.data, text, key.n);
}

static void write_header(struct job *job, const struct recipe *recipe)
{
    for (size_t i = 0; i < gguf_n_kv(job->source); i++) {
        const struct gguf_kv *kv = gguf_kv_at(job->source, i);
        if (key_is(kv->key, "general.file_type") ||
            key_is(kv->key, "general.quantization_version") ||
            (kv->key.n > 6 && !memcmp(kv->key.data, "split.", 6)))
            continue;
        gguf_writer_copy(job->writer, job->source, kv);
    }
    gguf_writer_u32(job->writer, "general.quantization_version", 2);
    gguf_writer_u32(job->writer, "general.file_type", recipe_file_type(recipe));
    for (size_t i = 0; i < gguf_n_tensor(job->source); i++)
        gguf_writer_tensor(job->writer, job->planned[i].name, job->planned[i].type,
                           job->planned[i].n_dims, job->planned[i].ne);
}

enum lm_status quantize_plan(const struct gguf_file *source, const struct recipe *recipe,
                             uint64_t *n_bytes, struct lm_error *err)
{
    struct job job = {.source = source};
    enum lm_status status = plan(source, recipe, &job.planned, err);
    if (status == LM_OK) status = gguf_writer_create(&job.writer, NULL, err);
    if (status == LM_OK) {
        write_header(&job, recipe);
        status = gguf_writer_measure(job.writer, n_bytes, err);
        gguf_writer_destroy(job.writer);
    }
    free(job.planned);
    return status;
}

/* Rows for each thread and a batch of output, for the widest tensor. */
static enum lm_status allocate(struct job *job, struct lm_error *err)
{
    job->batch_capacity = BATCH_BYTES;
    for (size_t i = 0; i < gguf_n_tensor(job->source); i++) {
        const struct recipe_tensor *tensor = &job->planned[i];
        const uint64_t row_bytes = tensor_row_bytes(tensor->type, tensor->ne[0]);
        if (tensor->ne[0] > job->widest_row) job->widest_row = tensor->ne[0];
        if (row_bytes > job->batch_capacity) job->batch_capacity = row_bytes;
    }
    job->rows = malloc((pool_n_thread(job->pool) * job->widest_row + 1) * sizeof(float));
    job->batch = malloc(job->batch_capacity);
    if (!job->rows || !job->batch)
        return lm_fail(err, LM_E_NO_MEM, "no memory for rows of %llu elements",
                       (unsigned long long)job->widest_row);
    return LM_OK;
}

static enum lm_status write_tensors(struct job *job, const struct quantize_config *config,
                                    struct lm_error *err)
{
    enum lm_status status = LM_OK;
    for (size_t i = 0; i < gguf_n_tensor(job->source) && status == LM_OK; i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(job->source, i);
        if (job->planned[i].type != tensor->type) {
            status =
                quantize_tensor(job, tensor, job->planned[i].type, config->is_interrupted, err);
        } else {
            status = gguf_writer_data(job->writer, tensor->data, tensor->n_bytes, err);
            drop_pages(tensor->data, tensor->n_bytes);
            job->n_done += tensor->n_bytes;
        }
    }
    return status;
}

static uint64_t source_bytes(const struct gguf_file *source)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < gguf_n_tensor(source); i++)
        n_bytes += gguf_tensor_at(source, i)->n_bytes;
    return n_bytes;
}

enum lm_status quantize_file(const struct gguf_file *source, const char *path,
                             const struct quantize_config *config, struct lm_error *err)
{
    struct job job = {.source = source};
    enum lm_status status = plan(source, config->recipe, &job.planned, err);
    if (status == LM_OK) status = pool_create(&job.pool, config->n_thread, false, err);
    if (status == LM_OK) status = allocate(&job, err);
    if (status == LM_OK) status = gguf_writer_create(&job.writer, path, err);
    if (status == LM_OK) {
        write_header(&job, config->recipe);
        log_bar_begin(&job.bar, "quantizing", NULL, source_bytes(source));
        status = write_tensors(&job, config, err);
        log_bar_end(&job.bar);
        if (status == LM_OK)
            status = gguf_writer_finish(job.writer, err);
        else
            gguf_writer_destroy(job.writer);
    }
    if (job.pool) pool_destroy(job.pool);
    free(job.batch);
    free(job.rows);
    free(job.planned);
    return status;
}
