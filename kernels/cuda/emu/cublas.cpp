/* cuBLAS as far as kernels/cuda/cublas.cu calls it: libcublas.so.13 of the emulated machine.
 *
 * Products run on the stream in their turn, as a library's kernels do, on memory that only those
 * may touch. A sum goes over 16 lanes in F32, so its bits are some that the real library might have
 * given, not the ones that it gives. LEAN_EMU_FAIL=cublas: it is not installed. */
#include <stdlib.h>

#include "kernels/cuda/emu/cuemu.h"

struct cublasContext {
    cudaStream_t stream;
    void *workspace;
};

enum { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15, LANES = 16 };

/* ---- the functions ---- */

static int create(cublasContext **out)
{
    *out = new cublasContext();
    return SUCCESS;
}

static int destroy(cublasContext *handle)
{
    delete handle;
    return SUCCESS;
}

static int set_stream(cublasContext *handle, cudaStream_t stream)
{
    handle->stream = stream;
    handle->workspace = nullptr;
    return SUCCESS;
}

static int set_workspace(cublasContext *handle, void *workspace, size_t n_bytes)
{
    (void)n_bytes;
    handle->workspace = workspace;
    return SUCCESS;
}

static const char *status_string(int status)
{
    return status == SUCCESS            ? "success"
           : status == INVALID_VALUE    ? "an invalid value"
           : status == EXECUTION_FAILED ? "the execution failed"
                                        : "not supported";
}

struct product {
    const uint16_t *a, *b;
    float *c;
    float alpha, beta;
    int m, n, k, lda, ldb, ldc;
};

static float widen(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

static float dot(const uint16_t *a, const uint16_t *b, int n)
{
    float lane[LANES] = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += widen(a[i + l]) * widen(b[i + l]);
    for (int l = 0; i + l < n; l++)
        lane[l] += widen(a[i + l]) * widen(b[i + l]);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return lane[0];
}

static cudaError_t run_product(const void *args)
{
    const product *p = (const product *)args;
    for (int column = 0; column < p->n; column++)
        for (int row = 0; row < p->m; row++) {
            float *c = p->c + (size_t)column * p->ldc + row;
            const float sum =
                dot(p->a + (size_t)row * p->lda, p->b + (size_t)column * p->ldb, p->k);
            *c = p->beta == 0.0f ? p->alpha * sum : p->alpha * sum + p->beta * *c;
        }
    return cudaSuccess;
}

/* C = alpha A^T B + beta C, A and B of BF16, C of F32; anything else is refused. */
static int gemm(cublasContext *handle, int transform_a, int transform_b, int m, int n, int k,
                const void *alpha, const void *a, int a_type, int lda, const void *b, int b_type,
                int ldb, const void *beta, void *c, int c_type, int ldc, int compute_type,
                int algorithm)
{
    enum { OP_N = 0, OP_T = 1, R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, DEFAULT = -1 };
    if (m < 0 || n < 0 || k < 0 || lda < k || ldb < k || ldc < m) return INVALID_VALUE;
    if (transform_a != OP_T || transform_b != OP_N || a_type != R_16BF || b_type != R_16BF ||
        c_type != R_32F || compute_type != COMPUTE_32F || algorithm != DEFAULT)
        return NOT_SUPPORTED;
    if (!handle->workspace) return NOT_SUPPORTED; /* it would allocate one */
    const product p = {(const uint16_t *)a,
                       (const uint16_t *)b,
                       (float *)c,
                       *(const float *)alpha,
                       *(const float *)beta,
                       m,
                       n,
                       k,
                       lda,
                       ldb,
                       ldc};
    const cudaError_t error = emu_put(handle->stream, run_product, &p, sizeof(p));
    return error == cudaSuccess ? SUCCESS : EXECUTION_FAILED;
}

/* ---- the library ---- */

static const struct {
    const char *name;
    void *function;
} functions[] = {
    {"cublasCreate_v2", (void *)create},
    {"cublasDestroy_v2", (void *)destroy},
    {"cublasSetStream_v2", (void *)set_stream},
    {"cublasSetWorkspace_v2", (void *)set_workspace},
    {"cublasGetStatusString", (void *)status_string},
    {"cublasGemmEx", (void *)gemm},
};

void *emu_library_open(const char *file)
{
    const char *fail = getenv("LEAN_EMU_FAIL");
    if (strcmp(file, "libcublas.so.13") || (fail && !strcmp(fail, "cublas"))) return nullptr;
    return (void *)functions;
}

void *emu_library_symbol(void *library, const char *name)
{
    (void)library;
    for (const auto &function : functions)
        if (!strcmp(function.name, name)) return function.function;
    return nullptr;
}
