/* Preloaded, it makes one allocation of a program fail, or all from one on, and counts what is
 * left.
 *
 *   ALLOC_SHIM_FAIL=N     the N-th call fails; N+: that and all later ones
 *   ALLOC_SHIM_REPORT=F   at the end "CALLS LIVE" is written to F: calls that allocate, and blocks
 *                         that have not been freed
 * Source: the C library's own functions under their other names, so that nothing has to be looked
 * up, which would allocate. */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#pragma GCC visibility push(default)

void *__libc_malloc(size_t n_bytes);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t n_bytes);
void *__libc_memalign(size_t alignment, size_t n_bytes);
void __libc_free(void *memory);

static long fail_at;
static bool fail_on;
static _Atomic long n_call, n_live;

__attribute__((constructor)) static void read_settings(void)
{
    const char *text = getenv("ALLOC_SHIM_FAIL");
    if (!text) return;
    fail_on = strchr(text, '+') != NULL;
    fail_at = atol(text);
    atomic_store(&n_call, 0);
}

__attribute__((destructor)) static void report(void)
{
    char line[64];
    const char *path = getenv("ALLOC_SHIM_REPORT");
    const int n =
        snprintf(line, sizeof(line), "%ld %ld\n", atomic_load(&n_call), atomic_load(&n_live));
    const int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    if (fd < 0) return;
    if (write(fd, line, (size_t)n) != n) abort();
    close(fd);
}

static bool fails(void)
{
    const long n = atomic_fetch_add(&n_call, 1) + 1;
    if (!fail_at || (fail_on ? n < fail_at : n != fail_at)) return false;
    errno = ENOMEM;
    return true;
}

static void *counted(void *memory)
{
    if (memory) atomic_fetch_add(&n_live, 1);
    return memory;
}

void *malloc(size_t n_bytes)
{
    return fails() ? NULL : counted(__libc_malloc(n_bytes));
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : counted(__libc_calloc(n, size));
}

void *realloc(void *old, size_t n_bytes)
{
    if (fails()) return NULL;
    void *const memory = __libc_realloc(old, n_bytes);
    return old ? memory : counted(memory);
}

void *memalign(size_t alignment, size_t n_bytes)
{
    return fails() ? NULL : counted(__libc_memalign(alignment, n_bytes));
}

void *aligned_alloc(size_t alignment, size_t n_bytes)
{
    return memalign(alignment, n_bytes);
}

int posix_memalign(void **out, size_t alignment, size_t n_bytes)
{
    *out = memalign(alignment, n_bytes);
    return *out ? 0 : ENOMEM;
}

void free(void *memory)
{
    if (memory) atomic_fetch_sub(&n_live, 1);
    __libc_free(memory);
}
