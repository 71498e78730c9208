#include "kernels/cuda/backend_cuda.cuh"

void cuda_route(struct backend *backend, const struct route_args *args)
{
    (void)args;
    fail((struct cuda_backend *)backend, "route: not on this device");
}
