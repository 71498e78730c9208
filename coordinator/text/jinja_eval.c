/* A tree walker. Variables live in an env per running function, whose slots the scope pass has
 * numbered; text goes to the innermost open buffer. */
#include "coordinator/text/jinja_eval.h"

#include <stdio.h>
#include <string.h>

#include "coordinator/text/jinja_builtin.h"
#include "coordinator/text/jinja_print.h"

enum { MACRO_DEPTH_MAX = 200 }; /* about where Python's own limit stops a recursive macro */

struct env {
    struct env *parent; /* of the function around it */
    struct jinja_value slots[];
};

struct eval {
    struct jinja_run *run;
    struct jinja_dict *inputs;
    struct jinja_buffer *out;
    struct jinja_value block_text; /* what a filter block or filtered set block captured */
    unsigned n_macro;              /* calls that are open */
};

struct jinja_macro {
    struct eval *eval;
    const struct jinja_macro_node *node;
    struct env *env; /* of the function that defined it */
};

struct jinja_loop {
    struct eval *eval;
    struct jinja_value iterable;
    struct jinja_iter *iter;
    int64_t index0, length, depth0;            /* length -1: not known yet */
    struct jinja_value before, current, after; /* JINJA_MISSING: none; after: looked ahead */
    struct jinja_value last_changed;
    const struct jinja_node *recurse; /* the loop, if it is recursive */
    struct env *env;                  /* of the function around it */
};

enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };

static struct jinja_value evaluate(struct eval *eval, struct env *env,
                                   const struct jinja_node *node);
static enum flow execute(struct eval *eval, struct env *env, const struct jinja_node *body);

/* ---- variables */

static struct env *open_env(struct eval *eval, const struct jinja_function *function,
                            struct env *parent)
{
    struct env *env = jinja_alloc(eval->run, sizeof(*env) + function->n_slot * sizeof(*env->slots));
    env->parent = parent;
    for (uint32_t i = 0; i < function->n_slot; i++)
        env->slots[i] = jinja_missing();
    return env;
}

static struct jinja_value *variable(struct eval *eval, struct env *env, struct jinja_ref ref)
{
    jinja_spend(eval->run, ref.hops);
    while (ref.hops--)
        env = env->parent;
    return &env->slots[ref.slot];
}

static struct jinja_value resolve(struct eval *eval, const struct jinja_string *name)
{
    const struct jinja_value key = {.type = JINJA_STRING, .string = name};
    const struct jinja_value *found = jinja_dict_find(eval->run, eval->inputs, key);
    if (found) return *found;
    const struct jinja_builtin *function = jinja_find_global(name);
    if (function) return (struct jinja_value){.type = JINJA_FUNCTION, .function = function};
    return jinja_missing();
}

static void enter(struct eval *eval, struct env *env, const struct jinja_frame *frame)
{
    jinja_spend(eval->run, frame->n_load);
    for (size_t i = 0; i < frame->n_load; i++) {
        const struct jinja_load *load = &frame->loads[i];
        switch (load->kind) {
        case LOAD_PARAMETER:
            break;
        case LOAD_RESOLVE:
            env->slots[load->slot] = resolve(eval, load->name);
            break;
        case LOAD_ALIAS:
            env->slots[load->slot] = *variable(eval, env, load->from);
            break;
        case LOAD_UNDEFINED:
            env->slots[load->slot] = jinja_missing();
            break;
        }
    }
}

static void leave(struct env *env, const struct jinja_frame *frame)
{
    for (size_t i = 0; i < frame->n_load; i++)
        env->slots[frame->loads[i].slot] = jinja_missing();
}

static void assign(struct eval *eval, struct env *env, const struct jinja_node *target,
                   struct jinja_value value);

static void unpack(struct eval *eval, struct env *env, const struct jinja_node *target,
                   struct jinja_value value)
{
    struct jinja_run *run = eval->run;
    if (!jinja_is_iterable(value))
        jinja_fail(run, "cannot unpack non-iterable %s object", jinja_type_name(value));
    struct jinja_value *items = jinja_alloc(run, target->n_item * sizeof(*items));
    struct jinja_iter *iter = jinja_iterate(run, value);
    struct jinja_value extra;
    for (size_t i = 0; i < target->n_item; i++)
        if (!jinja_next(run, iter, &items[i]))
            jinja_fail(run, "not enough values to unpack (expected %zu, got %zu)", target->n_item,
                       i);
    if (jinja_next(run, iter, &extra))
        jinja_fail(run, "too many values to unpack (expected %zu)", target->n_item);
    size_t i = 0;
    for (const struct jinja_node *item = target->items; item; item = item->next)
        assign(eval, env, item, items[i++]);
}

static void assign(struct eval *eval, struct env *env, const struct jinja_node *target,
                   struct jinja_value value)
{
    if (target->type == NODE_TUPLE) {
        unpack(eval, env, target, value);
        return;
    }
    struct jinja_value *place = variable(eval, env, target->ref);
    if (target->type == NODE_NAME) {
        *place = value;
        return;
    }
    if (place->type != JINJA_NAMESPACE)
        jinja_fail(eval->run, "cannot assign attribute on non-namespace object");
    const struct jinja_value name = {.type = JINJA_STRING, .string = target->attribute};
    jinja_dict_set(eval->run, place->dict, name, value);
}

/* ---- calls */

/* Text that body writes, as a string. */
static struct jinja_value capture(struct eval *eval, struct env *env, const struct jinja_node *body,
                                  enum flow *flow)
{
    struct jinja_buffer text = {0}, *const outer = eval->out;
    eval->out = &text;
    *flow = execute(eval, env, body);
    eval->out = outer;
    return jinja_string_from(eval->run, &text);
}

struct named_args {
    struct jinja_pair *pairs;
    size_t n, cap;
};

static void add_named(struct eval *eval, struct named_args *named, struct jinja_value name,
                      struct jinja_value value)
{
    if (name.type != JINJA_STRING) jinja_fail(eval->run, "keywords must be strings");
    jinja_spend(eval->run, named->n);
    for (size_t i = 0; i < named->n; i++)
        if (jinja_string_equal(named->pairs[i].key.string, name.string))
            jinja_fail(eval->run, "got multiple values for a keyword argument");
    named->pairs =
        jinja_reserve(eval->run, named->pairs, named->n, 1, &named->cap, sizeof(*named->pairs));
    named->pairs[named->n++] = (struct jinja_pair){name, value};
}

static struct jinja_call evaluate_call(struct eval *eval, struct env *env,
                                       const struct jinja_call_node *node)
{
    struct jinja_list positional = {0};
    struct named_args named = {0};
    for (const struct jinja_node *arg = node->positional; arg; arg = arg->next)
        jinja_list_append(eval->run, &positional, evaluate(eval, env, arg));
    if (node->star) {
        const struct jinja_value star = evaluate(eval, env, node->star);
        const struct jinja_list *list = jinja_to_list(eval->run, star).list;
        for (size_t i = 0; i < list->n; i++)
            jinja_list_append(eval->run, &positional, list->items[i]);
    }
    for (const struct jinja_node *arg = node->named; arg; arg = arg->next)
        add_named(eval, &named, arg->value, evaluate(eval, env, arg->a));
    if (node->star_star) {
        const struct jinja_value more = evaluate(eval, env, node->star_star);
        if (more.type != JINJA_DICT)
            jinja_fail(eval->run, "argument after ** must be a mapping, not %s",
                       jinja_type_name(more));
        const struct jinja_pair *pair;
        for (size_t i = 0; (pair = jinja_dict_next(more.dict, &i));)
            add_named(eval, &named, pair->key, pair->value);
    }
    return (struct jinja_call){positional.items, positional.n, named.pairs, named.n};
}

/* The named argument of that name, taken out of the call: its position, or -1. */
static ptrdiff_t find_named(const struct jinja_call *call, const struct jinja_string *name)
{
    for (size_t i = 0; i < call->n_named; i++)
        if (jinja_string_equal(call->named[i].key.string, name)) return (ptrdiff_t)i;
    return -1;
}

static struct jinja_value rest_of(struct eval *eval, const struct jinja_call *call, size_t n_taken)
{
    const size_t n = call->n_positional > n_taken ? call->n_positional - n_taken : 0;
    return jinja_tuple_new(eval->run, n ? call->positional + n_taken : NULL, n);
}

/* Gives a macro's parameters their arguments, in its new env. */
static void bind_macro(struct eval *eval, struct env *env, const struct jinja_macro_node *node,
                       const struct jinja_call *call)
{
    struct jinja_run *run = eval->run;
    bool *used = jinja_alloc_zero(run, call->n_named + 1);
    size_t i = 0, n_used = 0;
    bool has_caller_param = false;
    for (const struct jinja_node *param = node->params; param; param = param->next, i++) {
        has_caller_param |= jinja_string_is(param->value.string, "caller");
        if (i < call->n_positional) {
            *variable(eval, env, param->ref) = call->positional[i];
            continue;
        }
        const ptrdiff_t found = find_named(call, param->value.string);
        if (found < 0) continue;
        *variable(eval, env, param->ref) = call->named[found].value;
        used[found] = true;
        n_used++;
    }
    struct jinja_value kwargs = jinja_dict_new(run);
    struct jinja_value caller = jinja_none();
    for (i = 0; i < call->n_named; i++) {
        const struct jinja_pair *pair = &call->named[i];
        if (used[i]) continue;
        if (node->takes_caller && jinja_string_is(pair->key.string, "caller")) {
            caller = pair->value;
            n_used++;
            continue;
        }
        jinja_dict_set(run, kwargs.dict, pair->key, pair->value);
        if (!node->takes_kwargs)
            jinja_fail(run, "the macro takes no keyword argument '%.*s'",
                       (int)(pair->key.string->n_bytes & 255), pair->key.string->bytes);
    }
    if (node->takes_caller && !has_caller_param)
        *variable(eval, env, node->caller) =
            caller.type == JINJA_NONE ? jinja_undefined_hint(run, "no caller defined") : caller;
    if (node->takes_kwargs) *variable(eval, env, node->kwargs) = kwargs;
    if (node->takes_varargs)
        *variable(eval, env, node->varargs) = rest_of(eval, call, node->n_param);
    else if (call->n_positional > node->n_param)
        jinja_fail(run, "the macro takes not more than %zu argument(s)", node->n_param);
}

static void fill_defaults(struct eval *eval, struct env *env, const struct jinja_macro_node *node)
{
    const struct jinja_node *def = node->defaults;
    size_t i = 0;
    for (const struct jinja_node *param = node->params; param; param = param->next, i++) {
        const bool has_default = i >= node->n_param - node->n_default;
        if (variable(eval, env, param->ref)->type == JINJA_MISSING) {
            struct jinja_value value;
            if (has_default)
                value = evaluate(eval, env, def);
            else
                value = jinja_undefined_hint(eval->run, "a parameter of a macro was not provided");
            *variable(eval, env, param->ref) = value;
        }
        if (has_default) def = def->next;
    }
}

static struct jinja_value call_macro(const struct jinja_macro *macro, const struct jinja_call *call)
{
    struct eval *eval = macro->eval;
    const struct jinja_macro_node *node = macro->node;
    if (eval->n_macro >= MACRO_DEPTH_MAX)
        jinja_fail_as(eval->run, LM_E_LIMIT, "macros call each other more than %d deep",
                      MACRO_DEPTH_MAX);
    eval->n_macro++;
    struct env *env = open_env(eval, &node->function, macro->env);
    enum flow flow;
    bind_macro(eval, env, node, call);
    enter(eval, env, &node->frame);
    fill_defaults(eval, env, node);
    const struct jinja_value text = capture(eval, env, node->body, &flow);
    eval->n_macro--;
    return text;
}

static struct jinja_value make_macro(struct eval *eval, struct env *env,
                                     const struct jinja_macro_node *node)
{
    struct jinja_macro *macro = jinja_alloc(eval->run, sizeof(*macro));
    *macro = (struct jinja_macro){eval, node, env};
    return (struct jinja_value){.type = JINJA_MACRO, .macro = macro};
}

static void run_recursive(struct eval *eval, struct env *env, const struct jinja_node *node,
                          struct jinja_value iterable, int64_t depth0);

static struct jinja_value call_loop(struct jinja_loop *loop, const struct jinja_call *call)
{
    struct eval *eval = loop->eval;
    if (!loop->recurse)
        jinja_fail(eval->run, "the loop must have the 'recursive' marker to be called recursively");
    if (call->n_positional != 1 || call->n_named)
        jinja_fail(eval->run, "a loop is called with one argument");
    struct jinja_buffer text = {0}, *const outer = eval->out;
    if (eval->n_macro >= MACRO_DEPTH_MAX)
        jinja_fail_as(eval->run, LM_E_LIMIT, "a recursive loop is more than %d deep",
                      MACRO_DEPTH_MAX);
    eval->n_macro++;
    eval->out = &text;
    run_recursive(eval, loop->env, loop->recurse, call->positional[0], loop->depth0 + 1);
    eval->out = outer;
    eval->n_macro--;
    return jinja_string_from(eval->run, &text);
}

static struct jinja_value call_value(struct eval *eval, struct jinja_value callee,
                                     const struct jinja_call *call)
{
    jinja_check_stack(eval->run);
    switch (callee.type) {
    case JINJA_FUNCTION:
        return jinja_call_builtin(eval->run, callee.function, jinja_missing(), call);
    case JINJA_METHOD:
        return jinja_call_builtin(eval->run, callee.method->builtin, callee.method->self, call);
    case JINJA_MACRO:
        return call_macro(callee.macro, call);
    case JINJA_LOOP:
        return call_loop(callee.loop, call);
    case JINJA_JOINER:
        return jinja_call_joiner(eval->run, callee);
    case JINJA_UNDEFINED:
        jinja_fail_undefined(eval->run, callee);
    default:
        jinja_fail(eval->run, "'%s' object is not callable", jinja_type_name(callee));
    }
}

/* ---- expressions */

static bool compare(struct eval *eval, enum jinja_compare compare, struct jinja_value a,
                    struct jinja_value b)
{
    struct jinja_run *run = eval->run;
    switch (compare) {
    case COMPARE_EQ:
        return jinja_equal(run, a, b);
    case COMPARE_NE:
        return !jinja_equal(run, a, b);
    case COMPARE_LT:
        return jinja_order(run, ORDER_LT, a, b);
    case COMPARE_LE:
        return jinja_order(run, ORDER_LE, a, b);
    case COMPARE_GT:
        return jinja_order(run, ORDER_GT, a, b);
    case COMPARE_GE:
        return jinja_order(run, ORDER_GE, a, b);
    case COMPARE_IN:
        return jinja_contains(run, b, a);
    case COMPARE_NOT_IN:
        return !jinja_contains(run, b, a);
    }
    return false;
}

static struct jinja_value evaluate_compare(struct eval *eval, struct env *env,
                                           const struct jinja_node *node)
{
    struct jinja_value left = evaluate(eval, env, node->a);
    for (const struct jinja_node *operand = node->items; operand; operand = operand->next) {
        const struct jinja_value right = evaluate(eval, env, operand->a);
        if (!compare(eval, operand->compare, left, right)) return jinja_bool(false);
        left = right;
    }
    return jinja_bool(true);
}

static struct jinja_value evaluate_items(struct eval *eval, struct env *env,
                                         const struct jinja_node *node)
{
    struct jinja_value list = jinja_list_new(eval->run, node->n_item);
    if (node->type == NODE_TUPLE) list.type = JINJA_TUPLE;
    for (const struct jinja_node *item = node->items; item; item = item->next)
        jinja_list_append(eval->run, list.list, evaluate(eval, env, item));
    return list;
}

static struct jinja_value evaluate_dict(struct eval *eval, struct env *env,
                                        const struct jinja_node *node)
{
    struct jinja_value dict = jinja_dict_new(eval->run);
    for (const struct jinja_node *key = node->items; key; key = key->next->next) {
        const struct jinja_value name = evaluate(eval, env, key);
        jinja_dict_set(eval->run, dict.dict, name, evaluate(eval, env, key->next));
    }
    return dict;
}

static struct jinja_value evaluate_concat(struct eval *eval, struct env *env,
                                          const struct jinja_node *node)
{
    struct jinja_buffer text = {0};
    const struct jinja_value items = evaluate_items(eval, env, node);
    for (size_t i = 0; i < items.list->n; i++)
        jinja_print(eval->run, &text, items.list->items[i]);
    return jinja_string_from(eval->run, &text);
}

static struct jinja_value bound(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    return node ? evaluate(eval, env, node) : jinja_none();
}

static struct jinja_value evaluate_slice(struct eval *eval, struct env *env,
                                         const struct jinja_node *node)
{
    const struct jinja_value object = evaluate(eval, env, node->a);
    const struct jinja_value start = bound(eval, env, node->b);
    const struct jinja_value stop = bound(eval, env, node->c);
    const struct jinja_value step = bound(eval, env, node->d);
    return jinja_slice(eval->run, object, start, stop, step, node->flag);
}

static struct jinja_value apply(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    const struct jinja_value self = node->a ? evaluate(eval, env, node->a) : eval->block_text;
    if (!node->builtin)
        jinja_fail(eval->run, "no %s named '%.*s' found",
                   node->type == NODE_FILTER ? "filter" : "test",
                   (int)(node->value.string->n_bytes & 255), node->value.string->bytes);
    const struct jinja_call call = evaluate_call(eval, env, node->call);
    eval->run->line = node->line;
    return jinja_call_builtin(eval->run, node->builtin, self, &call);
}

static struct jinja_value evaluate_condition(struct eval *eval, struct env *env,
                                             const struct jinja_node *node)
{
    if (jinja_truth(eval->run, evaluate(eval, env, node->b))) return evaluate(eval, env, node->a);
    if (node->c) return evaluate(eval, env, node->c);
    return jinja_undefined_hint(
        eval->run, "the inline if-expression evaluated to false and no else section was defined");
}

static struct jinja_value evaluate(struct eval *eval, struct env *env,
                                   const struct jinja_node *node)
{
    struct jinja_run *run = eval->run;
    jinja_spend(run, 1);
    jinja_check_stack(run);
    run->line = node->line;
    switch (node->type) {
    case NODE_CONST:
        return node->value;
    case NODE_NAME: {
        const struct jinja_value value = *variable(eval, env, node->ref);
        return value.type == JINJA_MISSING ? jinja_undefined_name(run, node->value) : value;
    }
    case NODE_TUPLE:
    case NODE_LIST:
        return evaluate_items(eval, env, node);
    case NODE_DICT:
        return evaluate_dict(eval, env, node);
    case NODE_BINARY: {
        const struct jinja_value a = evaluate(eval, env, node->a);
        const struct jinja_value b = evaluate(eval, env, node->b);
        return jinja_binary(run, node->binary, a, b);
    }
    case NODE_AND:
    case NODE_OR: {
        const struct jinja_value a = evaluate(eval, env, node->a);
        return jinja_truth(run, a) == (node->type == NODE_OR) ? a : evaluate(eval, env, node->b);
    }
    case NODE_NOT:
        return jinja_bool(!jinja_truth(run, evaluate(eval, env, node->a)));
    case NODE_NEGATE:
    case NODE_PLUS:
        return jinja_sign(run, node->type == NODE_NEGATE, evaluate(eval, env, node->a));
    case NODE_CONCAT:
        return evaluate_concat(eval, env, node);
    case NODE_COMPARE:
        return evaluate_compare(eval, env, node);
    case NODE_CONDITION:
        return evaluate_condition(eval, env, node);
    case NODE_ATTRIBUTE:
        return jinja_get_attribute(run, evaluate(eval, env, node->a), node->value);
    case NODE_ITEM: {
        const struct jinja_value object = evaluate(eval, env, node->a);
        return jinja_get_item(run, object, evaluate(eval, env, node->b));
    }
    case NODE_SLICE:
        return evaluate_slice(eval, env, node);
    case NODE_CALL: {
        const struct jinja_value callee = evaluate(eval, env, node->a);
        const struct jinja_call call = evaluate_call(eval, env, node->call);
        run->line = node->line;
        return call_value(eval, callee, &call);
    }
    case NODE_FILTER:
    case NODE_TEST:
        return apply(eval, env, node);
    default:
        jinja_fail(run, "not an expression");
    }
}

/* ---- loops */

/* The items of a loop that pass its test, found as the loop goes. */
struct tested {
    struct eval *eval;
    const struct jinja_node *node;
    struct env *env;
    struct jinja_iter *source;
};

static struct jinja_value read_target(struct eval *eval, struct env *env,
                                      const struct jinja_node *target)
{
    if (target->type != NODE_TUPLE) return *variable(eval, env, target->ref);
    struct jinja_value tuple = jinja_tuple_new(eval->run, NULL, 0);
    for (const struct jinja_node *item = target->items; item; item = item->next)
        jinja_list_append(eval->run, tuple.list, read_target(eval, env, item));
    return tuple;
}

static bool next_tested(struct jinja_run *run, struct jinja_iter *iter, struct jinja_value *out)
{
    struct tested *tested = iter->state;
    struct eval *eval = tested->eval;
    if (iter->n++ == 0) enter(eval, tested->env, &tested->node->test_frame);
    while (jinja_next(run, tested->source, out)) {
        assign(eval, tested->env, tested->node->test_target, *out);
        if (!jinja_truth(run, evaluate(eval, tested->env, tested->node->c))) continue;
        *out = read_target(eval, tested->env, tested->node->test_target);
        return true;
    }
    return false;
}

static struct jinja_value test_items(struct eval *eval, struct env *env,
                                     const struct jinja_node *node, struct jinja_value iterable)
{
    struct tested *tested = jinja_alloc(eval->run, sizeof(*tested));
    *tested = (struct tested){eval, node, open_env(eval, node->test_function, env),
                              jinja_iterate(eval->run, iterable)};
    return jinja_iterator(eval->run, next_tested, iterable, tested);
}

static bool peek(struct jinja_loop *loop)
{
    if (loop->after.type != JINJA_MISSING) return true;
    if (jinja_next(loop->eval->run, loop->iter, &loop->after)) return true;
    loop->after = jinja_missing();
    return false;
}

bool jinja_loop_next(struct jinja_run *run, struct jinja_loop *loop, struct jinja_value *out)
{
    if (loop->after.type != JINJA_MISSING) {
        *out = loop->after;
        loop->after = jinja_missing();
    } else if (!jinja_next(run, loop->iter, out)) {
        return false;
    }
    loop->index0++;
    loop->before = loop->current;
    loop->current = *out;
    return true;
}

int64_t jinja_loop_length(struct jinja_run *run, struct jinja_loop *loop)
{
    if (loop->length >= 0) return loop->length;
    loop->length = jinja_length_or_none(run, loop->iterable);
    if (loop->length >= 0) return loop->length;
    /* No length: read ahead what is left, and go on from there. */
    const struct jinja_value left =
        jinja_to_list(run, (struct jinja_value){.type = JINJA_ITERATOR, .iter = loop->iter});
    loop->iter = jinja_iterate(run, left);
    loop->length = (int64_t)left.list->n + loop->index0 + 1 + (loop->after.type != JINJA_MISSING);
    return loop->length;
}

/* Runs the body for each item; env: of the function that holds the loop's variables. */
static void run_loop(struct eval *eval, struct env *env, struct env *outer,
                     const struct jinja_node *node, struct jinja_value iterable, int64_t depth0,
                     enum flow *flow)
{
    struct jinja_run *run = eval->run;
    if (node->c) iterable = test_items(eval, outer, node, iterable);
    struct jinja_loop *loop = jinja_alloc_zero(run, sizeof(*loop));
    *loop = (struct jinja_loop){.eval = eval,
                                .iterable = iterable,
                                .iter = jinja_iterate(run, iterable),
                                .index0 = -1,
                                .length = -1,
                                .depth0 = depth0,
                                .recurse = node->flag ? node : NULL,
                                .env = outer};
    bool completed = false; /* a turn reached its end: only then the else branch is out */
    for (struct jinja_value item; jinja_loop_next(run, loop, &item);) {
        assign(eval, env, node->a, item);
        if (node->has_loop)
            *variable(eval, env, node->loop) =
                (struct jinja_value){.type = JINJA_LOOP, .loop = loop};
        enter(eval, env, &node->frame);
        const enum flow turn = execute(eval, env, node->body);
        if (turn == FLOW_BREAK) break;
        if (turn == FLOW_NEXT) completed = true;
    }
    leave(env, &node->frame);
    *flow = FLOW_NEXT;
    if (completed || !node->otherwise) return;
    enter(eval, env, &node->else_frame);
    *flow = execute(eval, env, node->otherwise);
    leave(env, &node->else_frame);
}

static void run_recursive(struct eval *eval, struct env *env, const struct jinja_node *node,
                          struct jinja_value iterable, int64_t depth0)
{
    enum flow flow;
    run_loop(eval, open_env(eval, node->function, env), env, node, iterable, depth0, &flow);
}

static struct jinja_value loop_cycle(struct jinja_run *run, struct jinja_value self,
                                     const struct jinja_value *arg, const struct jinja_call *call)
{
    (void)arg;
    if (!call->n_positional) jinja_fail(run, "no items for cycling given");
    const int64_t index0 = self.loop->index0 < 0 ? 0 : self.loop->index0;
    return call->positional[(size_t)index0 % call->n_positional];
}

static struct jinja_value loop_changed(struct jinja_run *run, struct jinja_value self,
                                       const struct jinja_value *arg, const struct jinja_call *call)
{
    (void)arg;
    const struct jinja_value now = jinja_tuple_new(run, call->positional, call->n_positional);
    struct jinja_value *last = &self.loop->last_changed;
    if (last->type != JINJA_MISSING && jinja_equal(run, *last, now)) return jinja_bool(false);
    *last = now;
    return jinja_bool(true);
}

static const struct jinja_builtin loop_methods[] = {
    {"changed", NULL, loop_changed},
    {"cycle", NULL, loop_cycle},
};

static bool loop_attribute(struct jinja_run *run, struct jinja_value object,
                           const struct jinja_string *name, struct jinja_value *out)
{
    struct jinja_loop *loop = object.loop;
    const struct jinja_builtin *method = JINJA_FIND(loop_methods, name);
    if (method) {
        struct jinja_method *bound_method = jinja_alloc(run, sizeof(*bound_method));
        *bound_method = (struct jinja_method){object, method};
        *out = (struct jinja_value){.type = JINJA_METHOD, .method = bound_method};
    } else if (jinja_string_is(name, "index")) {
        *out = jinja_int(loop->index0 + 1);
    } else if (jinja_string_is(name, "index0")) {
        *out = jinja_int(loop->index0);
    } else if (jinja_string_is(name, "first")) {
        *out = jinja_bool(loop->index0 == 0);
    } else if (jinja_string_is(name, "last")) {
        *out = jinja_bool(!peek(loop));
    } else if (jinja_string_is(name, "length")) {
        *out = jinja_int(jinja_loop_length(run, loop));
    } else if (jinja_string_is(name, "revindex")) {
        *out = jinja_int(jinja_loop_length(run, loop) - loop->index0);
    } else if (jinja_string_is(name, "revindex0")) {
        *out = jinja_int(jinja_loop_length(run, loop) - loop->index0 - 1);
    } else if (jinja_string_is(name, "depth")) {
        *out = jinja_int(loop->depth0 + 1);
    } else if (jinja_string_is(name, "depth0")) {
        *out = jinja_int(loop->depth0);
    } else if (jinja_string_is(name, "previtem")) {
        *out = loop->index0 <= 0 ? jinja_undefined_hint(run, "there is no previous item")
                                 : loop->before;
    } else if (jinja_string_is(name, "nextitem")) {
        *out = peek(loop) ? loop->after : jinja_undefined_hint(run, "there is no next item");
    } else {
        return false;
    }
    return true;
}

static bool macro_attribute(struct jinja_run *run, const struct jinja_macro_node *node,
                            const struct jinja_string *name, struct jinja_value *out)
{
    if (jinja_string_is(name, "name")) {
        *out = node->name ? (struct jinja_value){.type = JINJA_STRING, .string = node->name}
                          : jinja_none();
    } else if (jinja_string_is(name, "arguments")) {
        *out = jinja_tuple_new(run, NULL, 0);
        for (const struct jinja_node *param = node->params; param; param = param->next)
            jinja_list_append(run, out->list, param->value);
    } else if (jinja_string_is(name, "catch_kwargs")) {
        *out = jinja_bool(node->takes_kwargs);
    } else if (jinja_string_is(name, "catch_varargs")) {
        *out = jinja_bool(node->takes_varargs);
    } else if (jinja_string_is(name, "caller")) {
        *out = jinja_bool(node->takes_caller);
    } else {
        return false;
    }
    return true;
}

bool jinja_object_attribute(struct jinja_run *run, struct jinja_value object,
                            const struct jinja_string *name, struct jinja_value *out)
{
    return object.type == JINJA_LOOP ? loop_attribute(run, object, name, out)
                                     : macro_attribute(run, object.macro->node, name, out);
}

void jinja_print_object(struct jinja_run *run, struct jinja_buffer *buffer,
                        struct jinja_value object)
{
    char text[64];
    if (object.type == JINJA_LOOP) {
        snprintf(text, sizeof(text), "<LoopContext %lld/%lld>", (long long)object.loop->index0 + 1,
                 (long long)jinja_loop_length(run, object.loop));
        jinja_put_text(run, buffer, text);
        return;
    }
    const struct jinja_string *name = object.macro->node->name;
    jinja_put_text(run, buffer, "<Macro ");
    if (name)
        jinja_print_repr(run, buffer, (struct jinja_value){.type = JINJA_STRING, .string = name});
    else
        jinja_put_text(run, buffer, "anonymous");
    jinja_put_char(run, buffer, '>');
}

/* ---- statements */

static enum flow execute_if(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    if (jinja_truth(eval->run, evaluate(eval, env, node->a))) return execute(eval, env, node->body);
    for (const struct jinja_node *branch = node->items; branch; branch = branch->next)
        if (jinja_truth(eval->run, evaluate(eval, env, branch->a)))
            return execute(eval, env, branch->body);
    return execute(eval, env, node->otherwise);
}

static enum flow execute_for(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    enum flow flow = FLOW_NEXT;
    const struct jinja_value iterable = evaluate(eval, env, node->b);
    if (node->flag)
        run_recursive(eval, env, node, iterable, 0);
    else
        run_loop(eval, env, env, node, iterable, 0, &flow);
    return flow;
}

/* The result of a filter or call block goes out as it is, so it must be text. */
static void put_text(struct eval *eval, struct jinja_value value)
{
    if (value.type != JINJA_STRING)
        jinja_fail(eval->run, "a block gives %s, not str", jinja_type_name(value));
    jinja_print(eval->run, eval->out, value);
}

/* Set and filter blocks: the body's text, through the filters if there are any. */
static enum flow execute_captured(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    enum flow flow;
    enter(eval, env, &node->frame);
    struct jinja_value text = capture(eval, env, node->body, &flow);
    const struct jinja_node *filter = node->type == NODE_SET_BLOCK ? node->b : node->a;
    if (flow == FLOW_NEXT) {
        if (filter) {
            const struct jinja_value outer = eval->block_text;
            eval->block_text = text;
            text = evaluate(eval, env, filter);
            eval->block_text = outer;
        }
        if (node->type == NODE_SET_BLOCK)
            assign(eval, env, node->a, text);
        else
            put_text(eval, text);
    }
    leave(env, &node->frame);
    return flow;
}

static enum flow execute_with(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    enter(eval, env, &node->frame);
    for (const struct jinja_node *target = node->items; target; target = target->next->next)
        assign(eval, env, target, evaluate(eval, env, target->next));
    const enum flow flow = execute(eval, env, node->body);
    leave(env, &node->frame);
    return flow;
}

static void execute_call_block(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    const struct jinja_value caller = make_macro(eval, env, node->macro);
    const struct jinja_value callee = evaluate(eval, env, node->a->a);
    struct jinja_call call = evaluate_call(eval, env, node->a->call);
    struct named_args named = {0};
    for (size_t i = 0; i < call.n_named; i++)
        add_named(eval, &named, call.named[i].key, call.named[i].value);
    add_named(eval, &named, jinja_text(eval->run, "caller"), caller);
    call.named = named.pairs;
    call.n_named = named.n;
    put_text(eval, call_value(eval, callee, &call));
}

static void print_items(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    for (const struct jinja_node *item = node->items; item; item = item->next)
        jinja_print(eval->run, eval->out, evaluate(eval, env, item));
}

static enum flow execute_one(struct eval *eval, struct env *env, const struct jinja_node *node)
{
    static const struct jinja_call no_arguments = {0};
    switch (node->type) {
    case NODE_OUTPUT:
        print_items(eval, env, node);
        return FLOW_NEXT;
    case NODE_SET:
        assign(eval, env, node->a, evaluate(eval, env, node->b));
        return FLOW_NEXT;
    case NODE_IF:
        return execute_if(eval, env, node);
    case NODE_FOR:
        return execute_for(eval, env, node);
    case NODE_SET_BLOCK:
    case NODE_FILTER_BLOCK:
        return execute_captured(eval, env, node);
    case NODE_WITH:
        return execute_with(eval, env, node);
    case NODE_MACRO:
        *variable(eval, env, node->ref) = make_macro(eval, env, node->macro);
        return FLOW_NEXT;
    case NODE_CALL_BLOCK:
        execute_call_block(eval, env, node);
        return FLOW_NEXT;
    case NODE_GENERATION: {
        const struct jinja_value body = make_macro(eval, env, node->macro);
        jinja_print(eval->run, eval->out, call_macro(body.macro, &no_arguments));
        return FLOW_NEXT;
    }
    case NODE_BREAK:
        return FLOW_BREAK;
    case NODE_CONTINUE:
        return FLOW_CONTINUE;
    default:
        jinja_fail(eval->run, "a template cannot load other templates");
    }
}

static enum flow execute(struct eval *eval, struct env *env, const struct jinja_node *body)
{
    enum flow flow = FLOW_NEXT;
    jinja_check_stack(eval->run);
    for (const struct jinja_node *node = body; node && flow == FLOW_NEXT; node = node->next) {
        jinja_spend(eval->run, 1);
        eval->run->line = node->line;
        flow = execute_one(eval, env, node);
    }
    return flow;
}

void jinja_render(struct jinja_run *run, const struct jinja_template *tmpl,
                  struct jinja_value inputs, struct jinja_buffer *out)
{
    struct eval eval = {.run = run, .inputs = inputs.dict, .out = out};
    struct env *env = open_env(&eval, &tmpl->function, NULL);
    enter(&eval, env, &tmpl->frame);
    execute(&eval, env, tmpl->body);
}
