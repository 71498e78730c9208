/* The edges of a stage: the buffers of x that take turns, and what a message ends with.
 *
 *   message   x, rows of F32 | how the step went so far | what each sequence took of experts
 *
 * Between two devices x goes past the host, on an edge of its own; the message is what is left, and
 * says that x has been sent. A stage that failed sends none.
 *
 * It comes into one of two buffers in turn, from where it is copied when its step begins: what the
 * next step computes on arrives while this one computes, as soon as the message is there.
 * Operations of a step are done when the next one receives. What goes is copied likewise, and
 * computing goes on while the next stage is busy.
 *
 * A stage that fails passes that on instead of a result, so that all stages take the same steps.
 * Step i uses buffer i % n_buffer: one is being received, one computed, the others sent.
 *
 * Errors: LM_E_RANK_LOST, whatever a transfer failed of: it is the end of the job.
 * Threads: the step thread. */
#ifndef LEAN_WORKER_EDGES_H
#define LEAN_WORKER_EDGES_H

#include "kernels/backend.h"
#include "proto/step.h"

struct edges;
struct transport_edge;

struct edges_config {
    struct backend *backend;         /* whose memory the host reads */
    struct transport_edge *in, *out; /* NULL on the first, on the last stage; not both */
    uint32_t n_embd, n_batch, n_slot;
    uint32_t n_buffer; /* 2 .. EDGES_BUFFER_MAX; 0: 3 */
};
enum { EDGES_BUFFER_MAX = 7 };

/* Since the start: what was passed on, and how long was waited for it. */
struct edges_stats {
    uint64_t sent_bytes, received_bytes;
    uint64_t sent_device_bytes, received_device_bytes; /* of these, from device to device */
    double send_wait_s, receive_wait_s;
};

/* Bytes behind x that a buffer has room for. */
size_t edges_trailer_bytes(uint32_t n_slot);
/* x: a buffer of n_batch rows and edges_trailer_bytes, borrowed, or NULL; the others are made here.
 */
enum lm_status edges_create(struct edges **out, const struct edges_config *config, float *x,
                            struct lm_error *err);
void edges_destroy(struct edges *edges); /* NULL is legal */

/* From here on x comes in, or goes out, on an edge between devices; NULL: as before. Before the
 * first step. device: the backend at this end of both. The edges are taken over. */
enum lm_status edges_link(struct edges *edges, struct backend *device, struct transport_edge *in,
                          struct transport_edge *out, struct lm_error *err);
/* Whether x is on the device where it comes in, or goes out. */
bool edges_link_in(const struct edges *edges);
bool edges_link_out(const struct edges *edges);

/* Begins to receive the input of the next step, or the one behind if that was done. Not on the
 * first stage. */
enum lm_status edges_expect(struct edges *edges, uint32_t n_token, uint32_t n_seq,
                            struct lm_error *err);
/* The buffer of the next step, on all stages but the first with its input; waits until a link out
 * has room for its result. With a link in, that is where device_x is, for operations called from
 * here on. failed: how the step went before; the experts of plan's sequences are added to. */
enum lm_status edges_receive(struct edges *edges, const struct step_plan *plan, uint32_t n_token,
                             float *device_x, float **x, struct lm_error *failed,
                             struct lm_error *err);
/* Between receive and send: where the input of the next step has been sent to the device, begins to
 * receive it beside the operations. That is what receive does, too; here it may have come since. */
enum lm_status edges_take_ahead(struct edges *edges, struct lm_error *err);
/* Ends the step: begins to send its result, if this is not the last stage. x: where it is, the
 * buffer from now on. device_x: where it is with a link out, free again for operations called from
 * here on. */
enum lm_status edges_send(struct edges *edges, const struct step_plan *plan, uint32_t n_token,
                          float *x, float *device_x, const struct lm_error *failed,
                          struct lm_error *err);

struct edges_stats edges_stats(const struct edges *edges); /* NULL is legal: zeros */

#endif
