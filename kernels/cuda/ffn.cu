#include "kernels/cuda/backend_cuda.cuh"

void cuda_ffn(struct backend *backend, const struct ffn_args *args)
{
    (void)args;
    fail((struct cuda_backend *)backend, "ffn: not on this device");
}

void cuda_ffn_experts(struct backend *backend, const struct ffn_args *args, const bool *selected)
{
    (void)selected;
    cuda_ffn(backend, args);
}

void cuda_ffn_finish(struct backend *backend, const struct ffn_args *args)
{
    cuda_ffn(backend, args);
}
