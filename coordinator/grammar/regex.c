#include "coordinator/grammar/regex.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/char_automaton.h"
#include "coordinator/grammar/code_ranges.h"
#include "coordinator/grammar/expression.h"
#include "coordinator/grammar/grammar.h"
#include "coordinator/grammar/grow.h"
#include "proto/base/utf8.h"

enum { N_DEPTH_MAX = 200 };

#define UNBOUNDED UINT32_MAX

enum node_kind {
    NODE_EMPTY,
    NODE_CLASS,    /* ranges [first, first + n) */
    NODE_SEQUENCE, /* parts [first, first + n) */
    NODE_CHOICE,
    NODE_REPEAT, /* node `first`, least to most times */
    NODE_BEGIN,
    NODE_END
};

struct node {
    enum node_kind kind;
    uint32_t first, n;
    uint32_t least, most;
};

struct regex {
    const char *pattern, *at, *end;
    unsigned depth;
    struct node *nodes;
    struct code_range *ranges;
    uint32_t *parts;
    size_t n_node, node_room, n_range, range_room, n_part, part_room;
    struct char_nfa nfa;
    struct lm_error *err;
    enum lm_status status;
};

/* ---- errors and pools ----------------------------------------------------------------------- */

static void fail_at(struct regex *regex, enum lm_status status, const char *at, const char *what)
{
    if (regex->status == LM_OK)
        regex->status = lm_fail(regex->err, status, "pattern offset %zu: %s",
                                (size_t)(at - regex->pattern), what);
}

static void malformed(struct regex *regex, const char *at, const char *what)
{
    fail_at(regex, LM_E_FORMAT, at, what);
}

static void unsupported(struct regex *regex, const char *at, const char *what)
{
    fail_at(regex, LM_E_UNSUPPORTED, at, what);
}

static bool have_room(struct regex *regex, void *array, size_t *room, size_t n, size_t size)
{
    if (regex->status == LM_OK && !grow_to(array, room, n, size))
        regex->status = lm_fail(regex->err, LM_E_NO_MEM, "no memory for a pattern");
    return regex->status == LM_OK;
}

static uint32_t add_node(struct regex *regex, struct node node)
{
    if (!have_room(regex, &regex->nodes, &regex->node_room, regex->n_node + 1,
                   sizeof(*regex->nodes)))
        return 0;
    regex->nodes[regex->n_node] = node;
    return (uint32_t)regex->n_node++;
}

static uint32_t add_list(struct regex *regex, enum node_kind kind, const uint32_t *parts, size_t n)
{
    if (n == 1) return parts[0];
    if (!n) return add_node(regex, (struct node){.kind = NODE_EMPTY});
    if (!have_room(regex, &regex->parts, &regex->part_room, regex->n_part + n,
                   sizeof(*regex->parts)))
        return 0;
    memcpy(regex->parts + regex->n_part, parts, n * sizeof(*parts));
    regex->n_part += n;
    return add_node(
        regex,
        (struct node){.kind = kind, .first = (uint32_t)(regex->n_part - n), .n = (uint32_t)n});
}

/* Takes the ranges over. */
static uint32_t add_class(struct regex *regex, struct code_ranges *ranges)
{
    uint32_t node = 0;
    if (regex->status == LM_OK && ranges->no_memory)
        regex->status = lm_fail(regex->err, LM_E_NO_MEM, "no memory for a pattern");
    if (have_room(regex, &regex->ranges, &regex->range_room, regex->n_range + ranges->n,
                  sizeof(*regex->ranges))) {
        if (ranges->n)
            memcpy(regex->ranges + regex->n_range, ranges->ranges,
                   ranges->n * sizeof(*ranges->ranges));
        node = add_node(regex, (struct node){.kind = NODE_CLASS,
                                             .first = (uint32_t)regex->n_range,
                                             .n = (uint32_t)ranges->n});
        regex->n_range += ranges->n;
    }
    code_ranges_fini(ranges);
    return node;
}

/* ---- characters ----------------------------------------------------------------------------- */

static bool peek(const struct regex *regex, char c)
{
    return regex->at < regex->end && *regex->at == c;
}

static bool accept(struct regex *regex, char c)
{
    if (!peek(regex, c)) return false;
    regex->at++;
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static uint32_t read_hex(struct regex *regex, size_t n)
{
    uint32_t code = 0;
    for (size_t i = 0; i < n; i++) {
        const int digit = regex->at < regex->end ? hex_digit(*regex->at) : -1;
        if (digit < 0) {
            malformed(regex, regex->at, "expected a hexadecimal digit");
            return 0;
        }
        code = code << 4 | (uint32_t)digit;
        regex->at++;
    }
    return code;
}

/* Behind "\u": four digits, a pair of surrogates, or digits in braces. */
static uint32_t read_unicode(struct regex *regex)
{
    const char *begin = regex->at;
    uint32_t code = 0;
    if (accept(regex, '{')) {
        while (!peek(regex, '}') && code <= CHAR_LAST && regex->status == LM_OK)
            code = code << 4 | read_hex(regex, 1);
        if (!accept(regex, '}')) malformed(regex, begin, "a code point that is too large");
    } else {
        code = read_hex(regex, 4);
        if (code >= 0xd800 && code <= 0xdbff && regex->end - regex->at >= 6 &&
            regex->at[0] == '\\' && regex->at[1] == 'u') {
            regex->at += 2;
            const uint32_t low = read_hex(regex, 4);
            if (low < 0xdc00 || low > 0xdfff) malformed(regex, begin, "half of a surrogate pair");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
    }
    if (code > CHAR_LAST || (code >= 0xd800 && code <= 0xdfff))
        malformed(regex, begin, "an escape that is no character");
    return code;
}

static uint32_t read_raw(struct regex *regex)
{
    uint32_t code;
    const size_t n = utf8_decode(regex->at, (size_t)(regex->end - regex->at), &code);
    if (!n) {
        malformed(regex, regex->at, "not UTF-8");
        return 0;
    }
    regex->at += n;
    return code;
}

/* \d \w \s and their opposites; false: the letter is none of them. */
static bool add_named(struct code_ranges *ranges, char letter)
{
    static const struct code_range digits[] = {{'0', '9'}};
    static const struct code_range word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    static const struct code_range space[] = {
        {'\t', '\r'},     {' ', ' '},       {0xa0, 0xa0},     {0x1680, 0x1680}, {0x2000, 0x200a},
        {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}};
    struct code_ranges named = {0};
    switch (letter | 0x20) {
    case 'd':
        code_ranges_add_all(&named, digits, 1);
        break;
    case 'w':
        code_ranges_add_all(&named, word, 4);
        break;
    case 's':
        code_ranges_add_all(&named, space, sizeof(space) / sizeof(space[0]));
        break;
    default:
        return false;
    }
    if (!(letter & 0x20)) code_ranges_negate(&named);
    code_ranges_add_all(ranges, named.ranges, named.n);
    ranges->no_memory |= named.no_memory;
    code_ranges_fini(&named);
    return true;
}

/* The character that an escape stands for; the backslash has been read. */
static uint32_t read_escape(struct regex *regex, bool in_class)
{
    const char *begin = regex->at - 1;
    if (regex->at == regex->end) {
        malformed(regex, begin, "a backslash at the end");
        return 0;
    }
    const char c = *regex->at;
    if ((uint8_t)c >= 0x80) return read_raw(regex);
    regex->at++;
    switch (c) {
    case 't':
        return '\t';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 'f':
        return '\f';
    case 'v':
        return '\v';
    case 'x':
        return read_hex(regex, 2);
    case 'u':
        return read_unicode(regex);
    case '0':
        if (regex->at < regex->end && *regex->at >= '0' && *regex->at <= '9')
            unsupported(regex, begin, "octal escapes are not supported");
        return 0;
    case 'c':
        if (regex->at < regex->end &&
            ((*regex->at >= 'a' && *regex->at <= 'z') || (*regex->at >= 'A' && *regex->at <= 'Z')))
            return (uint32_t)*regex->at++ & 31;
        malformed(regex, begin, "\\c without its letter");
        return 0;
    case 'b':
        if (in_class) return '\b';
        unsupported(regex, begin, "word boundaries are not supported");
        return 0;
    case 'B':
        unsupported(regex, begin, "word boundaries are not supported");
        return 0;
    case 'k':
        unsupported(regex, begin, "back-references are not supported");
        return 0;
    case 'p':
    case 'P':
        unsupported(regex, begin, "Unicode properties are not supported");
        return 0;
    default:
        if (c >= '1' && c <= '9')
            unsupported(regex, begin, "back-references are not supported");
        else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
            malformed(regex, begin, "an unknown escape");
        return (uint8_t)c;
    }
}

/* An element of a class: a character into *code, or a named class into ranges (false). */
static bool read_class_element(struct regex *regex, struct code_ranges *ranges, uint32_t *code)
{
    if (!accept(regex, '\\')) {
        *code = read_raw(regex);
        return true;
    }
    if (regex->at < regex->end && add_named(ranges, *regex->at)) {
        regex->at++;
        return false;
    }
    *code = read_escape(regex, true);
    return true;
}

static uint32_t read_class(struct regex *regex)
{
    const char *begin = regex->at - 1;
    const bool negated = accept(regex, '^');
    struct code_ranges ranges = {0};
    while (regex->status == LM_OK && !accept(regex, ']')) {
        uint32_t low, high;
        if (regex->at == regex->end) {
            malformed(regex, begin, "a class without its end");
            break;
        }
        const char *first = regex->at;
        if (!read_class_element(regex, &ranges, &low)) continue;
        high = low;
        if (regex->end - regex->at >= 2 && *regex->at == '-' && regex->at[1] != ']') {
            regex->at++;
            if (!read_class_element(regex, &ranges, &high))
                malformed(regex, first, "a range that ends with a class");
            else if (high < low)
                malformed(regex, first, "a range whose end comes first");
        }
        code_ranges_add(&ranges, low, high);
    }
    if (negated) code_ranges_negate(&ranges);
    code_ranges_normalize(&ranges);
    return add_class(regex, &ranges);
}

/* ---- expressions ---------------------------------------------------------------------------- */

static uint32_t read_choice(struct regex *regex);

/* Behind the opening parenthesis. */
static uint32_t read_group(struct regex *regex)
{
    const char *begin = regex->at - 1;
    if (accept(regex, '?') && !accept(regex, ':')) {
        accept(regex, 'P'); /* as Python writes names */
        if (!accept(regex, '<') || peek(regex, '=') || peek(regex, '!')) {
            unsupported(regex, begin, "look-around and flags are not supported");
            return 0;
        }
        while (regex->at < regex->end && *regex->at != '>' && *regex->at != ')')
            regex->at++;
        if (!accept(regex, '>')) malformed(regex, begin, "a group's name without its end");
    }
    if (++regex->depth > N_DEPTH_MAX)
        fail_at(regex, LM_E_LIMIT, begin, "groups are nested more than 200 deep");
    const uint32_t group = regex->status == LM_OK ? read_choice(regex) : 0;
    regex->depth--;
    if (!accept(regex, ')')) malformed(regex, begin, "a group without its end");
    return group;
}

static uint32_t read_single(struct regex *regex, uint32_t code)
{
    struct code_ranges ranges = {0};
    code_ranges_add(&ranges, code, code);
    return add_class(regex, &ranges);
}

static uint32_t read_atom(struct regex *regex)
{
    static const struct code_range line_ends[] = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
    const char *begin = regex->at;
    struct code_ranges ranges = {0};
    if (accept(regex, '(')) return read_group(regex);
    if (accept(regex, '[')) return read_class(regex);
    if (accept(regex, '^')) return add_node(regex, (struct node){.kind = NODE_BEGIN});
    if (accept(regex, '$')) return add_node(regex, (struct node){.kind = NODE_END});
    if (accept(regex, '.')) {
        code_ranges_add_all(&ranges, line_ends, 3);
        code_ranges_negate(&ranges);
        return add_class(regex, &ranges);
    }
    if (accept(regex, '\\')) {
        if (regex->at < regex->end && add_named(&ranges, *regex->at)) {
            regex->at++;
            code_ranges_normalize(&ranges);
            return add_class(regex, &ranges);
        }
        if (accept(regex, 'A')) return add_node(regex, (struct node){.kind = NODE_BEGIN});
        if (accept(regex, 'Z') || accept(regex, 'z'))
            return add_node(regex, (struct node){.kind = NODE_END});
        return read_single(regex, read_escape(regex, false));
    }
    if (strchr("*+?", *begin) && *begin) {
        malformed(regex, begin, "there is nothing to repeat");
        return 0;
    }
    return read_single(regex, read_raw(regex));
}

static uint32_t read_count(struct regex *regex)
{
    uint64_t count = 0;
    for (; regex->at < regex->end && *regex->at >= '0' && *regex->at <= '9'; regex->at++)
        if (count < UNBOUNDED) count = 10 * count + (uint64_t)(*regex->at - '0');
    return count < UNBOUNDED ? (uint32_t)count : UNBOUNDED - 1;
}

/* {2} {2,} {2,3}; false, with nothing read: a brace that is an ordinary character. */
static bool read_braces(struct regex *regex, uint32_t *least, uint32_t *most)
{
    const char *begin = regex->at;
    if (!accept(regex, '{')) return false;
    const bool has_digits = regex->at < regex->end && *regex->at >= '0' && *regex->at <= '9';
    *least = *most = read_count(regex);
    if (accept(regex, ',')) {
        *most = UNBOUNDED;
        if (regex->at < regex->end && *regex->at >= '0' && *regex->at <= '9')
            *most = read_count(regex);
    }
    if (!has_digits || !accept(regex, '}')) {
        regex->at = begin;
        return false;
    }
    if (*most < *least) malformed(regex, begin, "a repetition whose end comes first");
    return true;
}

static uint32_t read_repeated(struct regex *regex)
{
    uint32_t node = read_atom(regex);
    const char *begin = regex->at;
    uint32_t least = 0, most = UNBOUNDED;
    if (regex->status != LM_OK) return 0;
    if (accept(regex, '+'))
        least = 1;
    else if (accept(regex, '?'))
        most = 1;
    else if (!accept(regex, '*') && !read_braces(regex, &least, &most))
        return node;
    const enum node_kind kind = regex->status == LM_OK ? regex->nodes[node].kind : NODE_EMPTY;
    if (kind == NODE_BEGIN || kind == NODE_END)
        malformed(regex, begin, "an anchor cannot be repeated");
    accept(regex, '?'); /* lazy: the same texts */
    if (peek(regex, '+')) unsupported(regex, begin, "possessive repetitions are not supported");
    if (peek(regex, '*') || peek(regex, '?')) malformed(regex, regex->at, "nothing to repeat");
    return add_node(
        regex, (struct node){.kind = NODE_REPEAT, .first = node, .least = least, .most = most});
}

static uint32_t read_sequence(struct regex *regex)
{
    uint32_t *parts = NULL;
    size_t n = 0, room = 0;
    while (regex->status == LM_OK && regex->at < regex->end && !peek(regex, '|') &&
           !peek(regex, ')')) {
        const uint32_t part = read_repeated(regex);
        if (have_room(regex, &parts, &room, n + 1, sizeof(*parts))) parts[n++] = part;
    }
    const uint32_t node = regex->status == LM_OK ? add_list(regex, NODE_SEQUENCE, parts, n) : 0;
    free(parts);
    return node;
}

static uint32_t read_choice(struct regex *regex)
{
    uint32_t *parts = NULL;
    size_t n = 0, room = 0;
    do {
        const uint32_t part = read_sequence(regex);
        if (have_room(regex, &parts, &room, n + 1, sizeof(*parts))) parts[n++] = part;
    } while (regex->status == LM_OK && accept(regex, '|'));
    const uint32_t node = regex->status == LM_OK ? add_list(regex, NODE_CHOICE, parts, n) : 0;
    free(parts);
    return node;
}

/* ---- states --------------------------------------------------------------------------------- */

static uint32_t write_node(struct regex *regex, uint32_t number, uint32_t next);

static struct char_move empty_move(uint32_t target)
{
    return (struct char_move){.kind = CHAR_MOVE_EMPTY, .target = target};
}

static uint32_t write_state(struct regex *regex, const struct char_move *moves, size_t n)
{
    const uint32_t state = char_nfa_reserve(&regex->nfa);
    char_nfa_set_moves(&regex->nfa, state, moves, n);
    return state;
}

static uint32_t write_repeat(struct regex *regex, const struct node *node, uint32_t next)
{
    uint32_t state = next;
    if (node->most == UNBOUNDED) {
        state = char_nfa_reserve(&regex->nfa);
        const struct char_move moves[] = {empty_move(write_node(regex, node->first, state)),
                                          empty_move(next)};
        char_nfa_set_moves(&regex->nfa, state, moves, 2);
    } else
        for (uint32_t i = node->least; i < node->most && regex->nfa.status == LM_OK; i++) {
            const uint32_t body = write_node(regex, node->first, state);
            if (body == state) break; /* it takes nothing, however often */
            const struct char_move moves[] = {empty_move(body), empty_move(next)};
            state = write_state(regex, moves, 2);
        }
    for (uint32_t i = 0; i < node->least && regex->nfa.status == LM_OK; i++) {
        const uint32_t body = write_node(regex, node->first, state);
        if (body == state) break;
        state = body;
    }
    return state;
}

static uint32_t write_list(struct regex *regex, const struct node *node, uint32_t next)
{
    struct char_move *moves = malloc((node->n + (size_t)1) * sizeof(*moves));
    if (!moves) {
        regex->nfa.status = LM_E_NO_MEM;
        return next;
    }
    for (uint32_t i = 0; i < node->n; i++)
        if (node->kind == NODE_CHOICE)
            moves[i] = empty_move(write_node(regex, regex->parts[node->first + i], next));
        else {
            const struct code_range range = regex->ranges[node->first + i];
            moves[i] = (struct char_move){CHAR_MOVE_RANGE, next, range.low, range.high};
        }
    const uint32_t state = write_state(regex, moves, node->n);
    free(moves);
    return state;
}

static uint32_t write_node(struct regex *regex, uint32_t number, uint32_t next)
{
    const struct node *node = &regex->nodes[number];
    if (regex->nfa.status != LM_OK) return next;
    switch (node->kind) {
    case NODE_EMPTY:
        return next;
    case NODE_SEQUENCE:
        for (uint32_t i = node->n; i-- > 0;)
            next = write_node(regex, regex->parts[node->first + i], next);
        return next;
    case NODE_CLASS:
    case NODE_CHOICE:
        return write_list(regex, node, next);
    case NODE_REPEAT:
        return write_repeat(regex, node, next);
    case NODE_BEGIN:
    case NODE_END: {
        const struct char_move move = {
            .kind = node->kind == NODE_BEGIN ? CHAR_MOVE_BEGIN : CHAR_MOVE_END, .target = next};
        return write_state(regex, &move, 1);
    }
    }
    return next;
}

/* The whole text, or any part of it: what comes before is skipped, what comes after is not read. */
static uint32_t write_start(struct regex *regex, uint32_t root, bool search)
{
    if (!search) return write_node(regex, root, CHAR_NFA_ACCEPT);
    const uint32_t state = char_nfa_reserve(&regex->nfa);
    const struct char_move moves[] = {
        {CHAR_MOVE_RANGE, state, 0, 0xd7ff},
        {CHAR_MOVE_RANGE, state, 0xe000, CHAR_LAST},
        empty_move(write_node(regex, root, CHAR_NFA_ACCEPT_ALL)),
    };
    char_nfa_set_moves(&regex->nfa, state, moves, 3);
    return state;
}

enum lm_status regex_compile(struct char_automaton **out, const char *pattern, size_t n,
                             bool search, struct lm_error *err)
{
    struct regex regex = {.pattern = pattern, .at = pattern, .end = pattern + n, .err = err};
    char_nfa_init(&regex.nfa);
    const uint32_t root = read_choice(&regex);
    if (regex.at < regex.end) malformed(&regex, regex.at, "a parenthesis that was not opened");
    if (regex.status == LM_OK) {
        const uint32_t start = write_start(&regex, root, search);
        regex.status = char_automaton_from_nfa(out, &regex.nfa, start, err);
    }
    char_nfa_fini(&regex.nfa);
    free(regex.nodes);
    free(regex.ranges);
    free(regex.parts);
    return regex.status;
}

enum lm_status grammar_from_regex(struct grammar **out, const char *pattern, size_t n,
                                  struct lm_error *err)
{
    struct char_automaton *automaton;
    struct grammar_builder *builder;
    enum lm_status status = regex_compile(&automaton, pattern, n, false, err);
    if (status != LM_OK) return status;
    status = grammar_builder_create(&builder, err);
    if (status != LM_OK) {
        char_automaton_destroy(automaton);
        return status;
    }
    status = grammar_builder_finish(out, builder,
                                    grammar_build_automaton(builder, automaton, CHAR_PLAIN), err);
    grammar_builder_destroy(builder);
    return status;
}
