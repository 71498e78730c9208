/* A piece from the host, which then doubles. */
#include "worker/state/zero_memory.h"

void zero_memory(struct backend *backend, void *memory, size_t n_bytes)
{
    static const char zeros[1 << 16];
    const size_t first = n_bytes < sizeof(zeros) ? n_bytes : sizeof(zeros);
    if (first) backend->ops->upload(backend, memory, zeros, first);
    for (size_t n = first, more; n < n_bytes; n += more) {
        more = n_bytes - n < n ? n_bytes - n : n;
        backend->ops->copy(backend, (char *)memory + n, memory, more);
    }
}
