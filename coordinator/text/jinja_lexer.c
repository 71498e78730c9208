#include "coordinator/text/jinja_lexer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/jinja_unicode.h"

struct lexer {
    struct jinja_run *run;
    const char *start, *p, *end;
    uint32_t line;
    struct jinja_token *tokens;
    size_t n_token, cap;
    bool at_line_start; /* what came before ended with a newline */
    char *brackets;     /* those open, as their closing ones */
    size_t n_bracket, brackets_cap;
};

static void add_token(struct lexer *lexer, int type, struct jinja_value value)
{
    lexer->tokens = jinja_reserve(lexer->run, lexer->tokens, lexer->n_token, 1, &lexer->cap,
                                  sizeof(*lexer->tokens));
    lexer->tokens[lexer->n_token++] = (struct jinja_token){type, lexer->line, value};
}

static _Noreturn void fail_at(struct lexer *lexer, const char *message)
{
    lexer->run->line = lexer->line;
    jinja_fail(lexer->run, "%s", message);
}

static bool is_space(const char *p, const char *end, const char **after)
{
    if (p >= end) return false;
    *after = p;
    return jinja_char_classes(jinja_utf8_get(after)) & CHAR_SPACE;
}

static const char *skip_space(const char *p, const char *end)
{
    for (const char *after; is_space(p, end, &after);)
        p = after;
    return p;
}

static bool starts_with(const char *p, const char *end, const char *text)
{
    const size_t n = strlen(text);
    return (size_t)(end - p) >= n && !memcmp(p, text, n);
}

/* Moves to p, counting lines. */
static void advance(struct lexer *lexer, const char *p)
{
    for (const char *q = lexer->p; q < p; q++)
        lexer->line += *q == '\n';
    if (p > lexer->p) lexer->at_line_start = p[-1] == '\n';
    lexer->p = p;
}

/* Template data that ends at a tag; sign is the tag's. */
static void add_data(struct lexer *lexer, const char *end, char sign, bool is_variable)
{
    const char *const start = lexer->p;
    const char *stop = end;
    if (sign == '-') {
        while (stop > start) {
            const char *before = stop;
            if (!(jinja_char_classes(jinja_utf8_get_before(&before)) & CHAR_SPACE)) break;
            stop = before;
        }
    } else if (sign != '+' && !is_variable) {
        const char *line = end;
        while (line > start && line[-1] != '\n')
            line--;
        if ((line > start || lexer->at_line_start) && skip_space(line, end) == end) stop = line;
    }
    if (stop > start)
        add_token(lexer, TOKEN_DATA, jinja_string_view(lexer->run, start, (size_t)(stop - start)));
    advance(lexer, end);
}

/* The end of a tag at p: "-%}" with the white space after it, "+%}", or "%}" with a newline.
 * Returns what comes after, or NULL if there is no such end here. */
static const char *tag_end(const char *p, const char *end, const char *closing, bool plus,
                           bool trims)
{
    if (p < end && *p == '-' && starts_with(p + 1, end, closing)) return skip_space(p + 3, end);
    if (plus && p < end && *p == '+' && starts_with(p + 1, end, closing)) return p + 3;
    if (!starts_with(p, end, closing)) return NULL;
    p += 2;
    return trims && p < end && *p == '\n' ? p + 1 : p;
}

/* "{% raw %}" at p: what comes after, or NULL. */
static const char *raw_tag(const char *p, const char *end)
{
    p += 2;
    if (p < end && (*p == '-' || *p == '+')) p++;
    p = skip_space(p, end);
    if (!starts_with(p, end, "raw")) return NULL;
    return tag_end(skip_space(p + 3, end), end, "%}", false, false);
}

static void lex_raw(struct lexer *lexer, const char *after)
{
    advance(lexer, after);
    for (const char *p = after; p < lexer->end; p++) {
        if (!starts_with(p, lexer->end, "{%")) continue;
        const char *q = p + 2;
        char sign = 0;
        if (q < lexer->end && (*q == '-' || *q == '+')) sign = *q++;
        q = skip_space(q, lexer->end);
        jinja_spend(lexer->run, 1 + (size_t)(q - p) / 16);
        if (!starts_with(q, lexer->end, "endraw")) continue;
        const char *close = tag_end(skip_space(q + 6, lexer->end), lexer->end, "%}", true, true);
        if (!close) continue;
        add_data(lexer, p, sign, false);
        advance(lexer, close);
        return;
    }
    if (after < lexer->end) fail_at(lexer, "missing end of raw directive");
}

static void lex_comment(struct lexer *lexer, const char *after)
{
    advance(lexer, after);
    for (const char *p = after; p < lexer->end; p++) {
        const char *close = tag_end(p, lexer->end, "#}", true, true);
        if (!close) continue;
        advance(lexer, close);
        return;
    }
    if (after < lexer->end) fail_at(lexer, "missing end of comment tag");
}

/* ---- inside tags */

static bool is_digit(const char *p, const char *end, unsigned base)
{
    if (p >= end) return false;
    if (*p >= '0' && *p <= '9') return (unsigned)(*p - '0') < base;
    const char lower = (char)(*p | 32);
    return base == 16 && lower >= 'a' && lower <= 'f';
}

/* Digits with single underscores between them. */
static const char *skip_digits(const char *p, const char *end, unsigned base)
{
    while (is_digit(p, end, base) || (p < end && *p == '_' && is_digit(p + 1, end, base)))
        p++;
    return p;
}

/* The end of a float at p, or NULL. */
static const char *float_end(const struct lexer *lexer)
{
    const char *p = lexer->p, *const end = lexer->end;
    if (p > lexer->start && p[-1] == '.') return NULL; /* the 0 and 1 of a.0.1 */
    if (!is_digit(p, end, 10)) return NULL;
    p = skip_digits(p, end, 10);
    bool is_float = false;
    if (p < end && *p == '.' && is_digit(p + 1, end, 10)) {
        p = skip_digits(p + 1, end, 10);
        is_float = true;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        const char *exponent = p + 1;
        if (exponent < end && (*exponent == '+' || *exponent == '-')) exponent++;
        if (is_digit(exponent, end, 10)) return skip_digits(exponent, end, 10);
    }
    return is_float ? p : NULL;
}

static const char *integer_end(const struct lexer *lexer, unsigned *base)
{
    const char *p = lexer->p, *const end = lexer->end;
    *base = 10;
    if (!is_digit(p, end, 10)) return NULL;
    if (*p != '0') return skip_digits(p, end, 10);
    if (p + 1 < end) {
        const char letter = (char)(p[1] | 32);
        const unsigned prefixed = letter == 'b' ? 2 : letter == 'o' ? 8 : letter == 'x' ? 16 : 0;
        const char *digits = p + 2;
        if (digits < end && *digits == '_') digits++;
        if (prefixed && is_digit(digits, end, prefixed)) {
            *base = prefixed;
            return skip_digits(digits, end, prefixed);
        }
    }
    for (p++; p < end && (*p == '0' || (*p == '_' && p + 1 < end && p[1] == '0'));)
        p++; /* zeros only: 007 is 00 and then 7 */
    return p;
}

/* The characters up to end without underscores, NUL-terminated. */
static char *without_underscores(struct lexer *lexer, const char *end)
{
    char *text = jinja_alloc(lexer->run, (size_t)(end - lexer->p) + 1), *out = text;
    for (const char *p = lexer->p; p < end; p++)
        if (*p != '_') *out++ = *p;
    *out = '\0';
    return text;
}

static bool lex_number(struct lexer *lexer)
{
    unsigned base;
    const char *end = float_end(lexer);
    if (end) {
        const double real = strtod(without_underscores(lexer, end), NULL);
        add_token(lexer, TOKEN_NUMBER, jinja_float(real));
        advance(lexer, end);
        return true;
    }
    end = integer_end(lexer, &base);
    if (!end) return false;
    int64_t integer = 0;
    for (const char *p = without_underscores(lexer, end) + (base == 10 ? 0 : 2); *p; p++) {
        const int digit = *p <= '9' ? *p - '0' : (*p | 32) - 'a' + 10;
        if (__builtin_mul_overflow(integer, (int64_t)base, &integer) ||
            __builtin_add_overflow(integer, digit, &integer))
            fail_at(lexer, "an integer does not fit 64 bits");
    }
    add_token(lexer, TOKEN_NUMBER, jinja_int(integer));
    advance(lexer, end);
    return true;
}

static bool lex_name(struct lexer *lexer)
{
    const char *p = lexer->p;
    bool valid = true;
    while (p < lexer->end) {
        const char *after = p;
        const uint32_t c = jinja_utf8_get(&after);
        const unsigned classes = jinja_char_classes(c);
        if (!(classes & (CHAR_ALNUM | CHAR_ID_CONTINUE))) break;
        valid = valid && classes & (p == lexer->p ? CHAR_ID_START : CHAR_ID_CONTINUE);
        p = after;
    }
    if (p == lexer->p) return false;
    if (!valid) fail_at(lexer, "invalid character in identifier");
    add_token(lexer, TOKEN_NAME, jinja_string_view(lexer->run, lexer->p, (size_t)(p - lexer->p)));
    advance(lexer, p);
    return true;
}

static uint32_t read_hex(struct lexer *lexer, const char **p, const char *end, unsigned n_digit)
{
    uint32_t c = 0;
    for (unsigned i = 0; i < n_digit; i++, ++*p) {
        if (!is_digit(*p, end, 16))
            fail_at(lexer, "truncated \\xXX, \\uXXXX or \\UXXXXXXXX escape");
        c = c * 16 + (uint32_t)(**p <= '9' ? **p - '0' : (**p | 32) - 'a' + 10);
    }
    if (c > 0x10FFFF) fail_at(lexer, "illegal Unicode character in an escape");
    return c;
}

/* One escape, *p after the backslash. */
static void unescape(struct lexer *lexer, struct jinja_buffer *out, const char **p, const char *end)
{
    static const char plain[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    struct jinja_run *run = lexer->run;
    const char c = **p;
    if (c == '\n') {
        ++*p;
        return;
    }
    for (const char *pair = plain; *pair; pair += 2) {
        if (*pair != c) continue;
        jinja_put(run, out, pair + 1, 1);
        ++*p;
        return;
    }
    if (c >= '0' && c <= '7') {
        uint32_t octal = 0;
        for (int i = 0; i < 3 && is_digit(*p, end, 8); i++, ++*p)
            octal = octal * 8 + (uint32_t)(**p - '0');
        jinja_put_char(run, out, octal);
        return;
    }
    if (c == 'x' || c == 'u' || c == 'U') {
        ++*p;
        jinja_put_char(run, out, read_hex(lexer, p, end, c == 'x' ? 2 : c == 'u' ? 4 : 8));
        return;
    }
    if (c == 'N') fail_at(lexer, "\\N{...} escapes are not supported");
    jinja_put(run, out, "\\", 1);
    if ((unsigned char)c < 128) return; /* the character itself follows as usual */
    /* jinja2 writes what is not ASCII as an escape first, whose backslash is eaten here. */
    const uint32_t code = jinja_utf8_get(p);
    char text[16];
    snprintf(text, sizeof(text), code < 0x100 ? "x%02x" : code < 0x10000 ? "u%04x" : "U%08x", code);
    jinja_put_text(run, out, text);
}

static bool lex_string(struct lexer *lexer)
{
    const char quote = *lexer->p;
    if (quote != '\'' && quote != '"') return false;
    const char *end = lexer->p + 1;
    while (end < lexer->end && *end != quote)
        end += *end == '\\' ? 2 : 1;
    if (end >= lexer->end) return false;
    struct jinja_buffer out = {0};
    for (const char *p = lexer->p + 1; p < end;) {
        const char *backslash = memchr(p, '\\', (size_t)(end - p));
        const char *stop = backslash ? backslash : end;
        jinja_put(lexer->run, &out, p, (size_t)(stop - p));
        p = stop;
        if (!backslash) break;
        p++;
        unescape(lexer, &out, &p, end);
    }
    add_token(lexer, TOKEN_STRING, jinja_string_from(lexer->run, &out));
    advance(lexer, end + 1);
    return true;
}

static void balance(struct lexer *lexer, char c)
{
    if (c == '{' || c == '(' || c == '[') {
        lexer->brackets = jinja_reserve(lexer->run, lexer->brackets, lexer->n_bracket, 1,
                                        &lexer->brackets_cap, 1);
        lexer->brackets[lexer->n_bracket++] = c == '{' ? '}' : c == '(' ? ')' : ']';
    } else if (c == '}' || c == ')' || c == ']') {
        char message[40];
        if (!lexer->n_bracket)
            snprintf(message, sizeof(message), "unexpected '%c'", c);
        else if (lexer->brackets[--lexer->n_bracket] != c)
            snprintf(message, sizeof(message), "unexpected '%c', expected '%c'", c,
                     lexer->brackets[lexer->n_bracket]);
        else
            return;
        fail_at(lexer, message);
    }
}

static bool lex_operator(struct lexer *lexer)
{
    static const struct {
        char text[3];
        int type;
    } pairs[] = {{"**", TOKEN_POWER},     {"//", TOKEN_FLOOR_DIVIDE}, {"==", TOKEN_EQUAL},
                 {"!=", TOKEN_NOT_EQUAL}, {"<=", TOKEN_LESS_EQUAL},   {">=", TOKEN_GREATER_EQUAL}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        if (!starts_with(lexer->p, lexer->end, pairs[i].text)) continue;
        add_token(lexer, pairs[i].type, jinja_missing());
        advance(lexer, lexer->p + 2);
        return true;
    }
    const char c = *lexer->p;
    if (!c || !strchr("+-/*%~[](){}><=.:|,;", c)) return false;
    balance(lexer, c);
    add_token(lexer, c, jinja_missing());
    advance(lexer, lexer->p + 1);
    return true;
}

static void lex_tag(struct lexer *lexer, bool is_variable)
{
    while (lexer->p < lexer->end) {
        if (!lexer->n_bracket) {
            const char *close = tag_end(lexer->p, lexer->end, is_variable ? "}}" : "%}",
                                        !is_variable, !is_variable);
            if (close) {
                add_token(lexer, is_variable ? TOKEN_VARIABLE_END : TOKEN_BLOCK_END,
                          jinja_missing());
                advance(lexer, close);
                return;
            }
        }
        const char *const after = skip_space(lexer->p, lexer->end);
        if (after > lexer->p) {
            advance(lexer, after);
            continue;
        }
        if (lex_number(lexer) || lex_name(lexer) || lex_string(lexer) || lex_operator(lexer))
            continue;
        char message[64];
        const char *p = lexer->p;
        snprintf(message, sizeof(message), "unexpected character U+%04X", jinja_utf8_get(&p));
        fail_at(lexer, message);
    }
}

/* The next "{{", "{%" or "{#", or the end. */
static const char *find_tag(const char *p, const char *end)
{
    for (; (p = memchr(p, '{', (size_t)(end - p))); p++)
        if (p + 1 < end && (p[1] == '{' || p[1] == '%' || p[1] == '#')) return p;
    return end;
}

static void lex_template(struct lexer *lexer)
{
    while (lexer->p < lexer->end) {
        const char *const tag = find_tag(lexer->p, lexer->end);
        if (tag == lexer->end) {
            add_data(lexer, tag, '+', true);
            break;
        }
        const char *after = tag + 2;
        const char sign = after < lexer->end && (*after == '-' || *after == '+') ? *after++ : 0;
        const char *const raw = tag[1] == '%' ? raw_tag(tag, lexer->end) : NULL;
        add_data(lexer, tag, sign, tag[1] == '{');
        if (raw) {
            lex_raw(lexer, raw);
        } else if (tag[1] == '#') {
            lex_comment(lexer, after);
        } else {
            add_token(lexer, tag[1] == '{' ? TOKEN_VARIABLE_BEGIN : TOKEN_BLOCK_BEGIN,
                      jinja_missing());
            advance(lexer, after);
            lex_tag(lexer, tag[1] == '{');
        }
    }
}

/* "\r\n" and "\r" become "\n", a last one is dropped. */
static char *normalize(struct jinja_run *run, const char *source, size_t *n_bytes)
{
    char *text = jinja_alloc(run, *n_bytes + 1), *out = text;
    for (size_t i = 0; i < *n_bytes; i++) {
        if (source[i] == '\r' && i + 1 < *n_bytes && source[i + 1] == '\n') continue;
        *out++ = source[i] == '\r' ? '\n' : source[i];
    }
    if (out > text && out[-1] == '\n') out--;
    *out = '\0';
    *n_bytes = (size_t)(out - text);
    return text;
}

struct jinja_token *jinja_tokenize(struct jinja_run *run, const char *source, size_t n_bytes)
{
    if (!jinja_utf8_check(source, n_bytes, false)) jinja_fail(run, "the template is not UTF-8");
    const char *text = normalize(run, source, &n_bytes);
    struct lexer lexer = {.run = run,
                          .start = text,
                          .p = text,
                          .end = text + n_bytes,
                          .line = 1,
                          .at_line_start = true};
    lex_template(&lexer);
    add_token(&lexer, TOKEN_END, jinja_missing());
    return lexer.tokens;
}

const char *jinja_describe_token(const struct jinja_token *token, char *text)
{
    static const char *const names[] = {"end of template",
                                        "template data",
                                        "begin of statement block",
                                        "end of statement block",
                                        "begin of print statement",
                                        "end of print statement",
                                        "name",
                                        "string",
                                        "number",
                                        "'**'",
                                        "'//'",
                                        "'=='",
                                        "'!='",
                                        "'<='",
                                        "'>='"};
    if (token->type == TOKEN_NAME) {
        const struct jinja_string *name = token->value.string;
        snprintf(text, 64, "'%.*s'", (int)(name->n_bytes < 48 ? name->n_bytes : 48), name->bytes);
    } else if (token->type < TOKEN_END) {
        snprintf(text, 64, "'%c'", (char)token->type);
    } else {
        snprintf(text, 64, "%s", names[token->type - TOKEN_END]);
    }
    return text;
}
