/* Any bytes as text for four vocabularies: ids in range, and without control tokens the text comes
 * back, each byte that begins no character as U+FFFD. Bytes that are a GGUF file are a vocabulary
 * instead, which encodes a few texts. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "coordinator/text/tokenizer.h"
#include "coordinator/text/unicode.h"
#include "proto/gguf/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer *open_vocabulary(const char *path)
{
    struct gguf_file *file;
    struct tokenizer *tokenizer = NULL;
    struct lm_error err = {0};
    if (gguf_open(&file, path, &err) != LM_OK) return NULL;
    if (tokenizer_create(&tokenizer, file, &err) != LM_OK && !err.message[0])
        abort(); /* an error without a message */
    gguf_close(file);
    return tokenizer;
}

static struct tokenizer *const *committed_vocabularies(void)
{
    static const char *const pres[] = {"qwen2", "qwen35", "afmoe", "llama-bpe"};
    static struct tokenizer *tokenizers[4];
    const char *const source = getenv("LEAN_SOURCE_DIR");
    for (size_t i = 0; i < 4 && !tokenizers[i]; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/tests/data/tokenizer/%s.gguf", source ? source : ".",
                 pres[i]);
        tokenizers[i] = open_vocabulary(path);
        if (!tokenizers[i]) {
            fprintf(stderr, "%s: cannot be opened (LEAN_SOURCE_DIR)\n", path);
            exit(1);
        }
    }
    return tokenizers;
}

static int32_t *encode(const struct tokenizer *tokenizer, const char *text, size_t n,
                       bool parse_special, size_t *n_ids)
{
    int32_t *ids;
    if (tokenizer_encode(tokenizer, text, n, parse_special, true, &ids, n_ids, NULL) != LM_OK)
        abort();
    for (size_t i = 0; i < *n_ids; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= tokenizer_n_vocab(tokenizer)) abort();
    return ids;
}

/* Decodes ids byte by byte of their tokens and compares with the text as it should come back. */
static void check_round_trip(const struct tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                             const char *text, size_t n)
{
    size_t at = 0;
    size_t n_left = 0;     /* bytes of a character still to come */
    size_t n_replaced = 0; /* bytes of the three that a bad one became */
    for (size_t i = 0; i < n_ids; i++) {
        size_t n_bytes;
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], false, &n_bytes);
        for (size_t k = 0; k < n_bytes; k++) {
            if (at >= n) abort();
            if (!n_replaced && !n_left) {
                const int length = unicode_sequence(text + at, n - at);
                n_left = length > 0 ? (size_t)length : 0;
            }
            if (n_left) {
                if (bytes[k] != text[at++]) abort();
                n_left--;
            } else {
                if (bytes[k] != UNICODE_REPLACEMENT[n_replaced]) abort();
                n_replaced = (n_replaced + 1) % 3;
                if (!n_replaced) at++;
            }
        }
    }
    if (at != n) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t n_ids;
    const char *const text = (const char *)data;
    if (size >= 4 && !memcmp(data, "GGUF", 4)) {
        char path[64];
        const int fd = memfd_create("fuzz", MFD_CLOEXEC);
        if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        struct tokenizer *const tokenizer = open_vocabulary(path);
        static const char sample[] = "Hello  World's 12345 <|im_end|>\n\xE4\xBD\xA0\xFF </s>";
        if (tokenizer) free(encode(tokenizer, sample, sizeof(sample), size % 2, &n_ids));
        tokenizer_destroy(tokenizer);
        close(fd);
        return 0;
    }
    struct tokenizer *const *const tokenizers = committed_vocabularies();
    for (size_t i = 0; i < 4; i++) {
        free(encode(tokenizers[i], text, size, true, &n_ids));
        int32_t *const ids = encode(tokenizers[i], text, size, false, &n_ids);
        check_round_trip(tokenizers[i], ids, n_ids, text, size);
        free(ids);
    }
    return 0;
}
