/* The reader accepts what the format allows and answers everything else with one error that names
 * the key or tensor. Files are built in the test, byte by byte. */
#include <dirent.h>
#include <stdlib.h>

#include "tests/unit/cmocka_all.h"
#include "tests/unit/proto/gguf/gguf_image.h"

static const uint64_t shape_64x2[] = {64, 2};

/* A small file with every kind of value and two tensors. */
static void build_valid(struct image *image, uint32_t version)
{
    image->n = 0;
    put_header(image, version, 2, 9);
    put_key(image, "general.architecture", GGUF_STRING);
    put_string(image, "llama");
    put_key(image, "a.u8", GGUF_U8);
    put(image, "\xfe", 1);
    put_key(image, "a.i64", GGUF_I64);
    put_u64(image, (uint64_t)-5);
    put_key(image, "a.u64", GGUF_U64);
    put_u64(image, UINT64_MAX);
    put_key(image, "a.f32", GGUF_F32);
    put(image, &(float){1.5f}, 4);
    put_key(image, "a.f64", GGUF_F64);
    put(image, &(double){0.25}, 8);
    put_key(image, "a.bool", GGUF_BOOL);
    put(image, "\1", 1);
    put_key(image, "a.strings", GGUF_ARRAY);
    put_u32(image, GGUF_STRING);
    put_u64(image, 3);
    put_string(image, "one");
    put_string(image, "");
    put_string(image, "three");
    put_key(image, "a.i16s", GGUF_ARRAY);
    put_u32(image, GGUF_I16);
    put_u64(image, 2);
    put(image, (int16_t[]){-3, 300}, 4);
    put_tensor(image, "norm", 1, (uint64_t[]){8}, TENSOR_F32, 0);
    put_tensor(image, "weight", 2, shape_64x2, TENSOR_Q8_0, 32);
    pad(image, 32);
    for (int i = 0; i < 32 + 2 * 68; i++)
        image->data[image->n++] = (uint8_t)i;
}

static void test_valid_file(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        struct image image;
        struct gguf_file *file;
        struct lm_error err;
        build_valid(&image, version);
        assert_int_equal(open_bytes(&file, image.data, image.n, &err), LM_OK);
        assert_int_equal(gguf_version(file), version);
        assert_int_equal(gguf_n_kv(file), 9);
        assert_int_equal(gguf_n_tensor(file), 2);
        assert_int_equal(gguf_n_shard(file), 1);

        const struct gguf_tensor *weight = gguf_find_tensor(file, "weight");
        assert_non_null(weight);
        assert_int_equal(weight->n_dims, 2);
        assert_int_equal(weight->ne[0], 64);
        assert_int_equal(weight->ne[1], 2);
        assert_int_equal(weight->ne[2], 1);
        assert_int_equal(weight->n_bytes, 2 * 68);
        assert_int_equal(*(const uint8_t *)weight->data, 32);
        assert_int_equal(weight->file_offset, image.n - 2 * 68);
        assert_null(gguf_find_tensor(file, "weigh"));
        assert_null(gguf_find_kv(file, ""));
        gguf_close(file);
    }
    gguf_close(NULL);
}

static void test_getters(void **state)
{
    (void)state;
    struct image image;
    struct gguf_file *file;
    struct lm_error err;
    build_valid(&image, 3);
    assert_int_equal(open_bytes(&file, image.data, image.n, &err), LM_OK);

    uint32_t u32 = 7;
    bool found = true, flag = false;
    float f32 = 9;
    struct gguf_string text;
    assert_int_equal(gguf_get_u32(file, "absent", &u32, &found, &err), LM_OK);
    assert_false(found);
    assert_int_equal(u32, 7);
    assert_int_equal(gguf_get_u32(file, "a.u8", &u32, &found, &err), LM_OK);
    assert_true(found);
    assert_int_equal(u32, 254);
    assert_int_equal(gguf_get_f32(file, "a.f64", &f32, NULL, &err), LM_OK);
    assert_true(f32 == 0.25f);
    assert_int_equal(gguf_get_bool(file, "a.bool", &flag, NULL, &err), LM_OK);
    assert_true(flag);
    assert_int_equal(gguf_get_string(file, "general.architecture", &text, NULL, &err), LM_OK);
    assert_int_equal(text.n, 5);
    assert_memory_equal(text.data, "llama", 5);

    const struct gguf_kv *kv = gguf_find_kv(file, "a.strings");
    assert_int_equal(kv->n, 3);
    assert_int_equal(gguf_array_string(file, kv, 1).n, 0);
    assert_memory_equal(gguf_array_string(file, kv, 2).data, "three", 5);
    kv = gguf_find_kv(file, "a.i16s");
    assert_int_equal(gguf_array_int(kv, 0), -3);
    assert_int_equal(gguf_array_int(kv, 1), 300);
    assert_true(gguf_array_float(gguf_find_kv(file, "a.f32"), 0) == 1.5);

    /* Never a reinterpretation: the message names key, type and value. */
    assert_int_equal(gguf_get_u32(file, "a.i64", &u32, NULL, &err), LM_E_FORMAT);
    assert_non_null(strstr(err.message, "key a.i64: -5"));
    assert_int_equal(gguf_get_u32(file, "a.u64", &u32, NULL, &err), LM_E_FORMAT);
    assert_non_null(strstr(err.message, "key a.u64: 18446744073709551615 does not fit 32 bits"));
    assert_int_equal(gguf_get_u32(file, "a.f32", &u32, NULL, &err), LM_E_FORMAT);
    assert_int_equal(gguf_get_f32(file, "a.u8", &f32, NULL, &err), LM_E_FORMAT);
    assert_int_equal(gguf_get_bool(file, "a.u8", &flag, NULL, &err), LM_E_FORMAT);
    assert_int_equal(gguf_get_string(file, "a.bool", &text, NULL, &err), LM_E_FORMAT);
    assert_non_null(strstr(err.message, "a.bool: is of type bool, not a string"));
    assert_int_equal(u32, 254);
    gguf_close(file);
}

/* Every proper prefix of a file is an error, and the error is about bytes, not a crash. */
static void test_truncation_at_every_byte(void **state)
{
    (void)state;
    struct image image;
    build_valid(&image, 3);
    for (size_t n = 0; n < image.n; n++) {
        struct gguf_file *file;
        struct lm_error err = {0};
        const enum lm_status status = open_bytes(&file, image.data, n, &err);
        if (status != LM_E_FORMAT || !strstr(err.message, "/proc/self/fd/"))
            fail_msg("%zu of %zu bytes: status %d, %s", n, image.n, status, err.message);
    }
}

/* No single changed byte crashes; whatever opens can be read to the last byte. */
static void test_every_byte_changed(void **state)
{
    (void)state;
    static const uint8_t masks[] = {0x01, 0x80, 0xff};
    struct image image;
    build_valid(&image, 3);
    uint64_t sum = 0;
    for (size_t i = 0; i < image.n; i++) {
        for (size_t m = 0; m < sizeof(masks); m++) {
            struct gguf_file *file;
            image.data[i] ^= masks[m];
            const enum lm_status status = open_bytes(&file, image.data, image.n, NULL);
            image.data[i] ^= masks[m];
            if (status != LM_OK) continue;
            for (size_t t = 0; t < gguf_n_tensor(file); t++) {
                const struct gguf_tensor *tensor = gguf_tensor_at(file, t);
                for (uint64_t b = 0; b < tensor->n_bytes; b++)
                    sum += ((const uint8_t *)tensor->data)[b];
            }
            gguf_close(file);
        }
    }
    assert_true(sum > 0);
}

struct hostile {
    const char *what;
    void (*build)(struct image *image);
    enum lm_status status;
    const char *message; /* part of it */
};

static void wrong_magic(struct image *image)
{
    put(image, "GGML", 4);
    put_zeros(image, 40);
}
static void version_1(struct image *image)
{
    put_header(image, 1, 0, 0);
}
static void version_4(struct image *image)
{
    put_header(image, 4, 0, 0);
}
static void other_byte_order(struct image *image)
{
    put_header(image, 3u << 24, 0, 0);
}
static void many_tensors(struct image *image)
{
    put_header(image, 3, UINT64_MAX / 2, 0);
}
static void negative_keys(struct image *image)
{
    put_header(image, 3, 0, (uint64_t)-1);
}
static void keys_beyond_bytes(struct image *image)
{
    put_header(image, 3, 0, 4);
    put_zeros(image, 3 * 13);
}
static void tensors_beyond_bytes(struct image *image)
{
    put_header(image, 3, 2, 0);
    put_zeros(image, 32);
}
static void empty_key(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_key(image, "", GGUF_U8);
    put_zeros(image, 8);
}
static void key_with_nul(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_u64(image, 3);
    put(image, "a\0b", 3);
    put_u32(image, GGUF_U8);
    put_zeros(image, 8);
}
static void key_too_long(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_u64(image, UINT64_MAX - 3);
    put_zeros(image, 32);
}
static void value_type_13(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_key(image, "k", 13);
    put_zeros(image, 8);
}
static void bool_of_2(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_key(image, "k", GGUF_BOOL);
    put(image, "\2", 1);
}
static void long_string(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_key(image, "k", GGUF_STRING);
    put_u64(image, 1u << 20);
    put_zeros(image, 100);
}
static void array_of_arrays(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_key(image, "k", GGUF_ARRAY);
    put_u32(image, GGUF_ARRAY);
    put_u64(image, 1);
    put_zeros(image, 32);
}
static void array_overflow(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_key(image, "k", GGUF_ARRAY);
    put_u32(image, GGUF_U64);
    put_u64(image, UINT64_MAX / 8 + 2); /* 8 times that wraps to a small number */
    put_zeros(image, 32);
}
static void array_beyond_file(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_key(image, "k", GGUF_ARRAY);
    put_u32(image, GGUF_F32);
    put_u64(image, 9);
    put_zeros(image, 32);
}
static void strings_beyond_file(struct image *image)
{
    put_header(image, 3, 0, 1);
    put_key(image, "k", GGUF_ARRAY);
    put_u32(image, GGUF_STRING);
    put_u64(image, 5);
    put_zeros(image, 32);
}
static void duplicate_key(struct image *image)
{
    put_header(image, 3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_key(image, "same.key", GGUF_U32);
        put_u32(image, 1);
    }
}
static void alignment(struct image *image, uint32_t type, uint32_t value)
{
    put_header(image, 3, 0, 1);
    put_key(image, "general.alignment", type);
    put_u32(image, value);
}
static void alignment_0(struct image *image)
{
    alignment(image, GGUF_U32, 0);
}
static void alignment_48(struct image *image)
{
    alignment(image, GGUF_U32, 48);
}
static void alignment_2g(struct image *image)
{
    alignment(image, GGUF_U32, 1u << 31);
}
static void alignment_float(struct image *image)
{
    alignment(image, GGUF_F32, 0x42000000);
}

/* One or two tensors over 4096 bytes of data. */
static void one_tensor(struct image *image, const char *name, uint32_t n_dims, const uint64_t *ne,
                       uint32_t type, uint64_t offset)
{
    put_header(image, 3, 1, 0);
    put_tensor(image, name, n_dims, ne, type, offset);
    pad(image, 32);
    put_zeros(image, 4096);
}
static void tensor_no_name(struct image *image)
{
    one_tensor(image, "", 1, (uint64_t[]){8}, TENSOR_F32, 0);
}
static void tensor_long_name(struct image *image)
{
    char name[65] = "";
    memset(name, 'n', 64);
    one_tensor(image, name, 1, (uint64_t[]){8}, TENSOR_F32, 0);
}
static void tensor_0_dims(struct image *image)
{
    one_tensor(image, "t", 0, NULL, TENSOR_F32, 0);
}
static void tensor_5_dims(struct image *image)
{
    one_tensor(image, "t", 5, (uint64_t[]){1, 1, 1, 1, 1}, TENSOR_F32, 0);
}
static void tensor_dim_0(struct image *image)
{
    one_tensor(image, "t", 2, (uint64_t[]){8, 0}, TENSOR_F32, 0);
}
static void tensor_negative_dim(struct image *image)
{
    one_tensor(image, "t", 2, (uint64_t[]){8, (uint64_t)-1}, TENSOR_F32, 0);
}
static void tensor_product_overflow(struct image *image)
{
    one_tensor(image, "t", 3, (uint64_t[]){1u << 31, 1u << 31, 4}, TENSOR_F32, 0);
}
static void tensor_bytes_overflow(struct image *image)
{
    one_tensor(image, "t", 2, (uint64_t[]){1u << 31, 1u << 31}, TENSOR_F64, 0);
}
static void tensor_removed_type(struct image *image)
{
    one_tensor(image, "t", 1, (uint64_t[]){64}, 4, 0);
}
static void tensor_future_type(struct image *image)
{
    one_tensor(image, "t", 1, (uint64_t[]){64}, 1000, 0);
}
static void tensor_type_without_size(struct image *image)
{
    one_tensor(image, "t", 1, (uint64_t[]){64}, 41, 0);
}
static void tensor_part_of_block(struct image *image)
{
    one_tensor(image, "t", 1, (uint64_t[]){260}, TENSOR_Q4_K, 0);
}
static void tensor_unaligned(struct image *image)
{
    one_tensor(image, "t", 1, (uint64_t[]){8}, TENSOR_F32, 16);
}
static void tensor_past_end(struct image *image)
{
    one_tensor(image, "t", 1, (uint64_t[]){1025}, TENSOR_F32, 0);
}
static void tensor_offset_wraps(struct image *image)
{
    one_tensor(image, "t", 1, (uint64_t[]){8}, TENSOR_F32, UINT64_MAX - 31);
}
static void two_tensors(struct image *image, const char *second_name, uint64_t second_offset)
{
    put_header(image, 3, 2, 0);
    put_tensor(image, "first", 1, (uint64_t[]){9}, TENSOR_F32, 64);
    put_tensor(image, second_name, 1, (uint64_t[]){9}, TENSOR_F32, second_offset);
    pad(image, 32);
    put_zeros(image, 4096);
}
static void tensors_overlap(struct image *image)
{
    two_tensors(image, "second", 96);
}
static void tensors_overlap_backwards(struct image *image)
{
    two_tensors(image, "second", 32);
}
static void tensors_same_name(struct image *image)
{
    two_tensors(image, "first", 128);
}
static void escape_in_name(struct image *image)
{
    two_tensors(image, "\033[31mred", 64);
}

static void test_hostile_files(void **state)
{
    (void)state;
    static const struct hostile cases[] = {
        {"wrong magic", wrong_magic, LM_E_FORMAT, "not a GGUF file: begins with \"GGML\""},
        {"version 1", version_1, LM_E_UNSUPPORTED, "version 1"},
        {"version 4", version_4, LM_E_UNSUPPORTED, "version 4"},
        {"other byte order", other_byte_order, LM_E_UNSUPPORTED, "byte order"},
        {"absurd tensor count", many_tensors, LM_E_FORMAT, "9223372036854775807 tensors"},
        {"negative key count", negative_keys, LM_E_FORMAT, "-1 keys"},
        {"one key too many", keys_beyond_bytes, LM_E_FORMAT, "4 keys cannot be in"},
        {"one tensor too many", tensors_beyond_bytes, LM_E_FORMAT, "2 tensors cannot be in"},
        {"empty key", empty_key, LM_E_FORMAT, "key number 0: the name is empty"},
        {"NUL in key", key_with_nul, LM_E_FORMAT, "NUL"},
        {"key length", key_too_long, LM_E_FORMAT, "18446744073709551612 bytes, the limit is 65535"},
        {"value type", value_type_13, LM_E_FORMAT, "key k: unknown value type 13"},
        {"bool", bool_of_2, LM_E_FORMAT, "key k: element 0 is not a bool but 2"},
        {"string length", long_string, LM_E_FORMAT, "key k: string needs 1048576 bytes"},
        {"array of arrays", array_of_arrays, LM_E_FORMAT, "key k: arrays of type 9"},
        {"array size wraps", array_overflow, LM_E_FORMAT, "key k: array of 2305843009213693953"},
        {"array past the end", array_beyond_file, LM_E_FORMAT, "key k: value needs 36 bytes"},
        {"strings past the end", strings_beyond_file, LM_E_FORMAT, "key k: 5 strings cannot"},
        {"key twice", duplicate_key, LM_E_FORMAT, "key same.key: occurs twice"},
        {"alignment 0", alignment_0, LM_E_FORMAT, "general.alignment: 0 is not"},
        {"alignment 48", alignment_48, LM_E_FORMAT, "general.alignment: 48 is not"},
        {"alignment 2^31", alignment_2g, LM_E_FORMAT, "general.alignment: 2147483648 is not"},
        {"alignment f32", alignment_float, LM_E_FORMAT, "general.alignment: is of type f32"},
        {"no tensor name", tensor_no_name, LM_E_FORMAT, "tensor number 0: the name is empty"},
        {"long tensor name", tensor_long_name, LM_E_FORMAT, "name of 64 bytes, the limit is 63"},
        {"0 dimensions", tensor_0_dims, LM_E_FORMAT, "tensor t: 0 dimensions"},
        {"5 dimensions", tensor_5_dims, LM_E_FORMAT, "tensor t: 5 dimensions"},
        {"dimension 0", tensor_dim_0, LM_E_FORMAT, "tensor t: dimension 1 is 0"},
        {"dimension -1", tensor_negative_dim, LM_E_FORMAT, "tensor t: dimension 1 is -1"},
        {"elements overflow", tensor_product_overflow, LM_E_FORMAT, "tensor t: dimension 2 is 4"},
        {"bytes overflow", tensor_bytes_overflow, LM_E_FORMAT, "tensor t: its size overflows"},
        {"removed type", tensor_removed_type, LM_E_FORMAT, "tensor t: type 4 was removed"},
        {"future type", tensor_future_type, LM_E_UNSUPPORTED, "tensor t: type 1000 is unknown"},
        {"type without size", tensor_type_without_size, LM_E_UNSUPPORTED, "tensor t: type Q1_0"},
        {"part of a block", tensor_part_of_block, LM_E_FORMAT, "260 elements are not whole Q4_K"},
        {"unaligned", tensor_unaligned, LM_E_FORMAT, "tensor t: offset 16 is not a multiple of 32"},
        {"past the end", tensor_past_end, LM_E_FORMAT, "tensor t: 4100 bytes at offset 0"},
        {"offset wraps", tensor_offset_wraps, LM_E_FORMAT, "tensor t: 32 bytes at offset 184467"},
        {"overlap", tensors_overlap, LM_E_FORMAT, "inside tensor first, which ends at"},
        {"overlap, other order", tensors_overlap_backwards, LM_E_FORMAT, "tensor first: begins at"},
        {"tensor twice", tensors_same_name, LM_E_FORMAT, "tensor first: occurs twice"},
        {"escape sequence", escape_in_name, LM_E_FORMAT, "\\x1b[31mred"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct image image = {.n = 0};
        struct gguf_file *file = NULL;
        struct lm_error err = {0};
        cases[i].build(&image);
        const enum lm_status status = open_bytes(&file, image.data, image.n, &err);
        if (status != cases[i].status || !strstr(err.message, cases[i].message))
            fail_msg("%s: status %d, message: %s", cases[i].what, status, err.message);
        assert_null(file);
    }
}

static void test_gap_between_tensors_is_accepted(void **state)
{
    (void)state;
    struct image image = {.n = 0};
    struct gguf_file *file;
    two_tensors(&image, "second", 1024);
    assert_int_equal(open_bytes(&file, image.data, image.n, NULL), LM_OK);
    gguf_close(file);
}

static void test_not_a_file(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct lm_error err;
    assert_int_equal(gguf_open(&file, "/no/such/file.gguf", &err), LM_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "/no/such/file.gguf"));
    assert_int_equal(gguf_open(&file, "/tmp", &err), LM_E_IO);
    assert_int_equal(open_bytes(&file, "", 0, &err), LM_E_FORMAT);
}

/* Split files: a folder with three parts, one tensor each. */

static char folder[] = "/tmp/lean-test-split-XXXXXX";

struct part {
    uint16_t no, count;
    int32_t n_tensor; /* split.tensors.count */
    const char *tensor;
};

static void write_part(const char *name, struct part part)
{
    struct image image = {.n = 0};
    char path[128];
    put_header(&image, 3, 1, 3);
    put_key(&image, "split.no", GGUF_U16);
    put(&image, &part.no, 2);
    put_key(&image, "split.count", GGUF_U16);
    put(&image, &part.count, 2);
    put_key(&image, "split.tensors.count", GGUF_I32);
    put(&image, &part.n_tensor, 4);
    put_tensor(&image, part.tensor, 1, (uint64_t[]){8}, TENSOR_F32, 0);
    pad(&image, 32);
    put_zeros(&image, 32);
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(image.data, 1, image.n, file), image.n);
    fclose(file);
}

static void write_parts(struct part first, struct part second, struct part third)
{
    write_part("m-00001-of-00003.gguf", first);
    write_part("m-00002-of-00003.gguf", second);
    write_part("m-00003-of-00003.gguf", third);
}

static enum lm_status open_part(const char *name, struct gguf_file **file, struct lm_error *err)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return gguf_open(file, path, err);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    DIR *entries = opendir(folder);
    for (struct dirent *entry; entries && (entry = readdir(entries));)
        unlinkat(dirfd(entries), entry->d_name, 0);
    if (entries) closedir(entries);
    return rmdir(folder);
}

static void test_split_file(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct lm_error err;
    write_parts((struct part){0, 3, 3, "a"}, (struct part){1, 3, 3, "b"},
                (struct part){2, 3, 3, "c"});
    assert_int_equal(open_part("m-00001-of-00003.gguf", &file, &err), LM_OK);
    assert_int_equal(gguf_n_shard(file), 3);
    assert_int_equal(gguf_n_tensor(file), 3);
    const struct gguf_tensor *tensor = gguf_find_tensor(file, "c");
    assert_int_equal(tensor->shard, 2);
    float values[8];
    assert_int_equal(pread(gguf_shard_at(file, 2)->fd, values, 32, (off_t)tensor->file_offset), 32);
    gguf_close(file);

    assert_int_equal(open_part("m-00002-of-00003.gguf", &file, &err), LM_E_USAGE);
    assert_non_null(strstr(err.message, "part 2 of 3"));
}

static void test_broken_split_files(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct lm_error err;
    const char *const first = "m-00001-of-00003.gguf";

    write_parts((struct part){0, 3, 4, "a"}, (struct part){1, 3, 4, "b"},
                (struct part){2, 3, 4, "c"});
    assert_int_equal(open_part(first, &file, &err), LM_E_FORMAT);
    assert_non_null(strstr(err.message, "split.tensors.count: 4, the 3 files have 3"));

    write_parts((struct part){0, 3, 3, "a"}, (struct part){2, 3, 3, "b"},
                (struct part){2, 3, 3, "c"});
    assert_int_equal(open_part(first, &file, &err), LM_E_FORMAT);
    assert_non_null(strstr(err.message, "m-00002-of-00003.gguf: key split.no: is 2"));

    write_parts((struct part){0, 3, 3, "a"}, (struct part){1, 3, 3, "b"},
                (struct part){2, 3, 3, "a"});
    assert_int_equal(open_part(first, &file, &err), LM_E_FORMAT);
    assert_non_null(strstr(err.message, "m-00003-of-00003.gguf: tensor a: occurs twice"));

    write_part("other.gguf", (struct part){0, 3, 3, "a"});
    assert_int_equal(open_part("other.gguf", &file, &err), LM_E_FORMAT);
    assert_non_null(strstr(err.message, "does not end in -00001-of-00003.gguf"));

    char path[128];
    snprintf(path, sizeof(path), "%s/m-00002-of-00003.gguf", folder);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(open_part(first, &file, &err), LM_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "m-00002-of-00003.gguf"));
}

static void test_golden_models_open(void **state)
{
    (void)state;
    const char *golden = getenv("LEAN_GOLDEN_DIR");
    char models[256];
    snprintf(models, sizeof(models), "%s/models", golden ? golden : "../shared/golden");
    DIR *entries = opendir(models);
    if (!entries) {
        print_message("skipped: no golden models at %s (set LEAN_GOLDEN_DIR)\n", models);
        skip();
    }
    int n_file = 0;
    for (struct dirent *entry; (entry = readdir(entries));) {
        char path[600];
        struct gguf_file *file;
        struct lm_error err = {0};
        struct gguf_string arch = {"", 0};
        if (!strstr(entry->d_name, ".gguf")) continue;
        snprintf(path, sizeof(path), "%s/%s", models, entry->d_name);
        if (gguf_open(&file, path, &err) != LM_OK) fail_msg("%s", err.message);
        assert_int_equal(gguf_get_string(file, "general.architecture", &arch, NULL, &err), LM_OK);
        assert_memory_equal(arch.data, entry->d_name, 5);
        assert_non_null(gguf_find_tensor(file, "token_embd.weight"));
        assert_int_equal(gguf_find_kv(file, "tokenizer.ggml.tokens")->n, 512);
        gguf_close(file);
        n_file++;
    }
    closedir(entries);
    assert_int_equal(n_file, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid_file),
        cmocka_unit_test(test_getters),
        cmocka_unit_test(test_truncation_at_every_byte),
        cmocka_unit_test(test_every_byte_changed),
        cmocka_unit_test(test_hostile_files),
        cmocka_unit_test(test_gap_between_tensors_is_accepted),
        cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_split_file),
        cmocka_unit_test(test_broken_split_files),
        cmocka_unit_test(test_golden_models_open),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
