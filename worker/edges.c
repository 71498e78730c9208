/* Transfers begun ahead, and ended when their buffer is needed. */
#include "worker/edges.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "proto/base/log.h"
#include "proto/transport/transport.h"

enum { N_BUFFER = 3, AHEAD_MAX = 2, N_IN = 2 };
static_assert((int)EDGES_BUFFER_MAX < (int)TRANSPORT_DEPTH, "all of them may be under way");

/* Behind x in every message; then the usage of each sequence, struct expert_usage. */
struct trailer {
    uint64_t step;
    uint32_t status; /* enum lm_status: of the stages before */
    uint32_t n_token;
    char message[496];
};

/* A message that is being received. */
struct expected {
    size_t n_row_byte, n_tail_byte;
};

struct edges {
    struct edges_config config;
    uint32_t n_x;
    float *x[EDGES_BUFFER_MAX],
        *own[EDGES_BUFFER_MAX]; /* own: made here. Who computes may change buffers. */
    struct expected expected[EDGES_BUFFER_MAX];
    uint64_t n_step, n_expected, n_sent; /* steps ended, receives begun, sends ended */
    uint64_t n_taken;                    /* receives ended */
    /* between devices; counts are of the steps that did not fail */
    struct backend *device;
    struct transport_edge *link_in, *link_out; /* or NULL */
    float *in[N_IN];                           /* of link_in, in turn: come, and to come */
    float *out[EDGES_BUFFER_MAX];              /* of link_out: [n_x - 1] being sent */
    uint64_t n_in_begun, n_in_ended, n_out_begun, n_out_ended;
    struct edges_stats stats;
    struct {
        struct trailer trailer;
        struct expert_usage usage[]; /* [n_slot] */
    } * tail;                        /* of one message, on the host */
};

static size_t tail_bytes(uint32_t n_seq)
{
    return sizeof(struct trailer) + n_seq * sizeof(struct expert_usage);
}

size_t edges_trailer_bytes(uint32_t n_slot)
{
    return tail_bytes(n_slot);
}

static size_t row_bytes(const struct edges *edges, uint32_t n_token)
{
    return (size_t)n_token * edges->config.n_embd * sizeof(float);
}

enum lm_status edges_create(struct edges **out, const struct edges_config *config, float *x,
                            struct lm_error *err)
{
    struct edges *edges = calloc(1, sizeof(*edges));
    if (!edges) return lm_fail(err, LM_E_NO_MEM, "edges: no memory");
    edges->config = *config;
    edges->n_x = config->n_buffer ? config->n_buffer : N_BUFFER;
    assert(edges->n_x >= 2 && edges->n_x <= EDGES_BUFFER_MAX);
    const size_t n_tail = tail_bytes(config->n_slot);
    edges->tail = calloc(1, n_tail);
    enum lm_status status = LM_OK;
    if (!edges->tail) status = lm_fail(err, LM_E_NO_MEM, "edges: no memory");
    edges->x[0] = x;
    for (uint32_t i = x ? 1 : 0; i < edges->n_x && status == LM_OK; i++) {
        edges->own[i] = config->backend->ops->alloc(
            config->backend, row_bytes(edges, config->n_batch) + n_tail, err);
        if (!edges->own[i]) status = LM_E_NO_MEM;
        edges->x[i] = edges->own[i];
    }
    if (status != LM_OK) {
        edges_destroy(edges);
        return status;
    }
    *out = edges;
    return LM_OK;
}

void edges_destroy(struct edges *edges)
{
    if (!edges) return;
    if (edges->link_in) edges->link_in->ops->close(edges->link_in);
    if (edges->link_out) edges->link_out->ops->close(edges->link_out);
    for (uint32_t i = 0; i < N_IN; i++)
        if (edges->in[i]) edges->device->ops->free(edges->device, edges->in[i]);
    for (uint32_t i = 0; i < EDGES_BUFFER_MAX; i++)
        if (edges->out[i]) edges->device->ops->free(edges->device, edges->out[i]);
    for (uint32_t i = 0; i < edges->n_x; i++)
        if (edges->own[i]) edges->config.backend->ops->free(edges->config.backend, edges->own[i]);
    free(edges->tail);
    free(edges);
}

static enum lm_status make_buffers(struct edges *edges, float **buffer, uint32_t n,
                                   struct lm_error *err)
{
    for (uint32_t i = 0; i < n; i++) {
        buffer[i] =
            edges->device->ops->alloc(edges->device, row_bytes(edges, edges->config.n_batch), err);
        if (!buffer[i]) return LM_E_NO_MEM;
    }
    return LM_OK;
}

/* Neither end's transfers are from or into x, so that it is computed on beside them. */
enum lm_status edges_link(struct edges *edges, struct backend *device, struct transport_edge *in,
                          struct transport_edge *out, struct lm_error *err)
{
    assert(edges->n_step == 0 && !edges->link_in && !edges->link_out);
    edges->device = device;
    edges->link_in = in;
    edges->link_out = out;
    enum lm_status status = in ? make_buffers(edges, edges->in, N_IN, err) : LM_OK;
    if (status == LM_OK && out) status = make_buffers(edges, edges->out, edges->n_x - 1, err);
    /* What makes them zero is an operation, which a receive does not wait for. */
    return status == LM_OK ? device->ops->sync(device, err) : status;
}

bool edges_link_in(const struct edges *edges)
{
    return edges && edges->link_in;
}

bool edges_link_out(const struct edges *edges)
{
    return edges && edges->link_out;
}

static enum lm_status lost(enum lm_status status, struct lm_error *err)
{
    if (status == LM_OK) return LM_OK;
    if (err) err->status = LM_E_RANK_LOST;
    return LM_E_RANK_LOST;
}

/* Waits until the buffer of a step is no longer being sent. */
static enum lm_status free_buffer(struct edges *edges, uint64_t step, struct lm_error *err)
{
    struct transport_edge *out = edges->config.out;
    while (out && edges->n_sent + edges->n_x <= step) {
        const double begin_s = log_now_s();
        const enum lm_status status = out->ops->send_end(out, err);
        edges->stats.send_wait_s += log_now_s() - begin_s;
        if (status != LM_OK) return lost(status, err);
        edges->n_sent++;
    }
    return LM_OK;
}

/* Waits until what the next step sends from is no longer being sent: before it computes, so that a
 * stage whose next one takes long is not taken for one that computes and stands still. */
static enum lm_status free_out(struct edges *edges, struct lm_error *err)
{
    struct transport_edge *const out = edges->link_out;
    const double begin_s = log_now_s();
    while (edges->n_out_begun - edges->n_out_ended >= edges->n_x - 1) {
        edges->n_out_ended++;
        const enum lm_status status = out->ops->send_end(out, err);
        if (status != LM_OK) return lost(status, err);
    }
    edges->stats.send_wait_s += log_now_s() - begin_s;
    return LM_OK;
}

enum lm_status edges_expect(struct edges *edges, uint32_t n_token, uint32_t n_seq,
                            struct lm_error *err)
{
    struct transport_edge *in = edges->config.in;
    const uint64_t step = edges->n_expected;
    const size_t n_row = row_bytes(edges, n_token), n_tail = tail_bytes(n_seq);
    const size_t at = edges->link_in ? n_row : 0; /* only what is behind x */
    assert(in && step < edges->n_step + AHEAD_MAX);
    const enum lm_status status = free_buffer(edges, step, err);
    if (status != LM_OK) return status;
    edges->n_expected++;
    edges->expected[step % edges->n_x] = (struct expected){n_row, n_tail};
    char *const buffer = (char *)edges->x[step % edges->n_x];
    return lost(in->ops->recv_begin(in, buffer + at, n_row + n_tail - at, err), err);
}

/* Ends the oldest receive. Where it says that x has been sent to the device, receives that, too,
 * into what the step two before has copied from. */
static enum lm_status take_message(struct edges *edges, struct lm_error *err)
{
    struct backend *const backend = edges->config.backend;
    struct transport_edge *const in = edges->config.in, *const link = edges->link_in;
    const size_t i = edges->n_taken % edges->n_x;
    const size_t n_row = edges->expected[i].n_row_byte;
    const enum lm_status status = lost(in->ops->recv_end(in, err), err);
    struct trailer trailer;
    if (status != LM_OK) return status;
    edges->n_taken++;
    if (!link) return LM_OK;
    backend->ops->download(backend, &trailer, (char *)edges->x[i] + n_row, sizeof(trailer));
    if (trailer.status != LM_OK) return LM_OK;
    float *const to = edges->in[edges->n_in_begun++ % N_IN];
    return lost(link->ops->recv_begin(link, to, n_row, err), err);
}

enum lm_status edges_take_ahead(struct edges *edges, struct lm_error *err)
{
    struct transport_edge *const in = edges->config.in;
    const uint64_t next = edges->n_step + 1;
    if (!edges->link_in || edges->n_taken != next || edges->n_expected == next) return LM_OK;
    if (!in->ops->recv_ready(in)) return LM_OK;
    return take_message(edges, err);
}

/* x on the device, for operations called from here on. */
static enum lm_status end_link(struct edges *edges, float *device_x, size_t n_bytes,
                               struct lm_error *err)
{
    struct transport_edge *const link = edges->link_in;
    if (!link) return LM_OK;
    const enum lm_status status = lost(link->ops->recv_end(link, err), err);
    if (status != LM_OK) return status;
    edges->stats.received_device_bytes += n_bytes;
    const float *const from = edges->in[edges->n_in_ended++ % N_IN];
    edges->device->ops->copy(edges->device, device_x, from, n_bytes);
    return LM_OK;
}

enum lm_status edges_receive(struct edges *edges, const struct step_plan *plan, uint32_t n_token,
                             float *device_x, float **x, struct lm_error *failed,
                             struct lm_error *err)
{
    struct backend *backend = edges->config.backend;
    struct transport_edge *in = edges->config.in;
    const struct trailer *trailer = &edges->tail->trailer;
    const size_t i = edges->n_step % edges->n_x, n_row = row_bytes(edges, n_token);
    const size_t n_tail = tail_bytes(plan->n_seq);
    enum lm_status status = LM_OK;
    *x = edges->x[i];
    failed->status = LM_OK;
    if (edges->link_out) status = free_out(edges, err);
    if (status != LM_OK) return status;
    if (!in) return free_buffer(edges, edges->n_step, err);
    if (edges->n_expected == edges->n_step) status = edges_expect(edges, n_token, plan->n_seq, err);
    const double begin_s = log_now_s();
    if (status == LM_OK && edges->n_taken == edges->n_step) status = take_message(edges, err);
    edges->stats.receive_wait_s += log_now_s() - begin_s;
    edges->stats.received_bytes += n_row + n_tail;
    if (status != LM_OK) return status;
    assert(edges->expected[i].n_row_byte == n_row && edges->expected[i].n_tail_byte == n_tail);
    backend->ops->download(backend, edges->tail, (char *)*x + n_row, n_tail);
    if (trailer->step != edges->n_step || trailer->n_token != n_token ||
        trailer->status >= LM_STATUS_COUNT)
        return lm_fail(err, LM_E_RANK_LOST,
                       "step %llu of %u tokens came from the stage before, not %llu of %u",
                       (unsigned long long)trailer->step, trailer->n_token,
                       (unsigned long long)edges->n_step, n_token);
    if (trailer->status != LM_OK)
        lm_fail(failed, (enum lm_status)trailer->status, "%.*s", (int)sizeof(trailer->message),
                trailer->message);
    for (uint32_t j = 0; j < plan->n_seq; j++)
        if (plan->seq[j].experts) expert_usage_add(plan->seq[j].experts, &edges->tail->usage[j]);
    if (failed->status == LM_OK) status = end_link(edges, device_x, n_row, err);
    return status == LM_OK ? edges_take_ahead(edges, err) : status;
}

/* Before the message that tells of it. */
static enum lm_status send_link(struct edges *edges, const float *x, size_t n_bytes,
                                struct lm_error *err)
{
    struct transport_edge *const out = edges->link_out;
    struct backend *const device = edges->device;
    float *const copy = edges->out[edges->n_out_begun++ % (edges->n_x - 1)];
    device->ops->copy(device, copy, x, n_bytes);
    /* behind it nothing could stop the message any more */
    const enum lm_status status = lost(device->ops->sync(device, err), err);
    if (status != LM_OK) return status;
    edges->stats.sent_device_bytes += n_bytes;
    return lost(out->ops->send_begin(out, copy, n_bytes, err), err);
}

enum lm_status edges_send(struct edges *edges, const struct step_plan *plan, uint32_t n_token,
                          float *x, float *device_x, const struct lm_error *failed,
                          struct lm_error *err)
{
    struct backend *backend = edges->config.backend;
    struct transport_edge *out = edges->config.out;
    struct trailer *trailer = &edges->tail->trailer;
    const size_t n_row = row_bytes(edges, n_token), n_tail = tail_bytes(plan->n_seq);
    const uint64_t step = edges->n_step++;
    edges->x[step % edges->n_x] = x;
    /* A step that failed may have left operations that nobody has waited for. */
    if (failed->status != LM_OK && edges->link_in) edges->device->ops->sync(edges->device, NULL);
    if (!out) return LM_OK;
    *trailer =
        (struct trailer){.step = step, .n_token = n_token, .status = (uint32_t)failed->status};
    if (failed->status != LM_OK)
        snprintf(trailer->message, sizeof(trailer->message), "%.*s",
                 (int)sizeof(trailer->message) - 1, failed->message);
    for (uint32_t j = 0; j < plan->n_seq; j++)
        edges->tail->usage[j] =
            plan->seq[j].experts ? *plan->seq[j].experts : (struct expert_usage){0};
    backend->ops->upload(backend, (char *)x + n_row, edges->tail, n_tail);
    if (edges->link_out && failed->status == LM_OK) {
        const enum lm_status status = send_link(edges, device_x, n_row, err);
        if (status != LM_OK) return status;
    }
    const size_t at = edges->link_out ? n_row : 0;
    edges->stats.sent_bytes += n_row + n_tail;
    return lost(out->ops->send_begin(out, (char *)x + at, n_row + n_tail - at, err), err);
}

struct edges_stats edges_stats(const struct edges *edges)
{
    return edges ? edges->stats : (struct edges_stats){.sent_bytes = 0};
}
