/* A profile comes back as it was written, belongs to one model, and a damaged file is refused. */
#include "tests/unit/cmocka_all.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/profile.pb-c.h"
#include "worker/pager/heat_profile.h"

static const char folder_template[] = "/tmp/test_heat_profile_XXXXXX";
static char folder[sizeof(folder_template)], path[64];

static int open_folder(void **state)
{
    (void)state;
    memcpy(folder, folder_template, sizeof(folder));
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof(path), "%s/profile.pb", folder);
    return 0;
}

/* Also fails when something else was left behind. */
static int close_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static struct heat_profile *example(void)
{
    struct heat_profile *profile;
    struct lm_error err;
    assert_int_equal(heat_profile_create(&profile, 0xfeedfacecafebeef, "qwen3moe", 3, 4, 2, &err),
                     LM_OK);
    profile->n_token = 10;
    for (uint32_t i = 4; i < 12; i++) /* layer 0 has none */
        profile->uses[i] = i * 0.5;
    return profile;
}

static void comes_back(void **state)
{
    struct heat_profile *profile = example(), *read;
    struct lm_error err;
    (void)state;
    for (uint32_t twice = 0; twice < 2; twice++) { /* the second replaces */
        profile->uses[5] += 7;
        profile->weights = twice;
        assert_int_equal(heat_profile_write(profile, path, &err), LM_OK);
        assert_int_equal(heat_profile_read(&read, path, &err), LM_OK);
        assert_true(read->fingerprint == profile->fingerprint);
        assert_true(read->weights == twice);
        assert_string_equal(read->architecture, "qwen3moe");
        assert_int_equal(read->n_layer, 3);
        assert_int_equal(read->n_expert, 4);
        assert_int_equal(read->n_expert_used, 2);
        assert_true(read->n_token == 10);
        assert_memory_equal(read->uses, profile->uses, 12 * sizeof(*read->uses));
        heat_profile_destroy(read);
    }
    heat_profile_destroy(profile);
    heat_profile_destroy(NULL);
}

static void fades_and_adds(void **state)
{
    struct heat_profile *profile = example(), *other = example();
    struct lm_error err;
    (void)state;
    heat_profile_fade(profile, HEAT_PROFILE_HALF_LIFE);
    assert_true(profile->n_token == 5);
    assert_true(profile->uses[8] == 2);
    assert_int_equal(heat_profile_add(profile, other, "other", &err), LM_OK);
    assert_true(profile->n_token == 15);
    assert_true(profile->uses[8] == 6);
    other->fingerprint++;
    assert_int_equal(heat_profile_add(profile, other, "other", &err), LM_E_MISMATCH);
    assert_non_null(strstr(err.message, "other: "));
    assert_true(profile->n_token == 15);
    assert_int_equal(heat_profile_check(profile, path, 0xfeedfacecafebeef, 0, &err), LM_OK);
    assert_int_equal(heat_profile_check(profile, path, 1, 0, &err), LM_E_MISMATCH);

    /* one whose weights are not known may be of any model with the fingerprint; then they are */
    other->fingerprint--;
    other->weights = 7;
    assert_int_equal(heat_profile_check(profile, path, 0xfeedfacecafebeef, 7, &err), LM_OK);
    assert_int_equal(heat_profile_add(profile, other, "other", &err), LM_OK);
    assert_true(profile->weights == 7);
    assert_int_equal(heat_profile_check(profile, path, 0xfeedfacecafebeef, 7, &err), LM_OK);
    assert_int_equal(heat_profile_check(profile, path, 0xfeedfacecafebeef, 8, &err), LM_E_MISMATCH);
    assert_non_null(strstr(err.message, "and other weights"));
    other->weights = 8;
    assert_int_equal(heat_profile_add(profile, other, "other", &err), LM_E_MISMATCH);
    assert_true(profile->n_token == 25);
    heat_profile_destroy(other);
    heat_profile_destroy(profile);
}

static void write_bytes(const uint8_t *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

/* Of the rows of its layer, of which there may be fewer than tokens. */
static void rates_are_per_row(void **state)
{
    struct heat_profile *profile = example();
    double rate[4];
    (void)state;
    assert_true(heat_profile_rows(profile, 1) == (2 + 2.5 + 3 + 3.5) / 2);
    heat_profile_rates(profile, 1, rate);
    assert_true(rate[2] == 3 / 5.5);
    assert_true(fabs(rate[0] + rate[1] + rate[2] + rate[3] - 2) < 1e-12);
    assert_true(heat_profile_rows(profile, 0) == 0);
    heat_profile_rates(profile, 0, rate);
    assert_true(rate[0] == 0 && rate[3] == 0);
    heat_profile_destroy(profile);
}

enum { N_PROCESS = 6, N_UPDATE = 20 };

static int update_often(const struct heat_profile *run)
{
    for (int i = 0; i < N_UPDATE; i++)
        if (heat_profile_update(path, run, NULL) != LM_OK) return 1;
    return 0;
}

/* Whoever comes in between: the file holds every run, as if they had come one after the other. */
static void processes_take_turns(void **state)
{
    struct heat_profile *run = example(), *kept, *read;
    char lock[80];
    pid_t process[N_PROCESS];
    int status;
    (void)state;
    assert_int_equal(heat_profile_update(path, run, NULL), LM_OK);
    for (int i = 1; i < N_PROCESS * N_UPDATE; i++)
        assert_int_equal(heat_profile_update(path, run, NULL), LM_OK);
    assert_int_equal(heat_profile_read(&kept, path, NULL), LM_OK);
    assert_true(kept->n_token > 10 * N_PROCESS * N_UPDATE * 0.99);
    write_bytes((const uint8_t *)"damaged", 7); /* begins anew */
    for (int i = 0; i < N_PROCESS; i++) {
        process[i] = fork();
        if (!process[i]) _exit(update_often(run));
        assert_true(process[i] > 0);
    }
    for (int i = 0; i < N_PROCESS; i++) {
        assert_int_equal(waitpid(process[i], &status, 0), process[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(heat_profile_read(&read, path, NULL), LM_OK);
    assert_true(read->n_token == kept->n_token);
    assert_memory_equal(read->uses, kept->uses, 12 * sizeof(*read->uses));
    snprintf(lock, sizeof(lock), "%s.lock", path);
    assert_int_equal(unlink(lock), 0);
    heat_profile_destroy(read);
    heat_profile_destroy(kept);
    heat_profile_destroy(run);
}

static enum lm_status read_message(const Lean__Profile *message)
{
    uint8_t bytes[4096];
    struct lm_error err;
    struct heat_profile *profile;
    write_bytes(bytes, lean__profile__pack(message, bytes));
    const enum lm_status status = heat_profile_read(&profile, path, &err);
    if (status == LM_OK) heat_profile_destroy(profile);
    return status;
}

static void refuses_contradictions(void **state)
{
    float uses[4] = {1, 2, 3, 4};
    Lean__ProfileLayer layer = LEAN__PROFILE_LAYER__INIT, *layers[2] = {&layer, &layer};
    Lean__Profile message = LEAN__PROFILE__INIT;
    (void)state;
    layer.has_layer = 1;
    layer.n_uses = 4;
    layer.uses = uses;
    message.has_layer_count = message.has_n_expert = message.has_n_expert_used = 1;
    message.has_n_token = 1;
    message.layer_count = 2;
    message.n_expert = 4;
    message.n_expert_used = 1;
    message.n_token = 10;
    message.n_layer = 1;
    message.layer = layers;
    assert_int_equal(read_message(&message), LM_E_FORMAT); /* no version */
    message.has_version = 1;
    message.version = 2;
    assert_int_equal(read_message(&message), LM_E_UNSUPPORTED);
    message.version = 1;
    assert_int_equal(read_message(&message), LM_OK);
    message.n_layer = 2; /* the same twice */
    assert_int_equal(read_message(&message), LM_E_FORMAT);
    message.n_layer = 1;
    layer.layer = 2;
    assert_int_equal(read_message(&message), LM_E_FORMAT);
    layer.layer = 1;
    layer.n_uses = 3;
    assert_int_equal(read_message(&message), LM_E_FORMAT);
    layer.n_uses = 4;
    uses[2] = NAN;
    assert_int_equal(read_message(&message), LM_E_FORMAT);
    uses[2] = -1;
    assert_int_equal(read_message(&message), LM_E_FORMAT);
    uses[2] = 0;
    message.n_token = INFINITY;
    assert_int_equal(read_message(&message), LM_E_FORMAT);
    message.n_token = 0;
    assert_int_equal(read_message(&message), LM_OK);
    message.n_expert = 1u << 31;
    assert_int_equal(read_message(&message), LM_E_FORMAT);
    message.n_expert = 4;
    message.layer_count = UINT32_MAX;
    assert_int_equal(read_message(&message), LM_E_FORMAT);
}

/* Cut or changed anywhere, it is refused or read, and nothing else happens. */
static void hostile_files(void **state)
{
    struct heat_profile *profile = example(), *read;
    struct lm_error err;
    uint8_t bytes[4096], changed[4096];
    (void)state;
    assert_int_equal(heat_profile_write(profile, path, &err), LM_OK);
    FILE *file = fopen(path, "rb");
    const size_t n = fread(bytes, 1, sizeof(bytes), file);
    fclose(file);
    for (size_t i = 0; i < 9 * n; i++) {
        memcpy(changed, bytes, n);
        if (i >= n) changed[(i - n) / 8] ^= (uint8_t)(1u << (i - n) % 8);
        write_bytes(changed, i < n ? i : n);
        const enum lm_status status = heat_profile_read(&read, path, &err);
        if (status == LM_OK) {
            assert_true(read->n_expert_used <= read->n_expert);
            heat_profile_destroy(read);
        } else {
            assert_true(status == LM_E_FORMAT || status == LM_E_UNSUPPORTED);
        }
    }
    unlink(path);
    assert_int_equal(heat_profile_read(&read, path, &err), LM_E_NOT_FOUND);
    heat_profile_destroy(profile);
}

/* What is in the way stays, and nothing is left behind (close_folder). */
static void a_failed_write_changes_nothing(void **state)
{
    struct heat_profile *profile = example();
    struct lm_error err;
    (void)state;
    assert_int_equal(mkdir(path, 0777), 0);
    assert_int_not_equal(heat_profile_write(profile, path, &err), LM_OK);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(heat_profile_write(profile, "/nowhere/profile.pb", &err), LM_E_NOT_FOUND);
    heat_profile_destroy(profile);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(comes_back, open_folder, close_folder),
        cmocka_unit_test(fades_and_adds),
        cmocka_unit_test(rates_are_per_row),
        cmocka_unit_test_setup_teardown(processes_take_turns, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(refuses_contradictions, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(hostile_files, open_folder, close_folder),
        cmocka_unit_test_setup_teardown(a_failed_write_changes_nothing, open_folder, close_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
