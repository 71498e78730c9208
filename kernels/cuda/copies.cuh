/* Copies beside the operations: two streams that copy from the host's memory, and one that copies
 * back, while a fourth computes.
 *
 *   operations   ---[A]--mark 1--[B]--------------await--[C]--->
 *   demand                  `----[fetch after 1]----'
 *   ahead                             ...behind that:[fetch]--->
 *   back       [write back][write back]--->
 *
 * A mark is an event on the stream of operations, which copies wait for; a ticket is an event
 * behind a copy, which operations wait for. Events are made once and used in turn: who waits for an
 * event that has been used again waits for a later point of the same stream, which is late, never
 * wrong; and since only what has been put on a stream is waited for, no circle of waits can arise.
 *
 * Priorities of streams mean nothing to copy engines, so what is fetched ahead is held back here:
 * a copy ahead is put behind the demanded ones so far, and few bytes of them are given to the
 * device at a time, so that a later demand is not kept waiting. The same holds of what is written
 * back, in pieces: the choices of a router go to the host by the same engine, and are waited for.
 * `pump` gives it more; every call of the backend that may do so pumps.
 *
 * Functions return the error of the call that failed; what they were to do is then left undone.
 * Threads: those of the backend. */
#ifndef LEAN_KERNELS_CUDA_COPIES_CUH
#define LEAN_KERNELS_CUDA_COPIES_CUH

#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "kernels/backend.h"
#include "kernels/backend_cuda.h"
}
#include "kernels/cuda/device.cuh"

struct copies;

/* NULL: no memory. counters: told of copies and of pinned memory. */
struct copies *copies_create(struct backend_cuda_counters *counters);
cudaError_t copies_open(struct copies *copies); /* takes streams and events */
void copies_destroy(struct copies *copies);     /* NULL is legal; drops what is held, unpins */

/* Page-locks memory for the copies, and for kernels to read by the same address. */
cudaError_t copies_pin(struct copies *copies, void *memory, size_t n_bytes);
cudaError_t copies_unpin(struct copies *copies, void *memory);

/* A point behind what is on the stream. */
cudaError_t copies_mark(struct copies *copies, cudaStream_t operations, uint64_t *mark);
/* No copy that is put from here on is begun before what is on the stream is done. */
cudaError_t copies_hold_back(struct copies *copies, cudaStream_t operations);
/* Memory that is not pinned is read through pinned pieces: the call may wait for earlier ones. */
cudaError_t copies_put(struct copies *copies, void *to, const void *from_host, size_t n_bytes,
                       uint64_t after, enum copy_lane lane, uint64_t *ticket);
/* to_host is pinned. */
cudaError_t copies_put_back(struct copies *copies, void *to_host, const void *from, size_t n_bytes,
                            uint64_t *ticket);
cudaError_t copies_pump(struct copies *copies);
/* What is known of a copy, without asking the device. */
bool copies_known_done(const struct copies *copies, uint64_t ticket);
/* cudaErrorNotReady: not yet. */
cudaError_t copies_query(struct copies *copies, uint64_t ticket);
/* What is put on the stream from here on waits for the copy. */
cudaError_t copies_await(struct copies *copies, uint64_t ticket, cudaStream_t operations);
/* Returns when all copies are done. */
cudaError_t copies_wait(struct copies *copies);

#endif
