/* Frames and edges between ranks that are threads of one process. */
#include "tests/unit/cmocka_all.h"
#include "tests/unit/proto/transport/world_exercise.h"

static void *run_rank(void *context)
{
    struct exercise *exercise = context;
    exercise_run(exercise);
    exercise->world->ops->close(exercise->world);
    return NULL;
}

static void test_all_arrives_in_order(void **state)
{
    (void)state;
    for (uint32_t n_rank = 1; n_rank <= 4; n_rank++) {
        struct lm_error err;
        struct world *world[4];
        struct exercise exercise[4];
        pthread_t thread[4];
        assert_int_equal(world_loopback_create(world, n_rank, &err), LM_OK);
        for (uint32_t i = 0; i < n_rank; i++) {
            exercise[i] = (struct exercise){world[i], 200, 200, n_rank};
            assert_int_equal(pthread_create(&thread[i], NULL, run_rank, &exercise[i]), 0);
        }
        for (uint32_t i = 0; i < n_rank; i++)
            pthread_join(thread[i], NULL);
    }
}

static void test_recv_waits_as_long_as_it_says(void **state)
{
    (void)state;
    struct lm_error err;
    struct world *world[2];
    struct frame *frame;
    assert_int_equal(world_loopback_create(world, 2, &err), LM_OK);
    assert_int_equal(world[0]->ops->recv(world[0], 0, &frame, &err), LM_E_BUSY);
    assert_int_equal(world[0]->ops->recv(world[0], 0.02, &frame, &err), LM_E_BUSY);
    assert_int_equal(world[1]->ops->send(world[1], 0, 7, "abc", 3, &err), LM_OK);
    assert_int_equal(world[0]->ops->recv(world[0], 0, &frame, &err), LM_OK);
    assert_int_equal(frame->from, 1);
    assert_int_equal(frame->type, 7);
    assert_memory_equal(frame->payload, "abc", 3);
    free(frame);
    for (int i = 0; i < 2; i++)
        world[i]->ops->close(world[i]);
}

struct waiting {
    struct world *world;
    struct transport_edge *edge;
    struct lm_error frame_err, edge_err;
};

static void *wait_for_frame(void *context)
{
    struct waiting *waiting = context;
    struct frame *frame;
    CHECK(waiting->world->ops->recv(waiting->world, -1, &frame, &waiting->frame_err) ==
              LM_E_RANK_LOST,
          "a frame");
    return NULL;
}

static void *wait_for_edge(void *context)
{
    struct waiting *waiting = context;
    struct transport_edge *edge = waiting->edge;
    char bytes[4];
    enum lm_status status = edge->ops->recv_begin(edge, bytes, 4, &waiting->edge_err);
    if (status == LM_OK) status = edge->ops->recv_end(edge, &waiting->edge_err);
    CHECK(status == LM_E_RANK_LOST, "a message");
    return NULL;
}

/* Whoever waits is told at once, and all that comes later fails alike. */
static void test_abort_reaches_every_rank(void **state)
{
    (void)state;
    struct lm_error err, why = {.message = "out of luck"};
    struct world *world[3];
    assert_int_equal(world_loopback_create(world, 3, &err), LM_OK);
    struct waiting waiting = {.world = world[1]};
    assert_int_equal(world[1]->ops->edge_open(world[1], false, &waiting.edge, &err), LM_OK);
    pthread_t frame_thread, edge_thread;
    assert_int_equal(pthread_create(&frame_thread, NULL, wait_for_frame, &waiting), 0);
    assert_int_equal(pthread_create(&edge_thread, NULL, wait_for_edge, &waiting), 0);
    world[2]->ops->abort(world[2], &why);
    pthread_join(frame_thread, NULL);
    pthread_join(edge_thread, NULL);
    assert_non_null(strstr(waiting.frame_err.message, "rank 2"));
    assert_non_null(strstr(waiting.frame_err.message, "out of luck"));
    assert_string_equal(waiting.frame_err.message, waiting.edge_err.message);
    assert_int_equal(world[0]->ops->send(world[0], 1, 0, NULL, 0, &err), LM_E_RANK_LOST);
    waiting.edge->ops->close(waiting.edge);
    for (int i = 0; i < 3; i++)
        world[i]->ops->close(world[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_arrives_in_order),
        cmocka_unit_test(test_recv_waits_as_long_as_it_says),
        cmocka_unit_test(test_abort_reaches_every_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
