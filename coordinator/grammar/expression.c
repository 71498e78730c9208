/* Two questions about every expression, and an order of the rules. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/expression.h"
#include "coordinator/grammar/grow.h"

void expression_facts_fini(struct expression_facts *facts)
{
    free(facts->of_expr);
    free(facts->of_rule);
}

static bool leaf_matches_text(const struct grammar_builder *builder, const struct expr *expr)
{
    if (expr->kind == EXPR_AUTOMATON) return builder->automata[expr->first]->n_state > 0;
    return expr->kind == EXPR_EMPTY || expr->kind == EXPR_LITERAL || expr->kind == EXPR_ONE_OF ||
           expr->kind == EXPR_CLASS;
}

static bool leaf_matches_empty(const struct grammar_builder *builder, const struct expr *expr)
{
    if (expr->kind == EXPR_AUTOMATON) {
        const struct char_automaton *automaton = builder->automata[expr->first];
        return automaton->n_state && automaton->accepts[0];
    }
    return expr->kind == EXPR_EMPTY ||
           (expr->kind == EXPR_ONE_OF && !builder->spans[expr->first].n);
}

/* Which expressions have a property that sequences have if all parts have it, choices if one has,
 * stars always, and calls as the rule's body: from the leaves upwards, each dependence once. */
static bool derive(const struct grammar_builder *builder,
                   bool (*leaf)(const struct grammar_builder *, const struct expr *),
                   struct expression_facts *facts)
{
    const size_t n_expr = builder->n_expr, n_rule = builder->n_rule;
    /* who depends on node i, a rule being node n_expr + its number: a list of edges by node */
    const size_t n_node = n_expr + n_rule, n_edge = builder->n_part + n_expr + n_rule;
    uint32_t *head = malloc((n_node + 1) * sizeof(*head));
    uint32_t *next = malloc((n_edge + 1) * sizeof(*next));
    uint32_t *user = malloc((n_edge + 1) * sizeof(*user));
    uint32_t *missing = calloc(n_node + 1, sizeof(*missing));
    uint32_t *queue = malloc((n_node + 1) * sizeof(*queue));
    size_t n_queue = 0, n_used = 0;
    bool ok = head && next && user && missing && queue;
    facts->of_expr = calloc(n_expr + 1, sizeof(bool));
    facts->of_rule = calloc(n_rule + 1, sizeof(bool));
    ok = ok && facts->of_expr && facts->of_rule;
    if (!ok) goto out;
    memset(head, 0xff, (n_node + 1) * sizeof(*head));

#define DEPEND(who, on)                                                                            \
    do {                                                                                           \
        user[n_used] = (uint32_t)(who);                                                            \
        next[n_used] = head[on];                                                                   \
        head[on] = (uint32_t)n_used++;                                                             \
    } while (0)
    for (size_t i = 0; i < n_expr; i++) {
        const struct expr *expr = &builder->exprs[i];
        missing[i] = 1;
        if (expr->kind == EXPR_SEQUENCE) missing[i] = expr->n;
        if (expr->kind == EXPR_SEQUENCE || expr->kind == EXPR_CHOICE)
            for (uint32_t part = 0; part < expr->n; part++)
                DEPEND(i, builder->parts[expr->first + part]);
        else if (expr->kind == EXPR_CALL)
            DEPEND(i, n_expr + expr->first);
        else if (expr->kind == EXPR_STAR || leaf(builder, expr))
            queue[n_queue++] = (uint32_t)i;
    }
    for (size_t i = 0; i < n_rule; i++) {
        missing[n_expr + i] = 1;
        if (builder->rules[i].body != NO_EXPR) DEPEND(n_expr + i, builder->rules[i].body);
    }
#undef DEPEND
    for (size_t i = 0; i < n_queue; i++)
        missing[queue[i]] = 0;
    for (size_t i = 0; i < n_queue; i++) {
        const uint32_t node = queue[i];
        if (node < n_expr)
            facts->of_expr[node] = true;
        else
            facts->of_rule[node - n_expr] = true;
        for (uint32_t edge = head[node]; edge != UINT32_MAX; edge = next[edge])
            if (missing[user[edge]] && !--missing[user[edge]]) queue[n_queue++] = user[edge];
    }
out:
    free(queue);
    free(missing);
    free(user);
    free(next);
    free(head);
    if (!ok) expression_facts_fini(facts);
    return ok;
}

bool expression_find_productive(const struct grammar_builder *builder,
                                struct expression_facts *facts)
{
    return derive(builder, leaf_matches_text, facts);
}

bool expression_find_nullable(const struct grammar_builder *builder, struct expression_facts *facts)
{
    return derive(builder, leaf_matches_empty, facts);
}

/* A walk of the expressions and rules that a rule can reach, without recursion in C. */
struct walk {
    const struct grammar_builder *builder;
    const struct expression_facts
        *nullable; /* NULL: everything is followed, else only what may come first */
    uint8_t *mark; /* by node: 0 new, 1 on the way, 2 done */
    struct walk_entry {
        uint32_t node, next;
    } * stack;
    size_t n_stack, room;
    uint32_t *done; /* rules in the order in which they were left */
    size_t n_done;
    uint32_t cycle; /* a rule that reaches itself, or NO_RULE */
};

/* The i-th successor of a node, or NO_EXPR. */
static uint32_t successor(const struct walk *walk, uint32_t node, uint32_t i)
{
    const struct grammar_builder *builder = walk->builder;
    if (node >= builder->n_expr) {
        const struct rule_text *rule = &builder->rules[node - builder->n_expr];
        if (rule->loop != NO_RULE) return i ? NO_EXPR : (uint32_t)(builder->n_expr + rule->loop);
        return i || rule->body == NO_EXPR ? NO_EXPR : rule->body;
    }
    const struct expr *expr = &builder->exprs[node];
    if (expr->kind == EXPR_CALL) return i ? NO_EXPR : (uint32_t)(builder->n_expr + expr->first);
    const bool has_parts =
        expr->kind == EXPR_SEQUENCE || expr->kind == EXPR_CHOICE || expr->kind == EXPR_STAR;
    if (!has_parts || i >= expr->n) return NO_EXPR;
    if (walk->nullable && expr->kind == EXPR_SEQUENCE && i &&
        !walk->nullable->of_expr[builder->parts[expr->first + i - 1]])
        return NO_EXPR;
    return builder->parts[expr->first + i];
}

static bool push_node(struct walk *walk, uint32_t node)
{
    if (!grow_to(&walk->stack, &walk->room, walk->n_stack + 1, sizeof(*walk->stack))) return false;
    walk->mark[node] = 1;
    walk->stack[walk->n_stack++] = (struct walk_entry){node, 0};
    return true;
}

static bool walk_from(struct walk *walk, uint32_t rule)
{
    const uint32_t n_expr = (uint32_t)walk->builder->n_expr;
    if (walk->mark[n_expr + rule]) return true;
    if (!push_node(walk, n_expr + rule)) return false;
    while (walk->n_stack) {
        struct walk_entry *top = &walk->stack[walk->n_stack - 1];
        const uint32_t node = top->node, next = successor(walk, node, top->next++);
        if (next == NO_EXPR) {
            walk->mark[node] = 2;
            walk->n_stack--;
            if (node >= n_expr) walk->done[walk->n_done++] = node - n_expr;
        } else if (walk->mark[next] == 1 && walk->nullable) {
            /* a cycle passes through a rule: the innermost one on the way */
            size_t at = walk->n_stack;
            while (walk->stack[--at].node < n_expr)
                ;
            walk->cycle = walk->stack[at].node - n_expr;
            return true;
        } else if (!walk->mark[next] && !push_node(walk, next))
            return false;
    }
    return true;
}

static bool init_walk(struct walk *walk, const struct grammar_builder *builder,
                      const struct expression_facts *nullable)
{
    *walk = (struct walk){.builder = builder, .nullable = nullable, .cycle = NO_RULE};
    walk->mark = calloc(builder->n_expr + builder->n_rule, 1);
    walk->done = malloc(builder->n_rule * sizeof(*walk->done));
    return walk->mark && walk->done;
}

static void fini_walk(struct walk *walk)
{
    free(walk->mark);
    free(walk->done);
    free(walk->stack);
}

/* The rules that start reaches, callers before those they may call without taking a byte. */
enum lm_status expression_order_rules(const struct grammar_builder *builder,
                                      const struct expression_facts *nullable, grammar_rule start,
                                      uint32_t **order, size_t *n_order, struct lm_error *err)
{
    struct walk reach, left;
    const bool made = init_walk(&reach, builder, NULL);
    enum lm_status status = lm_fail(err, LM_E_NO_MEM, "no memory for a grammar");
    if (!init_walk(&left, builder, nullable) || !made || !walk_from(&reach, start)) goto out;
    for (size_t i = 0; i < reach.n_done && left.cycle == NO_RULE; i++)
        if (!walk_from(&left, reach.done[i])) goto out;
    if (left.cycle != NO_RULE) {
        const char *name = builder->rules[left.cycle].name;
        status = name ? lm_fail(err, LM_E_FORMAT,
                                "rule %.100s may call itself before it has taken a byte", name)
                      : lm_fail(err, LM_E_FORMAT,
                                "a repetition of what may be empty, or a left recursion");
        goto out;
    }
    for (size_t i = 0; i < left.n_done / 2; i++) {
        const uint32_t rule = left.done[i];
        left.done[i] = left.done[left.n_done - 1 - i];
        left.done[left.n_done - 1 - i] = rule;
    }
    *order = left.done;
    *n_order = left.n_done;
    left.done = NULL;
    if (err) *err = (struct lm_error){0};
    status = LM_OK;
out:
    fini_walk(&left);
    fini_walk(&reach);
    return status;
}
