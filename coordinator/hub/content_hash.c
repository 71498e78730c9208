/* SHA-256 and git's SHA-1. */
#include "coordinator/hub/content_hash.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

struct content_hash {
    EVP_MD_CTX *context;
    char expected[2 * EVP_MAX_MD_SIZE + 1];
};

enum lm_status content_hash_begin(struct content_hash **out, const char *expected, uint64_t n_bytes,
                                  struct lm_error *err)
{
    const bool is_git = strlen(expected) == 40;
    struct content_hash *hash = calloc(1, sizeof(*hash));
    if (hash) hash->context = EVP_MD_CTX_new();
    if (!hash || !hash->context ||
        !EVP_DigestInit_ex(hash->context, is_git ? EVP_sha1() : EVP_sha256(), NULL)) {
        content_hash_destroy(hash);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a hash");
    }
    snprintf(hash->expected, sizeof(hash->expected), "%s", expected);
    char head[40];
    const int n = snprintf(head, sizeof(head), "blob %llu", (unsigned long long)n_bytes);
    if (is_git) content_hash_add(hash, head, (size_t)n + 1);
    *out = hash;
    return LM_OK;
}

void content_hash_add(struct content_hash *hash, const void *bytes, size_t n)
{
    EVP_DigestUpdate(hash->context, bytes, n);
}

bool content_hash_end(struct content_hash *hash)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    char text[2 * EVP_MAX_MD_SIZE + 1] = "";
    unsigned n = 0;
    EVP_DigestFinal_ex(hash->context, digest, &n);
    for (unsigned i = 0; i < n; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    const bool same = !strcmp(text, hash->expected);
    content_hash_destroy(hash);
    return same;
}

void content_hash_destroy(struct content_hash *hash)
{
    if (!hash) return;
    EVP_MD_CTX_free(hash->context);
    free(hash);
}

/* Reads fd to its end. */
static enum lm_status add_file(struct content_hash *hash, int fd, const char *path,
                               const volatile sig_atomic_t *is_interrupted, struct lm_error *err)
{
    enum { CHUNK = 1 << 20 };
    char *chunk = malloc(CHUNK);
    enum lm_status status = chunk ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory to read a file");
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    for (ssize_t n = 1; status == LM_OK && n > 0;) {
        n = read(fd, chunk, CHUNK);
        if (n < 0) status = lm_fail_errno(err, "%s", path);
        if (n > 0) content_hash_add(hash, chunk, (size_t)n);
        if (is_interrupted && *is_interrupted)
            status = lm_fail(err, LM_E_INTERRUPTED, "interrupted while %s was checked", path);
    }
    free(chunk);
    return status;
}

enum lm_status content_hash_check_file(const char *path, const char *expected, uint64_t n_bytes,
                                       const volatile sig_atomic_t *is_interrupted,
                                       struct lm_error *err)
{
    struct stat info;
    struct content_hash *hash = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info)) {
        const enum lm_status failed = lm_fail_errno(err, "%s", path);
        if (fd >= 0) close(fd);
        return failed;
    }
    enum lm_status status = LM_OK;
    if ((uint64_t)info.st_size != n_bytes)
        status = lm_fail(err, LM_E_FORMAT, "%s: has %llu bytes, should have %llu", path,
                         (unsigned long long)info.st_size, (unsigned long long)n_bytes);
    if (status == LM_OK) status = content_hash_begin(&hash, expected, n_bytes, err);
    if (status == LM_OK) status = add_file(hash, fd, path, is_interrupted, err);
    close(fd);
    if (status != LM_OK)
        content_hash_destroy(hash);
    else if (!content_hash_end(hash))
        status = lm_fail(err, LM_E_FORMAT, "%s: is damaged, its hash is not %s", path, expected);
    return status;
}
