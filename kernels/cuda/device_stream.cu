/* A stream beside that of the operations, and events between the two. */
#include <stdlib.h>

#include "kernels/cuda/backend_cuda.cuh"

extern "C" {
#include "proto/base/device_stream.h"
}

struct cuda_side_stream {
    struct device_stream base;
    struct cuda_backend *cuda;
    cudaEvent_t operations; /* of the last after_operations */
    cudaEvent_t point[DEVICE_STREAM_POINTS];
    uint64_t n_point;
};

static struct cuda_side_stream *self(struct device_stream *stream)
{
    return (struct cuda_side_stream *)stream;
}

static cudaStream_t handle(const struct device_stream *stream)
{
    return (cudaStream_t)stream->handle;
}

static void after_operations(struct device_stream *stream)
{
    struct cuda_side_stream *const side = self(stream);
    const cudaStream_t operations = operations_stream(side->cuda);
    CUDA_CHECK(side->cuda, cudaEventRecord(side->operations, operations)) &&
        CUDA_CHECK(side->cuda, cudaStreamWaitEvent(handle(stream), side->operations, 0));
}

static uint64_t mark(struct device_stream *stream)
{
    struct cuda_side_stream *const side = self(stream);
    const uint64_t point = side->n_point++;
    CUDA_CHECK(side->cuda,
               cudaEventRecord(side->point[point % DEVICE_STREAM_POINTS], handle(stream)));
    return point;
}

/* Of a point, or of the oldest of those that can be told apart. */
static cudaEvent_t event_of(const struct cuda_side_stream *side, uint64_t point)
{
    const bool is_old = side->n_point - point > DEVICE_STREAM_POINTS;
    const uint64_t known = is_old ? side->n_point - DEVICE_STREAM_POINTS : point;
    return side->point[known % DEVICE_STREAM_POINTS];
}

static void before_operations(struct device_stream *stream, uint64_t point)
{
    struct cuda_side_stream *const side = self(stream);
    const cudaStream_t operations = operations_stream(side->cuda);
    CUDA_CHECK(side->cuda, cudaStreamWaitEvent(operations, event_of(side, point), 0));
}

static enum lm_status reached(struct device_stream *stream, uint64_t point, bool *reached,
                              struct lm_error *err)
{
    const cudaError_t code = cudaEventQuery(event_of(self(stream), point));
    *reached = code == cudaSuccess;
    cudaGetLastError();
    if (code == cudaSuccess || code == cudaErrorNotReady) return LM_OK;
    return lm_fail(err, LM_E_FAIL, "cudaEventQuery: %s", cudaGetErrorString(code));
}

static const struct device_stream_ops ops = {
    .after_operations = after_operations,
    .mark = mark,
    .before_operations = before_operations,
    .reached = reached,
};

void side_stream_destroy(struct device_stream *stream)
{
    if (!stream) return;
    struct cuda_side_stream *const side = self(stream);
    if (handle(stream)) cudaStreamDestroy(handle(stream));
    if (side->operations) cudaEventDestroy(side->operations);
    for (int i = 0; i < DEVICE_STREAM_POINTS; i++)
        if (side->point[i]) cudaEventDestroy(side->point[i]);
    free(side);
}

enum lm_status side_stream_create(struct device_stream **out, struct cuda_backend *cuda,
                                  struct lm_error *err)
{
    struct cuda_side_stream *const side = (struct cuda_side_stream *)calloc(1, sizeof(*side));
    cudaStream_t stream = NULL;
    if (!side) return lm_fail(err, LM_E_NO_MEM, "no memory for %zu bytes", sizeof(*side));
    side->base.ops = &ops;
    side->cuda = cuda;
    operations_stream(cuda); /* the device is the thread's */
    cudaError_t code = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    side->base.handle = stream;
    if (code == cudaSuccess)
        code = cudaEventCreateWithFlags(&side->operations, cudaEventDisableTiming);
    for (int i = 0; i < DEVICE_STREAM_POINTS && code == cudaSuccess; i++)
        code = cudaEventCreateWithFlags(&side->point[i], cudaEventDisableTiming);
    if (code != cudaSuccess) {
        cudaGetLastError();
        side_stream_destroy(&side->base);
        return lm_fail(err, LM_E_FAIL, "a stream for transfers: %s", cudaGetErrorString(code));
    }
    *out = &side->base;
    return LM_OK;
}
