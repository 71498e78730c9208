#include "kernels/cuda/backend_cuda.cuh"

void cuda_attention(struct backend *backend, const struct attention_args *args)
{
    (void)args;
    fail((struct cuda_backend *)backend, "attention: not on this device");
}
