/* The emulator of kernels/cuda/emu holds what kernels rely on: warp operations by CUDA's rules,
 * products of tiles, the same bits in every order of threads; and it says so when a kernel waits
 * for ever, when the host touches device memory, or reads before it has waited. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <initializer_list>

extern "C" {
#include <cmocka.h>
}

#include "kernels/cuda/ptx.cuh"

static cudaStream_t stream;
static uint8_t *memory; /* of the device */
static const size_t MEMORY_BYTES = 1 << 16;

static void open_device(const char *order)
{
    int n_device;
    setenv("LEAN_EMU_ORDER", order, 1);
    assert_int_equal(cudaGetDeviceCount(&n_device), cudaSuccess);
    assert_int_equal(cudaSetDevice(0), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaMalloc(&memory, MEMORY_BYTES), cudaSuccess);
}

static void close_device(void)
{
    cudaFree(memory);
    cudaStreamDestroy(stream);
    cudaGetLastError();
}

template <class Args> static void put(void (*kernel)(Args), dim3 grid, dim3 block, Args args)
{
    void *pointers[] = {&args};
    register_kernel(kernel);
    assert_int_equal(cudaLaunchKernel((const void *)kernel, grid, block, pointers, 0, stream),
                     cudaSuccess);
}

static void get(void *to, size_t n_bytes)
{
    assert_int_equal(cudaMemcpyAsync(to, memory, n_bytes, cudaMemcpyDeviceToHost, stream),
                     cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
}

/* ---- warp operations ---- */

struct lane_args {
    int32_t *out; /* [9][32] */
};

KERNEL(32) lanes_kernel(const struct lane_args a)
{
    const int lane = (int)threadIdx.x;
    const int32_t results[] = {
        __shfl_sync(ALL_LANES, lane * 10, 35),
        __shfl_sync(ALL_LANES, lane * 10, 2, 8),
        __shfl_xor_sync(ALL_LANES, lane * 10, 5),
        __shfl_up_sync(ALL_LANES, lane * 10, 3),
        __shfl_down_sync(ALL_LANES, lane * 10, 3, 16),
        (int32_t)__ballot_sync(ALL_LANES, lane % 3 == 0),
        __reduce_add_sync(ALL_LANES, lane),
        __any_sync(ALL_LANES, lane == 7) + 2 * __all_sync(ALL_LANES, lane < 31),
        (int32_t)__match_any_sync(ALL_LANES, lane % 4),
    };
    for (int i = 0; i < 9; i++)
        a.out[i * 32 + lane] = results[i];
}

static void test_warp_operations(void **state)
{
    (void)state;
    for (const char *order : {"forward", "reverse", "random"}) {
        int32_t got[9][32];
        open_device(order);
        put(lanes_kernel, dim3(1), dim3(32), lane_args{(int32_t *)memory});
        get(got, sizeof(got));
        for (int lane = 0; lane < 32; lane++) {
            assert_int_equal(got[0][lane], 30);
            assert_int_equal(got[1][lane], (lane / 8 * 8 + 2) * 10);
            assert_int_equal(got[2][lane], (lane ^ 5) * 10);
            assert_int_equal(got[3][lane], (lane < 3 ? lane : lane - 3) * 10);
            assert_int_equal(got[4][lane], (lane % 16 + 3 < 16 ? lane + 3 : lane) * 10);
            assert_int_equal((uint32_t)got[5][lane], 0x49249249u);
            assert_int_equal(got[6][lane], 31 * 16);
            assert_int_equal(got[7][lane], 1);
            assert_int_equal((uint32_t)got[8][lane], 0x11111111u << lane % 4);
        }
        close_device();
    }
}

/* Where the elements of a warp's registers lie in the matrices, by the formulas of the PTX ISA,
 * sections "Matrix Fragments for mma.m16n8k16 with integer type" and "... for mma.m16n8k32": with
 * group = lane / 4 and member = lane % 4, element i of A (4 a register, low bytes first)
 *   row     group where i % 8 < 4 (of m16n8k32: i = 0-3 and 8-11), else group + 8
 *   column  4 member + i % 4, and 16 more from i = 8 on
 * element i of B
 *   row     4 member + i % 4, and 16 more from i = 4 on
 *   column  group
 * element i of C and D (one a register)
 *   row     group where i < 2, else group + 8
 *   column  2 member + i % 2
 * The kernels' comparisons with kernels/ref hold on a GPU as far as the emulator keeps to this. */
struct place {
    uint32_t row, column;
};

DEVICE struct place place_in_a(uint32_t lane, uint32_t i)
{
    return {lane / 4 + (i % 8 < 4 ? 0 : 8), lane % 4 * 4 + i % 4 + (i < 8 ? 0 : 16)};
}

DEVICE struct place place_in_b(uint32_t lane, uint32_t i)
{
    return {lane % 4 * 4 + i % 4 + (i < 4 ? 0 : 16), lane / 4};
}

DEVICE struct place place_in_d(uint32_t lane, uint32_t i)
{
    return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + i % 2};
}

struct tile_args {
    const int8_t *a; /* [16][k] */
    const int8_t *b; /* [k][8] */
    int32_t *d;      /* [16][8]; what is there is added to */
    uint32_t k;
};

KERNEL(32) tile_kernel(const struct tile_args t)
{
    const uint32_t lane = threadIdx.x;
    uint8_t a[16], b[8];
    uint32_t a_words[4], b_words[2];
    int32_t d[4];
    for (uint32_t i = 0; i < t.k / 2; i++) {
        const struct place at = place_in_a(lane, i);
        a[i] = (uint8_t)t.a[at.row * t.k + at.column];
    }
    for (uint32_t i = 0; i < t.k / 4; i++) {
        const struct place at = place_in_b(lane, i);
        b[i] = (uint8_t)t.b[at.row * 8 + at.column];
    }
    for (uint32_t i = 0; i < 4; i++) {
        const struct place at = place_in_d(lane, i);
        d[i] = t.d[at.row * 8 + at.column];
    }
    memcpy(a_words, a, sizeof(a));
    memcpy(b_words, b, sizeof(b));
    if (t.k == 32)
        mma_s8_16x8x32(d, a_words, b_words);
    else
        mma_s8_16x8x16(d, a_words, b_words[0]);
    for (uint32_t i = 0; i < 4; i++) {
        const struct place at = place_in_d(lane, i);
        t.d[at.row * 8 + at.column] = d[i];
    }
}

static void check_tile(uint32_t k, const int8_t *a, const int8_t *b)
{
    int32_t before[16][8], got[16][8];
    for (int i = 0; i < 16 * 8; i++)
        before[i / 8][i % 8] = i * 1000003;
    cudaMemcpyAsync(memory, before, sizeof(before), cudaMemcpyHostToDevice, stream);
    cudaMemcpyAsync(memory + 1024, a, 16 * k, cudaMemcpyHostToDevice, stream);
    cudaMemcpyAsync(memory + 2048, b, 8 * k, cudaMemcpyHostToDevice, stream);
    put(tile_kernel, dim3(1), dim3(32),
        tile_args{(int8_t *)memory + 1024, (int8_t *)memory + 2048, (int32_t *)memory, k});
    get(got, sizeof(got));
    for (uint32_t row = 0; row < 16; row++)
        for (uint32_t column = 0; column < 8; column++) {
            int32_t sum = before[row][column];
            for (uint32_t i = 0; i < k; i++)
                sum += a[row * k + i] * b[i * 8 + column];
            assert_int_equal(got[row][column], sum);
        }
}

/* Full matrices with the extremes of a byte among them, then one element of A at a time. */
static void test_products_of_tiles_as_the_isa_lays_them_out(void **state)
{
    (void)state;
    for (const uint32_t k : {16u, 32u}) {
        int8_t a[16 * 32], b[32 * 8];
        open_device("random");
        for (uint32_t i = 0; i < 16 * k; i++)
            a[i] = (int8_t)(i % 11 ? i * 37 + i / 7 : 128);
        for (uint32_t i = 0; i < 8 * k; i++)
            b[i] = (int8_t)(i % 13 ? i * 91 - i / 3 : 128);
        check_tile(k, a, b);
        for (uint32_t i = 0; i < 16 * k; i += 5) { /* every row and column comes */
            memset(a, 0, sizeof(a));
            a[i] = -128;
            check_tile(k, a, b);
        }
        close_device();
    }
}

/* By the layouts that the PTX ISA gives for m16n8k16 with .f16 and .bf16, and for ldmatrix: element
 * i of a fragment of A is row g for i / 2 even, else g + 8, column 2 t + i % 2, 8 more for i >= 4;
 * of B row 2 t + i % 2, 8 more for i >= 2, column g. */
struct half_args {
    const uint16_t *a; /* [16][16] */
    const uint16_t *b; /* [16][8] */
    float *d;          /* [2][16][8]: by fragments as above, and by load_matrices */
};

template <bool BF16> KERNEL(32) half_kernel(const struct half_args h)
{
    __shared__ __align__(16) uint16_t a[16][16], b[16][8];
    const uint32_t lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (uint32_t i = lane; i < 16 * 16; i += 32)
        a[i / 16][i % 16] = h.a[i];
    for (uint32_t i = lane; i < 16 * 8; i += 32)
        b[i / 8][i % 8] = h.b[i];
    __syncthreads();
    uint32_t of_a[4] = {}, of_b[4] = {};
    for (uint32_t i = 0; i < 8; i++)
        of_a[i / 2] |= (uint32_t)a[g + (i / 2 % 2 ? 8 : 0)][2 * t + i % 2 + (i < 4 ? 0 : 8)]
                       << 16 * (i % 2);
    for (uint32_t i = 0; i < 4; i++)
        of_b[i / 2] |= (uint32_t)b[2 * t + i % 2 + (i < 2 ? 0 : 8)][g] << 16 * (i % 2);
    for (uint32_t way = 0; way < 2; way++) {
        float d[4] = {1, 2, 3, 4};
        if (way == 1) {
            load_matrices<false>(of_a, &a[lane % 16][lane / 16 * 8]);
            load_matrices<true>(of_b, b[lane % 16]); /* lanes 16-31: once more, and unused */
        }
        mma_16x8x16<BF16>(d, of_a, of_b);
        for (uint32_t i = 0; i < 4; i++)
            h.d[way * 128 + (g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
    }
}

static void test_a_product_of_half_tiles(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        uint16_t a[16][16], b[16][8];
        float got[2][16][8];
        for (int i = 0; i < 16 * 16; i++) { /* small integers: sums are exact */
            const float value = (float)(i * 37 % 23 - 11);
            a[i / 16][i % 16] = bf16 ? float_to_bf16(value) : float_to_f16(value);
        }
        for (int i = 0; i < 16 * 8; i++) {
            const float value = (float)(i * 91 % 29 - 14);
            b[i / 8][i % 8] = bf16 ? float_to_bf16(value) : float_to_f16(value);
        }
        open_device("random");
        cudaMemcpyAsync(memory + 2048, a, sizeof(a), cudaMemcpyHostToDevice, stream);
        cudaMemcpyAsync(memory + 4096, b, sizeof(b), cudaMemcpyHostToDevice, stream);
        put(bf16 ? half_kernel<true> : half_kernel<false>, dim3(1), dim3(32),
            half_args{(uint16_t *)(memory + 2048), (uint16_t *)(memory + 4096), (float *)memory});
        get(got, sizeof(got));
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                int sum = 1 + row / 8 * 2 + column % 2; /* what was there before */
                for (int k = 0; k < 16; k++)
                    sum += ((row * 16 + k) * 37 % 23 - 11) * ((k * 8 + column) * 91 % 29 - 14);
                assert_true(got[0][row][column] == (float)sum);
                assert_true(got[1][row][column] == (float)sum);
            }
        close_device();
    }
}

/* ---- blocks ---- */

struct sum_args {
    float *out; /* [grid] */
};

/* Barriers and shared memory: who runs first does not matter. */
KERNEL(256) sum_kernel(const struct sum_args a)
{
    __shared__ float partial[8];
    const float value = 1.0f / (float)(1 + threadIdx.x + 256 * blockIdx.x);
    const float sum = lanes_sum(value);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = sum;
    __syncthreads();
    float all = 0.0f;
    for (int i = 0; i < 8; i++)
        all += partial[i];
    const int n = __syncthreads_count(threadIdx.x % 2 == 0);
    if (threadIdx.x == 0) a.out[blockIdx.x] = all + (float)n;
}

static void test_the_order_of_threads_changes_no_bit(void **state)
{
    (void)state;
    float got[3][5];
    int i = 0;
    for (const char *order : {"forward", "reverse", "random"}) {
        open_device(order);
        put(sum_kernel, dim3(5), dim3(256), sum_args{(float *)memory});
        get(got[i++], sizeof(got[0]));
        close_device();
    }
    assert_memory_equal(got[0], got[1], sizeof(got[0]));
    assert_memory_equal(got[0], got[2], sizeof(got[0]));
    assert_true(got[0][0] > 134.0f && got[0][0] < 134.2f); /* 128 and the 256th harmonic number */
}

/* ---- what kernels may not do ---- */

struct stuck_args {
    int how;
};

KERNEL(64) stuck_kernel(const struct stuck_args a)
{
    if (blockIdx.x != 1) return;
    if (a.how == 0 && threadIdx.x == 5) return; /* and 31 lanes wait for it */
    if (a.how == 1 && threadIdx.x < 32) __syncthreads_or(1);
    if (a.how == 2) __syncwarp(0xffffu);
    if (a.how == 0) __syncwarp();
    if (a.how == 3) {
        if (threadIdx.x == 1)
            __ballot_sync(ALL_LANES, 1);
        else
            __shfl_sync(ALL_LANES, 1, 0);
    }
    __syncthreads();
}

static void test_a_wait_that_cannot_end_is_reported(void **state)
{
    (void)state;
    static const char *const expected[][2] = {
        {"a wait that cannot end", "thread 5 has ended"},
        {"threads at different barriers", "thread 0 to 31 waits at __syncthreads_or"},
        {"a warp operation of some lanes only", "thread 0 to 63 runs"},
        {"lanes of a warp at different operations", "thread 1 waits at a vote"},
    };
    for (int how = 0; how < 4; how++) {
        char text[4096] = "";
        FILE *file = tmpfile();
        const int saved = dup(STDERR_FILENO);
        open_device("forward");
        put(stuck_kernel, dim3(3), dim3(64), stuck_args{how});
        dup2(fileno(file), STDERR_FILENO);
        const cudaError_t error = cudaStreamSynchronize(stream);
        dup2(saved, STDERR_FILENO);
        close(saved);
        rewind(file);
        assert_true(fread(text, 1, sizeof(text) - 1, file) > 0);
        fclose(file);
        assert_int_equal(error, cudaErrorLaunchFailure);
        assert_non_null(strstr(text, "emulator: stuck_args, block (1,0,0) of 64 threads: "));
        assert_non_null(strstr(text, expected[how][0]));
        assert_non_null(strstr(text, expected[how][1]));
        close_device();
    }
}

/* Runs in a process of its own; returns the signal that ended it, or 0. */
static int signal_of(void (*act)(void))
{
    const pid_t child = fork();
    if (!child) {
        signal(SIGSEGV, SIG_DFL);                          /* cmocka has its own */
        if (!freopen("/dev/null", "w", stderr)) _exit(99); /* where sanitizers report */
        act();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

static void read_device_memory(void)
{
    open_device("forward");
    _exit(((volatile uint8_t *)memory)[5] * 0);
}

struct far_args {
    uint8_t *out;
};

KERNEL(32) far_kernel(const struct far_args a)
{
    a.out[threadIdx.x] = 0;
}

static void write_behind_the_end(void)
{
    open_device("forward");
    put(far_kernel, dim3(1), dim3(32), far_args{memory + MEMORY_BYTES - 31});
    cudaStreamSynchronize(stream);
}

static void write_what_was_freed(void)
{
    open_device("forward");
    put(far_kernel, dim3(1), dim3(32), far_args{memory});
    cudaFree(memory);
    cudaStreamSynchronize(stream);
}

static void write_in_bounds(void)
{
    open_device("forward");
    put(far_kernel, dim3(1), dim3(32), far_args{memory + MEMORY_BYTES - 32});
    cudaStreamSynchronize(stream);
}

static void test_memory_out_of_reach_ends_the_process(void **state)
{
    (void)state;
    assert_int_equal(signal_of(write_in_bounds), 0);
    assert_int_not_equal(signal_of(read_device_memory), 0);
    assert_int_not_equal(signal_of(write_behind_the_end), 0);
    assert_int_not_equal(signal_of(write_what_was_freed), 0);
}

/* Nothing happens before somebody waits, and the host's memory is read as late as that, pinned or
 * not. */
static void test_work_is_put_off(void **state)
{
    (void)state;
    uint32_t got = 7, plain = 1, *pinned;
    cudaEvent_t event;
    open_device("forward");
    assert_int_equal(cudaHostAlloc(&pinned, sizeof(*pinned), cudaHostAllocDefault), cudaSuccess);
    assert_int_equal(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    *pinned = 1;
    cudaMemcpyAsync(memory, pinned, 4, cudaMemcpyHostToDevice, stream);
    cudaMemcpyAsync(memory + 4, &plain, 4, cudaMemcpyHostToDevice, stream);
    cudaMemcpyAsync(&got, memory, 4, cudaMemcpyDeviceToHost, stream);
    cudaEventRecord(event, stream);
    assert_int_equal(cudaEventQuery(event), cudaErrorNotReady);
    *pinned = 2;
    plain = 2;
    assert_int_equal(got, 7);
    assert_int_equal(cudaEventSynchronize(event), cudaSuccess);
    assert_int_equal(got, 2);
    cudaMemcpyAsync(&got, memory + 4, 4, cudaMemcpyDeviceToHost, stream);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(got, 2);
    /* a second stream waits for the first */
    cudaStream_t second;
    assert_int_equal(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), cudaSuccess);
    cudaMemsetAsync(memory, 9, 4, stream);
    cudaEventRecord(event, stream);
    cudaStreamWaitEvent(second, event, 0);
    cudaMemcpyAsync(&got, memory, 4, cudaMemcpyDeviceToHost, second);
    assert_int_equal(cudaStreamSynchronize(second), cudaSuccess);
    assert_int_equal(got, 0x09090909);
    cudaStreamDestroy(second);
    cudaEventDestroy(event);
    cudaFreeHost(pinned);
    close_device();
}

struct visit {
    std::atomic<bool> begun, may_end;
    uint32_t seen;
};

static void visit_device(void *data)
{
    struct visit *const visit = (struct visit *)data;
    visit->begun = true;
    while (!visit->may_end)
        usleep(100);
    emu_copy(&visit->seen, memory, sizeof(visit->seen));
}

/* It begins unasked, blocks its stream and those that wait for it, and nothing else. */
static void test_a_function_of_the_host_has_its_place_in_a_stream(void **state)
{
    (void)state;
    cudaStream_t second;
    cudaEvent_t event;
    struct visit visit = {};
    uint32_t got = 0;
    open_device("forward");
    assert_int_equal(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    cudaMemsetAsync(memory, 3, 4, second);
    cudaLaunchHostFunc(second, visit_device, &visit);
    cudaMemsetAsync(memory, 5, 4, second);
    cudaEventRecord(event, second);
    while (!visit.begun)
        usleep(100);
    cudaMemsetAsync(memory + 4, 4, 4, stream);
    cudaMemcpyAsync(&got, memory + 4, 4, cudaMemcpyDeviceToHost, stream);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(got, 0x04040404);
    assert_int_equal(cudaEventQuery(event), cudaErrorNotReady);
    assert_int_equal(cudaStreamQuery(second), cudaErrorNotReady);
    cudaStreamWaitEvent(stream, event, 0);
    cudaMemcpyAsync(&got, memory, 4, cudaMemcpyDeviceToHost, stream);
    visit.may_end = true;
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(visit.seen, 0x03030303);
    assert_int_equal(got, 0x05050505);
    cudaStreamDestroy(second);
    cudaEventDestroy(event);
    close_device();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_warp_operations),
        cmocka_unit_test(test_products_of_tiles_as_the_isa_lays_them_out),
        cmocka_unit_test(test_a_product_of_half_tiles),
        cmocka_unit_test(test_the_order_of_threads_changes_no_bit),
        cmocka_unit_test(test_a_wait_that_cannot_end_is_reported),
        cmocka_unit_test(test_memory_out_of_reach_ends_the_process),
        cmocka_unit_test(test_work_is_put_off),
        cmocka_unit_test(test_a_function_of_the_host_has_its_place_in_a_stream),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
