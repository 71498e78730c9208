#include "kernels/cuda/backend_cuda.cuh"

void cuda_delta_net(struct backend *backend, const struct delta_net_args *args)
{
    (void)args;
    fail((struct cuda_backend *)backend, "delta_net: not on this device");
}
