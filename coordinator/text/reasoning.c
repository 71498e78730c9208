#include "coordinator/text/reasoning.h"

#include <string.h>

/* Both markers have their first character nowhere else, so a match that breaks off can only start
 * anew at the character that broke it. */
static const char begin_marker[] = "<think>", end_marker[] = "</think>";
static const char analysis_header[] = "<|channel|>analysis<|message|>";
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
    return ends_with(prompt, n, begin_marker, N_BEGIN) ||
           ends_with(prompt, n, analysis_header, sizeof(analysis_header) - 1);
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

void reasoning_init_channels(struct reasoning_splitter *splitter, bool opened, bool in_answer,
                             reasoning_emit_fn emit, void *context)
{
    reasoning_init(splitter, opened, emit, context);
    splitter->channels = true;
    if (!opened && in_answer) splitter->state = REASONING_AFTER;
}

bool reasoning_is_channel_mark(const char *text, size_t n)
{
    static const char *const marks[] = {"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>",
                                        "<|end|>",   "<|return|>",  "<|call|>"};
    for (size_t i = 0; i < sizeof(marks) / sizeof(marks[0]); i++)
        if (strlen(marks[i]) == n && !memcmp(marks[i], text, n)) return true;
    return false;
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

/* ---- channels */

static bool hold(struct reasoning_splitter *splitter, char c)
{
    if (splitter->n_head + 1 >= sizeof(splitter->head)) return false;
    splitter->head[splitter->n_head++] = c;
    splitter->head[splitter->n_head] = '\0';
    return true;
}

/* Gives out what is held, as it is. */
static void release_head(struct reasoning_splitter *splitter, enum reasoning_part part)
{
    const size_t n = splitter->n_head;
    splitter->n_head = 0;
    emit(splitter, part, splitter->head, n);
}

enum word { WORD_NO, WORD_PART, WORD_YES };

/* Whether a text begins with a word, then *text goes behind it, or is the beginning of one. */
static enum word read_word(const char **text, const char *word)
{
    const size_t n = strlen(word), n_text = strlen(*text);
    if (strncmp(*text, word, n < n_text ? n : n_text) != 0) return WORD_NO;
    if (n_text < n) return WORD_PART;
    *text += n;
    return WORD_YES;
}

static void begin_message(struct reasoning_splitter *splitter, bool is_analysis, bool is_call)
{
    static const char call[] = "<|channel|>commentary to=";
    splitter->n_head = 0;
    splitter->in_call = is_call;
    splitter->state = is_analysis ? REASONING_INSIDE : REASONING_AFTER;
    if (is_call) emit(splitter, PART_CONTENT, call, sizeof(call) - 1);
}

static bool ends_in(const char *text, const char *end)
{
    const size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && !strcmp(text + n - n_end, end);
}

/* What is held of [<|start|>assistant] then <|channel|>NAME ... <|message|> or a recipient. False:
 * it is no header. */
static bool read_header(struct reasoning_splitter *splitter)
{
    static const char to[] = " to=";
    const char *at = splitter->head;
    if (read_word(&at, "<|start|>assistant") == WORD_PART) return true;
    const enum word recipient = read_word(&at, to);
    if (recipient == WORD_YES) begin_message(splitter, false, true);
    if (recipient != WORD_NO) return true;
    const enum word channel = read_word(&at, "<|channel|>");
    if (channel != WORD_YES) return channel == WORD_PART;
    const bool is_analysis = !strncmp(at, "analysis", 8);
    if (ends_in(at, "<|message|>"))
        begin_message(splitter, is_analysis, false);
    else if (!is_analysis && ends_in(at, to))
        begin_message(splitter, false, true);
    return true;
}

static void push_header(struct reasoning_splitter *splitter, char c)
{
    const bool held = c && hold(splitter, c);
    if (held && read_header(splitter)) return;
    splitter->state = REASONING_PLAIN;
    release_head(splitter, PART_CONTENT);
    if (!held) emit(splitter, PART_CONTENT, &c, 1);
}

/* The text of a message, up to what ends it. Returns how many bytes were taken. */
static size_t push_message(struct reasoning_splitter *splitter, const char *bytes, size_t n)
{
    static const char *const ends[] = {"<|end|>", "<|return|>", "<|call|>", "<|start|>"};
    const enum reasoning_part part =
        splitter->state == REASONING_INSIDE ? PART_REASONING : PART_CONTENT;
    if (splitter->eager && part == PART_CONTENT) {
        release_head(splitter, part);
        emit(splitter, part, bytes, n);
        return n;
    }
    if (!splitter->n_head && *bytes != '<') {
        const char *const next = memchr(bytes, '<', n);
        const size_t n_text = next ? (size_t)(next - bytes) : n;
        emit(splitter, part, bytes, n_text);
        return n_text;
    }
    if (splitter->n_head && *bytes == '<') {
        release_head(splitter, part);
        return 0;
    }
    hold(splitter, *bytes);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        if (strncmp(ends[i], splitter->head, splitter->n_head) != 0) continue;
        if (ends[i][splitter->n_head]) return 1;
        if (i == 2 && splitter->in_call) release_head(splitter, part);
        if (i != 3) splitter->n_head = 0; /* <|start|> belongs to the next header */
        splitter->state = REASONING_START;
        return 1;
    }
    release_head(splitter, part);
    return 1;
}

static void finish_channels(struct reasoning_splitter *splitter)
{
    if (splitter->state == REASONING_START && splitter->n_head && splitter->head[0] == '<')
        splitter->n_head = 0; /* of a header */
    release_head(splitter, splitter->state == REASONING_INSIDE ? PART_REASONING : PART_CONTENT);
}

/* ---- both */

void reasoning_push(struct reasoning_splitter *splitter, const char *bytes, size_t n)
{
    while (splitter->channels && n && splitter->state != REASONING_PLAIN) {
        const bool in_header = splitter->state == REASONING_START;
        if (in_header) push_header(splitter, *bytes);
        const size_t n_taken = in_header ? 1 : push_message(splitter, bytes, n);
        bytes += n_taken;
        n -= n_taken;
    }
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
    return splitter->n_space + splitter->n_break + splitter->n_marker + splitter->n_head;
}

void reasoning_finish(struct reasoning_splitter *splitter)
{
    if (splitter->channels) {
        finish_channels(splitter);
        return;
    }
    if (splitter->state == REASONING_START) become_plain(splitter);
    if (splitter->state == REASONING_INSIDE && splitter->n_marker) release(splitter);
}
