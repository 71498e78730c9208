#include "coordinator/text/jinja_run.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/jinja_unicode.h"

struct jinja_chunk {
    struct jinja_chunk *next;
    _Alignas(16) char bytes[];
};

enum {
    CHUNK_BYTES = 64 << 10,
    /* Well under the 8 MiB that threads get, with room for what runs above and below us. */
    STACK_BYTES_MAX = 3 << 20
};

void jinja_run_init(struct jinja_run *run, size_t n_bytes_max, int64_t n_step_max,
                    struct lm_error *err)
{
    memset(run, 0, sizeof(*run));
    run->n_bytes_left = n_bytes_max;
    run->n_step_left = n_step_max;
    run->stack_base = __builtin_frame_address(0);
    run->err = err;
}

void jinja_run_free(struct jinja_run *run)
{
    while (run->chunks) {
        struct jinja_chunk *chunk = run->chunks;
        run->chunks = chunk->next;
        free(chunk);
    }
    run->free_start = run->free_end = NULL;
}

static char *add_chunk(struct jinja_run *run, size_t n_bytes)
{
    if (n_bytes > run->n_bytes_left)
        jinja_fail_as(run, LM_E_LIMIT, "the template needs too much memory");
    struct jinja_chunk *chunk = malloc(sizeof(*chunk) + n_bytes);
    if (!chunk) jinja_fail_as(run, LM_E_NO_MEM, "no memory for %zu bytes", n_bytes);
    run->n_bytes_left -= n_bytes;
    chunk->next = run->chunks;
    run->chunks = chunk;
    return chunk->bytes;
}

void *jinja_alloc(struct jinja_run *run, size_t n_bytes)
{
    if (n_bytes > SIZE_MAX / 4)
        jinja_fail_as(run, LM_E_LIMIT, "the template needs too much memory");
    n_bytes = (n_bytes + 15) & ~(size_t)15;
    if (n_bytes > (size_t)(run->free_end - run->free_start)) {
        if (n_bytes > CHUNK_BYTES / 4) return add_chunk(run, n_bytes); /* the rest stays open */
        run->free_start = add_chunk(run, CHUNK_BYTES);
        run->free_end = run->free_start + CHUNK_BYTES;
    }
    char *memory = run->free_start;
    run->free_start += n_bytes;
    return memory;
}

void *jinja_alloc_zero(struct jinja_run *run, size_t n_bytes)
{
    void *memory = jinja_alloc(run, n_bytes);
    memset(memory, 0, n_bytes);
    return memory;
}

void *jinja_reserve(struct jinja_run *run, void *items, size_t n, size_t n_more, size_t *cap,
                    size_t n_element_bytes)
{
    if (n_more <= *cap - n) return items;
    if (n_more > SIZE_MAX / 4 / n_element_bytes - n)
        jinja_fail_as(run, LM_E_LIMIT, "the template needs too much memory");
    size_t grown = *cap ? 2 * *cap : 4;
    if (grown < n + n_more) grown = n + n_more;
    void *moved = jinja_alloc(run, grown * n_element_bytes);
    if (n) memcpy(moved, items, n * n_element_bytes);
    jinja_spend_bytes(run, n * n_element_bytes);
    *cap = grown;
    return moved;
}

void jinja_spend_slow(struct jinja_run *run)
{
    jinja_fail_as(run, LM_E_LIMIT, "the template takes too many steps");
}

void jinja_check_stack(struct jinja_run *run)
{
    const char *here = __builtin_frame_address(0);
    const ptrdiff_t depth = run->stack_base - here;
    if (depth > STACK_BYTES_MAX || depth < -STACK_BYTES_MAX)
        jinja_fail_as(run, LM_E_LIMIT, "the template or its data is nested too deeply");
}

static _Noreturn void unwind(struct jinja_run *run, enum lm_status status, const char *place,
                             const char *format, va_list args)
{
    char text[sizeof(run->err->message)];
    vsnprintf(text, sizeof(text), format, args);
    run->status = lm_fail(run->err, status, "%s%s", place, text);
    longjmp(run->unwind, 1);
}

_Noreturn void jinja_fail(struct jinja_run *run, const char *format, ...)
{
    char place[32] = "";
    if (run->line) snprintf(place, sizeof(place), "line %u: ", run->line);
    va_list args;
    va_start(args, format);
    unwind(run, LM_E_FORMAT, place, format, args);
}

_Noreturn void jinja_fail_as(struct jinja_run *run, enum lm_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    unwind(run, status, "", format, args);
}

void jinja_put(struct jinja_run *run, struct jinja_buffer *buffer, const char *bytes, size_t n)
{
    if (!n) return;
    buffer->bytes = jinja_reserve(run, buffer->bytes, buffer->n, n, &buffer->cap, 1);
    memcpy(buffer->bytes + buffer->n, bytes, n);
    buffer->n += n;
    jinja_spend_bytes(run, n);
}

void jinja_put_text(struct jinja_run *run, struct jinja_buffer *buffer, const char *text)
{
    jinja_put(run, buffer, text, strlen(text));
}

void jinja_put_char(struct jinja_run *run, struct jinja_buffer *buffer, uint32_t c)
{
    char bytes[4];
    jinja_put(run, buffer, bytes, jinja_utf8_put(c, bytes));
}

void jinja_put_fill(struct jinja_run *run, struct jinja_buffer *buffer, uint32_t c, size_t n)
{
    jinja_spend(run, n);
    while (n--)
        jinja_put_char(run, buffer, c);
}
