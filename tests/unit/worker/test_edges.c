/* Edges between devices: what the next step needs is received beside this one; a stage that
 * computes ahead leaves what is being sent alone, waits for room before it computes and not behind;
 * and what the device could not prepare is never sent. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>

#include "proto/transport/transport.h"
#include "worker/edges.h"

enum { N_EMBD = 32, N_STEP = 9 };

/* A sending end whose other end is slow: what is sent leaves the buffer when the sender waits. */
struct slow_edge {
    struct transport_edge edge;
    const float *buffer[N_STEP]; /* of each message; float of step i are i + 1 */
    float *into[16];             /* likewise receives */
    uint32_t n_begun, n_ended;
    bool carries_x, tells, notes; /* tells: the next stage; notes: in events */
};

static bool computes;                      /* the stage: it may not wait */
static const struct backend *becomes_zero; /* its memory, until that is waited for */
static char events[1000];                  /* of the stage behind the first, in order */
static struct {
    char bytes[2048];
    size_t n_bytes;
} message[16]; /* that the first stage sent */
static uint32_t n_message;

static void note(const char *what, uint32_t step)
{
    const size_t n = strlen(events);
    snprintf(events + n, sizeof(events) - n, "%s%u ", what, step);
}

static enum lm_status send_begin(struct transport_edge *edge, const void *buffer, size_t n_bytes,
                                 struct lm_error *err)
{
    struct slow_edge *const slow = (struct slow_edge *)edge;
    (void)err;
    assert_true(n_bytes > 0 && slow->n_begun - slow->n_ended < TRANSPORT_DEPTH);
    slow->buffer[slow->n_begun++] = buffer;
    if (slow->notes) note("send", slow->n_begun - 1);
    if (slow->carries_x || !slow->tells) return LM_OK;
    assert_true(n_bytes <= sizeof(message[0].bytes));
    memcpy(message[n_message].bytes, buffer, n_bytes);
    message[n_message++].n_bytes = n_bytes;
    return LM_OK;
}

static enum lm_status send_end(struct transport_edge *edge, struct lm_error *err)
{
    struct slow_edge *const slow = (struct slow_edge *)edge;
    (void)err;
    assert_true(slow->n_ended < slow->n_begun && !computes);
    const uint32_t step = slow->n_ended++;
    for (int i = 0; i < N_EMBD && slow->carries_x; i++)
        assert_float_equal(slow->buffer[step][i], (float)(step + 1), 0);
    return LM_OK;
}

/* x is there when the operations are told to wait for it, and no earlier. */
static enum lm_status recv_begin(struct transport_edge *edge, void *buffer, size_t n_bytes,
                                 struct lm_error *err)
{
    struct slow_edge *const slow = (struct slow_edge *)edge;
    (void)err;
    assert_true(n_bytes <= sizeof(message[0].bytes));
    memset(buffer, 0xff, n_bytes);
    slow->into[slow->n_begun++] = buffer;
    if (!slow->carries_x) return LM_OK;
    assert_true(slow->n_begun <= n_message && !becomes_zero); /* it has been sent */
    note("recv", slow->n_begun - 1);
    return LM_OK;
}

static bool recv_ready(struct transport_edge *edge)
{
    const struct slow_edge *const slow = (const struct slow_edge *)edge;
    return slow->n_ended < n_message;
}

static enum lm_status recv_end(struct transport_edge *edge, struct lm_error *err)
{
    struct slow_edge *const slow = (struct slow_edge *)edge;
    (void)err;
    assert_true(slow->n_ended < slow->n_begun && recv_ready(edge));
    const uint32_t step = slow->n_ended++;
    for (int i = 0; i < N_EMBD && slow->carries_x; i++)
        slow->into[step][i] = (float)(step + 1);
    if (!slow->carries_x) memcpy(slow->into[step], message[step].bytes, message[step].n_bytes);
    return LM_OK;
}

static void close_edge(struct transport_edge *edge)
{
    (void)edge;
}

static const struct transport_ops slow_ops = {.name = "slow",
                                              .send_begin = send_begin,
                                              .send_end = send_end,
                                              .recv_begin = recv_begin,
                                              .recv_end = recv_end,
                                              .recv_ready = recv_ready,
                                              .close = close_edge};

static bool device_fails;

static void *(*alloc_memory)(struct backend *backend, size_t n_bytes, struct lm_error *err);

static void *alloc_on_device(struct backend *backend, size_t n_bytes, struct lm_error *err)
{
    becomes_zero = backend;
    return alloc_memory(backend, n_bytes, err);
}

static enum lm_status sync_device(struct backend *backend, struct lm_error *err)
{
    if (becomes_zero == backend) becomes_zero = NULL;
    return device_fails ? lm_fail(err, LM_E_FAIL, "out of order") : LM_OK;
}

/* A stage but the last, its x on a device. */
struct stage {
    struct backend *backend, *device;
    struct backend_ops device_ops;
    struct slow_edge out, link, in, link_in;
    struct edges *edges;
    float *x;
    bool is_first;
    uint32_t n_step;
};

static void open_stage(struct stage *stage, bool is_first)
{
    const struct backend_cpu_config cpu = {.n_thread = 1, .kernels = "auto"};
    struct lm_error err;
    memset(stage, 0, sizeof(*stage));
    stage->is_first = is_first;
    device_fails = false;
    n_message = 0;
    assert_int_equal(backend_cpu_create(&stage->backend, &cpu, &err), LM_OK);
    assert_int_equal(backend_cpu_create(&stage->device, &cpu, &err), LM_OK);
    stage->device_ops = *stage->device->ops;
    stage->device_ops.sync = sync_device;
    alloc_memory = stage->device_ops.alloc;
    stage->device_ops.alloc = alloc_on_device;
    stage->device->ops = &stage->device_ops;
    stage->out = (struct slow_edge){.edge.ops = &slow_ops, .tells = is_first};
    stage->link = (struct slow_edge){.edge.ops = &slow_ops, .carries_x = true, .notes = !is_first};
    stage->in = (struct slow_edge){.edge.ops = &slow_ops};
    stage->link_in = (struct slow_edge){.edge.ops = &slow_ops, .carries_x = true};
    const struct edges_config config = {.backend = stage->backend,
                                        .in = is_first ? NULL : &stage->in.edge,
                                        .out = &stage->out.edge,
                                        .n_embd = N_EMBD,
                                        .n_batch = 1};
    assert_int_equal(edges_create(&stage->edges, &config, NULL, &err), LM_OK);
    stage->x = stage->device->ops->alloc(stage->device, N_EMBD * sizeof(float), &err);
    assert_non_null(stage->x);
    assert_int_equal(edges_link(stage->edges, stage->device, is_first ? NULL : &stage->link_in.edge,
                                &stage->link.edge, &err),
                     LM_OK);
}

static void close_stage(struct stage *stage)
{
    edges_destroy(stage->edges);
    stage->device->ops->free(stage->device, stage->x);
    stage->device->ops->destroy(stage->device);
    stage->backend->ops->destroy(stage->backend);
}

/* late: stage before this one, which runs its next step while this one computes; or NULL. */
static enum lm_status run_step(struct stage *stage, struct stage *late, struct lm_error *err)
{
    const struct step_plan plan = {.n_seq = 0};
    struct lm_error failed;
    float *x;
    const uint32_t step = stage->n_step++;
    enum lm_status status = edges_receive(stage->edges, &plan, 1, stage->x, &x, &failed, err);
    if (status != LM_OK) return status;
    if (late) status = run_step(late, NULL, err);
    if (status == LM_OK) status = edges_take_ahead(stage->edges, err);
    if (status != LM_OK) return status;
    if (!stage->is_first) note("compute", step);
    for (int i = 0; i < N_EMBD; i++) {
        if (!stage->is_first) assert_float_equal(stage->x[i], (float)(step + 1), 0);
        stage->x[i] = (float)(step + 1);
    }
    computes = true;
    status = edges_send(stage->edges, &plan, 1, x, stage->x, &failed, err);
    computes = false;
    return status;
}

static void test_what_is_being_sent_stays(void **state)
{
    (void)state;
    struct stage stage;
    struct lm_error err;
    open_stage(&stage, true);
    for (int i = 0; i < N_STEP; i++)
        assert_int_equal(run_step(&stage, NULL, &err), LM_OK);
    assert_int_equal(stage.link.n_begun, N_STEP);
    assert_int_equal(stage.link.n_ended, N_STEP - 2); /* as many go on as there are buffers */
    while (stage.link.n_ended < N_STEP)
        send_end(&stage.link.edge, &err);
    close_stage(&stage);
}

/* How early the stage before is done with the step behind this one. */
enum lead { BEFORE_THIS, BESIDE_THIS, BEHIND_THIS };

static void run_two(enum lead lead)
{
    struct stage first, stage;
    struct lm_error err;
    open_stage(&first, true);
    open_stage(&stage, false);
    events[0] = '\0';
    assert_int_equal(run_step(&first, NULL, &err), LM_OK);
    for (int i = 0; i < 3; i++) {
        if (i == 0) assert_int_equal(edges_expect(stage.edges, 1, 0, &err), LM_OK);
        if (lead == BEFORE_THIS) assert_int_equal(run_step(&first, NULL, &err), LM_OK);
        assert_int_equal(edges_expect(stage.edges, 1, 0, &err), LM_OK);
        assert_int_equal(run_step(&stage, lead == BESIDE_THIS ? &first : NULL, &err), LM_OK);
        if (lead == BEHIND_THIS) assert_int_equal(run_step(&first, NULL, &err), LM_OK);
    }
    close_stage(&stage);
    close_stage(&first);
}

static void test_the_next_arrives_beside_this(void **state)
{
    (void)state;
    run_two(BEFORE_THIS);
    assert_string_equal(events, "recv0 recv1 compute0 send0 recv2 compute1 send1 "
                                "recv3 compute2 send2 ");
    run_two(BESIDE_THIS);
    assert_string_equal(events, "recv0 recv1 compute0 send0 recv2 compute1 send1 "
                                "recv3 compute2 send2 ");
    run_two(BEHIND_THIS); /* no receive waits for a step that has not been sent */
    assert_string_equal(events, "recv0 compute0 send0 recv1 compute1 send1 recv2 compute2 send2 ");
}

/* Neither x nor the message that would tell of it. */
static void test_a_device_that_fails_sends_nothing(void **state)
{
    (void)state;
    struct stage stage;
    struct lm_error err;
    open_stage(&stage, true);
    assert_int_equal(run_step(&stage, NULL, &err), LM_OK);
    device_fails = true;
    assert_int_equal(run_step(&stage, NULL, &err), LM_E_RANK_LOST);
    assert_int_equal(err.status, LM_E_RANK_LOST);
    assert_string_equal(err.message, "out of order");
    assert_int_equal(stage.link.n_begun, 1);
    assert_int_equal(stage.out.n_begun, 1);
    close_stage(&stage);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_being_sent_stays),
        cmocka_unit_test(test_the_next_arrives_beside_this),
        cmocka_unit_test(test_a_device_that_fails_sends_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
