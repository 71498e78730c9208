#include "coordinator/text/pretokenizer.h"

#include <stdint.h>
#include <string.h>

#include "coordinator/text/unicode.h"

/* Short names for the masks, so that a matcher reads like its pattern. */
enum {
    L = UNICODE_LETTER,
    M = UNICODE_MARK,
    N = UNICODE_NUMBER,
    P = UNICODE_PUNCT,
    S = UNICODE_SYMBOL,
    CRLF = UNICODE_NEWLINE,
    WHITE = UNICODE_SPACE | UNICODE_NEWLINE,
    ANY = 255,
};

/* The end of the longest run of one mask from at; at itself if there is none. */
static const char *skip_run(const char *at, const char *end, unsigned mask)
{
    unsigned n;
    while (at < end && unicode_class_at(at, &n) & mask)
        at += n;
    return at;
}

/* 's|'t|'re|'ve|'m|'ll|'d, in either case if fold. NULL if none. */
static const char *match_contraction(const char *at, const char *end, bool fold)
{
    if (*at != '\'' || end - at < 2) return NULL;
    const int case_bit = fold ? 0x20 : 0;
    const int first = at[1] | case_bit;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if (end - at < 3) return NULL;
    const int second = at[2] | case_bit;
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
        (first == 'l' && second == 'l'))
        return at + 3;
    return NULL;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ where at is white space; without newlines the first is left out.
 * The second gives the last white space before a word away, so that it can open the next piece. */
static const char *match_white(const char *at, const char *end, bool newlines)
{
    const char *next = at, *last = at, *after_newline = NULL;
    while (next < end) {
        unsigned n;
        const unsigned class = unicode_class_at(next, &n);
        if (!(class & WHITE)) break;
        last = next;
        next += n;
        if (class & CRLF) after_newline = next;
    }
    if (newlines && after_newline) return after_newline;
    return next < end && last > at ? last : next;
}

/* ` ?X+`: NULL if none. */
static const char *match_after_space(const char *at, const char *end, unsigned mask)
{
    const char *const first = at + (*at == ' ');
    const char *const next = skip_run(first, end, mask);
    return next > first ? next : NULL;
}

/* The pattern of the qwen and llama-3 families; letters is \p{L} or [\p{L}\p{M}]:
 *   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?letters+|\p{N}{1,max_digits}
 *   | ?[^\s\p{N}letters]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static const char *match_word(const char *at, const char *end, unsigned letters,
                              unsigned max_digits)
{
    const char *next = match_contraction(at, end, true);
    if (next) return next;
    unsigned n;
    const unsigned class = unicode_class_at(at, &n);
    if (class & letters) return skip_run(at + n, end, letters);
    if (!(class & (CRLF | N))) {
        next = skip_run(at + n, end, letters);
        if (next > at + n) return next;
    }
    if (class & N) {
        for (next = at; next < end && max_digits && unicode_class_at(next, &n) & N; max_digits--)
            next += n;
        return next;
    }
    next = match_after_space(at, end, ANY & ~(WHITE | N | letters));
    if (next) return skip_run(next, end, CRLF);
    return match_white(at, end, true);
}

static const char *pass_qwen2(const char *begin, const char *at, const char *end)
{
    (void)begin;
    return match_word(at, end, L, 1);
}

static const char *pass_qwen35(const char *begin, const char *at, const char *end)
{
    (void)begin;
    return match_word(at, end, L | M, 1);
}

static const char *pass_llama3(const char *begin, const char *at, const char *end)
{
    (void)begin;
    return match_word(at, end, L, 3);
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static const char *pass_gpt2(const char *begin, const char *at, const char *end)
{
    (void)begin;
    const char *next = match_contraction(at, end, false);
    if (!next) next = match_after_space(at, end, L);
    if (!next) next = match_after_space(at, end, N);
    if (!next) next = match_after_space(at, end, ANY & ~(WHITE | L | N));
    return next ? next : match_white(at, end, false);
}

/* \p{N}, and what is between. */
static const char *pass_digit(const char *begin, const char *at, const char *end)
{
    (void)begin;
    unsigned n;
    return unicode_class_at(at, &n) & N ? at + n : skip_run(at, end, ANY & ~N);
}

static bool follows_digit(const char *begin, const char *at)
{
    if (at == begin) return false;
    do
        at--;
    while (at > begin && ((unsigned char)*at & 0xC0) == 0x80);
    unsigned n;
    return unicode_class_at(at, &n) & N;
}

/* Runs of \p{N} in groups of three aligned to the right: 12345 is 12, 345. The first group of a
 * run stays with the text before it (the reference does so, and it shows where that text ends in
 * white space); the others, and the text after the run, are pieces of their own. */
static const char *pass_digit_groups(const char *begin, const char *at, const char *end)
{
    size_t n_take = 3; /* inside a run the rest is a multiple of three */
    unsigned n;
    if (!(unicode_class_at(at, &n) & N) || !follows_digit(begin, at)) {
        at = skip_run(at, end, ANY & ~N);
        size_t n_digit = 0;
        for (const char *digit = at; digit < end && unicode_class_at(digit, &n) & N; digit += n)
            n_digit++;
        if (n_digit % 3) n_take = n_digit % 3;
        if (!n_digit) n_take = 0;
    }
    for (; n_take; n_take--) {
        unicode_decode(at, &n);
        at += n;
    }
    return at;
}

/* Scripts that afmoe takes out of the text in runs. The ranges are those of the reference, byte by
 * byte: 8C48-FAFF stands where F900-FAFF was meant, 0E40 where 0E00 was. */
static bool is_afmoe_script(uint32_t code_point)
{
    static const uint16_t ranges[][2] = {
        {0x0E40, 0x0EFF}, {0x1000, 0x109F}, {0x1100, 0x11FF}, {0x1780, 0x17FF}, {0x2F00, 0x2FDF},
        {0x3040, 0x30FF}, {0x3400, 0x4DBF}, {0x4E00, 0xFAFF}, {0xFF65, 0xFF9F},
    };
    for (size_t i = 0; i < sizeof(ranges) / sizeof(*ranges); i++)
        if (code_point >= ranges[i][0] && code_point <= ranges[i][1]) return true;
    return false;
}

static const char *pass_afmoe_script(const char *begin, const char *at, const char *end)
{
    (void)begin;
    unsigned n;
    const bool script = is_afmoe_script(unicode_decode(at, &n));
    do
        at += n;
    while (at < end && is_afmoe_script(unicode_decode(at, &n)) == script);
    return at;
}

/* [ASCII punctuation][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*
 * |\s*[\r\n]+|\s+(?!\S)|\s+                                              NULL if none matches. */
static const char *match_afmoe(const char *at, const char *end)
{
    unsigned n;
    const unsigned class = unicode_class_at(at, &n);
    const char *next = at + 1;
    if (n == 1 && class & (P | S)) {
        while (next < end && (*next | 0x20) >= 'a' && (*next | 0x20) <= 'z')
            next++;
        if (next > at + 1) return next;
    }
    if (class & (L | M)) return skip_run(at + n, end, L | M);
    if (!(class & (CRLF | P | S))) {
        next = skip_run(at + n, end, L | M);
        if (next > at + n) return next;
    }
    next = match_after_space(at, end, P | S);
    if (next) return skip_run(next, end, CRLF);
    return class & WHITE ? match_white(at, end, true) : NULL;
}

static const char *pass_afmoe(const char *begin, const char *at, const char *end)
{
    (void)begin;
    const char *next = match_afmoe(at, end);
    if (next) return next;
    do { /* what no alternative takes, digits above all, stays together */
        unsigned n;
        unicode_decode(at, &n);
        at += n;
    } while (at < end && !match_afmoe(at, end));
    return at;
}

static const struct pretokenizer pretokenizers[] = {
    {.name = "qwen2", .passes = {pass_qwen2}},
    {.name = "deepseek-r1-qwen", .passes = {pass_qwen2}},
    {.name = "lean", .passes = {pass_qwen2}},
    {.name = "qwen35", .passes = {pass_qwen35}},
    {.name = "afmoe", .passes = {pass_digit_groups, pass_afmoe_script, pass_afmoe}},
    {.name = "llama-bpe", .passes = {pass_llama3}, .add_bos = true, .ignore_merges = true},
    {.name = "llama3", .passes = {pass_llama3}, .add_bos = true, .ignore_merges = true},
    {.name = "llama-v3", .passes = {pass_llama3}, .add_bos = true, .ignore_merges = true},
    {.name = "smollm", .passes = {pass_digit, pass_gpt2}},
    {.name = "gpt-2", .passes = {pass_gpt2}},
};

const struct pretokenizer *pretokenizer_find(const char *name, size_t n)
{
    for (size_t i = 0; i < sizeof(pretokenizers) / sizeof(*pretokenizers); i++)
        if (strlen(pretokenizers[i].name) == n && !memcmp(pretokenizers[i].name, name, n))
            return &pretokenizers[i];
    return NULL;
}

void pretokenizer_begin(struct pretokenizer_cursor *cursor, const struct pretokenizer *pretokenizer,
                        const char *text, size_t n)
{
    *cursor = (struct pretokenizer_cursor){
        .pretokenizer = pretokenizer,
        .begin = text,
        .at = text,
    };
    while (cursor->n_pass < PRETOKENIZER_MAX_PASS && pretokenizer->passes[cursor->n_pass])
        cursor->end[cursor->n_pass++] = text; /* nothing is cut yet */
    cursor->end[0] = text + n;
}

size_t pretokenizer_next(struct pretokenizer_cursor *cursor, const char **word)
{
    if (cursor->at == cursor->end[0]) return 0;
    const pretokenizer_pass_fn *passes = cursor->pretokenizer->passes;
    unsigned pass = cursor->n_pass - 1; /* back to the innermost piece that is not used up */
    while (cursor->at == cursor->end[pass])
        pass--;
    for (; pass < cursor->n_pass - 1; pass++)
        cursor->end[pass + 1] = passes[pass](cursor->begin, cursor->at, cursor->end[pass]);
    const char *const end = passes[pass](cursor->begin, cursor->at, cursor->end[pass]);
    *word = cursor->at;
    cursor->at = end;
    return (size_t)(end - *word);
}
