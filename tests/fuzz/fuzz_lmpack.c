/* Any bytes as a manifest, twice: as they are, and as a message whose checksum is right. What the
 * reader accepts must hold. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/lmpack/lmpack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
    if (!holds) abort();
}

static void check_layer(const struct lmpack_layer *layer, const struct lmpack_manifest *manifest)
{
    uint64_t end = 0;
    require(layer->layer < manifest->n_layer && manifest->n_expert > 0);
    for (int i = 0; i < LMPACK_MATRIX_COUNT; i++) {
        require(layer->matrix[i].offset >= end && layer->matrix[i].offset % 256 == 0);
        end = layer->matrix[i].offset + lmpack_matrix_bytes(&layer->matrix[i]);
        require(end > layer->matrix[i].offset);
    }
    require(end <= layer->extent_bytes && layer->extent_bytes % 4096 == 0);
    const uint64_t file_bytes = lmpack_file_bytes(layer, manifest->n_expert);
    require(file_bytes / manifest->n_expert == layer->extent_bytes && file_bytes < INT64_MAX);
    uint64_t sum = 0;
    for (uint32_t ie = 0; ie < manifest->n_expert; ie++) {
        require(layer->offset[ie] % 4096 == 0);
        require(layer->offset[ie] <= file_bytes - layer->extent_bytes);
        sum += layer->checksum[ie] ^ layer->offset[ie]; /* both can be read */
    }
    require(sum != 1 || file_bytes); /* so that nothing is read in vain */
}

static void parse(const uint8_t *bytes, size_t n)
{
    struct lmpack *pack;
    struct lm_error err = {0};
    if (lmpack_parse(&pack, bytes, n, "fuzz", &err) != LM_OK) {
        require(err.message[0]); /* an error has a message */
        return;
    }
    const struct lmpack_manifest *manifest = lmpack_manifest(pack);
    require(manifest->n_layer <= LMPACK_MAX_LAYER && manifest->n_expert <= LMPACK_MAX_EXPERT);
    require(manifest->n_moe <= manifest->n_layer && strlen(manifest->architecture) <= n);
    for (uint32_t i = 0; i < manifest->n_moe; i++) {
        check_layer(&manifest->layer[i], manifest);
        require(lmpack_find_layer(pack, manifest->layer[i].layer) == &manifest->layer[i]);
    }
    require(lmpack_open_layer(pack, 0, &err) != LM_OK); /* there are no files */
    lmpack_close(pack);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *sealed = malloc(size + LMPACK_SEAL_BYTES);
    require(sealed != NULL);
    if (size) memcpy(sealed, data, size);
    lmpack_seal(sealed, size);
    parse(data, size);
    parse(sealed, size + LMPACK_SEAL_BYTES);
    free(sealed);
    return 0;
}
