/* Memory of a backend filled with zeros. */
#ifndef LEAN_WORKER_STATE_ZERO_MEMORY_H
#define LEAN_WORKER_STATE_ZERO_MEMORY_H

#include "kernels/backend.h"

/* Put off like an operation. */
void zero_memory(struct backend *backend, void *memory, size_t n_bytes);

#endif
