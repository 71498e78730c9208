/* Opens cuBLAS, and calls it when a list of launches comes to a product. */
#include "kernels/cuda/cublas.cuh"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/library.cuh"

/* Its interface as far as it is used, of version 12 and later. */
extern "C" {
typedef struct cublasContext *cublas_handle;
typedef int create_fn(cublas_handle *out);
typedef int destroy_fn(cublas_handle handle);
typedef int set_stream_fn(cublas_handle handle, cudaStream_t stream);
typedef int set_workspace_fn(cublas_handle handle, void *workspace, size_t n_bytes);
typedef int gemm_fn(cublas_handle handle, int transform_a, int transform_b, int m, int n, int k,
                    const void *alpha, const void *a, int a_type, int lda, const void *b,
                    int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                    int compute_type, int algorithm);
typedef const char *status_fn(int status);
}
enum { OP_N = 0, OP_T = 1, TYPE_F32 = 0, TYPE_BF16 = 14, COMPUTE_F32 = 68, ALGORITHM_ANY = -1 };
enum { STATUS_SUCCESS = 0, STATUS_ALLOC_FAILED = 3 };

#if defined(__CUDACC__) && __has_include(<cublas_v2.h>)
#include <cublas_v2.h>
static_assert(OP_N == (int)CUBLAS_OP_N && OP_T == (int)CUBLAS_OP_T, "cublasOperation_t");
static_assert(TYPE_F32 == (int)CUDA_R_32F && TYPE_BF16 == (int)CUDA_R_16BF, "cudaDataType");
static_assert(COMPUTE_F32 == (int)CUBLAS_COMPUTE_32F, "cublasComputeType_t");
static_assert(ALGORITHM_ANY == (int)CUBLAS_GEMM_DEFAULT, "cublasGemmAlgo_t");
static_assert(STATUS_SUCCESS == (int)CUBLAS_STATUS_SUCCESS, "cublasStatus_t");
static_assert(STATUS_ALLOC_FAILED == (int)CUBLAS_STATUS_ALLOC_FAILED, "cublasStatus_t");
#endif

/* What NVIDIA recommends for the largest devices; less makes it choose slower ways. */
static const size_t WORKSPACE_BYTES = (size_t)32 << 20;
static const char FILE_NAME[] = "libcublas.so.13";
/* Where CUDA's own packages put it: the linker's cache knows that place only after ldconfig. */
static const char FILE_PATH[] = "/usr/local/cuda/lib64/libcublas.so.13";

struct cublas {
    cublas_handle handle;
    void *workspace;
    destroy_fn *destroy;
    gemm_fn *gemm;
    status_fn *status;
};

static enum lm_status open_library(void **out, struct lm_error *err)
{
    *out = library_open(FILE_NAME);
    if (*out) return LM_OK;
    lm_fail(err, LM_E_UNSUPPORTED, "numerics fast needs cuBLAS: %s", library_error());
    *out = library_open(FILE_PATH);
    if (*out) return LM_OK;
    return lm_hint(err,
                   "install libcublas-13-0 of NVIDIA's packages, or nvidia-cublas of PyPI with "
                   "its folder in LD_LIBRARY_PATH; --numerics exact does without");
}

static enum lm_status fail_call(const struct cublas *cublas, const char *call, int status,
                                struct lm_error *err)
{
    return lm_fail(err, status == STATUS_ALLOC_FAILED ? LM_E_NO_MEM : LM_E_FAIL, "%s: %s", call,
                   cublas->status(status));
}

static enum lm_status create_handle(struct cublas *cublas, void *library, cudaStream_t stream,
                                    struct lm_error *err)
{
    create_fn *const create = (create_fn *)library_symbol(library, "cublasCreate_v2");
    set_stream_fn *const set_stream =
        (set_stream_fn *)library_symbol(library, "cublasSetStream_v2");
    set_workspace_fn *const set_workspace =
        (set_workspace_fn *)library_symbol(library, "cublasSetWorkspace_v2");
    cublas->destroy = (destroy_fn *)library_symbol(library, "cublasDestroy_v2");
    cublas->gemm = (gemm_fn *)library_symbol(library, "cublasGemmEx");
    cublas->status = (status_fn *)library_symbol(library, "cublasGetStatusString");
    if (!create || !set_stream || !set_workspace || !cublas->destroy || !cublas->gemm ||
        !cublas->status)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s lacks a function that numerics fast needs",
                       FILE_NAME);
    const cudaError_t code = cudaMalloc(&cublas->workspace, WORKSPACE_BYTES);
    if (code != cudaSuccess) {
        cudaGetLastError();
        return lm_fail(err, LM_E_NO_MEM, "no memory for %zu bytes of cuBLAS's workspace: %s",
                       WORKSPACE_BYTES, cudaGetErrorString(code));
    }
    int status = create(&cublas->handle);
    if (status != STATUS_SUCCESS) return fail_call(cublas, "cublasCreate", status, err);
    status = set_stream(cublas->handle, stream); /* which forgets the workspace */
    if (status == STATUS_SUCCESS)
        status = set_workspace(cublas->handle, cublas->workspace, WORKSPACE_BYTES);
    return status == STATUS_SUCCESS ? LM_OK : fail_call(cublas, "cublasSetWorkspace", status, err);
}

enum lm_status cublas_open(struct cublas **out, cudaStream_t stream, struct lm_error *err)
{
    void *library;
    enum lm_status status = open_library(&library, err);
    if (status != LM_OK) return status;
    struct cublas *cublas = (struct cublas *)calloc(1, sizeof(*cublas));
    if (!cublas) return lm_fail(err, LM_E_NO_MEM, "no memory for %zu bytes", sizeof(*cublas));
    status = create_handle(cublas, library, stream, err);
    if (status == LM_OK)
        *out = cublas;
    else
        cublas_close(cublas);
    return status;
}

void cublas_close(struct cublas *cublas)
{
    if (!cublas) return;
    if (cublas->handle) cublas->destroy(cublas->handle);
    cudaFree(cublas->workspace);
    free(cublas);
}

/* ---- products ---- */

/* cuBLAS counts columns first: its matrices are these, transposed; so C = y^T = w x^T. */
static cudaError_t put_product(cudaStream_t stream, const void *args)
{
    const struct cublas_product *p = (const struct cublas_product *)args;
    const struct cublas *cublas = cublas_of(p->cuda);
    const float one = 1.0f, beta = p->add ? 1.0f : 0.0f;
    (void)stream; /* the handle's */
    const int status =
        cublas->gemm(cublas->handle, OP_T, OP_N, (int)p->n_row, (int)p->n_token, (int)p->n_col,
                     &one, p->w, TYPE_BF16, (int)p->w_stride, p->x, TYPE_BF16, (int)p->n_col, &beta,
                     p->y, TYPE_F32, (int)p->y_stride, COMPUTE_F32, ALGORITHM_ANY);
    if (status == STATUS_SUCCESS) return cudaSuccess;
    char what[160];
    snprintf(what, sizeof(what), "cuBLAS, a product of %u x %u with %u rows: %s", p->n_row,
             p->n_col, p->n_token, cublas->status(status));
    fail(p->cuda, what);
    return cudaErrorUnknown;
}

void cublas_multiply(struct cuda_backend *cuda, const struct cublas_product *product)
{
    if (!product->n_row || !product->n_token) return;
    call_later(cuda, put_product, product, sizeof(*product));
}
