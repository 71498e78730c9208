/* What the writer writes, the reader reads back; a failed or abandoned write leaves nothing. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/gguf/gguf_write.h"
#include "tests/unit/cmocka_all.h"

static char folder[] = "/tmp/lean-test-writer-XXXXXX";
static char path[64], partial[72], copy_path[64];

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof(path), "%s/a.gguf", folder);
    snprintf(partial, sizeof(partial), "%s.partial", path);
    snprintf(copy_path, sizeof(copy_path), "%s/b.gguf", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    unlink(copy_path);
    return rmdir(folder);
}

static bool exists(const char *name)
{
    return !access(name, F_OK);
}

static const uint64_t big_shape[] = {256, 3, 2, 1};
static const struct gguf_string words[] = {{"one", 3}, {"", 0}, {"t\0o", 3}};

/* Declares two tensors: "norm" with 3 floats, "big" with 2.6 KB of Q4_K. */
static struct gguf_writer *declare(const char *to)
{
    struct gguf_writer *writer;
    struct lm_error err;
    if (gguf_writer_create(&writer, to, &err) != LM_OK) fail_msg("%s", err.message);
    gguf_writer_u32(writer, "general.alignment", 64);
    gguf_writer_string(writer, "general.architecture", "llama", 5);
    gguf_writer_f32(writer, "f", 0.5f);
    gguf_writer_bool(writer, "b", true);
    gguf_writer_array(writer, "i", GGUF_I32, (int32_t[]){-1, 2}, 2);
    gguf_writer_array(writer, "none", GGUF_F32, NULL, 0);
    gguf_writer_strings(writer, "words", words, 3);
    gguf_writer_tensor(writer, "norm", TENSOR_F32, 1, (uint64_t[]){3});
    gguf_writer_tensor(writer, "big", TENSOR_Q4_K, 4, big_shape);
    return writer;
}

enum { BIG_BYTES = 6 * 144 };
static const float norm[3] = {1, 2, 3};

static void fill(uint8_t *big)
{
    for (size_t i = 0; i < BIG_BYTES; i++)
        big[i] = (uint8_t)(i * 7 + 1);
}

/* Writes the file of declare, in pieces that do not respect tensors. */
static void write_file(const char *to)
{
    uint8_t all[sizeof(norm) + BIG_BYTES];
    struct lm_error err;
    unlink(to);
    struct gguf_writer *writer = declare(to);
    uint64_t n_bytes;
    assert_int_equal(gguf_writer_measure(writer, &n_bytes, &err), LM_OK);
    memcpy(all, norm, sizeof(norm));
    fill(all + sizeof(norm));
    assert_int_equal(gguf_writer_data(writer, all, 5, &err), LM_OK);
    assert_int_equal(gguf_writer_data(writer, all + 5, 300, &err), LM_OK);
    assert_false(exists(to));
    assert_int_equal(gguf_writer_data(writer, all + 305, sizeof(all) - 305, &err), LM_OK);
    assert_int_equal(gguf_writer_finish(writer, &err), LM_OK);
    struct stat info;
    assert_int_equal(stat(to, &info), 0);
    assert_int_equal(info.st_size, n_bytes);
    assert_int_equal(n_bytes % 64, 0);
    assert_false(exists(partial));
}

static void test_round_trip(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct lm_error err;
    uint8_t big[BIG_BYTES];
    fill(big);
    write_file(path);
    if (gguf_open(&file, path, &err) != LM_OK) fail_msg("%s", err.message);
    assert_int_equal(gguf_version(file), 3);
    assert_int_equal(gguf_n_kv(file), 7);
    assert_int_equal(gguf_find_kv(file, "none")->n, 0);
    assert_int_equal(gguf_array_int(gguf_find_kv(file, "i"), 0), -1);
    const struct gguf_string last = gguf_array_string(file, gguf_find_kv(file, "words"), 2);
    assert_int_equal(last.n, 3);
    assert_memory_equal(last.data, "t\0o", 3);

    const struct gguf_tensor *tensor = gguf_find_tensor(file, "big");
    assert_int_equal(tensor->n_dims, 4);
    assert_memory_equal(tensor->ne, big_shape, sizeof(big_shape));
    assert_int_equal(tensor->file_offset % 64, 0);
    assert_memory_equal(tensor->data, big, BIG_BYTES);
    assert_memory_equal(gguf_find_tensor(file, "norm")->data, norm, sizeof(norm));
    gguf_close(file);
}

/* Copying every key and tensor of a file gives the same bytes. */
static void test_copy_is_identical(void **state)
{
    (void)state;
    struct gguf_file *file, *copy;
    struct gguf_writer *writer;
    struct lm_error err;
    write_file(path);
    assert_int_equal(gguf_open(&file, path, &err), LM_OK);
    assert_int_equal(gguf_writer_create(&writer, copy_path, &err), LM_OK);
    for (size_t i = 0; i < gguf_n_kv(file); i++)
        gguf_writer_copy(writer, file, gguf_kv_at(file, i));
    for (size_t i = 0; i < gguf_n_tensor(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        char name[64];
        snprintf(name, sizeof(name), "%.*s", (int)tensor->name.n, tensor->name.data);
        gguf_writer_tensor(writer, name, tensor->type, tensor->n_dims, tensor->ne);
    }
    for (size_t i = 0; i < gguf_n_tensor(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        assert_int_equal(gguf_writer_data(writer, tensor->data, tensor->n_bytes, &err), LM_OK);
    }
    assert_int_equal(gguf_writer_finish(writer, &err), LM_OK);
    assert_int_equal(gguf_open(&copy, copy_path, &err), LM_OK);
    const struct gguf_shard *a = gguf_shard_at(file, 0), *b = gguf_shard_at(copy, 0);
    assert_int_equal(a->n_bytes, b->n_bytes);
    assert_memory_equal(a->data, b->data, a->n_bytes);
    gguf_close(file);
    gguf_close(copy);
}

static void test_incomplete_leaves_the_old_file(void **state)
{
    (void)state;
    struct lm_error err;
    struct gguf_file *file;
    write_file(path);
    struct gguf_writer *writer = declare(path);
    assert_int_equal(gguf_writer_data(writer, norm, sizeof(norm), &err), LM_OK);
    assert_int_equal(gguf_writer_finish(writer, &err), LM_E_FAIL);
    assert_non_null(strstr(err.message, "tensor 1 of 2 is incomplete"));
    assert_false(exists(partial));
    assert_int_equal(gguf_open(&file, path, &err), LM_OK);
    gguf_close(file);

    writer = declare(path);
    assert_int_equal(gguf_writer_data(writer, norm, sizeof(norm), &err), LM_OK);
    assert_true(exists(partial));
    gguf_writer_destroy(writer);
    assert_false(exists(partial));
    gguf_writer_destroy(NULL);
}

static void test_too_many_bytes(void **state)
{
    (void)state;
    struct lm_error err;
    uint8_t big[BIG_BYTES] = {0};
    struct gguf_writer *writer = declare(path);
    assert_int_equal(gguf_writer_data(writer, norm, sizeof(norm), &err), LM_OK);
    assert_int_equal(gguf_writer_data(writer, big, BIG_BYTES, &err), LM_OK);
    assert_int_equal(gguf_writer_data(writer, big, 1, &err), LM_E_FAIL);
    assert_non_null(strstr(err.message, "1 bytes more than the tensors have"));
    memset(&err, 0, sizeof(err));
    assert_int_equal(gguf_writer_finish(writer, &err), LM_E_FAIL); /* errors stick */
    assert_int_equal(err.status, LM_E_FAIL);
}

/* The file-size limit stands in for a full disk: both are said before data is written. */
static void test_no_room(void **state)
{
    (void)state;
    struct rlimit old, limit;
    struct lm_error err;
    unlink(path);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = 512;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    struct gguf_writer *writer = declare(path);
    const enum lm_status status = gguf_writer_data(writer, norm, sizeof(norm), &err);
    const enum lm_status finished = gguf_writer_finish(writer, NULL);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_not_equal(status, LM_OK);
    assert_int_equal(finished, status);
    assert_non_null(strstr(err.message, path));
    assert_false(exists(path));
    assert_false(exists(partial));
}

static void test_destinations(void **state)
{
    (void)state;
    struct gguf_writer *writer, *other;
    struct lm_error err;
    assert_int_equal(gguf_writer_create(&writer, "/dev/null", &err), LM_E_USAGE);
    assert_int_equal(gguf_writer_create(&writer, folder, &err), LM_E_USAGE);
    assert_int_equal(gguf_writer_create(&writer, "/no/such/folder/a.gguf", &err), LM_E_NOT_FOUND);
    writer = declare(path);
    assert_int_equal(gguf_writer_create(&other, path, &err), LM_E_BUSY);
    assert_true(exists(partial));
    gguf_writer_destroy(writer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_copy_is_identical),
        cmocka_unit_test(test_incomplete_leaves_the_old_file),
        cmocka_unit_test(test_too_many_bytes),
        cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_destinations),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
