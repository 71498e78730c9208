/* Builds GGUF files byte by byte in memory, valid or not, for the tests of the reader. */
#ifndef LEAN_TESTS_GGUF_IMAGE_H
#define LEAN_TESTS_GGUF_IMAGE_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/gguf/gguf.h"

struct image {
    uint8_t data[1 << 16];
    size_t n;
};

static inline void put(struct image *image, const void *data, size_t n)
{
    memcpy(image->data + image->n, data, n);
    image->n += n;
}

static inline void put_u32(struct image *image, uint32_t value)
{
    put(image, &value, sizeof(value));
}

static inline void put_u64(struct image *image, uint64_t value)
{
    put(image, &value, sizeof(value));
}

static inline void put_string(struct image *image, const char *text)
{
    put_u64(image, strlen(text));
    put(image, text, strlen(text));
}

static inline void put_header(struct image *image, uint32_t version, uint64_t n_tensor,
                              uint64_t n_kv)
{
    put(image, "GGUF", 4);
    put_u32(image, version);
    put_u64(image, n_tensor);
    put_u64(image, n_kv);
}

static inline void put_key(struct image *image, const char *key, uint32_t type)
{
    put_string(image, key);
    put_u32(image, type);
}

static inline void put_tensor(struct image *image, const char *name, uint32_t n_dims,
                              const uint64_t *ne, uint32_t type, uint64_t offset)
{
    put_string(image, name);
    put_u32(image, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(image, ne[i]);
    put_u32(image, type);
    put_u64(image, offset);
}

static inline void pad(struct image *image, size_t alignment)
{
    while (image->n % alignment)
        image->data[image->n++] = 0;
}

static inline void put_zeros(struct image *image, size_t n)
{
    memset(image->data + image->n, 0, n);
    image->n += n;
}

/* Opens n bytes as a file. */
static inline enum lm_status open_bytes(struct gguf_file **file, const void *data, size_t n,
                                        struct lm_error *err)
{
    char path[64];
    const int fd = memfd_create("image", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n) return lm_fail_errno(err, "memfd");
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    const enum lm_status status = gguf_open(file, path, err);
    close(fd);
    return status;
}

#endif
