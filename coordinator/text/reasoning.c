#include "coordinator/text/reasoning.h"

#include <string.h>

/* Both markers have their first character nowhere else, so a match that breaks off can only start
 * anew at the character that broke it. */
static const char begin_marker[] = "<think>", end_marker[] = "</think>";
enum { N_BEGIN = sizeof(begin_marker) - 1, N_END = sizeof(end_marker) - 1 };

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool ends_with(const char *prompt, size_t n, const char *marker, size_t n_marker)
{
    while (n && is_space(prompt[n - 1]))
        n--;
    return n >= n_marker && !memcmp(prompt + n - n_marker, marker, n_marker);
}

bool reasoning_prompt_opens(const char *prompt, size_t n)
{
    return ends_with(prompt, n, begin_marker, N_BEGIN);
}

bool reasoning_prompt_closes(const char *prompt, size_t n)
{
    return ends_with(prompt, n, end_marker, N_END);
}

void reasoning_init(struct reasoning_splitter *splitter, bool opened, reasoning_emit_fn emit,
                    void *context)
{
    *splitter = (struct reasoning_splitter){.state = opened ? REASONING_INSIDE : REASONING_START,
                                            .at_start = true,
                                            .emit = emit,
                                            .context = context};
}

static void emit(struct reasoning_splitter *splitter, enum reasoning_part part, const char *bytes,
                 size_t n)
{
    if (n) splitter->emit(splitter->context, part, bytes, n);
}

/* What was held at the start is content after all. */
static void become_plain(struct reasoning_splitter *splitter)
{
    emit(splitter, PART_CONTENT, splitter->space, splitter->n_space);
    emit(splitter, PART_CONTENT, begin_marker, splitter->n_marker);
    splitter->n_space = splitter->n_marker = 0;
    splitter->state = REASONING_PLAIN;
}

/* Returns how many bytes were taken; at least one, unless the state changed. */
static size_t push_start(struct reasoning_splitter *splitter, char c)
{
    if (c == begin_marker[splitter->n_marker]) {
        if (++splitter->n_marker < N_BEGIN) return 1;
        splitter->n_space = splitter->n_marker = 0;
        splitter->state = REASONING_INSIDE;
        return 1;
    }
    if (!splitter->n_marker && is_space(c) && splitter->n_space < sizeof(splitter->space)) {
        splitter->space[splitter->n_space++] = c;
        return 1;
    }
    become_plain(splitter);
    return 0;
}

/* What was held inside is reasoning after all. */
static void release(struct reasoning_splitter *splitter)
{
    for (; splitter->n_break; splitter->n_break--)
        emit(splitter, PART_REASONING, "\n", 1);
    emit(splitter, PART_REASONING, end_marker, splitter->n_marker);
    splitter->n_marker = 0;
    splitter->at_start = false;
}

static size_t push_inside(struct reasoning_splitter *splitter, const char *bytes, size_t n)
{
    const char c = *bytes;
    if (c == end_marker[splitter->n_marker]) {
        if (++splitter->n_marker < N_END) return 1;
        splitter->n_break = splitter->n_marker = 0;
        splitter->at_start = true;
        splitter->state = REASONING_AFTER;
        return 1;
    }
    if (!splitter->n_marker && c == '\n') {
        splitter->n_break += !splitter->at_start;
        return 1;
    }
    release(splitter);
    size_t n_plain = 0;
    while (n_plain < n && bytes[n_plain] != '<' && bytes[n_plain] != '\n')
        n_plain++;
    emit(splitter, PART_REASONING, bytes, n_plain);
    return n_plain;
}

static size_t push_after(struct reasoning_splitter *splitter, const char *bytes, size_t n)
{
    if (splitter->at_start && *bytes == '\n') return 1;
    splitter->at_start = false;
    emit(splitter, PART_CONTENT, bytes, n);
    return n;
}

void reasoning_push(struct reasoning_splitter *splitter, const char *bytes, size_t n)
{
    while (n) {
        size_t n_taken = 0;
        switch (splitter->state) {
        case REASONING_START:
            n_taken = push_start(splitter, *bytes);
            break;
        case REASONING_INSIDE:
            n_taken = push_inside(splitter, bytes, n);
            break;
        case REASONING_AFTER:
            n_taken = push_after(splitter, bytes, n);
            break;
        case REASONING_PLAIN:
            emit(splitter, PART_CONTENT, bytes, n);
            n_taken = n;
            break;
        }
        bytes += n_taken;
        n -= n_taken;
    }
}

size_t reasoning_held(const struct reasoning_splitter *splitter)
{
    return splitter->n_space + splitter->n_break + splitter->n_marker;
}

void reasoning_finish(struct reasoning_splitter *splitter)
{
    if (splitter->state == REASONING_START) become_plain(splitter);
    if (splitter->state == REASONING_INSIDE && splitter->n_marker) release(splitter);
}
