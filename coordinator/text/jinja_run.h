/* One compilation or one rendering of a template: its memory, its bounds, its way out.
 *
 * Memory comes from an arena and goes back all at once, so nothing below frees anything. An
 * operation that fails does not return: jinja_fail fills the caller's lm_error and jumps to the
 * entry point (chat_template.c), which drops the arena. An interpreter whose every small step can
 * fail stays readable that way, and nothing can leak because nothing but the arena is held.
 *
 * Bounds: steps (about one per node evaluated and per 16 bytes moved), bytes of the arena, and
 * bytes of C stack below the entry point. All three are checked here and only here.
 *
 * Threads: a run belongs to one thread. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_RUN_H
#define LEAN_COORDINATOR_TEXT_JINJA_RUN_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct jinja_chunk;
struct tm;

struct jinja_run {
    struct jinja_chunk *chunks; /* newest first */
    char *free_start, *free_end;
    size_t n_bytes_left;
    int64_t n_step_left;
    const char *stack_base;
    const struct tm *now; /* what strftime_now shows; NULL while compiling */
    uint32_t line;        /* of the statement at work, for messages; 0: none */
    enum lm_status status;
    struct lm_error *err;
    jmp_buf unwind;
};

/* The caller then does `if (setjmp(run.unwind)) return run.status;` after having freed what it
 * does not keep with jinja_run_free. */
void jinja_run_init(struct jinja_run *run, size_t n_bytes_max, int64_t n_step_max,
                    struct lm_error *err);
void jinja_run_free(struct jinja_run *run);

/* Memory of the run, aligned for any object, not cleared. Fails with LM_E_LIMIT or LM_E_NO_MEM. */
void *jinja_alloc(struct jinja_run *run, size_t n_bytes);
void *jinja_alloc_zero(struct jinja_run *run, size_t n_bytes);
/* An array of *cap elements at items, n of them used, has room for n_more after this. Returns the
 * array, moved if it had to grow. */
void *jinja_reserve(struct jinja_run *run, void *items, size_t n, size_t n_more, size_t *cap,
                    size_t n_element_bytes);

void jinja_spend_slow(struct jinja_run *run);
static inline void jinja_spend(struct jinja_run *run, size_t n_step)
{
    run->n_step_left -= (int64_t)n_step;
    if (run->n_step_left < 0) jinja_spend_slow(run);
}
/* The cost of touching n bytes. */
static inline void jinja_spend_bytes(struct jinja_run *run, size_t n_bytes)
{
    jinja_spend(run, n_bytes / 16);
}

/* Called on entry by every function that recurses over templates or values. */
void jinja_check_stack(struct jinja_run *run);

/* A template or an operation is wrong: LM_E_FORMAT, "line N: " before the text. */
_Noreturn void jinja_fail(struct jinja_run *run, const char *format, ...) LM_PRINTF(2, 3);
/* Any status, the text as it is. */
_Noreturn void jinja_fail_as(struct jinja_run *run, enum lm_status status, const char *format, ...)
    LM_PRINTF(3, 4);

/* Bytes that grow. Zero-initialized is empty. */
struct jinja_buffer {
    char *bytes;
    size_t n, cap;
};

void jinja_put(struct jinja_run *run, struct jinja_buffer *buffer, const char *bytes, size_t n);
void jinja_put_text(struct jinja_run *run, struct jinja_buffer *buffer, const char *text);
void jinja_put_char(struct jinja_run *run, struct jinja_buffer *buffer, uint32_t c);
/* n times the same code point. */
void jinja_put_fill(struct jinja_run *run, struct jinja_buffer *buffer, uint32_t c, size_t n);

#endif
