/* Recursive descent, in the order of precedence that jinja2 has (loosest first):
 *
 *   a if b else c · or · and · not · comparisons, in · + - · ~ · * / // % · ** (left to right) ·
 *   unary - + · subscripts, attributes, calls · filters, tests
 *
 * so filters bind tighter than any operator, except that a sign is applied before them. */
#include "coordinator/text/jinja_parser.h"

#include <stdio.h>
#include <string.h>

#include "coordinator/text/jinja_lexer.h"

struct parser {
    struct jinja_run *run;
    const struct jinja_token *at;
};

static struct jinja_node *parse_expression(struct parser *parser);
static struct jinja_node *parse_or(struct parser *parser);
static struct jinja_node *parse_unary(struct parser *parser, bool with_filter);
static struct jinja_node *parse_body(struct parser *parser, const char *const *end_tags);

/* ---- tokens */

static _Noreturn void fail_here(struct parser *parser, const char *message)
{
    parser->run->line = parser->at->line;
    jinja_fail(parser->run, "%s", message);
}

static _Noreturn void fail_expected(struct parser *parser, const char *what)
{
    char found[64], message[160];
    snprintf(message, sizeof(message), "expected %s, got %s", what,
             jinja_describe_token(parser->at, found));
    fail_here(parser, message);
}

static bool is_name(const struct parser *parser, const char *name)
{
    return parser->at->type == TOKEN_NAME && jinja_string_is(parser->at->value.string, name);
}

static bool next_is_name(const struct parser *parser, const char *name)
{
    const struct jinja_token *next = parser->at + 1;
    return parser->at->type != TOKEN_END && next->type == TOKEN_NAME &&
           jinja_string_is(next->value.string, name);
}

static const struct jinja_token *take(struct parser *parser)
{
    const struct jinja_token *token = parser->at;
    if (token->type != TOKEN_END) parser->at++;
    return token;
}

static bool skip(struct parser *parser, int type)
{
    if (parser->at->type != type) return false;
    take(parser);
    return true;
}

static bool skip_name(struct parser *parser, const char *name)
{
    if (!is_name(parser, name)) return false;
    take(parser);
    return true;
}

static const struct jinja_token *expect(struct parser *parser, int type, const char *what)
{
    if (parser->at->type != type) fail_expected(parser, what);
    return take(parser);
}

/* ---- nodes */

static struct jinja_node *make_at(struct parser *parser, enum jinja_node_type type, uint32_t line)
{
    struct jinja_node *node = jinja_alloc_zero(parser->run, sizeof(*node));
    node->type = type;
    node->line = line;
    return node;
}

static struct jinja_node *make(struct parser *parser, enum jinja_node_type type)
{
    return make_at(parser, type, parser->at->line);
}

static struct jinja_node *make_pair(struct parser *parser, enum jinja_node_type type,
                                    struct jinja_node *a, struct jinja_node *b)
{
    struct jinja_node *node = make_at(parser, type, a->line);
    node->a = a;
    node->b = b;
    return node;
}

struct chain {
    struct jinja_node *first, **end;
    size_t n;
};

static void chain_init(struct chain *chain)
{
    chain->first = NULL;
    chain->end = &chain->first;
    chain->n = 0;
}

static void chain_add(struct chain *chain, struct jinja_node *node)
{
    *chain->end = node;
    chain->end = &node->next;
    chain->n++;
}

static struct jinja_node *with_items(struct jinja_node *node, const struct chain *chain)
{
    node->items = chain->first;
    node->n_item = chain->n;
    return node;
}

/* ---- expressions */

static bool ends_tuple(const struct parser *parser, const char *end_name)
{
    const int type = parser->at->type;
    return type == TOKEN_VARIABLE_END || type == TOKEN_BLOCK_END || type == ')' ||
           (end_name && is_name(parser, end_name));
}

enum tuple_of { TUPLE_OF_EXPRESSIONS, TUPLE_WITHOUT_CONDITIONS, TUPLE_OF_TARGETS };

static struct jinja_node *parse_primary(struct parser *parser, bool with_namespace);

/* One expression, or a tuple without parentheses of its own. */
static struct jinja_node *parse_tuple(struct parser *parser, enum tuple_of what,
                                      bool with_namespace, const char *end_name, bool may_be_empty)
{
    struct jinja_node *tuple = make(parser, NODE_TUPLE);
    struct chain items;
    bool is_tuple = false;
    chain_init(&items);
    while (!ends_tuple(parser, end_name)) {
        chain_add(&items, what == TUPLE_OF_TARGETS           ? parse_primary(parser, with_namespace)
                          : what == TUPLE_WITHOUT_CONDITIONS ? parse_or(parser)
                                                             : parse_expression(parser));
        if (!skip(parser, ',')) break;
        is_tuple = true;
    }
    if (is_tuple) return with_items(tuple, &items);
    if (items.first) return items.first;
    if (!may_be_empty) fail_expected(parser, "an expression");
    return with_items(tuple, &items);
}

static struct jinja_node *parse_list(struct parser *parser)
{
    struct jinja_node *list = make(parser, NODE_LIST);
    struct chain items;
    chain_init(&items);
    take(parser);
    while (parser->at->type != ']') {
        if (items.n) expect(parser, ',', "','");
        if (parser->at->type == ']') break;
        chain_add(&items, parse_expression(parser));
    }
    take(parser);
    return with_items(list, &items);
}

static struct jinja_node *parse_dict(struct parser *parser)
{
    struct jinja_node *dict = make(parser, NODE_DICT);
    struct chain items;
    chain_init(&items);
    take(parser);
    while (parser->at->type != '}') {
        if (items.n) expect(parser, ',', "','");
        if (parser->at->type == '}') break;
        chain_add(&items, parse_expression(parser));
        expect(parser, ':', "':'");
        chain_add(&items, parse_expression(parser));
    }
    take(parser);
    return with_items(dict, &items);
}

static bool constant_of(const struct jinja_string *name, struct jinja_value *value)
{
    if (jinja_string_is(name, "true") || jinja_string_is(name, "True"))
        *value = jinja_bool(true);
    else if (jinja_string_is(name, "false") || jinja_string_is(name, "False"))
        *value = jinja_bool(false);
    else if (jinja_string_is(name, "none") || jinja_string_is(name, "None"))
        *value = jinja_none();
    else
        return false;
    return true;
}

static struct jinja_node *parse_name(struct parser *parser, bool with_namespace)
{
    struct jinja_node *node = make(parser, NODE_NAME);
    const struct jinja_token *token = take(parser);
    node->value = token->value;
    if (constant_of(token->value.string, &node->value)) {
        node->type = NODE_CONST;
    } else if (with_namespace && skip(parser, '.')) {
        node->type = NODE_NAMESPACE;
        node->attribute = expect(parser, TOKEN_NAME, "a name")->value.string;
    }
    return node;
}

static struct jinja_node *parse_string(struct parser *parser)
{
    struct jinja_node *node = make(parser, NODE_CONST);
    node->value = take(parser)->value;
    while (parser->at->type == TOKEN_STRING)
        node->value = jinja_binary(parser->run, BINARY_ADD, node->value, take(parser)->value);
    return node;
}

static struct jinja_node *parse_primary(struct parser *parser, bool with_namespace)
{
    struct jinja_node *node;
    switch (parser->at->type) {
    case TOKEN_NAME:
        return parse_name(parser, with_namespace);
    case TOKEN_STRING:
        return parse_string(parser);
    case TOKEN_NUMBER:
        node = make(parser, NODE_CONST);
        node->value = take(parser)->value;
        return node;
    case '(':
        jinja_check_stack(parser->run);
        take(parser);
        node = parse_tuple(parser, TUPLE_OF_EXPRESSIONS, false, NULL, true);
        expect(parser, ')', "')'");
        return node;
    case '[':
        jinja_check_stack(parser->run);
        return parse_list(parser);
    case '{':
        jinja_check_stack(parser->run);
        return parse_dict(parser);
    default:
        fail_expected(parser, "an expression");
    }
}

static void add_keyword(struct parser *parser, struct jinja_call_node *call, struct chain *named)
{
    struct jinja_node *keyword = make(parser, NODE_KEYWORD);
    keyword->value = take(parser)->value;
    take(parser);
    for (const struct jinja_node *other = call->named; other; other = other->next)
        if (jinja_string_equal(other->value.string, keyword->value.string))
            fail_here(parser, "keyword argument repeated");
    jinja_spend(parser->run, call->n_named);
    keyword->a = parse_expression(parser);
    chain_add(named, keyword);
    call->named = named->first;
    call->n_named++;
}

static struct jinja_call_node *parse_call(struct parser *parser)
{
    struct jinja_call_node *call = jinja_alloc_zero(parser->run, sizeof(*call));
    struct chain positional, named;
    bool first = true;
    chain_init(&positional);
    chain_init(&named);
    expect(parser, '(', "'('");
    while (parser->at->type != ')') {
        if (!first) expect(parser, ',', "','");
        if (parser->at->type == ')' && !first) break;
        first = false;
        bool valid = !call->star_star;
        if (skip(parser, '*')) {
            valid = valid && !call->star;
            call->star = parse_expression(parser);
        } else if (skip(parser, TOKEN_POWER)) {
            call->star_star = parse_expression(parser);
        } else if (parser->at->type == TOKEN_NAME && parser->at[1].type == '=') {
            add_keyword(parser, call, &named);
        } else {
            valid = valid && !call->star && !named.n;
            chain_add(&positional, parse_expression(parser));
        }
        if (!valid) fail_here(parser, "invalid syntax for function call expression");
    }
    take(parser);
    call->positional = positional.first;
    call->n_positional = positional.n;
    return call;
}

/* One part of a slice, absent before ':', ']' or ','. */
static struct jinja_node *parse_bound(struct parser *parser)
{
    const int type = parser->at->type;
    return type == ':' || type == ']' || type == ',' ? NULL : parse_expression(parser);
}

static struct jinja_node *parse_subscript(struct parser *parser, struct jinja_node *object)
{
    struct jinja_node *node = make(parser, NODE_ITEM);
    node->a = object;
    if (skip(parser, '.')) {
        const struct jinja_token *token = take(parser);
        node->value = token->value;
        if (token->type == TOKEN_NAME) {
            node->type = NODE_ATTRIBUTE;
        } else {
            if (token->type != TOKEN_NUMBER || token->value.type != JINJA_INT)
                fail_here(parser, "expected name or number");
            node->b = make(parser, NODE_CONST);
            node->b->value = token->value;
        }
        return node;
    }
    take(parser);
    struct chain keys;
    chain_init(&keys);
    while (parser->at->type != ']') {
        if (keys.n) expect(parser, ',', "','");
        struct jinja_node *key = parse_bound(parser);
        if (skip(parser, ':')) {
            node->type = NODE_SLICE;
            node->b = key;
            node->c = parse_bound(parser);
            if (skip(parser, ':')) node->d = parse_bound(parser);
            if (keys.n || parser->at->type != ']')
                fail_here(parser, "a slice with more than one part");
            take(parser);
            return node;
        }
        if (!key) fail_expected(parser, "an expression");
        chain_add(&keys, key);
    }
    take(parser);
    node->b = keys.n == 1 ? keys.first : with_items(make(parser, NODE_TUPLE), &keys);
    return node;
}

static struct jinja_node *parse_postfix(struct parser *parser, struct jinja_node *node)
{
    for (;;) {
        if (parser->at->type == '.' || parser->at->type == '[') {
            node = parse_subscript(parser, node);
        } else if (parser->at->type == '(') {
            node = make_pair(parser, NODE_CALL, node, NULL);
            node->call = parse_call(parser);
        } else {
            return node;
        }
    }
}

/* A name with dots, as filters and tests may have. */
static struct jinja_value parse_dotted_name(struct parser *parser)
{
    struct jinja_value name = expect(parser, TOKEN_NAME, "a name")->value;
    while (skip(parser, '.')) {
        struct jinja_run *run = parser->run;
        name = jinja_binary(run, BINARY_ADD, name, jinja_text(run, "."));
        name = jinja_binary(run, BINARY_ADD, name, expect(parser, TOKEN_NAME, "a name")->value);
    }
    return name;
}

/* "name(...)|name..." applied to node. */
static struct jinja_node *parse_filters(struct parser *parser, struct jinja_node *node)
{
    do {
        struct jinja_node *filter = make(parser, NODE_FILTER);
        filter->a = node;
        filter->value = parse_dotted_name(parser);
        if (parser->at->type == '(')
            filter->call = parse_call(parser);
        else
            filter->call = jinja_alloc_zero(parser->run, sizeof(*filter->call));
        node = filter;
    } while (skip(parser, '|'));
    return node;
}

static struct jinja_node *parse_test(struct parser *parser, struct jinja_node *tested)
{
    take(parser);
    const bool negated = skip_name(parser, "not");
    struct jinja_node *test = make_pair(parser, NODE_TEST, tested, NULL);
    test->value = parse_dotted_name(parser);
    const int type = parser->at->type;
    if (type == '(') {
        test->call = parse_call(parser);
    } else {
        test->call = jinja_alloc_zero(parser->run, sizeof(*test->call));
        const bool operand = type == TOKEN_NAME || type == TOKEN_STRING || type == TOKEN_NUMBER ||
                             type == '[' || type == '{';
        if (operand && !is_name(parser, "else") && !is_name(parser, "or") &&
            !is_name(parser, "and")) {
            if (is_name(parser, "is")) fail_here(parser, "tests cannot be chained with is");
            test->call->positional = parse_postfix(parser, parse_primary(parser, false));
            test->call->n_positional = 1;
        }
    }
    return negated ? make_pair(parser, NODE_NOT, test, NULL) : test;
}

static struct jinja_node *parse_filters_and_tests(struct parser *parser, struct jinja_node *node)
{
    for (;;) {
        if (skip(parser, '|')) {
            node = parse_filters(parser, node);
        } else if (is_name(parser, "is")) {
            node = parse_test(parser, node);
        } else if (parser->at->type == '(') {
            node = make_pair(parser, NODE_CALL, node, NULL);
            node->call = parse_call(parser);
        } else {
            return node;
        }
    }
}

static struct jinja_node *parse_unary(struct parser *parser, bool with_filter)
{
    struct jinja_node *node;
    const int type = parser->at->type;
    if (type == '-' || type == '+') {
        jinja_check_stack(parser->run);
        node = make(parser, type == '-' ? NODE_NEGATE : NODE_PLUS);
        take(parser);
        node->a = parse_unary(parser, false);
    } else {
        node = parse_primary(parser, false);
    }
    node = parse_postfix(parser, node);
    return with_filter ? parse_filters_and_tests(parser, node) : node;
}

static struct jinja_node *make_binary(struct parser *parser, enum jinja_binary binary,
                                      struct jinja_node *a, struct jinja_node *b)
{
    struct jinja_node *node = make_pair(parser, NODE_BINARY, a, b);
    node->binary = binary;
    return node;
}

static struct jinja_node *parse_power(struct parser *parser)
{
    struct jinja_node *left = parse_unary(parser, true);
    while (skip(parser, TOKEN_POWER))
        left = make_binary(parser, BINARY_POW, left, parse_unary(parser, true));
    return left;
}

static struct jinja_node *parse_product(struct parser *parser)
{
    struct jinja_node *left = parse_power(parser);
    for (;;) {
        enum jinja_binary binary;
        switch (parser->at->type) {
        case '*':
            binary = BINARY_MUL;
            break;
        case '/':
            binary = BINARY_DIV;
            break;
        case TOKEN_FLOOR_DIVIDE:
            binary = BINARY_FLOORDIV;
            break;
        case '%':
            binary = BINARY_MOD;
            break;
        default:
            return left;
        }
        take(parser);
        left = make_binary(parser, binary, left, parse_power(parser));
    }
}

static struct jinja_node *parse_concat(struct parser *parser)
{
    struct jinja_node *first = parse_product(parser);
    if (parser->at->type != '~') return first;
    struct jinja_node *concat = make_at(parser, NODE_CONCAT, first->line);
    struct chain items;
    chain_init(&items);
    chain_add(&items, first);
    while (skip(parser, '~'))
        chain_add(&items, parse_product(parser));
    return with_items(concat, &items);
}

static struct jinja_node *parse_sum(struct parser *parser)
{
    struct jinja_node *left = parse_concat(parser);
    while (parser->at->type == '+' || parser->at->type == '-') {
        const enum jinja_binary binary = take(parser)->type == '+' ? BINARY_ADD : BINARY_SUB;
        left = make_binary(parser, binary, left, parse_concat(parser));
    }
    return left;
}

static bool parse_comparison(struct parser *parser, enum jinja_compare *compare)
{
    switch (parser->at->type) {
    case TOKEN_EQUAL:
        *compare = COMPARE_EQ;
        break;
    case TOKEN_NOT_EQUAL:
        *compare = COMPARE_NE;
        break;
    case '<':
        *compare = COMPARE_LT;
        break;
    case TOKEN_LESS_EQUAL:
        *compare = COMPARE_LE;
        break;
    case '>':
        *compare = COMPARE_GT;
        break;
    case TOKEN_GREATER_EQUAL:
        *compare = COMPARE_GE;
        break;
    default:
        if (is_name(parser, "in")) {
            *compare = COMPARE_IN;
            break;
        }
        if (!is_name(parser, "not") || !next_is_name(parser, "in")) return false;
        *compare = COMPARE_NOT_IN;
        take(parser);
    }
    take(parser);
    return true;
}

static struct jinja_node *parse_compare(struct parser *parser)
{
    struct jinja_node *first = parse_sum(parser);
    struct chain operands;
    enum jinja_compare compare;
    chain_init(&operands);
    while (parse_comparison(parser, &compare)) {
        struct jinja_node *operand = make(parser, NODE_OPERAND);
        operand->compare = compare;
        operand->a = parse_sum(parser);
        chain_add(&operands, operand);
    }
    if (!operands.n) return first;
    return with_items(make_pair(parser, NODE_COMPARE, first, NULL), &operands);
}

static struct jinja_node *parse_not(struct parser *parser)
{
    if (!is_name(parser, "not")) return parse_compare(parser);
    jinja_check_stack(parser->run);
    struct jinja_node *node = make(parser, NODE_NOT);
    take(parser);
    node->a = parse_not(parser);
    return node;
}

static struct jinja_node *parse_and(struct parser *parser)
{
    struct jinja_node *left = parse_not(parser);
    while (skip_name(parser, "and"))
        left = make_pair(parser, NODE_AND, left, parse_not(parser));
    return left;
}

static struct jinja_node *parse_or(struct parser *parser)
{
    struct jinja_node *left = parse_and(parser);
    while (skip_name(parser, "or"))
        left = make_pair(parser, NODE_OR, left, parse_and(parser));
    return left;
}

static struct jinja_node *parse_expression(struct parser *parser)
{
    jinja_check_stack(parser->run);
    struct jinja_node *node = parse_or(parser);
    while (skip_name(parser, "if")) {
        node = make_pair(parser, NODE_CONDITION, node, parse_or(parser));
        if (skip_name(parser, "else")) node->c = parse_expression(parser);
    }
    return node;
}

/* ---- statements */

static void check_target(struct parser *parser, const struct jinja_node *target)
{
    if (target->type == NODE_TUPLE) {
        for (const struct jinja_node *item = target->items; item; item = item->next)
            check_target(parser, item);
    } else if (target->type != NODE_NAME && target->type != NODE_NAMESPACE) {
        fail_here(parser, "can't assign to this expression");
    }
}

static struct jinja_node *parse_target(struct parser *parser, bool with_namespace,
                                       const char *end_name)
{
    struct jinja_node *target =
        parse_tuple(parser, TUPLE_OF_TARGETS, with_namespace, end_name, false);
    check_target(parser, target);
    return target;
}

static struct jinja_node *parse_target_name(struct parser *parser)
{
    if (parser->at->type != TOKEN_NAME) fail_expected(parser, "a name");
    struct jinja_node *name = parse_name(parser, false);
    check_target(parser, name);
    return name;
}

/* A tag's end, its statements up to one of end_tags, and that tag's name taken. Returns which. */
static size_t parse_block(struct parser *parser, const char *const *end_tags,
                          struct jinja_node **body)
{
    skip(parser, ':');
    expect(parser, TOKEN_BLOCK_END, "end of statement block");
    *body = parse_body(parser, end_tags);
    for (size_t i = 0; end_tags[i]; i++)
        if (skip_name(parser, end_tags[i])) return i;
    char message[200];
    snprintf(message, sizeof(message), "unexpected end of template, looking for '%s'", end_tags[0]);
    fail_here(parser, message);
}

static struct jinja_node *parse_block_to(struct parser *parser, const char *end_tag)
{
    struct jinja_node *body;
    parse_block(parser, (const char *const[]){end_tag, NULL}, &body);
    return body;
}

static void parse_if(struct parser *parser, struct jinja_node *node)
{
    static const char *const end_tags[] = {"elif", "else", "endif", NULL};
    struct chain branches;
    chain_init(&branches);
    for (struct jinja_node *branch = node;;) {
        branch->a = parse_tuple(parser, TUPLE_WITHOUT_CONDITIONS, false, NULL, false);
        const size_t which = parse_block(parser, end_tags, &branch->body);
        if (which == 1) node->otherwise = parse_block_to(parser, "endif");
        if (which != 0) break;
        branch = make(parser, NODE_IF);
        chain_add(&branches, branch);
    }
    with_items(node, &branches);
}

static struct jinja_node *copy_target(struct parser *parser, const struct jinja_node *target)
{
    struct jinja_node *copy = jinja_alloc(parser->run, sizeof(*copy));
    *copy = *target;
    copy->next = NULL;
    struct chain items;
    chain_init(&items);
    for (const struct jinja_node *item = target->items; item; item = item->next)
        chain_add(&items, copy_target(parser, item));
    return with_items(copy, &items);
}

static void parse_for(struct parser *parser, struct jinja_node *node)
{
    static const char *const end_tags[] = {"endfor", "else", NULL};
    node->a = parse_target(parser, false, "in");
    if (!skip_name(parser, "in")) fail_expected(parser, "'in'");
    node->b = parse_tuple(parser, TUPLE_WITHOUT_CONDITIONS, false, "recursive", false);
    if (skip_name(parser, "if")) {
        node->c = parse_expression(parser);
        node->test_target = copy_target(parser, node->a);
    }
    node->flag = skip_name(parser, "recursive");
    if (parse_block(parser, end_tags, &node->body) == 1)
        node->otherwise = parse_block_to(parser, "endfor");
}

static void parse_set(struct parser *parser, struct jinja_node *node)
{
    node->a = parse_target(parser, true, NULL);
    if (skip(parser, '=')) {
        node->b = parse_tuple(parser, TUPLE_OF_EXPRESSIONS, false, NULL, false);
        return;
    }
    node->type = NODE_SET_BLOCK;
    if (skip(parser, '|')) node->b = parse_filters(parser, NULL);
    node->body = parse_block_to(parser, "endset");
}

static void parse_signature(struct parser *parser, struct jinja_macro_node *macro)
{
    struct chain params, defaults;
    chain_init(&params);
    chain_init(&defaults);
    expect(parser, '(', "'('");
    while (parser->at->type != ')') {
        if (params.n) expect(parser, ',', "','");
        struct jinja_node *param = parse_target_name(parser);
        for (const struct jinja_node *other = params.first; other; other = other->next)
            if (jinja_string_equal(other->value.string, param->value.string))
                fail_here(parser, "duplicate argument in macro definition");
        jinja_spend(parser->run, params.n);
        if (skip(parser, '='))
            chain_add(&defaults, parse_expression(parser));
        else if (defaults.n)
            fail_here(parser, "non-default argument follows default argument");
        chain_add(&params, param);
    }
    take(parser);
    macro->params = params.first;
    macro->n_param = params.n;
    macro->defaults = defaults.first;
    macro->n_default = defaults.n;
}

static void parse_macro(struct parser *parser, struct jinja_node *node)
{
    node->value = parse_target_name(parser)->value;
    node->macro->name = node->value.string;
    parse_signature(parser, node->macro);
    node->macro->body = parse_block_to(parser, "endmacro");
}

static void parse_call_block(struct parser *parser, struct jinja_node *node)
{
    if (parser->at->type == '(') parse_signature(parser, node->macro);
    node->a = parse_expression(parser);
    if (node->a->type != NODE_CALL) fail_expected(parser, "a call");
    node->macro->body = parse_block_to(parser, "endcall");
}

static void parse_with(struct parser *parser, struct jinja_node *node)
{
    struct chain items;
    chain_init(&items);
    while (parser->at->type != TOKEN_BLOCK_END) {
        if (items.n) expect(parser, ',', "','");
        chain_add(&items, parse_target(parser, false, NULL));
        expect(parser, '=', "'='");
        chain_add(&items, parse_expression(parser));
    }
    with_items(node, &items);
    node->body = parse_block_to(parser, "endwith");
}

static void parse_print(struct parser *parser, struct jinja_node *node)
{
    struct chain items;
    chain_init(&items);
    while (parser->at->type != TOKEN_BLOCK_END) {
        if (items.n) expect(parser, ',', "','");
        chain_add(&items, parse_expression(parser));
    }
    with_items(node, &items);
}

static struct jinja_node *parse_statement(struct parser *parser)
{
    static const struct {
        const char *name;
        enum jinja_node_type type;
    } tags[] = {
        {"if", NODE_IF},
        {"for", NODE_FOR},
        {"set", NODE_SET},
        {"macro", NODE_MACRO},
        {"call", NODE_CALL_BLOCK},
        {"filter", NODE_FILTER_BLOCK},
        {"with", NODE_WITH},
        {"print", NODE_OUTPUT},
        {"break", NODE_BREAK},
        {"continue", NODE_CONTINUE},
        {"generation", NODE_GENERATION},
        {"include", NODE_NO_LOADER},
        {"import", NODE_NO_LOADER},
        {"from", NODE_NO_LOADER},
        {"extends", NODE_NO_LOADER},
    };
    jinja_check_stack(parser->run);
    if (parser->at->type != TOKEN_NAME) fail_expected(parser, "a tag name");
    struct jinja_node *node = NULL;
    for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]) && !node; i++)
        if (is_name(parser, tags[i].name)) node = make(parser, tags[i].type);
    if (!node) fail_expected(parser, "a tag");
    take(parser);
    if (node->type == NODE_MACRO || node->type == NODE_CALL_BLOCK || node->type == NODE_GENERATION)
        node->macro = jinja_alloc_zero(parser->run, sizeof(*node->macro));
    switch (node->type) {
    case NODE_IF:
        parse_if(parser, node);
        break;
    case NODE_FOR:
        parse_for(parser, node);
        break;
    case NODE_SET:
        parse_set(parser, node);
        break;
    case NODE_MACRO:
        parse_macro(parser, node);
        break;
    case NODE_CALL_BLOCK:
        parse_call_block(parser, node);
        break;
    case NODE_FILTER_BLOCK:
        node->a = parse_filters(parser, NULL);
        node->body = parse_block_to(parser, "endfilter");
        break;
    case NODE_WITH:
        parse_with(parser, node);
        break;
    case NODE_OUTPUT:
        parse_print(parser, node);
        break;
    case NODE_GENERATION:
        node->macro->body = parse_block_to(parser, "endgeneration");
        break;
    case NODE_NO_LOADER:
        while (parser->at->type != TOKEN_BLOCK_END && parser->at->type != TOKEN_END)
            take(parser);
        break;
    default:
        break;
    }
    return node;
}

static bool at_end_tag(const struct parser *parser, const char *const *end_tags)
{
    for (; end_tags && *end_tags; end_tags++)
        if (is_name(parser, *end_tags)) return true;
    return false;
}

/* Statements up to the end of the template or to one of end_tags, whose name is then current. */
static struct jinja_node *parse_body(struct parser *parser, const char *const *end_tags)
{
    struct chain body;
    struct jinja_node *output = NULL; /* text and prints in a row share one */
    struct chain items;
    chain_init(&body);
    chain_init(&items);
    while (parser->at->type != TOKEN_END) {
        if (skip(parser, TOKEN_BLOCK_BEGIN)) {
            output = NULL;
            if (at_end_tag(parser, end_tags)) break;
            chain_add(&body, parse_statement(parser));
            expect(parser, TOKEN_BLOCK_END, "end of statement block");
            continue;
        }
        if (!output) {
            output = make(parser, NODE_OUTPUT);
            chain_add(&body, output);
            chain_init(&items);
        }
        if (parser->at->type == TOKEN_DATA) {
            struct jinja_node *text = make(parser, NODE_CONST);
            text->value = take(parser)->value;
            chain_add(&items, text);
        } else {
            expect(parser, TOKEN_VARIABLE_BEGIN, "template data");
            chain_add(&items, parse_tuple(parser, TUPLE_OF_EXPRESSIONS, false, NULL, false));
            expect(parser, TOKEN_VARIABLE_END, "end of print statement");
        }
        with_items(output, &items);
    }
    return body.first;
}

struct jinja_node *jinja_parse(struct jinja_run *run, const char *source, size_t n_bytes)
{
    struct parser parser = {run, jinja_tokenize(run, source, n_bytes)};
    run->line = 0;
    return parse_body(&parser, NULL);
}
