/* GBNF: rules `name ::= alternatives` of literals, classes, references, groups and repetitions.
 *
 * Line breaks are white space; a name before `::=` begins the next rule. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/char_automaton.h"
#include "coordinator/grammar/code_ranges.h"
#include "coordinator/grammar/grammar.h"
#include "coordinator/grammar/grammar_builder.h"
#include "coordinator/grammar/grow.h"
#include "proto/base/utf8.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { N_DEPTH_MAX = 200, N_NAME_MAX = 128 };

struct name {
    const char *text;
    size_t n;
    grammar_rule rule;
    size_t mention; /* where in the text it stands first */
    bool defined;
};

struct gbnf {
    struct grammar_builder *builder;
    const char *text, *at, *end;
    unsigned depth;
    struct name *names;
    uint32_t *table; /* [n_slot] names by hash, counted from 1, 0: free */
    size_t n_name, name_room, n_slot;
    struct lm_error *err;
    enum lm_status status;
};

/* Expressions of a sequence or a choice that is being read. */
struct expr_list {
    grammar_expr *parts;
    size_t n, room;
};

static void fail_at(struct gbnf *gbnf, const char *at, const char *what)
{
    size_t line = 1, column = 1;
    if (gbnf->status != LM_OK) return;
    for (const char *c = gbnf->text; c < at; c++) {
        column = *c == '\n' ? 1 : column + (((uint8_t)*c & 0xc0) != 0x80);
        line += *c == '\n';
    }
    gbnf->status =
        lm_fail(gbnf->err, LM_E_FORMAT, "grammar line %zu column %zu: %s", line, column, what);
}

static void fail_memory(struct gbnf *gbnf)
{
    if (gbnf->status == LM_OK)
        gbnf->status = lm_fail(gbnf->err, LM_E_NO_MEM, "no memory for a grammar");
}

static bool push(struct gbnf *gbnf, struct expr_list *list, grammar_expr part)
{
    if (!grow_to(&list->parts, &list->room, list->n + 1, sizeof(*list->parts))) {
        fail_memory(gbnf);
        return false;
    }
    list->parts[list->n++] = part;
    return true;
}

static bool peek(const struct gbnf *gbnf, char c)
{
    return gbnf->at < gbnf->end && *gbnf->at == c;
}

static bool accept(struct gbnf *gbnf, char c)
{
    if (!peek(gbnf, c)) return false;
    gbnf->at++;
    return true;
}

static void skip_space(struct gbnf *gbnf)
{
    while (gbnf->at < gbnf->end) {
        if (*gbnf->at == '#')
            while (gbnf->at < gbnf->end && *gbnf->at != '\n')
                gbnf->at++;
        else if (!strchr(" \t\r\n", *gbnf->at) || !*gbnf->at)
            return;
        else
            gbnf->at++;
    }
}

/* ---- names ---------------------------------------------------------------------------------- */

static size_t name_length(const struct gbnf *gbnf)
{
    const char *c = gbnf->at;
    while (c < gbnf->end && ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                             (*c >= '0' && *c <= '9') || *c == '-' || *c == '_'))
        c++;
    return (size_t)(c - gbnf->at);
}

static uint32_t *find_slot(const struct gbnf *gbnf, const char *text, size_t n)
{
    size_t slot = XXH3_64bits(text, n) & (gbnf->n_slot - 1);
    for (; gbnf->table[slot]; slot = (slot + 1) & (gbnf->n_slot - 1)) {
        const struct name *name = &gbnf->names[gbnf->table[slot] - 1];
        if (name->n == n && !memcmp(name->text, text, n)) break;
    }
    return &gbnf->table[slot];
}

/* The name at the current position, which is passed; NULL after an error. */
static struct name *read_name(struct gbnf *gbnf)
{
    const size_t n = name_length(gbnf);
    const char *text = gbnf->at;
    if (n > N_NAME_MAX) fail_at(gbnf, text, "a name of more than 128 characters");
    if (gbnf->status != LM_OK) return NULL;
    gbnf->at += n;
    uint32_t *slot = find_slot(gbnf, text, n);
    if (*slot) return &gbnf->names[*slot - 1];
    char copy[N_NAME_MAX + 1];
    memcpy(copy, text, n);
    copy[n] = 0;
    if (!grow_to(&gbnf->names, &gbnf->name_room, gbnf->n_name + 1, sizeof(*gbnf->names))) {
        fail_memory(gbnf);
        return NULL;
    }
    struct name *name = &gbnf->names[gbnf->n_name++];
    *name = (struct name){.text = text,
                          .n = n,
                          .rule = grammar_build_rule(gbnf->builder, copy),
                          .mention = (size_t)(text - gbnf->text)};
    *slot = (uint32_t)gbnf->n_name;
    return name;
}

/* Whether a rule begins here. */
static bool at_rule(const struct gbnf *gbnf)
{
    struct gbnf ahead = *gbnf;
    const size_t n = name_length(&ahead);
    if (!n) return false;
    ahead.at += n;
    skip_space(&ahead);
    return ahead.end - ahead.at >= 3 && !memcmp(ahead.at, "::=", 3);
}

/* ---- characters ----------------------------------------------------------------------------- */

static uint32_t read_hex(struct gbnf *gbnf, size_t n)
{
    const char *begin = gbnf->at;
    uint32_t code = 0;
    for (size_t i = 0; i < n; i++, gbnf->at++) {
        const char c = gbnf->at < gbnf->end ? *gbnf->at : 0;
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) {
            fail_at(gbnf, begin, "an escape without its hexadecimal digits");
            return 0;
        }
        code = code << 4 | (uint32_t)digit;
    }
    if (code > CHAR_LAST || (code >= 0xd800 && code <= 0xdfff))
        fail_at(gbnf, begin, "an escape that is no character");
    return code;
}

/* A character of a literal or class, which may be escaped. */
static uint32_t read_character(struct gbnf *gbnf)
{
    uint32_t code;
    const size_t n = utf8_decode(gbnf->at, (size_t)(gbnf->end - gbnf->at), &code);
    if (!n) {
        fail_at(gbnf, gbnf->at, "not UTF-8");
        return 0;
    }
    gbnf->at += n;
    if (code != '\\') return code;
    const char *begin = gbnf->at - 1;
    const char c = gbnf->at < gbnf->end ? *gbnf->at++ : 0;
    switch (c) {
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case 'x':
        return read_hex(gbnf, 2);
    case 'u':
        return read_hex(gbnf, 4);
    case 'U':
        return read_hex(gbnf, 8);
    case '\\':
    case '"':
    case '[':
    case ']':
    case '-':
    case '^':
        return (uint8_t)c;
    default:
        fail_at(gbnf, begin, "an unknown escape");
        return 0;
    }
}

static grammar_expr read_literal(struct gbnf *gbnf)
{
    const char *begin = gbnf->at++;
    char *bytes = NULL;
    size_t n = 0, room = 0;
    while (gbnf->status == LM_OK && !accept(gbnf, '"')) {
        if (gbnf->at == gbnf->end || *gbnf->at == '\n') {
            fail_at(gbnf, begin, "a literal without its end");
            break;
        }
        const uint32_t code = read_character(gbnf);
        if (!grow_to(&bytes, &room, n + 4, 1))
            fail_memory(gbnf);
        else
            n += utf8_encode(code, bytes + n);
    }
    const grammar_expr literal =
        gbnf->status == LM_OK ? grammar_build_literal(gbnf->builder, bytes, n) : GRAMMAR_NOTHING;
    free(bytes);
    return literal;
}

static grammar_expr read_class(struct gbnf *gbnf)
{
    const char *begin = gbnf->at++;
    const bool negated = accept(gbnf, '^');
    struct code_ranges set = {0};
    while (gbnf->status == LM_OK && !accept(gbnf, ']')) {
        if (gbnf->at == gbnf->end) {
            fail_at(gbnf, begin, "a class without its end");
            break;
        }
        const char *first = gbnf->at;
        const uint32_t low = read_character(gbnf);
        uint32_t high = low;
        if (gbnf->end - gbnf->at >= 2 && *gbnf->at == '-' && gbnf->at[1] != ']') {
            gbnf->at++;
            high = read_character(gbnf);
        }
        if (high < low) fail_at(gbnf, first, "a range whose end comes first");
        code_ranges_add(&set, low, high);
    }
    if (negated)
        code_ranges_negate(&set);
    else
        code_ranges_normalize(&set);
    if (set.no_memory) fail_memory(gbnf);
    const grammar_expr class = gbnf->status == LM_OK
                                   ? grammar_build_class(gbnf->builder, set.ranges, set.n)
                                   : GRAMMAR_NOTHING;
    code_ranges_fini(&set);
    return class;
}

/* ---- expressions ---------------------------------------------------------------------------- */

static grammar_expr read_alternatives(struct gbnf *gbnf);

static uint32_t read_count(struct gbnf *gbnf)
{
    const char *begin = gbnf->at;
    uint64_t count = 0;
    for (; gbnf->at < gbnf->end && *gbnf->at >= '0' && *gbnf->at <= '9'; gbnf->at++)
        if (count < UINT32_MAX) count = 10 * count + (uint64_t)(*gbnf->at - '0');
    if (gbnf->at == begin) fail_at(gbnf, begin, "a number is missing");
    if (count >= GRAMMAR_UNBOUNDED) fail_at(gbnf, begin, "a number that is too large");
    return (uint32_t)count;
}

/* The signs of repetition behind an element. */
static grammar_expr read_repetition(struct gbnf *gbnf, grammar_expr part)
{
    while (gbnf->status == LM_OK) {
        const char *begin = gbnf->at;
        uint32_t least = 0, most = GRAMMAR_UNBOUNDED;
        skip_space(gbnf);
        if (accept(gbnf, '+'))
            least = 1;
        else if (accept(gbnf, '?'))
            most = 1;
        else if (accept(gbnf, '{')) {
            skip_space(gbnf);
            least = most = peek(gbnf, ',') ? 0 : read_count(gbnf);
            skip_space(gbnf);
            if (accept(gbnf, ',')) {
                skip_space(gbnf);
                most = peek(gbnf, '}') ? GRAMMAR_UNBOUNDED : read_count(gbnf);
                skip_space(gbnf);
            }
            if (!accept(gbnf, '}')) fail_at(gbnf, gbnf->at, "expected '}'");
            if (most < least) fail_at(gbnf, begin, "a repetition whose end comes first");
        } else if (!accept(gbnf, '*'))
            break;
        if (gbnf->status == LM_OK) part = grammar_build_repeat(gbnf->builder, part, least, most);
    }
    return part;
}

static grammar_expr read_group(struct gbnf *gbnf)
{
    static const char too_deep[] = "groups are nested more than 200 deep";
    const char *begin = gbnf->at++;
    if (++gbnf->depth > N_DEPTH_MAX) fail_at(gbnf, begin, too_deep);
    const grammar_expr group = gbnf->status == LM_OK ? read_alternatives(gbnf) : GRAMMAR_NOTHING;
    gbnf->depth--;
    if (!accept(gbnf, ')')) fail_at(gbnf, begin, "a group without its end");
    return group;
}

static grammar_expr read_element(struct gbnf *gbnf)
{
    static const struct code_range any = {0, CHAR_LAST};
    switch (*gbnf->at) {
    case '"':
        return read_literal(gbnf);
    case '[':
        return read_class(gbnf);
    case '(':
        return read_group(gbnf);
    case '.':
        gbnf->at++;
        return grammar_build_class(gbnf->builder, &any, 1);
    default:
        if (name_length(gbnf)) {
            const struct name *name = read_name(gbnf);
            return name ? grammar_build_call(gbnf->builder, name->rule) : GRAMMAR_NOTHING;
        }
        fail_at(gbnf, gbnf->at, "expected a literal, class, name or group");
        return GRAMMAR_NOTHING;
    }
}

static grammar_expr read_sequence(struct gbnf *gbnf)
{
    struct expr_list list = {0};
    for (;;) {
        skip_space(gbnf);
        if (gbnf->status != LM_OK || gbnf->at == gbnf->end || peek(gbnf, '|') || peek(gbnf, ')') ||
            at_rule(gbnf))
            break;
        const grammar_expr element = read_element(gbnf);
        if (!push(gbnf, &list, read_repetition(gbnf, element))) break;
    }
    const grammar_expr sequence = gbnf->status == LM_OK
                                      ? grammar_build_sequence(gbnf->builder, list.parts, list.n)
                                      : GRAMMAR_NOTHING;
    free(list.parts);
    return sequence;
}

static grammar_expr read_alternatives(struct gbnf *gbnf)
{
    struct expr_list list = {0};
    do {
        if (!push(gbnf, &list, read_sequence(gbnf))) break;
    } while (gbnf->status == LM_OK && accept(gbnf, '|'));
    const grammar_expr choice = gbnf->status == LM_OK
                                    ? grammar_build_choice(gbnf->builder, list.parts, list.n)
                                    : GRAMMAR_NOTHING;
    free(list.parts);
    return choice;
}

static void read_rule(struct gbnf *gbnf)
{
    const char *begin = gbnf->at;
    if (!at_rule(gbnf)) {
        fail_at(gbnf, begin, "expected a rule: name ::= ...");
        return;
    }
    struct name *name = read_name(gbnf);
    if (!name) return;
    if (name->defined) fail_at(gbnf, begin, "a rule that is defined already");
    name->defined = true;
    const grammar_rule rule = name->rule;
    skip_space(gbnf);
    gbnf->at += 3;
    const grammar_expr body = read_alternatives(gbnf);
    if (gbnf->status == LM_OK) grammar_build_define(gbnf->builder, rule, body);
}

static enum lm_status read_rules(struct gbnf *gbnf, struct grammar **out, struct lm_error *err)
{
    for (skip_space(gbnf); gbnf->at < gbnf->end && gbnf->status == LM_OK; skip_space(gbnf))
        read_rule(gbnf);
    if (gbnf->status != LM_OK) return gbnf->status;
    const uint32_t root = *find_slot(gbnf, "root", 4);
    if (!root) return lm_fail(err, LM_E_FORMAT, "the grammar has no rule root");
    for (size_t i = 0; i < gbnf->n_name && gbnf->status == LM_OK; i++)
        if (!gbnf->names[i].defined)
            fail_at(gbnf, gbnf->text + gbnf->names[i].mention, "a rule that is not defined");
    if (gbnf->status != LM_OK) return gbnf->status;
    return grammar_builder_finish(
        out, gbnf->builder, grammar_build_call(gbnf->builder, gbnf->names[root - 1].rule), err);
}

enum lm_status grammar_from_gbnf(struct grammar **out, const char *text, size_t n,
                                 struct lm_error *err)
{
    struct gbnf gbnf = {.text = text, .at = text, .end = text + n, .err = err, .n_slot = 64};
    while (gbnf.n_slot < n) /* names are fewer than bytes */
        gbnf.n_slot *= 2;
    enum lm_status status = grammar_builder_create(&gbnf.builder, err);
    if (status != LM_OK) return status;
    gbnf.table = calloc(gbnf.n_slot, sizeof(*gbnf.table));
    status = gbnf.table ? read_rules(&gbnf, out, err)
                        : lm_fail(err, LM_E_NO_MEM, "no memory for a grammar");
    free(gbnf.table);
    free(gbnf.names);
    grammar_builder_destroy(gbnf.builder);
    return status;
}
