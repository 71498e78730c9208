/* Loads to measure a device by: what plain reads and plain products reach is the roof that the
 * benchmarks of operations are held against. */
#include "kernels/cuda/loads.cuh"

#include "kernels/cuda/ptx.cuh"

struct read_args {
    const uint4 *from;
    size_t n; /* of 16 bytes */
    uint32_t *sink;
};

/* Four loads in flight per thread. */
KERNEL(256) read_kernel(const struct read_args a)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;
    uint32_t sum = 0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.n; i += 4 * step) {
        uint4 value[4] = {};
        for (uint32_t k = 0; k < 4; k++)
            if (i + k * step < a.n) value[k] = load_once_128(a.from + i + k * step);
        for (uint32_t k = 0; k < 4; k++)
            sum ^= value[k].x ^ value[k].y ^ value[k].z ^ value[k].w;
    }
    if (sum == 0x12345678u) *a.sink = sum; /* so that nothing is left out */
}

struct multiply_args {
    uint32_t n_round;
    int32_t *sink;
};

enum { MULTIPLY_TILES = 8, MULTIPLY_THREADS = 256, MULTIPLY_ADDS_PER_MMA = 16 * 8 * 32 };

/* Independent accumulators, so that the tensor cores never wait for one. */
KERNEL(MULTIPLY_THREADS) multiply_kernel(const struct multiply_args a)
{
    int32_t d[MULTIPLY_TILES][4] = {};
    uint32_t x[4], y[2];
    for (uint32_t k = 0; k < 4; k++)
        x[k] = (threadIdx.x + k) * 0x01030507u;
    for (uint32_t k = 0; k < 2; k++)
        y[k] = (threadIdx.x + k) * 0x0b0d1113u;
    for (uint32_t round = 0; round < a.n_round; round++)
#pragma unroll
        for (uint32_t tile = 0; tile < MULTIPLY_TILES; tile++)
            mma_s8_16x8x32(d[tile], x, y);
    int32_t sum = 0;
    for (uint32_t tile = 0; tile < MULTIPLY_TILES; tile++)
        sum ^= d[tile][0] ^ d[tile][1] ^ d[tile][2] ^ d[tile][3];
    if (sum == 0x12345678) *a.sink = sum;
}

void cuda_read(struct backend *backend, const void *memory, size_t n_bytes, void *sink)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    const struct read_args args = {(const uint4 *)memory, n_bytes / sizeof(uint4),
                                   (uint32_t *)sink};
    launch(cuda, read_kernel, dim3(8 * n_multiprocessor(cuda)), dim3(256), 0, args);
}

uint64_t cuda_multiply(struct backend *backend, uint32_t n_round, void *sink)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    struct multiply_args args = {};
    args.n_round = n_round;
    args.sink = (int32_t *)sink;
    const uint32_t n_block = 4 * n_multiprocessor(cuda);
    launch(cuda, multiply_kernel, dim3(n_block), dim3(MULTIPLY_THREADS), 0, args);
    return (uint64_t)n_block * (MULTIPLY_THREADS / (uint32_t)WARP) * n_round * MULTIPLY_TILES *
           MULTIPLY_ADDS_PER_MMA;
}
