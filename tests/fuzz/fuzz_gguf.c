/* Opens any bytes as a GGUF file and reads everything that the reader then offers. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/gguf/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t sum_bytes(const void *data, uint64_t n)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += ((const uint8_t *)data)[i];
    return sum;
}

static uint64_t read_kv(const struct gguf_file *file, const struct gguf_kv *kv)
{
    uint64_t sum = sum_bytes(kv->key.data, kv->key.n);
    if (kv->type == GGUF_STRING) return sum;
    for (uint64_t i = 0; i < kv->n; i++) {
        if (kv->element == GGUF_STRING) {
            const struct gguf_string text = gguf_array_string(file, kv, i);
            sum += sum_bytes(text.data, text.n);
        } else if (kv->element == GGUF_F32 || kv->element == GGUF_F64) {
            sum += gguf_array_float(kv, i) > 0;
        } else {
            sum += (uint64_t)gguf_array_int(kv, i);
        }
    }
    return sum;
}

static uint64_t read_known_keys(const struct gguf_file *file)
{
    uint32_t u32 = 0;
    float f32 = 0;
    bool flag = false;
    struct gguf_string text = {"", 0};
    gguf_get_u32(file, "u", &u32, NULL, NULL);
    gguf_get_f32(file, "f", &f32, NULL, NULL);
    gguf_get_bool(file, "b", &flag, NULL, NULL);
    gguf_get_string(file, "s", &text, NULL, NULL);
    return u32 + (f32 > 0) + flag + sum_bytes(text.data, text.n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t sum = 0;
    char path[64];
    struct gguf_file *file;
    struct lm_error err;
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (gguf_open(&file, path, &err) == LM_OK) {
        for (size_t i = 0; i < gguf_n_kv(file); i++)
            sum += read_kv(file, gguf_kv_at(file, i));
        for (size_t i = 0; i < gguf_n_tensor(file); i++) {
            const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
            sum += sum_bytes(tensor->data, tensor->n_bytes);
        }
        sum += read_known_keys(file);
        gguf_close(file);
    } else if (!err.message[0]) {
        abort(); /* an error without a message */
    }
    close(fd);
    return sum == UINT64_MAX ? -1 : 0; /* so that nothing is read in vain */
}
