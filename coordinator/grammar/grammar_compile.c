/* Expressions become states.
 *
 * An expression is compiled backwards: given the state that follows it, its own first state
 * results. So a literal is a chain made from its end, and a star a state that leads into its body
 * and past it. What matches no text is left out, so that every state has a way to the end. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "coordinator/grammar/automaton.h"
#include "coordinator/grammar/automaton_writer.h"
#include "coordinator/grammar/expression.h"
#include "coordinator/grammar/grammar.h"

struct compiler {
    const struct grammar_builder *builder;
    struct automaton_writer writer;
    struct expression_facts productive, nullable;
    uint32_t *order; /* [n_order] rules of the builder */
    size_t n_order;
    uint32_t *rule_of; /* [n_rule of the builder] their places in the order */
    uint32_t *loop_of; /* [n_rule of the builder] the loop state over a rule, 0: none yet */
};

static uint32_t compile(struct compiler *compiler, grammar_expr number, uint32_t next);

/* The literals of a sorted list, from byte `depth` on: they share what comes before. */
static uint32_t compile_one_of(struct compiler *compiler, const struct span *spans, size_t n,
                               size_t depth, uint32_t next)
{
    struct automaton_writer *const writer = &compiler->writer;
    const char *const bytes = compiler->builder->bytes;
    const struct span first = spans[0], last = spans[n - 1];
    size_t shared = depth; /* bytes that all have in common: first and last decide */
    while (shared < first.n && shared < last.n &&
           bytes[first.first + shared] == bytes[last.first + shared])
        shared++;
    uint32_t state = next;
    if (n > 1) {
        struct move_list moves = {0};
        for (size_t i = 0, end; i < n && writer->status == LM_OK; i = end) {
            end = i + 1;
            if (spans[i].n == shared) {
                automaton_list_empty(writer, &moves, next);
                continue;
            }
            const uint8_t byte = (uint8_t)bytes[spans[i].first + shared];
            while (end < n && (uint8_t)bytes[spans[end].first + shared] == byte)
                end++;
            automaton_list_bytes(writer, &moves, byte, byte,
                                 compile_one_of(compiler, spans + i, end - i, shared + 1, next));
        }
        state = automaton_add_state(writer, &moves);
    }
    for (size_t i = shared; i > depth; i--)
        state = automaton_add_byte(writer, (uint8_t)bytes[first.first + i - 1], state);
    return state;
}

static uint32_t compile_choice(struct compiler *compiler, const struct expr *expr, uint32_t next)
{
    struct move_list moves = {0};
    for (uint32_t i = 0; i < expr->n; i++) {
        const grammar_expr part = compiler->builder->parts[expr->first + i];
        if (compiler->productive.of_expr[part])
            automaton_list_empty(&compiler->writer, &moves, compile(compiler, part, next));
    }
    return automaton_add_state(&compiler->writer, &moves);
}

static uint32_t compile_star(struct compiler *compiler, grammar_expr part, uint32_t next)
{
    if (!compiler->productive.of_expr[part]) return next;
    const uint32_t state = automaton_reserve_state(&compiler->writer);
    struct move_list moves = {0};
    automaton_list_empty(&compiler->writer, &moves, compile(compiler, part, state));
    automaton_list_empty(&compiler->writer, &moves, next);
    automaton_set_moves(&compiler->writer, state, &moves);
    return state;
}

static uint32_t compile_class(struct compiler *compiler, const struct expr *expr, uint32_t next)
{
    struct move_list moves = {0};
    const struct code_range *ranges = compiler->builder->ranges + expr->first;
    for (uint32_t i = 0; i < expr->n; i++)
        automaton_list_range(&compiler->writer, &moves, ranges[i].low, ranges[i].high, next);
    return automaton_add_state(&compiler->writer, &moves);
}

static uint32_t compile_call(struct compiler *compiler, grammar_rule rule, uint32_t next)
{
    struct move_list moves = {0};
    automaton_list_call(&compiler->writer, &moves, compiler->rule_of[rule], next);
    return automaton_add_state(&compiler->writer, &moves);
}

static uint32_t compile(struct compiler *compiler, grammar_expr number, uint32_t next)
{
    const struct grammar_builder *builder = compiler->builder;
    const struct expr *expr = &builder->exprs[number];
    if (compiler->writer.status != LM_OK) return STATE_RETURN;
    assert(compiler->productive.of_expr[number]);
    switch (expr->kind) {
    case EXPR_NOTHING:
    case EXPR_EMPTY:
        break;
    case EXPR_LITERAL:
        for (uint32_t i = expr->n; i-- > 0;)
            next = automaton_add_byte(&compiler->writer, (uint8_t)builder->bytes[expr->first + i],
                                      next);
        break;
    case EXPR_ONE_OF:
        return compile_one_of(compiler, builder->spans + expr->first, expr->n, 0, next);
    case EXPR_CLASS:
        return compile_class(compiler, expr, next);
    case EXPR_SEQUENCE:
        for (uint32_t i = expr->n; i-- > 0;)
            next = compile(compiler, builder->parts[expr->first + i], next);
        break;
    case EXPR_CHOICE:
        return compile_choice(compiler, expr, next);
    case EXPR_STAR:
        return compile_star(compiler, builder->parts[expr->first], next);
    case EXPR_CALL:
        return compile_call(compiler, expr->first, next);
    case EXPR_AUTOMATON:
        return automaton_add_chars(&compiler->writer, builder->automata[expr->first],
                                   (enum char_writing)expr->n, next);
    }
    return next;
}

/* Where a rule begins. */
static struct place compile_rule(struct compiler *compiler, grammar_rule number)
{
    const struct rule_text *rule = &compiler->builder->rules[number];
    if (!compiler->productive.of_rule[number]) return (struct place){.state = STATE_RETURN};
    if (rule->loop == NO_RULE)
        return (struct place){.state = compile(compiler, rule->body, STATE_RETURN)};
    uint32_t *const loop = &compiler->loop_of[rule->loop];
    if (!*loop) {
        *loop = automaton_reserve_state(&compiler->writer);
        if (compiler->writer.status == LM_OK)
            compiler->writer.states[*loop].loop_rule = compiler->rule_of[rule->loop];
    }
    return (struct place){.state = *loop, .least = rule->least, .most = rule->most};
}

/* Bytes between two neighbouring ends of ranges are of one class. */
static void find_byte_classes(struct grammar *grammar)
{
    bool begins[257] = {[0] = true};
    for (uint32_t i = 0; i < grammar->n_move; i++)
        if (grammar->moves[i].kind == MOVE_BYTES)
            begins[grammar->moves[i].low] = begins[grammar->moves[i].high + 1] = true;
    for (uint32_t byte = 0; byte < 256; byte++) {
        if (begins[byte]) grammar->class_byte[grammar->n_class++] = (uint8_t)byte;
        grammar->byte_class[byte] = (uint8_t)(grammar->n_class - 1);
    }
}

static void find_id(struct grammar *grammar)
{
    XXH3_state_t hash;
    XXH3_128bits_reset(&hash);
    for (uint32_t i = 0; i < grammar->n_state; i++) {
        const uint32_t state[] = {grammar->states[i].n_move, grammar->states[i].loop_rule};
        XXH3_128bits_update(&hash, state, sizeof(state));
    }
    for (uint32_t i = 0; i < grammar->n_move; i++) {
        const struct move *move = &grammar->moves[i];
        const uint32_t words[] = {move->target, move->rule, move->kind, move->low, move->high};
        XXH3_128bits_update(&hash, words, sizeof(words));
    }
    for (uint32_t i = 0; i < grammar->n_rule; i++)
        XXH3_128bits_update(&hash, &grammar->rules[i], sizeof(grammar->rules[i]));
    const XXH128_hash_t id = XXH3_128bits_digest(&hash);
    grammar->id[0] = id.low64;
    grammar->id[1] = id.high64;
}

static enum lm_status compile_rules(struct compiler *compiler, struct grammar *grammar,
                                    struct lm_error *err)
{
    const size_t n_rule = compiler->builder->n_rule;
    compiler->rule_of = calloc(n_rule, sizeof(*compiler->rule_of));
    compiler->loop_of = calloc(n_rule, sizeof(*compiler->loop_of));
    grammar->rules = calloc(compiler->n_order, sizeof(*grammar->rules));
    if (!compiler->rule_of || !compiler->loop_of || !grammar->rules)
        return lm_fail(err, LM_E_NO_MEM, "no memory for a grammar");
    grammar->n_rule = (uint32_t)compiler->n_order;
    for (size_t i = 0; i < compiler->n_order; i++)
        compiler->rule_of[compiler->order[i]] = (uint32_t)i;
    for (size_t i = 0; i < compiler->n_order; i++) {
        const struct rule_text *rule = &compiler->builder->rules[compiler->order[i]];
        if (rule->loop != NO_RULE && compiler->nullable.of_rule[rule->loop])
            return lm_fail(err, LM_E_UNSUPPORTED,
                           "what is repeated up to %u times may be empty; write it so that it "
                           "cannot, and the repetition from 0",
                           rule->most);
        grammar->rules[i].start = compile_rule(compiler, compiler->order[i]);
    }
    if (compiler->writer.status == LM_E_LIMIT)
        return lm_fail(err, LM_E_LIMIT, "the grammar needs more than %d states",
                       GRAMMAR_STATES_MAX);
    if (compiler->writer.status != LM_OK)
        return lm_fail(err, compiler->writer.status, "no memory for a grammar");
    return LM_OK;
}

static enum lm_status compile_grammar(struct compiler *compiler, grammar_rule start,
                                      struct grammar *grammar, struct lm_error *err)
{
    if (!expression_find_productive(compiler->builder, &compiler->productive) ||
        !expression_find_nullable(compiler->builder, &compiler->nullable))
        return lm_fail(err, LM_E_NO_MEM, "no memory for a grammar");
    if (!compiler->productive.of_rule[start])
        return lm_fail(err, LM_E_FORMAT, "no text at all would match");
    enum lm_status status = expression_order_rules(compiler->builder, &compiler->nullable, start,
                                                   &compiler->order, &compiler->n_order, err);
    if (status == LM_OK) status = compile_rules(compiler, grammar, err);
    if (status != LM_OK) return status;
    struct automaton_writer *const writer = &compiler->writer;
    grammar->start_rule = compiler->rule_of[start];
    grammar->states = writer->states;
    grammar->n_state = (uint32_t)writer->n_state;
    grammar->moves = writer->moves;
    grammar->n_move = (uint32_t)writer->n_move;
    *writer = (struct automaton_writer){0};
    find_byte_classes(grammar);
    find_id(grammar);
    return LM_OK;
}

enum lm_status grammar_builder_finish(struct grammar **out, struct grammar_builder *builder,
                                      grammar_expr start, struct lm_error *err)
{
    const grammar_rule rule = grammar_build_rule(builder, NULL);
    grammar_build_define(builder, rule, start);
    if (builder->status == LM_E_LIMIT) return lm_fail(err, LM_E_LIMIT, "the grammar is too large");
    struct compiler compiler = {.builder = builder};
    struct grammar *grammar = calloc(1, sizeof(*grammar));
    if (grammar) atomic_init(&grammar->n_ref, 1);
    automaton_writer_init(&compiler.writer);
    enum lm_status status = LM_E_NO_MEM;
    if (!grammar || builder->status != LM_OK)
        lm_fail(err, status, "no memory for a grammar");
    else
        status = compile_grammar(&compiler, rule, grammar, err);
    automaton_writer_fini(&compiler.writer);
    expression_facts_fini(&compiler.productive);
    expression_facts_fini(&compiler.nullable);
    free(compiler.order);
    free(compiler.rule_of);
    free(compiler.loop_of);
    if (status == LM_OK)
        *out = grammar;
    else
        grammar_unref(grammar);
    return status;
}

struct grammar *grammar_ref(struct grammar *grammar)
{
    atomic_fetch_add(&grammar->n_ref, 1);
    return grammar;
}

void grammar_unref(struct grammar *grammar)
{
    if (!grammar || atomic_fetch_sub(&grammar->n_ref, 1) != 1) return;
    free(grammar->states);
    free(grammar->moves);
    free(grammar->rules);
    free(grammar);
}
