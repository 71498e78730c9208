/* What is lent are the bytes of the file, whatever has to be read for it, and a read that fails is
 * one error that names the place. */
#include "tests/unit/cmocka_all.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "worker/pager/expert_pager.h"
#include "worker/pager/policy.h"

/* A model whose file is a copy that tests may damage. */
struct fixture {
    char path[64];
    struct gguf_file *file;
    struct hparams hp;
    struct expert_store *store;
    uint8_t *bytes; /* the file as it was */
    size_t n_bytes;
};

static void copy_file(struct fixture *f, const char *name)
{
    char source[1000];
    snprintf(source, sizeof(source), "%s/tests/data/golden/models/%s.gguf",
             getenv("LEAN_SOURCE_DIR"), name);
    FILE *in = fopen(source, "rb");
    assert_non_null(in);
    fseek(in, 0, SEEK_END);
    f->n_bytes = (size_t)ftell(in);
    rewind(in);
    f->bytes = malloc(f->n_bytes);
    assert_int_equal(fread(f->bytes, 1, f->n_bytes, in), f->n_bytes);
    fclose(in);
    strcpy(f->path, "/tmp/lean-test-pager-XXXXXX");
    const int fd = mkstemp(f->path);
    assert_int_equal(write(fd, f->bytes, f->n_bytes), (ssize_t)f->n_bytes);
    close(fd);
}

static int open_model(void **state, const char *name)
{
    struct fixture *f = calloc(1, sizeof(*f));
    copy_file(f, name);
    assert_int_equal(gguf_open(&f->file, f->path, NULL), LM_OK);
    assert_int_equal(hparams_read(&f->hp, f->file, NULL), LM_OK);
    assert_int_equal(expert_store_create(&f->store, f->file, &f->hp, 0, f->hp.n_layer, NULL),
                     LM_OK);
    *state = f;
    return 0;
}

/* Experts of three sizes. */
static int set_up(void **state)
{
    return open_model(state, "qwen35moe-k-q4km");
}

/* 4 layers of 16 experts of one size. */
static int set_up_plain(void **state)
{
    return open_model(state, "qwen3moe-s-q8_0");
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    expert_store_destroy(f->store);
    gguf_close(f->file);
    unlink(f->path);
    free(f->bytes);
    free(f);
    return 0;
}

static struct expert_pager *open_pager_of_depth(const struct fixture *f, uint32_t n_slot,
                                                enum prefetch prefetch, uint32_t depth)
{
    struct expert_pager *pager;
    const struct expert_pager_config config = {.store = f->store,
                                               .layer_end = f->hp.n_layer,
                                               .n_expert = f->hp.n_expert,
                                               .n_expert_used = f->hp.n_expert_used,
                                               .n_slot = n_slot,
                                               .policy = &policy_lfru,
                                               .prefetch = prefetch,
                                               .engine = DISK_ENGINE_AUTO,
                                               .access = DISK_ACCESS_AUTO,
                                               .depth = depth};
    struct lm_error err;
    if (expert_pager_create(&pager, &config, &err) != LM_OK) fail_msg("%s", err.message);
    return pager;
}

static struct expert_pager *open_pager_with(const struct fixture *f, uint32_t n_slot,
                                            enum prefetch prefetch)
{
    return open_pager_of_depth(f, n_slot, prefetch, 0);
}

static struct expert_pager *open_pager(const struct fixture *f, uint32_t n_slot)
{
    return open_pager_with(f, n_slot, PREFETCH_AUTO);
}

/* An expert's matrices lie one after the other in `view`; the file's copy must hold the same. */
static void check_view(const struct fixture *f, uint32_t il, uint32_t ie,
                       const struct expert_view *view)
{
    const struct expert_layer *layer = expert_store_layer(f->store, il);
    struct expert_extent extent[EXPERT_PART_MAX];
    const void *const matrix[EXPERT_MATRIX_COUNT] = {view->gate, view->up, view->down};
    const struct weight *const weight[] = {&layer->gate, &layer->up, &layer->down};
    expert_store_locate(f->store, (struct expert_key){il, ie}, extent);
    for (int i = 0; i < EXPERT_MATRIX_COUNT; i++) {
        const uint64_t at = extent[layer->matrix[i].part].offset + layer->matrix[i].offset;
        assert_memory_equal(matrix[i], f->bytes + at, weight[i]->n_row * weight[i]->row_bytes);
    }
}

/* Visits n experts of a layer from `first` on, and checks what is lent, each once. */
static enum lm_status visit(const struct fixture *f, struct expert_pager *pager, uint32_t il,
                            uint32_t first, uint32_t n, struct lm_error *err)
{
    struct expert_demand demand[64];
    struct expert_group group;
    bool seen[64] = {false};
    uint32_t n_seen = 0;
    enum lm_status status;
    for (uint32_t i = 0; i < n; i++)
        demand[i] = (struct expert_demand){.expert = (first + i) % f->hp.n_expert, .n_row = 1};
    expert_pager_request(pager, il, demand, n);
    while ((status = expert_pager_acquire(pager, &group, err)) == LM_OK && group.n) {
        for (size_t i = 0; i < group.n; i++) {
            assert_false(seen[group.expert[i]]);
            seen[group.expert[i]] = true;
            n_seen++;
            check_view(f, il, group.expert[i], &group.view[i]);
        }
    }
    if (status == LM_OK) assert_int_equal(n_seen, n);
    return status;
}

/* The slots' states, which are counted and not looked up, are those of the slots. */
static void check_slots(const struct fixture *f, const struct expert_pager *pager)
{
    const struct expert_pager_stats stats = expert_pager_stats(pager);
    uint32_t n_resident = 0;
    for (uint32_t il = 0; il < f->hp.n_layer; il++)
        for (uint32_t ie = 0; ie < f->hp.n_expert; ie++)
            n_resident += expert_pager_is_resident(pager, (struct expert_key){il, ie});
    assert_int_equal(stats.n_resident, n_resident);
    if (stats.n_slot)
        assert_int_equal(stats.n_slot, stats.n_resident + stats.n_reading + stats.n_free);
}

static void test_lends_the_bytes_of_the_file(void **state)
{
    struct fixture *f = *state;
    const uint32_t n_all = hparams_n_expert_total(&f->hp);
    for (uint32_t n_slot = 0; n_slot <= n_all; n_slot += n_slot < 8 ? 1 : 5) {
        struct expert_pager *pager = open_pager(f, n_slot);
        uint32_t seed = 1 + n_slot;
        for (int step = 0; step < 60; step++) {
            const bool prefill = step % 7 == 0;
            expert_pager_step(pager, prefill ? 16 : 1, prefill);
            for (uint32_t il = 0; il < f->hp.n_layer; il++) {
                const int32_t guess = (int32_t)((seed >> 8) % f->hp.n_expert);
                seed = seed * 1664525u + 1013904223u;
                if (expert_pager_wants_prediction(pager, il, PREDICT_LATE))
                    expert_pager_predict(pager, il, PREDICT_LATE, &guess, 1);
                const uint32_t n = prefill ? f->hp.n_expert : f->hp.n_expert_used;
                assert_int_equal(visit(f, pager, il, (seed >> 16) % f->hp.n_expert, n, NULL),
                                 LM_OK);
                check_slots(f, pager);
            }
        }
        const struct expert_pager_stats stats = expert_pager_stats(pager);
        assert_int_equal(stats.decode.n_lookup,
                         stats.decode.n_hit + stats.decode.n_joined + stats.decode.n_miss);
        if (!n_slot) assert_int_equal(stats.decode.n_miss + stats.prefill.n_miss, 0);
        if (n_slot && n_slot < n_all) assert_true(stats.decode.n_miss > 0 && stats.n_evicted > 0);
        if (n_slot == n_all) assert_int_equal(stats.n_evicted, 0);
        expert_pager_destroy(pager);
    }
}

/* What is held stays readable where it is, whatever else is read meanwhile. */
static void test_held_experts_stay(void **state)
{
    struct fixture *f = *state;
    struct expert_pager *pager = open_pager(f, 6 * f->hp.n_layer);
    struct expert_view view;
    const struct expert_key key = {0, 1};
    assert_false(expert_pager_hold(pager, key, &view));
    expert_pager_step(pager, 1, false);
    assert_int_equal(visit(f, pager, 0, 0, 2, NULL), LM_OK);
    for (int i = 0; i < 2; i++)
        assert_true(expert_pager_hold(pager, key, &view));
    for (int step = 0; step < 30; step++) {
        expert_pager_step(pager, 16, step % 2);
        for (uint32_t il = 0; il < f->hp.n_layer; il++)
            assert_int_equal(visit(f, pager, il, 2, f->hp.n_expert - 2, NULL), LM_OK);
        check_view(f, 0, 1, &view);
        if (step == 10) expert_pager_unhold(pager, key);
    }
    assert_true(expert_pager_stats(pager).n_evicted > 0);
    expert_pager_unhold(pager, key);
    expert_pager_step(pager, 1, false);
    expert_pager_destroy(pager);
}

static void test_preload_gives_way_and_fills(void **state)
{
    struct fixture *f = *state;
    const uint32_t n_all = hparams_n_expert_total(&f->hp);
    struct expert_pager *pager = open_pager(f, n_all);
    for (uint32_t il = 0; il < f->hp.n_layer; il++)
        for (uint32_t ie = 0; ie < f->hp.n_expert; ie++)
            expert_pager_seed(pager, (struct expert_key){il, ie}, (float)(ie % 5));
    expert_pager_preload(pager);
    for (int step = 0; step < 50 && expert_pager_stats(pager).n_preloaded < n_all / 2; step++) {
        expert_pager_step(pager, 1, false);
        for (uint32_t il = 0; il < f->hp.n_layer; il++)
            assert_int_equal(visit(f, pager, il, (uint32_t)step, f->hp.n_expert_used, NULL), LM_OK);
        check_slots(f, pager);
    }
    const struct expert_pager_stats stats = expert_pager_stats(pager);
    assert_true(stats.n_preloaded > 0);
    assert_int_equal(stats.decode.n_lookup,
                     stats.decode.n_hit + stats.decode.n_joined + stats.decode.n_miss);
    expert_pager_destroy(pager);
}

enum { READ_BEGINS_US = 200 }; /* what has begun is not taken back */

/* One token that uses few experts, with predictions of others. */
static void step_with_wrong_guesses(const struct fixture *f, struct expert_pager *pager,
                                    uint32_t step)
{
    const uint32_t half = f->hp.n_expert / 2;
    expert_pager_step(pager, 1, false);
    for (uint32_t il = 0; il < f->hp.n_layer; il++) {
        const struct expert_demand demand = {.expert = (step + il) % half, .n_row = 1};
        const int32_t guess = (int32_t)(half + step % (f->hp.n_expert - half));
        struct expert_group group;
        expert_pager_request(pager, il, &demand, 1);
        if (expert_pager_wants_prediction(pager, il + 1, PREDICT_EARLY))
            expert_pager_predict(pager, il + 1, PREDICT_EARLY, &guess, 1);
        do
            assert_int_equal(expert_pager_acquire(pager, &group, NULL), LM_OK);
        while (group.n);
        usleep(READ_BEGINS_US);
    }
}

/* Predictions of what is never chosen are given up where that is left to the pager, and only there.
 * How many are read in a step depends on the disk, so it goes on until enough have been. */
static void test_wrong_predictions_end(void **state)
{
    enum { ENOUGH = 300, STEPS_MAX = 20000 };
    const struct fixture *f = *state;
    static const enum prefetch modes[] = {PREFETCH_OFF, PREFETCH_ON, PREFETCH_AUTO};
    for (int i = 0; i < 3; i++) {
        struct expert_pager *pager = open_pager_with(f, 12, modes[i]);
        bool wanted = modes[i] != PREFETCH_OFF;
        uint64_t n_speculated = 0;
        for (uint32_t step = 0; step < STEPS_MAX && wanted && n_speculated < ENOUGH; step++) {
            step_with_wrong_guesses(f, pager, step);
            n_speculated = expert_pager_stats(pager).n_speculated;
            wanted = expert_pager_wants_prediction(pager, 1, PREDICT_EARLY);
        }
        assert_int_equal(expert_pager_stats(pager).n_useful, 0);
        assert_int_equal(expert_pager_wants_prediction(pager, 1, PREDICT_EARLY),
                         modes[i] == PREFETCH_ON);
        const uint64_t n_wasted = expert_pager_stats(pager).n_wasted;
        assert_true(n_wasted <= n_speculated);
        if (modes[i] == PREFETCH_ON) assert_true(n_speculated >= ENOUGH && n_wasted > 0);
        if (modes[i] == PREFETCH_AUTO) assert_in_range(n_speculated, 1, ENOUGH - 1);
        expert_pager_destroy(pager);
    }
}

/* What is named before a layer's mixer runs is there when its router asks. */
static void test_late_predictions_are_in_time(void **state)
{
    const struct fixture *f = *state;
    struct expert_pager *pager = open_pager_with(f, 24, PREFETCH_ON);
    const uint32_t n_used = f->hp.n_expert_used;
    for (uint32_t step = 0; step < 30; step++) {
        expert_pager_step(pager, 1, false);
        for (uint32_t il = 0; il < f->hp.n_layer; il++) {
            int32_t named[64];
            const uint32_t first = (step * 5 + il) % f->hp.n_expert;
            for (uint32_t i = 0; i < n_used; i++)
                named[i] = (int32_t)((first + i) % f->hp.n_expert);
            if (expert_pager_wants_prediction(pager, il, PREDICT_LATE))
                expert_pager_predict(pager, il, PREDICT_LATE, named, n_used);
            usleep(10 * READ_BEGINS_US);
            assert_int_equal(visit(f, pager, il, first, n_used, NULL), LM_OK);
        }
    }
    const struct expert_pager_stats stats = expert_pager_stats(pager);
    const struct expert_pager_prediction *late = &stats.prediction[PREDICT_LATE];
    assert_true(late->n_named > 0 && late->n_read > 0);
    assert_int_equal(late->n_recalled, late->n_chosen);
    assert_int_equal(late->n_recalled, stats.n_recalled);
    assert_int_equal(late->n_used, late->n_read);
    assert_in_range(late->n_in_time, late->n_read / 2, late->n_read); /* all but on a slow disk */
    assert_int_equal(stats.decode.n_in_time, late->n_in_time);
    assert_int_equal(stats.prediction[PREDICT_EARLY].n_named, 0);
    expert_pager_destroy(pager);
}

/* Of experts named the moment before, how many were missing and how many of these were read. */
static void name_and_visit(const struct fixture *f, uint64_t *n_missing, uint64_t *n_read)
{
    enum { N_NAMED = 4, N_STEP = 100 };
    struct expert_pager *pager = open_pager_of_depth(f, 16, PREFETCH_ON, 1);
    *n_missing = 0;
    for (uint32_t step = 0; step < N_STEP; step++) {
        expert_pager_step(pager, 1, false);
        for (uint32_t il = 0; il < f->hp.n_layer; il++) {
            int32_t named[N_NAMED];
            for (uint32_t i = 0; i < N_NAMED; i++) {
                named[i] = (int32_t)((1 + step * N_NAMED + i) % f->hp.n_expert);
                *n_missing +=
                    !expert_pager_is_resident(pager, (struct expert_key){il, (uint32_t)named[i]});
            }
            expert_pager_predict(pager, il, PREDICT_LATE, named, N_NAMED);
            assert_int_equal(visit(f, pager, il, step * N_NAMED, 1, NULL), LM_OK);
        }
    }
    assert_true(*n_missing > N_STEP);
    *n_read = expert_pager_stats(pager).prediction[PREDICT_LATE].n_read;
    expert_pager_destroy(pager);
}

/* What a router does not choose of a prediction is taken back if it has not begun: with a disk that
 * reads one piece at a time, most of what is named the moment before. Nearly half is read if
 * nothing is taken back, and by chance where this thread has to wait for a processor. */
static void test_what_is_not_chosen_is_taken_back(void **state)
{
    uint64_t n_missing, n_read;
    for (int attempt = 0; attempt < 20; attempt++) {
        name_and_visit(*state, &n_missing, &n_read);
        if (n_read <= n_missing * 2 / 5) return;
    }
    fail_msg("%llu of %llu read", (unsigned long long)n_read, (unsigned long long)n_missing);
}

static void test_a_file_cut_off_fails_one_request(void **state)
{
    struct fixture *f = *state;
    struct expert_extent extent[EXPERT_PART_MAX];
    struct expert_pager *pager = open_pager(f, 4);
    struct lm_error err;
    char place[64];
    uint32_t il = f->hp.n_layer - 1, ie = f->hp.n_expert - 1;
    expert_store_locate(f->store, (struct expert_key){il, ie}, extent);
    uint64_t end = 0; /* of the part that lies last in the file */
    for (uint32_t i = 0; i < expert_store_layer(f->store, il)->n_part; i++)
        if (extent[i].offset + extent[i].n_bytes > end) end = extent[i].offset + extent[i].n_bytes;
    assert_int_equal(truncate(f->path, (off_t)end - 1), 0);

    expert_pager_step(pager, 1, false);
    assert_int_equal(visit(f, pager, il, ie, 1, &err), LM_E_IO);
    snprintf(place, sizeof(place), "layer %u, expert %u", il, ie);
    assert_non_null(strstr(err.message, place));
    assert_non_null(strstr(err.message, f->path));
    /* beside others that can be read, and again */
    assert_int_equal(visit(f, pager, il, ie - 1, 2, &err), LM_E_IO);
    check_slots(f, pager);
    for (int step = 0; step < 20; step++) {
        expert_pager_step(pager, 1, false);
        for (uint32_t i = 0; i < il; i++)
            assert_int_equal(visit(f, pager, i, (uint32_t)step, f->hp.n_expert_used, &err), LM_OK);
        assert_int_equal(visit(f, pager, il, 0, 2, &err), LM_OK);
    }
    /* whole again, the same expert can be read */
    const int fd = open(f->path, O_WRONLY);
    assert_int_equal(pwrite(fd, f->bytes, f->n_bytes, 0), (ssize_t)f->n_bytes);
    close(fd);
    expert_pager_step(pager, 1, false);
    assert_int_equal(visit(f, pager, il, ie, 1, &err), LM_OK);
    expert_pager_destroy(pager);
}

static void test_slots_for_is_the_inverse_of_slot_bytes(void **state)
{
    const struct fixture *f = *state;
    const uint32_t n_all = hparams_n_expert_total(&f->hp);
    const uint64_t least = expert_pager_slot_bytes(f->store, 0, f->hp.n_layer, f->hp.n_expert, 1);
    assert_int_equal(expert_pager_slots_for(f->store, 0, f->hp.n_layer, f->hp.n_expert, least - 1),
                     0);
    for (uint64_t n_bytes = least; n_bytes < 16 * least; n_bytes += least / 3) {
        const uint32_t n =
            expert_pager_slots_for(f->store, 0, f->hp.n_layer, f->hp.n_expert, n_bytes);
        assert_in_range(n, 1, n_all);
        assert_true(expert_pager_slot_bytes(f->store, 0, f->hp.n_layer, f->hp.n_expert, n) <=
                    n_bytes);
    }
}

/* What is said of the slots before they exist holds when they do. */
static void test_slots_are_as_many_as_announced(void **state)
{
    struct fixture *f = *state;
    const uint32_t n_all = hparams_n_expert_total(&f->hp);
    for (uint32_t n = 1; n <= n_all; n += 7) {
        struct expert_pager *pager = open_pager(f, n);
        const struct expert_pager_stats stats = expert_pager_stats(pager);
        assert_int_equal(expert_pager_slot_count(f->store, 0, f->hp.n_layer, f->hp.n_expert, n),
                         stats.n_slot);
        assert_int_equal(expert_pager_slot_bytes(f->store, 0, f->hp.n_layer, f->hp.n_expert, n),
                         stats.slot_bytes);
        expert_pager_destroy(pager);
    }
}

static void fill(const struct fixture *f, struct expert_key key, void *const part[EXPERT_PART_MAX])
{
    struct expert_extent extent[EXPERT_PART_MAX];
    expert_store_locate(f->store, key, extent);
    for (uint32_t i = 0; i < expert_store_layer(f->store, key.layer)->n_part; i++)
        memcpy(part[i], f->bytes + extent[i].offset, extent[i].n_bytes);
}

/* What a tier above keeps makes room for what it gives up, a few at a time. */
static void test_takes_what_comes_from_above(void **state)
{
    struct fixture *f = *state;
    struct expert_pager *pager = open_pager(f, 2 * f->hp.n_expert);
    struct expert_key key = {2, 0};
    struct expert_view view;
    void *part[EXPERT_PART_MAX];
    expert_pager_step(pager, 1, false);
    for (uint32_t il = 0; il < 2; il++) /* all slots are used in this step */
        assert_int_equal(visit(f, pager, il, 0, f->hp.n_expert, NULL), LM_OK);
    assert_int_equal(expert_pager_offer(pager, (struct expert_key){0, 3}, part), OFFER_HERE);
    assert_int_equal(expert_pager_offer(pager, key, part), OFFER_REFUSED);

    expert_pager_set_kept(pager, (struct expert_key){0, 3}, true);
    assert_true(expert_pager_is_resident(pager, (struct expert_key){0, 3}));
    assert_int_equal(expert_pager_offer(pager, key, part), OFFER_TAKEN);
    assert_false(expert_pager_is_resident(pager, (struct expert_key){0, 3}));
    assert_false(expert_pager_is_resident(pager, key));
    assert_int_equal(expert_pager_stats(pager).n_reading, 1);
    expert_pager_step(pager, 1, false); /* meanwhile */
    assert_int_equal(visit(f, pager, 1, 0, f->hp.n_expert, NULL), LM_OK);
    fill(f, key, part);
    expert_pager_end_offer(pager, key, true);
    assert_true(expert_pager_hold(pager, key, &view));
    check_view(f, key.layer, key.expert, &view);
    expert_pager_unhold(pager, key);
    assert_int_equal(visit(f, pager, key.layer, key.expert, 1, NULL), LM_OK);
    assert_int_equal(expert_pager_layer_stats(pager, 2).decode.n_hit, 1);

    for (uint32_t ie = 4; ie < 12; ie++) {
        expert_pager_set_kept(pager, (struct expert_key){0, ie}, true);
        expert_pager_set_kept(pager, (struct expert_key){0, ie}, ie != 4);
    }
    for (key.expert = 1; key.expert <= 2 * f->hp.n_expert / 8; key.expert++)
        assert_int_equal(expert_pager_offer(pager, key, part), OFFER_TAKEN);
    assert_int_equal(expert_pager_offer(pager, key, part), OFFER_LATER);
    assert_true(expert_pager_is_resident(pager, (struct expert_key){0, 4}));
    while (key.expert-- > 1)
        expert_pager_end_offer(pager, key, false);
    assert_int_equal(expert_pager_stats(pager).n_free, 2 * f->hp.n_expert / 8);
    expert_pager_destroy(pager);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lends_the_bytes_of_the_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_held_experts_stay, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_takes_what_comes_from_above, set_up_plain, tear_down),
        cmocka_unit_test_setup_teardown(test_preload_gives_way_and_fills, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_wrong_predictions_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_late_predictions_are_in_time, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_is_not_chosen_is_taken_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_file_cut_off_fails_one_request, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_slots_for_is_the_inverse_of_slot_bytes, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_slots_are_as_many_as_announced, set_up, tear_down)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
