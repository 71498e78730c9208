#include "coordinator/text/jinja_scope.h"

#include <assert.h>
#include <string.h>

#include "coordinator/text/jinja_builtin.h"

/* A scope's variable and where its value comes from when the scope is entered. */
struct symbol {
    const struct jinja_string *name;
    bool stored;
    struct scope *outer; /* LOAD_ALIAS: whose variable */
    int kind;            /* of struct jinja_load */
};

struct scope {
    struct scope *parent;
    struct jinja_function *function;
    uint32_t level; /* the number of scopes around it */
    struct symbol *symbols;
    size_t n, cap;
};

/* Scopes of one level and function that follow one another share the slots of equal names, as
 * they share Python's local variables: macros made in one may look at them later. */
struct jinja_slot_name {
    struct jinja_slot_name *next;
    const struct jinja_string *name;
    uint32_t level, slot;
};

/* Where the pass is. */
struct place {
    struct jinja_run *run;
    struct scope *scope;
    bool in_branch; /* an unknown filter may never be reached */
    bool in_loop;   /* break and continue are in place */
};

/* ---- symbols */

static struct symbol *find_own(struct jinja_run *run, const struct scope *scope,
                               const struct jinja_string *name)
{
    jinja_spend(run, 1 + scope->n / 4);
    for (size_t i = 0; i < scope->n; i++)
        if (jinja_string_equal(scope->symbols[i].name, name)) return &scope->symbols[i];
    return NULL;
}

static struct scope *find_owner(struct jinja_run *run, struct scope *scope,
                                const struct jinja_string *name)
{
    while (scope && !find_own(run, scope, name))
        scope = scope->parent;
    return scope;
}

static struct symbol *add_symbol(struct jinja_run *run, struct scope *scope,
                                 const struct jinja_string *name, int kind)
{
    scope->symbols =
        jinja_reserve(run, scope->symbols, scope->n, 1, &scope->cap, sizeof(*scope->symbols));
    struct symbol *symbol = &scope->symbols[scope->n++];
    *symbol = (struct symbol){.name = name, .kind = kind};
    return symbol;
}

static void note_load(struct jinja_run *run, struct scope *scope, const struct jinja_string *name)
{
    if (!find_owner(run, scope, name)) add_symbol(run, scope, name, LOAD_RESOLVE);
}

static void note_store(struct jinja_run *run, struct scope *scope, const struct jinja_string *name)
{
    struct symbol *symbol = find_own(run, scope, name);
    if (!symbol) {
        struct scope *outer = find_owner(run, scope->parent, name);
        symbol = add_symbol(run, scope, name, outer ? LOAD_ALIAS : LOAD_UNDEFINED);
        symbol->outer = outer;
    }
    symbol->stored = true;
}

static void note_parameter(struct jinja_run *run, struct scope *scope,
                           const struct jinja_string *name)
{
    struct symbol *symbol = find_own(run, scope, name);
    if (!symbol) symbol = add_symbol(run, scope, name, LOAD_PARAMETER);
    symbol->kind = LOAD_PARAMETER;
    symbol->stored = true;
}

static uint32_t slot_of(struct jinja_run *run, const struct scope *scope,
                        const struct jinja_string *name)
{
    struct jinja_function *function = scope->function;
    struct jinja_slot_name *entry;
    for (entry = function->names; entry; entry = entry->next) {
        jinja_spend(run, 1);
        if (entry->level == scope->level && jinja_string_equal(entry->name, name))
            return entry->slot;
    }
    entry = jinja_alloc(run, sizeof(*entry));
    *entry = (struct jinja_slot_name){function->names, name, scope->level, function->n_slot++};
    function->names = entry;
    return entry->slot;
}

static struct jinja_ref make_ref(struct jinja_run *run, const struct jinja_function *from,
                                 const struct scope *owner, const struct jinja_string *name)
{
    assert(from->depth >= owner->function->depth);
    return (struct jinja_ref){from->depth - owner->function->depth, slot_of(run, owner, name)};
}

static struct jinja_ref refer(struct place at, const struct jinja_string *name)
{
    struct scope *owner = find_owner(at.run, at.scope, name);
    if (!owner) { /* only arguments of a set block's filters get here unseen */
        add_symbol(at.run, at.scope, name, LOAD_RESOLVE);
        owner = at.scope;
    }
    return make_ref(at.run, at.scope->function, owner, name);
}

static struct scope *inner_scope(struct jinja_run *run, struct scope *parent,
                                 struct jinja_function *function)
{
    struct scope *scope = jinja_alloc_zero(run, sizeof(*scope));
    scope->parent = parent;
    scope->function = function;
    scope->level = parent ? parent->level + 1 : 0;
    return scope;
}

static void close_frame(struct jinja_run *run, struct scope *scope, struct jinja_frame *frame)
{
    frame->n_load = scope->n;
    frame->loads = jinja_alloc_zero(run, scope->n * sizeof(*frame->loads));
    for (size_t i = 0; i < scope->n; i++) {
        const struct symbol *symbol = &scope->symbols[i];
        struct jinja_load *load = &frame->loads[i];
        load->kind = symbol->kind;
        load->name = symbol->name;
        load->slot = slot_of(run, scope, symbol->name);
        if (symbol->kind == LOAD_ALIAS)
            load->from = make_ref(run, scope->function, symbol->outer, symbol->name);
    }
}

static void init_function(struct jinja_function *function, struct jinja_function *parent)
{
    function->parent = parent;
    function->depth = parent ? parent->depth + 1 : 0;
}

/* ---- which names a scope has */

static void scan_expression(struct jinja_run *run, struct scope *scope,
                            const struct jinja_node *node);

static void scan_list(struct jinja_run *run, struct scope *scope, const struct jinja_node *list)
{
    for (; list; list = list->next)
        scan_expression(run, scope, list);
}

static void scan_expression(struct jinja_run *run, struct scope *scope,
                            const struct jinja_node *node)
{
    if (!node) return;
    jinja_check_stack(run);
    jinja_spend(run, 1);
    if (node->type == NODE_NAME) {
        note_load(run, scope, node->value.string);
        return;
    }
    scan_expression(run, scope, node->a);
    scan_expression(run, scope, node->b);
    scan_expression(run, scope, node->c);
    scan_expression(run, scope, node->d);
    scan_list(run, scope, node->items);
    if (!node->call) return;
    scan_list(run, scope, node->call->positional);
    scan_list(run, scope, node->call->named);
    scan_expression(run, scope, node->call->star);
    scan_expression(run, scope, node->call->star_star);
}

static void scan_target(struct jinja_run *run, struct scope *scope, const struct jinja_node *target,
                        bool parameter)
{
    if (target->type == NODE_NAMESPACE)
        note_load(run, scope, target->value.string);
    else if (target->type == NODE_NAME && parameter)
        note_parameter(run, scope, target->value.string);
    else if (target->type == NODE_NAME)
        note_store(run, scope, target->value.string);
    for (const struct jinja_node *item = target->items; item; item = item->next)
        scan_target(run, scope, item, parameter);
}

static void scan_statements(struct jinja_run *run, struct scope *scope,
                            const struct jinja_node *body);

static struct scope *copy_scope(struct jinja_run *run, const struct scope *scope)
{
    struct scope *copy = jinja_alloc(run, sizeof(*copy));
    *copy = *scope;
    copy->cap = 0;
    copy->symbols = jinja_reserve(run, NULL, 0, scope->n + 1, &copy->cap, sizeof(*copy->symbols));
    if (scope->n) memcpy(copy->symbols, scope->symbols, scope->n * sizeof(*scope->symbols));
    jinja_spend(run, scope->n);
    return copy;
}

/* What the branches of an if have found. A name that a branch assigns and the scope had not
 * assigned before may keep its value from before the if, so it is loaded in any case. */
static void merge_branches(struct jinja_run *run, struct scope *scope,
                           struct scope *const *branches)
{
    const struct scope *before = copy_scope(run, scope);
    for (int i = 0; i < 3; i++) {
        for (size_t k = 0; k < branches[i]->n; k++) {
            const struct symbol *found = &branches[i]->symbols[k];
            struct symbol *own = find_own(run, scope, found->name);
            if (!own) own = add_symbol(run, scope, found->name, found->kind);
            const bool stored = own->stored || found->stored;
            *own = *found;
            own->stored = stored;
        }
    }
    for (size_t k = 0; k < scope->n; k++) {
        struct symbol *own = &scope->symbols[k];
        const struct symbol *old = find_own(run, before, own->name);
        if (!own->stored || (old && old->stored)) continue;
        own->outer = find_owner(run, scope->parent, own->name);
        own->kind = own->outer ? LOAD_ALIAS : LOAD_RESOLVE;
    }
}

static void scan_if(struct jinja_run *run, struct scope *scope, const struct jinja_node *node)
{
    struct scope *branches[3];
    scan_expression(run, scope, node->a);
    branches[0] = copy_scope(run, scope);
    scan_statements(run, branches[0], node->body);
    branches[1] = copy_scope(run, scope);
    scan_statements(run, branches[1], node->items);
    branches[2] = copy_scope(run, scope);
    scan_statements(run, branches[2], node->otherwise);
    merge_branches(run, scope, branches);
}

static void scan_statements(struct jinja_run *run, struct scope *scope,
                            const struct jinja_node *body)
{
    jinja_check_stack(run);
    for (const struct jinja_node *node = body; node; node = node->next) {
        jinja_spend(run, 1);
        switch (node->type) {
        case NODE_OUTPUT:
            scan_list(run, scope, node->items);
            break;
        case NODE_SET:
            scan_expression(run, scope, node->b);
            scan_target(run, scope, node->a, false);
            break;
        case NODE_SET_BLOCK:
            scan_target(run, scope, node->a, false);
            break;
        case NODE_IF:
            scan_if(run, scope, node);
            break;
        case NODE_FOR:
            scan_expression(run, scope, node->b);
            break;
        case NODE_MACRO:
            note_store(run, scope, node->value.string);
            break;
        case NODE_CALL_BLOCK:
        case NODE_FILTER_BLOCK:
            scan_expression(run, scope, node->a);
            break;
        case NODE_WITH:
            for (const struct jinja_node *item = node->items; item; item = item->next->next)
                scan_expression(run, scope, item->next);
            break;
        default:
            break;
        }
    }
}

/* ---- special names that a body uses: loop, caller, kwargs, varargs */

struct specials {
    struct jinja_run *run;
    const char *const *names;
    bool hidden[3], used[3]; /* hidden: assigned by the body itself before its use */
};

static void see_name(struct specials *specials, const struct jinja_string *name, bool load)
{
    for (int i = 0; i < 3 && specials->names[i]; i++) {
        if (!jinja_string_is(name, specials->names[i])) continue;
        if (!load)
            specials->hidden[i] = true;
        else if (!specials->hidden[i])
            specials->used[i] = true;
    }
}

static void see_nodes(struct specials *specials, const struct jinja_node *list, bool load);

static void see_call(struct specials *specials, const struct jinja_call_node *call)
{
    see_nodes(specials, call->positional, true);
    see_nodes(specials, call->named, true);
    see_nodes(specials, call->star, true);
    see_nodes(specials, call->star_star, true);
}

static void see_node(struct specials *specials, const struct jinja_node *node, bool load)
{
    jinja_check_stack(specials->run);
    jinja_spend(specials->run, 1);
    if (node->type == NODE_NAME) see_name(specials, node->value.string, load);
    if (node->type == NODE_WITH) {
        for (const struct jinja_node *item = node->items; item; item = item->next->next) {
            see_node(specials, item, false);
            see_node(specials, item->next, true);
        }
        see_nodes(specials, node->body, true);
        return;
    }
    const bool assigns =
        node->type == NODE_SET || node->type == NODE_SET_BLOCK || node->type == NODE_FOR;
    if (node->a) see_node(specials, node->a, load && !assigns);
    if (node->b) see_node(specials, node->b, true);
    if (node->c) see_node(specials, node->c, true);
    if (node->d) see_node(specials, node->d, true);
    see_nodes(specials, node->items, load);
    if (node->type < NODE_OUTPUT) {
        if (node->call) see_call(specials, node->call);
        return;
    }
    if (node->macro) {
        see_nodes(specials, node->macro->params, false);
        see_nodes(specials, node->macro->defaults, true);
        see_nodes(specials, node->macro->body, true);
    }
    see_nodes(specials, node->body, true);
    see_nodes(specials, node->otherwise, true);
}

static void see_nodes(struct specials *specials, const struct jinja_node *list, bool load)
{
    for (; list; list = list->next)
        see_node(specials, list, load);
}

/* ---- placing the names */

static void place_statements(struct place at, struct jinja_node *body);
static void place_expression(struct place at, struct jinja_node *node);

static void place_list(struct place at, struct jinja_node *list)
{
    for (; list; list = list->next)
        place_expression(at, list);
}

static void find_function(struct place at, struct jinja_node *node)
{
    const bool filter = node->type == NODE_FILTER;
    const struct jinja_string *name = node->value.string;
    node->builtin = filter ? jinja_find_filter(name) : jinja_find_test(name);
    if (node->builtin || at.in_branch) return;
    at.run->line = node->line;
    jinja_fail(at.run, "no %s named '%.*s'", filter ? "filter" : "test", (int)(name->n_bytes & 255),
               name->bytes);
}

static void place_expression(struct place at, struct jinja_node *node)
{
    if (!node) return;
    jinja_check_stack(at.run);
    if (node->type == NODE_NAME || node->type == NODE_NAMESPACE) {
        node->ref = refer(at, node->value.string);
        return;
    }
    if (node->type == NODE_CONDITION) at.in_branch = true;
    if (node->type == NODE_FILTER || node->type == NODE_TEST) find_function(at, node);
    place_expression(at, node->a);
    place_expression(at, node->b);
    place_expression(at, node->c);
    place_expression(at, node->d);
    place_list(at, node->items);
    if (!node->call) return;
    place_list(at, node->call->positional);
    place_list(at, node->call->named);
    place_expression(at, node->call->star);
    place_expression(at, node->call->star_star);
}

static bool is_constant(struct jinja_run *run, const struct jinja_node *node);

static bool all_constant(struct jinja_run *run, const struct jinja_node *list)
{
    for (; list; list = list->next)
        if (!is_constant(run, list)) return false;
    return true;
}

/* jinja2 evaluates such expressions when it compiles; their filters must not need a context. */
static bool is_constant(struct jinja_run *run, const struct jinja_node *node)
{
    static const char *const with_context[] = {"map", "select", "reject", "selectattr",
                                               "rejectattr"};
    if (!node) return true;
    jinja_check_stack(run);
    if (node->type == NODE_NAME || node->type == NODE_CALL) return false;
    for (size_t i = 0; node->type == NODE_FILTER && i < 5; i++)
        if (jinja_string_is(node->value.string, with_context[i])) return false;
    const struct jinja_call_node *call = node->call;
    return is_constant(run, node->a) && is_constant(run, node->b) && is_constant(run, node->c) &&
           is_constant(run, node->d) && all_constant(run, node->items) &&
           (!call || (all_constant(run, call->positional) && all_constant(run, call->named) &&
                      is_constant(run, call->star) && is_constant(run, call->star_star)));
}

/* A constant that is printed yields undefined where slicing it would be an error: so jinja2 does
 * when it evaluates early. */
static void make_lenient(struct jinja_run *run, struct jinja_node *node)
{
    if (!node) return;
    jinja_check_stack(run);
    if (node->type == NODE_SLICE) node->flag = true;
    make_lenient(run, node->a);
    make_lenient(run, node->b);
    make_lenient(run, node->c);
    make_lenient(run, node->d);
    for (struct jinja_node *item = node->items; item; item = item->next)
        make_lenient(run, item);
}

/* A macro or the body of a call block: a function of its own. */
static void place_macro(struct place at, struct jinja_macro_node *macro, uint32_t line)
{
    static const char *const names[] = {"caller", "kwargs", "varargs"};
    struct specials specials = {.run = at.run, .names = names};
    bool declared[3] = {false};
    init_function(&macro->function, at.scope->function);
    struct scope *scope = inner_scope(at.run, at.scope, &macro->function);
    for (const struct jinja_node *param = macro->params; param; param = param->next)
        note_parameter(at.run, scope, param->value.string);
    scan_list(at.run, scope, macro->defaults);
    see_nodes(&specials, macro->body, true);
    size_t i_param = 0;
    for (const struct jinja_node *param = macro->params; param; param = param->next, i_param++)
        for (int i = 0; i < 3; i++) {
            if (!jinja_string_is(param->value.string, names[i])) continue;
            declared[i] = true;
            if (i == 0 && specials.used[0] && i_param < macro->n_param - macro->n_default) {
                at.run->line = line;
                jinja_fail(at.run, "the argument \"caller\" must be omitted or have a default");
            }
        }
    struct jinja_ref *const refs[] = {&macro->caller, &macro->kwargs, &macro->varargs};
    bool *const takes[] = {&macro->takes_caller, &macro->takes_kwargs, &macro->takes_varargs};
    struct place inside = {at.run, scope, false, false};
    for (int i = 0; i < 3; i++) {
        *takes[i] = specials.used[i] && !declared[i];
        if (!*takes[i]) continue;
        const struct jinja_value name = jinja_text(at.run, names[i]);
        note_parameter(at.run, scope, name.string);
        *refs[i] = refer(inside, name.string);
    }
    scan_statements(at.run, scope, macro->body);
    place_list(inside, macro->params);
    place_list(inside, macro->defaults);
    place_statements(inside, macro->body);
    close_frame(at.run, scope, &macro->frame);
}

static bool assigns_loop(struct jinja_run *run, const struct jinja_node *target)
{
    if (target->type == NODE_NAME && jinja_string_is(target->value.string, "loop")) return true;
    for (const struct jinja_node *item = target->items; item; item = item->next)
        if (assigns_loop(run, item)) return true;
    return false;
}

/* No statement inside a loop may assign to "loop". */
static void refuse_loop_target(struct jinja_run *run, const struct jinja_node *body)
{
    jinja_check_stack(run);
    for (; body; body = body->next) {
        jinja_spend(run, 1);
        const bool assigns = body->type == NODE_SET || body->type == NODE_SET_BLOCK;
        if (assigns && assigns_loop(run, body->a)) {
            run->line = body->line;
            jinja_fail(run, "can't assign to the special variable loop inside a loop");
        }
        if (body->type < NODE_OUTPUT || body->type == NODE_FOR) continue; /* sees to itself */
        if (body->type == NODE_IF) refuse_loop_target(run, body->items);
        if (body->macro) refuse_loop_target(run, body->macro->body);
        refuse_loop_target(run, body->body);
        refuse_loop_target(run, body->otherwise);
    }
}

static void place_loop_test(struct place at, struct jinja_node *node)
{
    node->test_function = jinja_alloc_zero(at.run, sizeof(*node->test_function));
    init_function(node->test_function, at.scope->function);
    struct scope *scope = inner_scope(at.run, at.scope, node->test_function);
    scan_target(at.run, scope, node->test_target, true);
    scan_expression(at.run, scope, node->c);
    const struct place inside = {at.run, scope, false, false};
    place_expression(inside, node->test_target);
    place_expression(inside, node->c);
    close_frame(at.run, scope, &node->test_frame);
}

static void place_for(struct place at, struct jinja_node *node)
{
    static const char *const names[] = {"loop", NULL};
    struct specials specials = {.run = at.run, .names = names};
    struct jinja_function *function = at.scope->function;
    place_expression(at, node->b);
    if (node->c) place_loop_test(at, node);
    if (node->flag) {
        function = jinja_alloc_zero(at.run, sizeof(*function));
        init_function(function, at.scope->function);
        node->function = function;
    }
    if (assigns_loop(at.run, node->a)) {
        at.run->line = node->line;
        jinja_fail(at.run, "can't assign to the special variable loop in a loop target");
    }
    refuse_loop_target(at.run, node->body);
    refuse_loop_target(at.run, node->otherwise);

    struct scope *scope = inner_scope(at.run, at.scope, function);
    see_nodes(&specials, node->body, true);
    node->has_loop = node->flag || specials.used[0];
    const struct place inside = {at.run, scope, false, true};
    if (node->has_loop) {
        const struct jinja_value name = jinja_text(at.run, "loop");
        note_parameter(at.run, scope, name.string);
        node->loop = refer(inside, name.string);
    }
    scan_target(at.run, scope, node->a, true);
    scan_statements(at.run, scope, node->body);
    place_expression(inside, node->a);
    place_statements(inside, node->body);
    close_frame(at.run, scope, &node->frame);

    scope = inner_scope(at.run, at.scope, function);
    scan_statements(at.run, scope, node->otherwise);
    const struct place otherwise = {at.run, scope, false, at.in_loop && !node->flag};
    place_statements(otherwise, node->otherwise);
    close_frame(at.run, scope, &node->else_frame);
}

static void place_if(struct place at, struct jinja_node *node)
{
    at.in_branch = true;
    place_expression(at, node->a);
    place_statements(at, node->body);
    for (struct jinja_node *branch = node->items; branch; branch = branch->next) {
        place_expression(at, branch->a);
        place_statements(at, branch->body);
    }
    place_statements(at, node->otherwise);
}

/* Filter, set and with blocks: a scope in the same function. */
static void place_inner_block(struct place at, struct jinja_node *node)
{
    struct scope *scope = inner_scope(at.run, at.scope, at.scope->function);
    struct place inside = {at.run, scope, false, at.in_loop};
    if (node->type == NODE_WITH)
        for (struct jinja_node *item = node->items; item; item = item->next->next) {
            scan_target(at.run, scope, item, true);
            place_expression(at, item->next);
        }
    scan_statements(at.run, scope, node->body);
    if (node->type == NODE_FILTER_BLOCK) scan_expression(at.run, scope, node->a);
    if (node->type == NODE_WITH)
        for (struct jinja_node *item = node->items; item; item = item->next->next)
            place_expression(inside, item);
    place_statements(inside, node->body);
    if (node->type == NODE_FILTER_BLOCK) place_expression(inside, node->a);
    if (node->type == NODE_SET_BLOCK) {
        place_expression(inside, node->b);
        place_expression(at, node->a);
    }
    close_frame(at.run, scope, &node->frame);
}

static void place_statements(struct place at, struct jinja_node *body)
{
    jinja_check_stack(at.run);
    for (struct jinja_node *node = body; node; node = node->next) {
        switch (node->type) {
        case NODE_OUTPUT:
            place_list(at, node->items);
            for (struct jinja_node *item = node->items; item; item = item->next)
                if (is_constant(at.run, item)) make_lenient(at.run, item);
            break;
        case NODE_SET:
            place_expression(at, node->b);
            place_expression(at, node->a);
            break;
        case NODE_IF:
            place_if(at, node);
            break;
        case NODE_FOR:
            place_for(at, node);
            break;
        case NODE_MACRO:
            node->ref = refer(at, node->value.string);
            place_macro(at, node->macro, node->line);
            break;
        case NODE_CALL_BLOCK:
            place_expression(at, node->a);
            place_macro(at, node->macro, node->line);
            break;
        case NODE_GENERATION:
            place_macro(at, node->macro, node->line);
            break;
        case NODE_SET_BLOCK:
        case NODE_FILTER_BLOCK:
        case NODE_WITH:
            place_inner_block(at, node);
            break;
        case NODE_BREAK:
        case NODE_CONTINUE:
            if (at.in_loop) break;
            at.run->line = node->line;
            jinja_fail(at.run, "'%s' outside loop",
                       node->type == NODE_BREAK ? "break" : "continue");
        default:
            break;
        }
    }
}

void jinja_resolve(struct jinja_run *run, struct jinja_template *tmpl)
{
    struct scope *root = inner_scope(run, NULL, &tmpl->function);
    scan_statements(run, root, tmpl->body);
    place_statements((struct place){run, root, false, false}, tmpl->body);
    close_frame(run, root, &tmpl->frame);
}
