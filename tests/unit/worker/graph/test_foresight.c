/* A guess is the residual and what was lately added behind it, apart for each layer and place. */
#include "tests/unit/cmocka_all.h"

#include <math.h>
#include <stdlib.h>

#include "worker/graph/foresight.h"

enum { N_LAYER = 3, N_EMBD = 8, N_ROW = 2, IL = 1 };

struct fixture {
    struct backend *backend;
    struct foresight *foresight;
    float *x, *guess; /* [N_ROW][N_EMBD] */
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    const struct backend_cpu_config config = {.n_thread = 1, .kernels = "auto"};
    assert_int_equal(backend_cpu_create(&f->backend, &config, NULL), LM_OK);
    assert_int_equal(foresight_create(&f->foresight, N_LAYER, N_EMBD, NULL), LM_OK);
    f->x = f->backend->ops->alloc(f->backend, N_ROW * N_EMBD * sizeof(float), NULL);
    f->guess = f->backend->ops->alloc(f->backend, N_ROW * N_EMBD * sizeof(float), NULL);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    f->backend->ops->free(f->backend, f->guess);
    f->backend->ops->free(f->backend, f->x);
    foresight_destroy(f->foresight);
    f->backend->ops->destroy(f->backend);
    free(f);
    return 0;
}

/* Every value of a row is that of the row. */
static void fill(const struct fixture *f, float first, float second)
{
    for (int i = 0; i < N_EMBD; i++) {
        f->x[i] = first;
        f->x[N_EMBD + i] = second;
    }
}

static float guess(const struct fixture *f, uint32_t il, enum prediction_point point)
{
    foresight_guess(f->foresight, f->backend, il, point, f->x, N_ROW, f->guess);
    return f->guess[N_EMBD];
}

static void learn(const struct fixture *f, uint32_t il, float first, float second, uint32_t n_row)
{
    fill(f, first, second);
    foresight_learn(f->foresight, f->backend, il, f->x, n_row);
}

/* One token in which the rows' residual of 1 and 2 grows by `added` on average. */
static void step(const struct fixture *f, float added)
{
    fill(f, 1, 2);
    guess(f, IL, PREDICT_LATE);
    learn(f, IL, 1 + added / 2, 2 + added * 3 / 2, N_ROW);
    fill(f, 1, 2);
}

static void test_adds_what_was_added(void **state)
{
    const struct fixture *f = *state;
    fill(f, 1, 2);
    assert_float_equal(guess(f, IL, PREDICT_LATE), 2, 0);
    step(f, 10);
    assert_float_equal(guess(f, IL, PREDICT_LATE), 12, 1e-5);
    assert_float_equal(guess(f, IL, PREDICT_EARLY), 2, 0);
    assert_float_equal(guess(f, IL - 1, PREDICT_LATE), 2, 0);
}

static void test_follows_what_changes(void **state)
{
    const struct fixture *f = *state;
    step(f, 10);
    step(f, -10);
    const float after_one = guess(f, IL, PREDICT_LATE);
    assert_true(after_one > 2 && after_one < 12);
    for (int i = 0; i < 50; i++)
        step(f, -10);
    assert_float_equal(guess(f, IL, PREDICT_LATE), -8, 1e-2);
}

/* Nothing is learned without a guess for the layer, of other rows, or from a step that failed. */
static void test_learns_from_its_guesses_only(void **state)
{
    const struct fixture *f = *state;
    step(f, 10);
    learn(f, IL, 500, 500, N_ROW);
    fill(f, 1, 2);
    guess(f, IL, PREDICT_LATE);
    learn(f, IL, 500, 500, 1);
    fill(f, 1, 2);
    guess(f, IL, PREDICT_LATE);
    learn(f, IL, NAN, 500, N_ROW);
    fill(f, 1, 2);
    assert_float_equal(guess(f, IL, PREDICT_LATE), 12, 1e-5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_adds_what_was_added, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_follows_what_changes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_learns_from_its_guesses_only, set_up, tear_down)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
