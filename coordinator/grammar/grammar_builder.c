/* Making expressions. */
#include "coordinator/grammar/grammar_builder.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/expression.h"
#include "coordinator/grammar/grow.h"
#include "proto/base/utf8.h"

enum {
    N_EXPR_MAX = 1 << 22,
    N_EXPANDED_MAX = 64, /* states up to which a repetition is written out instead of counted */
};

static bool reserve(struct grammar_builder *builder, void *array, size_t *room, size_t n,
                    size_t size)
{
    if (builder->status != LM_OK) return false;
    if (n > N_EXPR_MAX * (size_t)16)
        builder->status = LM_E_LIMIT;
    else if (!grow_to(array, room, n, size))
        builder->status = LM_E_NO_MEM;
    return builder->status == LM_OK;
}

static grammar_expr add_expr(struct grammar_builder *builder, enum expr_kind kind, size_t first,
                             size_t n, uint64_t n_state)
{
    if (builder->n_expr >= N_EXPR_MAX) builder->status = LM_E_LIMIT;
    if (!reserve(builder, &builder->exprs, &builder->expr_room, builder->n_expr + 1,
                 sizeof(*builder->exprs)))
        return GRAMMAR_NOTHING;
    builder->exprs[builder->n_expr] = (struct expr){
        .kind = kind,
        .first = (uint32_t)first,
        .n = (uint32_t)n,
        .n_state = n_state < GRAMMAR_STATES_MAX ? (uint32_t)n_state : GRAMMAR_STATES_MAX,
        .body_rule = NO_RULE,
    };
    return (grammar_expr)builder->n_expr++;
}

enum lm_status grammar_builder_create(struct grammar_builder **out, struct lm_error *err)
{
    struct grammar_builder *builder = calloc(1, sizeof(*builder));
    if (!builder) return lm_fail(err, LM_E_NO_MEM, "no memory for a grammar");
    add_expr(builder, EXPR_NOTHING, 0, 0, 0);
    add_expr(builder, EXPR_EMPTY, 0, 0, 0);
    *out = builder;
    return LM_OK;
}

void grammar_builder_destroy(struct grammar_builder *builder)
{
    if (!builder) return;
    for (size_t i = 0; i < builder->n_rule; i++)
        free(builder->rules[i].name);
    for (size_t i = 0; i < builder->n_automaton; i++)
        char_automaton_destroy(builder->automata[i]);
    free(builder->automata);
    free(builder->rules);
    free(builder->parts);
    free(builder->ranges);
    free(builder->spans);
    free(builder->bytes);
    free(builder->exprs);
    free(builder);
}

/* Copies bytes into the pool; *first: where. */
static bool add_bytes(struct grammar_builder *builder, const char *bytes, size_t n, size_t *first)
{
    if (!reserve(builder, &builder->bytes, &builder->byte_room, builder->n_byte + n, 1))
        return false;
    if (n) memcpy(builder->bytes + builder->n_byte, bytes, n);
    *first = builder->n_byte;
    builder->n_byte += n;
    return true;
}

grammar_expr grammar_build_literal(struct grammar_builder *builder, const char *bytes, size_t n)
{
    size_t first;
    if (!n) return GRAMMAR_EMPTY;
    if (!add_bytes(builder, bytes, n, &first)) return GRAMMAR_NOTHING;
    return add_expr(builder, EXPR_LITERAL, first, n, n);
}

grammar_expr grammar_build_string(struct grammar_builder *builder, const char *text)
{
    return grammar_build_literal(builder, text, strlen(text));
}

static int compare_spans(const void *left, const void *right, void *context)
{
    const struct span *a = left, *b = right;
    const char *bytes = context;
    const int order = memcmp(bytes + a->first, bytes + b->first, a->n < b->n ? a->n : b->n);
    return order ? order : (a->n > b->n) - (a->n < b->n);
}

grammar_expr grammar_build_one_of(struct grammar_builder *builder, const char *const *literals,
                                  const size_t *n_bytes, size_t n)
{
    const size_t begin = builder->n_span;
    uint64_t n_state = 1;
    if (!n ||
        !reserve(builder, &builder->spans, &builder->span_room, begin + n, sizeof(*builder->spans)))
        return GRAMMAR_NOTHING;
    for (size_t i = 0; i < n; i++) {
        size_t first;
        if (!add_bytes(builder, literals[i], n_bytes[i], &first)) return GRAMMAR_NOTHING;
        builder->spans[begin + i] = (struct span){(uint32_t)first, (uint32_t)n_bytes[i]};
        n_state += n_bytes[i];
    }
    struct span *const spans = builder->spans + begin;
    qsort_r(spans, n, sizeof(*spans), compare_spans, builder->bytes);
    size_t n_kept = 1;
    for (size_t i = 1; i < n; i++)
        if (compare_spans(&spans[i], &spans[n_kept - 1], builder->bytes))
            spans[n_kept++] = spans[i];
    builder->n_span = begin + n_kept;
    return add_expr(builder, EXPR_ONE_OF, begin, n_kept, n_state);
}

grammar_expr grammar_build_class(struct grammar_builder *builder, const struct code_range *ranges,
                                 size_t n)
{
    const size_t begin = builder->n_range;
    if (!n || !reserve(builder, &builder->ranges, &builder->range_room, begin + n,
                       sizeof(*builder->ranges)))
        return GRAMMAR_NOTHING;
    memcpy(builder->ranges + begin, ranges, n * sizeof(*ranges));
    builder->n_range += n;
    return add_expr(builder, EXPR_CLASS, begin, n, 4);
}

/* Parts may be the builder's own array only before it grows: callers pass arrays of their own. */
static grammar_expr add_parts(struct grammar_builder *builder, enum expr_kind kind,
                              const grammar_expr *parts, size_t n)
{
    const size_t begin = builder->n_part;
    uint64_t n_state = 1;
    if (!reserve(builder, &builder->parts, &builder->part_room, begin + n, sizeof(*builder->parts)))
        return GRAMMAR_NOTHING;
    for (size_t i = 0; i < n; i++) {
        assert(parts[i] < builder->n_expr);
        builder->parts[begin + i] = parts[i];
        n_state += builder->exprs[parts[i]].n_state;
    }
    builder->n_part += n;
    return add_expr(builder, kind, begin, n, n_state);
}

grammar_expr grammar_build_sequence(struct grammar_builder *builder, const grammar_expr *parts,
                                    size_t n)
{
    if (n == 1) return parts[0];
    for (size_t i = 0; i < n; i++)
        if (parts[i] == GRAMMAR_NOTHING) return GRAMMAR_NOTHING;
    return n ? add_parts(builder, EXPR_SEQUENCE, parts, n) : GRAMMAR_EMPTY;
}

grammar_expr grammar_build_choice(struct grammar_builder *builder, const grammar_expr *parts,
                                  size_t n)
{
    if (n == 1) return parts[0];
    return n ? add_parts(builder, EXPR_CHOICE, parts, n) : GRAMMAR_NOTHING;
}

grammar_expr grammar_build_optional(struct grammar_builder *builder, grammar_expr part)
{
    return grammar_build_choice(builder, (const grammar_expr[]){part, GRAMMAR_EMPTY}, 2);
}

static grammar_expr build_pair(struct grammar_builder *builder, grammar_expr a, grammar_expr b)
{
    if (b == GRAMMAR_EMPTY) return a;
    return grammar_build_sequence(builder, (const grammar_expr[]){a, b}, 2);
}

/* Written out: part part ... (part (part)?)? or part part ... part*. */
static grammar_expr expand_repeat(struct grammar_builder *builder, grammar_expr part,
                                  uint32_t least, uint32_t most)
{
    grammar_expr rest = GRAMMAR_EMPTY;
    if (most == GRAMMAR_UNBOUNDED)
        rest = add_parts(builder, EXPR_STAR, &part, 1);
    else
        for (uint32_t i = least; i < most; i++)
            rest = grammar_build_optional(builder, build_pair(builder, part, rest));
    for (uint32_t i = 0; i < least; i++)
        rest = build_pair(builder, part, rest);
    return rest;
}

grammar_expr grammar_build_repeat(struct grammar_builder *builder, grammar_expr part,
                                  uint32_t least, uint32_t most)
{
    if (least > most) return GRAMMAR_NOTHING;
    if (most == 0 || part == GRAMMAR_EMPTY) return GRAMMAR_EMPTY;
    if (part == GRAMMAR_NOTHING) return least ? GRAMMAR_NOTHING : GRAMMAR_EMPTY;
    const uint64_t n_time = most == GRAMMAR_UNBOUNDED ? (uint64_t)least + 1 : most;
    if (n_time == 1 || n_time * (builder->exprs[part].n_state + 1) <= N_EXPANDED_MAX)
        return expand_repeat(builder, part, least, most);
    if (builder->exprs[part].body_rule == NO_RULE) {
        const grammar_rule body = grammar_build_rule(builder, NULL);
        if (builder->status != LM_OK) return GRAMMAR_NOTHING;
        grammar_build_define(builder, body, part);
        builder->exprs[part].body_rule = body;
    }
    const grammar_rule loop = grammar_build_rule(builder, NULL);
    if (builder->status != LM_OK) return GRAMMAR_NOTHING;
    struct rule_text *rule = &builder->rules[loop];
    rule->loop = builder->exprs[part].body_rule;
    rule->least = least;
    rule->most = most;
    /* what it amounts to, for the questions that are asked of expressions */
    rule->body = least ? part : grammar_build_optional(builder, part);
    return grammar_build_call(builder, loop);
}

grammar_rule grammar_build_rule(struct grammar_builder *builder, const char *name)
{
    char *copy = NULL;
    if (!reserve(builder, &builder->rules, &builder->rule_room, builder->n_rule + 1,
                 sizeof(*builder->rules)))
        return 0;
    if (name && !(copy = strdup(name))) {
        builder->status = LM_E_NO_MEM;
        return 0;
    }
    builder->rules[builder->n_rule] =
        (struct rule_text){.name = copy, .body = NO_EXPR, .loop = NO_RULE};
    return (grammar_rule)builder->n_rule++;
}

void grammar_build_define(struct grammar_builder *builder, grammar_rule rule, grammar_expr body)
{
    if (builder->status != LM_OK) return;
    assert(rule < builder->n_rule && body < builder->n_expr);
    builder->rules[rule].body = body;
}

grammar_expr grammar_build_call(struct grammar_builder *builder, grammar_rule rule)
{
    if (builder->status != LM_OK) return GRAMMAR_NOTHING;
    assert(rule < builder->n_rule);
    return add_expr(builder, EXPR_CALL, rule, 0, 1);
}

grammar_expr grammar_build_automaton(struct grammar_builder *builder,
                                     struct char_automaton *automaton, enum char_writing writing)
{
    if (!reserve(builder, &builder->automata, &builder->automaton_room, builder->n_automaton + 1,
                 sizeof(*builder->automata))) {
        char_automaton_destroy(automaton);
        return GRAMMAR_NOTHING;
    }
    builder->automata[builder->n_automaton++] = automaton;
    return add_expr(builder, EXPR_AUTOMATON, builder->n_automaton - 1, writing,
                    4 * (uint64_t)automaton->n_state);
}

enum { N_MARKER_MAX = 64 };

/* Classes for the characters of a text: ASCII one by one, of the others those that it has. *low:
 * first characters; returns how many. */
static uint32_t classes_of(const uint32_t *codes, size_t n, uint32_t *low)
{
    uint32_t n_class = 0;
    for (; n_class <= 128; n_class++)
        low[n_class] = n_class;
    for (;;) { /* the lowest one that is not there yet, and what is above it */
        uint32_t next = CHAR_LAST;
        for (size_t i = 0; i < n; i++)
            if (codes[i] >= low[n_class - 1] && codes[i] < next && codes[i] >= 128) next = codes[i];
        if (next == CHAR_LAST) return n_class;
        if (next > low[n_class - 1]) low[n_class++] = next;
        low[n_class++] = next + 1;
    }
}

static uint32_t class_of(const struct char_automaton *automaton, uint32_t code)
{
    uint32_t class = 0;
    while (automaton->class_low[class + 1] <= code)
        class ++;
    return class;
}

/* Characters of which the marker's first `state` have been seen, and its whole: the automaton of
 * Knuth, Morris and Pratt. */
static struct char_automaton *find_marker(const uint32_t *marker, size_t n)
{
    uint32_t low[129 + 2 * N_MARKER_MAX];
    const uint32_t n_class = classes_of(marker, n, low);
    struct char_automaton *found = char_automaton_create((uint32_t)n + 1, n_class);
    if (!found) return NULL;
    memcpy(found->class_low, low, n_class * sizeof(*low));
    found->class_low[n_class] = CHAR_LAST + 1;
    uint32_t border = 0; /* the state in which the text but for its first character ends */
    for (uint32_t state = 0; state < n; state++) {
        uint32_t *const row = found->next + (size_t)state * n_class;
        for (uint32_t class = 0; class < n_class; class ++)
            row[class] = state ? found->next[(size_t)border * n_class + class] : 0;
        const uint32_t class = class_of(found, marker[state]);
        if (state) border = row[class];
        row[class] = state + 1;
    }
    memset(found->next + n * n_class, 0xff, n_class * sizeof(*found->next));
    found->accepts[n] = true;
    return found;
}

grammar_expr grammar_build_text_until(struct grammar_builder *builder, const char *marker, size_t n)
{
    uint32_t codes[N_MARKER_MAX];
    size_t n_code = 0;
    for (size_t at = 0; at < n; n_code++) {
        assert(n_code < N_MARKER_MAX);
        at += utf8_decode(marker + at, n - at, &codes[n_code]);
    }
    struct char_automaton *found = find_marker(codes, n_code);
    if (found) return grammar_build_automaton(builder, found, CHAR_PLAIN);
    if (builder->status == LM_OK) builder->status = LM_E_NO_MEM;
    return GRAMMAR_NOTHING;
}
