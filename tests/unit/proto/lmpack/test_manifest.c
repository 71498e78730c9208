/* Manifests: what is written is read, and each promise of FORMAT.md that a manifest breaks is
 * named. A good message is built, changed in one place, sealed, and parsed. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/lmpack.pb-c.h"
#include "proto/lmpack/lmpack.h"

enum { N_EXPERT = 3, EXTENT = 12288, N_LAYER = 2 };

/* Two layers of Q8_0: gate and up 32 rows of 128 (4352 bytes each), down 96 of 32 (3264). */
struct sample {
    Lean__LmpackManifest manifest;
    Lean__LmpackLayer layer[N_LAYER], *layers[N_LAYER];
    Lean__LmpackMatrix matrix[N_LAYER][3];
    uint64_t offset[N_LAYER][N_EXPERT + 1], checksum[N_LAYER][N_EXPERT + 1];
};

static void make_sample(struct sample *sample)
{
    static const uint32_t n_col[] = {128, 128, 32}, n_row[] = {32, 32, 96}, at[] = {0, 4352, 8704};
    memset(sample, 0, sizeof(*sample));
    Lean__LmpackManifest *manifest = &sample->manifest;
    lean__lmpack_manifest__init(manifest);
    manifest->magic = "lmpack";
    manifest->has_version = manifest->has_tile_layout = manifest->has_block_count = 1;
    manifest->has_expert_count = manifest->has_dense_bytes = 1;
    manifest->version = manifest->tile_layout = 1;
    manifest->block_count = 5;
    manifest->expert_count = N_EXPERT;
    manifest->dense_bytes = 77;
    manifest->n_layer = N_LAYER;
    manifest->layer = sample->layers;
    for (uint32_t i = 0; i < N_LAYER; i++) {
        Lean__LmpackLayer *layer = sample->layers[i] = &sample->layer[i];
        Lean__LmpackMatrix *matrix = sample->matrix[i];
        lean__lmpack_layer__init(layer);
        layer->has_layer = layer->has_extent_bytes = 1;
        layer->layer = 1 + 3 * i;
        layer->extent_bytes = EXTENT;
        for (int m = 0; m < 3; m++) {
            lean__lmpack_matrix__init(&matrix[m]);
            matrix[m].has_type = matrix[m].has_n_col = matrix[m].has_n_row = 1;
            matrix[m].has_offset = 1;
            matrix[m].type = TENSOR_Q8_0;
            matrix[m].n_col = n_col[m];
            matrix[m].n_row = n_row[m];
            matrix[m].offset = at[m];
        }
        layer->gate = &matrix[0];
        layer->up = &matrix[1];
        layer->down = &matrix[2];
        layer->n_offset = layer->n_checksum = N_EXPERT;
        layer->offset = sample->offset[i];
        layer->checksum = sample->checksum[i];
        for (uint32_t ie = 0; ie < N_EXPERT; ie++)
            layer->offset[ie] = (uint64_t)EXTENT * ((ie + i) % N_EXPERT);
    }
}

/* Parses what sample says. The error, if there is one, is in *err. */
static enum lm_status parse(const struct sample *sample, struct lmpack **out, struct lm_error *err)
{
    const size_t n = lean__lmpack_manifest__get_packed_size(&sample->manifest);
    uint8_t *bytes = malloc(n + LMPACK_SEAL_BYTES);
    assert_non_null(bytes);
    lean__lmpack_manifest__pack(&sample->manifest, bytes);
    lmpack_seal(bytes, n);
    const enum lm_status status = lmpack_parse(out, bytes, n + LMPACK_SEAL_BYTES, "x.lmpack", err);
    free(bytes);
    return status;
}

static void good_manifest_is_read(void **state)
{
    (void)state;
    struct sample sample;
    struct lmpack *pack;
    struct lm_error err;
    make_sample(&sample);
    assert_int_equal(parse(&sample, &pack, &err), LM_OK);
    const struct lmpack_manifest *manifest = lmpack_manifest(pack);
    assert_int_equal(manifest->n_layer, 5);
    assert_int_equal(manifest->n_moe, N_LAYER);
    assert_null(lmpack_find_layer(pack, 0));
    const struct lmpack_layer *layer = lmpack_find_layer(pack, 4);
    assert_ptr_equal(layer, &manifest->layer[1]);
    assert_int_equal(layer->matrix[2].offset, 8704);
    assert_int_equal(layer->offset[0], EXTENT);
    assert_int_equal(lmpack_file_bytes(layer, N_EXPERT), 3 * EXTENT);
    lmpack_close(pack);
}

/* One place that is wrong, and words of the message. */
#define BREAK(name, change)                                                                        \
    static void break_##name(struct sample *s)                                                     \
    {                                                                                              \
        change;                                                                                    \
    }
BREAK(magic, s->manifest.magic = "lmpacks")
BREAK(no_magic, s->manifest.magic = NULL)
BREAK(version, s->manifest.version = 2)
BREAK(tile_layout, s->manifest.tile_layout = 0)
BREAK(no_blocks, s->manifest.block_count = 0)
BREAK(blocks, s->manifest.block_count = LMPACK_MAX_LAYER + 1)
BREAK(experts, s->manifest.expert_count = LMPACK_MAX_EXPERT + 1)
BREAK(no_experts, s->manifest.expert_count = 0)
BREAK(layer_twice, s->layer[1].layer = 1)
BREAK(layer_beyond, s->layer[1].layer = 5)
BREAK(matrix, s->layer[0].up = NULL)
BREAK(type, s->matrix[0][1].type = 5)
BREAK(type_beyond, s->matrix[0][1].type = UINT32_MAX)
BREAK(no_rows, s->matrix[0][0].n_row = 0)
BREAK(rows, s->matrix[0][0].n_row = UINT32_MAX)
BREAK(cols, s->matrix[0][2].n_col = 33)
BREAK(no_cols, s->matrix[0][2].n_col = 0)
BREAK(gate_at, s->matrix[0][0].offset = 256)
BREAK(up_at, s->matrix[0][1].offset = 0)
BREAK(down_at, s->matrix[1][2].offset = UINT64_MAX)
BREAK(extent, s->layer[0].extent_bytes = EXTENT + 4096)
BREAK(no_extent, s->layer[0].extent_bytes = 0)
BREAK(few_offsets, s->layer[1].n_offset = N_EXPERT - 1)
BREAK(many_checksums, s->layer[1].n_checksum = N_EXPERT + 1)
BREAK(overlap, s->offset[0][2] = 0)
BREAK(between, s->offset[0][2] = 4096)
BREAK(beyond, s->offset[0][2] = (uint64_t)EXTENT * N_EXPERT)
BREAK(overflow, s->offset[0][2] = UINT64_MAX - EXTENT + 1)

static void each_broken_promise_is_named(void **state)
{
    (void)state;
    static const struct {
        void (*change)(struct sample *sample);
        enum lm_status status;
        const char *words;
    } cases[] = {
        {break_magic, LM_E_FORMAT, "not that of a pack"},
        {break_no_magic, LM_E_FORMAT, "not that of a pack"},
        {break_version, LM_E_UNSUPPORTED, "version 2 with layout 1"},
        {break_tile_layout, LM_E_UNSUPPORTED, "version 1 with layout 0"},
        {break_no_blocks, LM_E_FORMAT, "0 layers"},
        {break_blocks, LM_E_FORMAT, "513 layers"},
        {break_experts, LM_E_FORMAT, "with 4097 experts"},
        {break_no_experts, LM_E_FORMAT, "2 layers with 0 experts"},
        {break_layer_twice, LM_E_FORMAT, "layer 1 is out of order"},
        {break_layer_beyond, LM_E_FORMAT, "layer 5 is out of order, or beyond 5"},
        {break_matrix, LM_E_FORMAT, "layer 1: a matrix is missing"},
        {break_type, LM_E_FORMAT, "layer 1: type 5 is unknown"},
        {break_type_beyond, LM_E_FORMAT, "layer 1: type 4294967295 is unknown"},
        {break_no_rows, LM_E_FORMAT, "layer 1: no matrix of Q8_0 can have 0 rows of 128"},
        {break_rows, LM_E_FORMAT, "can have 4294967295 rows"},
        {break_cols, LM_E_FORMAT, "can have 96 rows of 33"},
        {break_no_cols, LM_E_FORMAT, "can have 96 rows of 0"},
        {break_gate_at, LM_E_FORMAT, "layer 1: offset of gate is 256, must be 0"},
        {break_up_at, LM_E_FORMAT, "layer 1: offset of up is 0, must be 4352"},
        {break_down_at, LM_E_FORMAT, "layer 4: offset of down is 18446744073709551615"},
        {break_extent, LM_E_FORMAT, "size of an extent is 16384, must be 12288"},
        {break_no_extent, LM_E_FORMAT, "size of an extent is 0, must be 12288"},
        {break_few_offsets, LM_E_FORMAT, "layer 4: 2 offsets and 3 checksums"},
        {break_many_checksums, LM_E_FORMAT, "layer 4: 3 offsets and 4 checksums"},
        {break_overlap, LM_E_FORMAT, "layer 1, expert 2: offset 0"},
        {break_between, LM_E_FORMAT, "layer 1, expert 2: offset 4096"},
        {break_beyond, LM_E_FORMAT, "layer 1, expert 2: offset 36864"},
        {break_overflow, LM_E_FORMAT, "layer 1, expert 2: offset 18446744073709539328"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sample sample;
        struct lmpack *pack = NULL;
        struct lm_error err = {0};
        make_sample(&sample);
        cases[i].change(&sample);
        const enum lm_status status = parse(&sample, &pack, &err);
        if (status != cases[i].status || !strstr(err.message, cases[i].words))
            fail_msg("want \"%s\", got status %d: %s", cases[i].words, status, err.message);
        assert_null(pack);
    }
}

/* Every prefix, and every single flipped bit, of a good manifest is refused. */
static void damage_is_found(void **state)
{
    (void)state;
    struct sample sample;
    struct lmpack *pack;
    make_sample(&sample);
    const size_t n_body = lean__lmpack_manifest__get_packed_size(&sample.manifest);
    const size_t n = n_body + LMPACK_SEAL_BYTES;
    uint8_t *bytes = malloc(n), *copy = malloc(n);
    assert_true(bytes && copy);
    lean__lmpack_manifest__pack(&sample.manifest, bytes);
    lmpack_seal(bytes, n_body);
    for (size_t i = 0; i < n; i++) {
        memcpy(copy, bytes, i);
        assert_int_equal(lmpack_parse(&pack, copy, i, "x", NULL), LM_E_FORMAT);
        memcpy(copy, bytes, n);
        copy[i] ^= (uint8_t)(1 << i % 8);
        assert_int_equal(lmpack_parse(&pack, copy, n, "x", NULL), LM_E_FORMAT);
    }
    free(copy);
    free(bytes);
}

/* A message may not ask for much more memory than it has bytes. */
static void swelling_message_is_refused(void **state)
{
    (void)state;
    enum { N_BYTES = 4 << 20 };
    uint8_t *bytes = malloc(N_BYTES + LMPACK_SEAL_BYTES);
    struct lmpack *pack;
    struct lm_error err;
    assert_non_null(bytes);
    for (size_t i = 0; i < N_BYTES; i += 2) {
        bytes[i] = 10 << 3 | 2; /* a layer */
        bytes[i + 1] = 0;       /* without fields */
    }
    lmpack_seal(bytes, N_BYTES);
    assert_int_equal(lmpack_parse(&pack, bytes, N_BYTES + LMPACK_SEAL_BYTES, "x", &err),
                     LM_E_FORMAT);
    assert_non_null(strstr(err.message, "malformed"));
    free(bytes);
}

static void write_file(const char *folder, const char *name, uint64_t n_bytes)
{
    char path[200];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(ftruncate(fileno(file), (off_t)n_bytes), 0);
    fclose(file);
}

/* Written and opened again; layers open one by one, and only with their right size. */
static void files_are_opened(void **state)
{
    (void)state;
    char folder[] = "/tmp/lean-test-lmpack-XXXXXX", command[100];
    const uint64_t offset[] = {EXTENT, 0}, checksum[] = {5, UINT64_MAX};
    struct lmpack_layer layer[2] = {{.layer = 2, .offset = offset, .checksum = checksum},
                                    {.layer = 3, .offset = offset, .checksum = checksum}};
    struct lmpack_manifest manifest = {.architecture = "a",
                                       .fingerprint = 6,
                                       .n_layer = 4,
                                       .n_expert = 2,
                                       .dense_bytes = 10,
                                       .dense_checksum = 11,
                                       .layer = layer,
                                       .n_moe = 2};
    struct lmpack *pack = NULL;
    struct lm_error err;
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < 2; i++) {
        for (int m = 0; m < 3; m++)
            layer[i].matrix[m] = (struct lmpack_matrix){TENSOR_Q8_0, 64, 48, 0};
        lmpack_lay_out(&layer[i]);
    }
    assert_int_equal(layer[0].extent_bytes, EXTENT);
    assert_int_equal(lmpack_open(&pack, folder, &err), LM_E_NOT_FOUND);
    assert_int_equal(lmpack_write_manifest(folder, &manifest, &err), LM_OK);
    assert_int_equal(lmpack_open(&pack, folder, &err), LM_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "dense.gguf"));
    write_file(folder, "dense.gguf", 9);
    assert_int_equal(lmpack_open(&pack, folder, &err), LM_E_FORMAT);
    write_file(folder, "dense.gguf", 10);
    write_file(folder, "experts-002.bin", 2 * EXTENT);
    assert_int_equal(lmpack_open(&pack, folder, &err), LM_OK);

    assert_string_equal(lmpack_manifest(pack)->architecture, "a");
    assert_int_equal(lmpack_manifest(pack)->dense_checksum, 11);
    assert_int_equal(lmpack_find_layer(pack, 2)->checksum[1], UINT64_MAX);
    assert_int_equal(lmpack_open_layer(pack, 1, &err), LM_E_FORMAT);
    assert_int_equal(lmpack_open_layer(pack, 3, &err), LM_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "experts-003.bin"));
    write_file(folder, "experts-003.bin", 2 * EXTENT - 1);
    assert_int_equal(lmpack_open_layer(pack, 3, &err), LM_E_FORMAT);
    assert_null(lmpack_layer_file(pack, 3).path);
    for (int again = 0; again < 2; again++)
        assert_int_equal(lmpack_open_layer(pack, 2, &err), LM_OK);
    const struct lmpack_file file = lmpack_layer_file(pack, 2);
    assert_true(file.fd >= 0 && file.n_bytes == 2 * EXTENT);
    assert_int_equal(((const char *)file.data)[2 * EXTENT - 1], 0);
    lmpack_close(pack);
    snprintf(command, sizeof(command), "rm -r %s", folder);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_manifest_is_read), cmocka_unit_test(each_broken_promise_is_named),
        cmocka_unit_test(damage_is_found),       cmocka_unit_test(swelling_message_is_refused),
        cmocka_unit_test(files_are_opened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
