/* The mask follows what has been written: reasoning, its budget, content, calls. */
#include <json-c/json.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/text/steering.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tool_grammar.h"
#include "tests/unit/cmocka_all.h"
#include "tests/unit/demo_vocabulary.h"

static struct tokenizer *tokenizer;
static struct token_trie *trie;

static int open_vocabulary(void **state)
{
    (void)state;
    struct lm_error err;
    tokenizer = demo_vocabulary_open();
    if (token_trie_create(&trie, tokenizer, &err) != LM_OK) fail_msg("%s", err.message);
    return 0;
}

static int close_vocabulary(void **state)
{
    (void)state;
    token_trie_destroy(trie);
    tokenizer_destroy(tokenizer);
    return 0;
}

static int32_t token(const char *text)
{
    for (uint32_t id = 0; id < tokenizer_n_vocab(tokenizer); id++) {
        size_t n;
        const char *bytes = tokenizer_token_bytes(tokenizer, (int32_t)id, true, &n);
        if (n == strlen(text) && !memcmp(bytes, text, n)) return (int32_t)id;
    }
    fail_msg("no token is '%s'", text);
    return -1;
}

static bool allows(struct steering *steering, const char *text)
{
    const uint32_t *mask = steering_allowed(steering);
    const int32_t id = token(text);
    return !mask || (mask[id / 32] >> id % 32 & 1);
}

static uint32_t count_allowed(struct steering *steering)
{
    const uint32_t *mask = steering_allowed(steering);
    const uint32_t n_vocab = tokenizer_n_vocab(tokenizer);
    uint32_t n = 0;
    for (uint32_t id = 0; id < n_vocab; id++)
        n += !mask || (mask[id / 32] >> id % 32 & 1);
    return n;
}

/* Each token must be allowed when it comes. */
static void take(struct steering *steering, const char *text)
{
    const bool ends = tokenizer_is_end(tokenizer, token(text));
    if (!allows(steering, text)) fail_msg("%s is not allowed", text);
    assert_int_equal(steering_take(steering, token(text), text, ends ? 0 : strlen(text), NULL),
                     LM_OK);
}

static struct steering *create(struct steering_config config)
{
    struct steering *steering;
    struct lm_error err;
    config.tokenizer = tokenizer;
    config.trie = trie;
    if (steering_create(&steering, &config, &err) != LM_OK) fail_msg("%s", err.message);
    return steering;
}

static struct grammar *grammar_of(const char *gbnf)
{
    struct grammar *grammar;
    struct lm_error err;
    if (grammar_from_gbnf(&grammar, gbnf, strlen(gbnf), &err) != LM_OK) fail_msg("%s", err.message);
    return grammar;
}

static void test_nothing_to_steer(void **state)
{
    (void)state;
    assert_null(create((struct steering_config){.reasoning_budget = -1}));
}

static void test_content_follows_its_grammar(void **state)
{
    (void)state;
    struct grammar *grammar = grammar_of("root ::= \"a\" \"b\"?");
    struct steering *steering =
        create((struct steering_config){.grammar = grammar, .reasoning_budget = -1});
    assert_false(allows(steering, "b") || allows(steering, "<|im_end|>"));
    take(steering, "a");
    assert_true(steering_complete(steering) && !steering_finished(steering));
    assert_true(allows(steering, "<|im_end|>"));
    take(steering, "b");
    assert_true(steering_finished(steering));
    assert_false(allows(steering, "a"));
    take(steering, "<|im_end|>");
    steering_destroy(steering);
    steering = create((struct steering_config){.grammar = grammar, .reasoning_budget = -1});
    assert_false(steering_resume(steering, "b", 1));
    assert_true(steering_resume(steering, "a", 1) && !allows(steering, "a"));
    steering_destroy(steering);
    grammar_unref(grammar);
}

static void test_reasoning_is_free_and_must_end(void **state)
{
    (void)state;
    struct grammar *grammar = grammar_of("root ::= \"a\"+");
    struct steering_config config = {
        .grammar = grammar, .split = true, .may_think = true, .reasoning_budget = -1};
    struct steering *steering = create(config);
    assert_true(allows(steering, "a") && allows(steering, "<think>") && !allows(steering, "b"));
    take(steering, "<think>");
    take(steering, "b");
    assert_false(allows(steering, "<|im_end|>")); /* there is no content yet */
    take(steering, "</think>");
    assert_true(allows(steering, "a") && !allows(steering, "b"));
    assert_false(allows(steering, "<|im_end|>"));
    take(steering, "a");
    assert_true(allows(steering, "<|im_end|>"));
    steering_destroy(steering);

    config.may_think = false;
    steering = create(config);
    assert_false(allows(steering, "<think>"));
    steering_destroy(steering);
    grammar_unref(grammar);
}

static void test_a_budget_closes_the_reasoning(void **state)
{
    (void)state;
    struct steering *steering = create((struct steering_config){
        .split = true, .opened = true, .reasoning_budget = 2, .budget_message = "b"});
    take(steering, "a");
    assert_true(count_allowed(steering) > 1000);
    take(steering, "a");
    assert_int_equal(count_allowed(steering), 1);
    take(steering, "b");
    assert_int_equal(count_allowed(steering), 1);
    take(steering, "</think>");
    assert_int_equal(count_allowed(steering), tokenizer_n_vocab(tokenizer));
    steering_destroy(steering);

    steering = create((struct steering_config){
        .split = true, .opened = true, .reasoning_budget = 0}); /* closes at once */
    assert_int_equal(count_allowed(steering), 1);
    take(steering, "</think>");
    steering_destroy(steering);
}

static void test_the_requests_own_tokens(void **state)
{
    (void)state;
    uint32_t *allowed = calloc((tokenizer_n_vocab(tokenizer) + 31) / 32, sizeof(*allowed));
    const int32_t a = token("a"), b = token("b");
    allowed[a / 32] |= 1u << a % 32;
    allowed[b / 32] |= 1u << b % 32;
    struct grammar *grammar = grammar_of("root ::= [a-c] \"c\"");
    struct steering *steering = create(
        (struct steering_config){.allowed = allowed, .grammar = grammar, .reasoning_budget = -1});
    assert_int_equal(count_allowed(steering), 2);
    take(steering, "a");
    take(steering, "c"); /* the grammar is stronger where both leave nothing */
    steering_destroy(steering);
    grammar_unref(grammar);
    free(allowed);
}

static void test_bad_words_are_not_completed(void **state)
{
    (void)state;
    const int32_t ids[] = {token("a"), token("b"), token("c"), token("x")};
    static const size_t ends[] = {3, 4};
    const struct steering_config config = {.bad = {ids, ends, 2}, .reasoning_budget = -1};
    struct steering *steering = create(config);
    assert_int_equal(count_allowed(steering), tokenizer_n_vocab(tokenizer) - 1);
    assert_false(allows(steering, "x"));
    take(steering, "a");
    take(steering, "a");
    assert_true(allows(steering, "c"));
    take(steering, "b");
    assert_false(allows(steering, "c") || allows(steering, "x"));
    take(steering, "b");
    assert_true(allows(steering, "c"));
    steering_destroy(steering);

    struct steering_config only = config; /* something has to come */
    only.trie = trie;
    only.grammar = grammar_of("root ::= \"x\"");
    steering = create(only);
    assert_int_equal(count_allowed(steering), 1);
    take(steering, "x");
    steering_destroy(steering);
    grammar_unref(only.grammar);
}

static void test_calls_are_held_from_their_marker_on(void **state)
{
    (void)state;
    struct json_object *tools = json_tokener_parse(
        "[{\"type\":\"function\",\"function\":{\"name\":\"ab\",\"parameters\":{\"type\":\"object\","
        "\"properties\":{}}}}]");
    struct grammar *calls;
    struct lm_error err;
    if (tool_grammar_build(&calls, TOOL_FORMAT_HERMES, tools, TOOL_GRAMMAR_CALL, true, &err) !=
        LM_OK)
        fail_msg("%s", err.message);
    struct steering_config config = {.call_grammar = calls,
                                     .tool_format = TOOL_FORMAT_HERMES,
                                     .tools = tools,
                                     .single_call = true,
                                     .reasoning_budget = -1};
    struct steering *steering = create(config);
    assert_int_equal(count_allowed(steering), tokenizer_n_vocab(tokenizer));
    take(steering, "a");
    assert_false(steering_holds_call(steering));
    take(steering, "<tool_call>");
    assert_true(steering_holds_call(steering));
    assert_false(allows(steering, "a") || allows(steering, "<|im_end|>"));
    static const char *const rest[] = {"{", "\"", "n", "a",  "m",  "e", "\"", ":", " ", "\"", "a",
                                       "b", "\"", ",", " ",  "\"", "a", "r",  "g", "u", "m",  "e",
                                       "n", "t",  "s", "\"", ":",  " ", "{",  "}", "}"};
    for (size_t i = 0; i < sizeof(rest) / sizeof(*rest); i++)
        take(steering, rest[i]);
    take(steering, "</tool_call>");
    assert_false(steering_holds_call(steering));
    assert_false(allows(steering, "a")); /* one call only */
    take(steering, "<|im_end|>");
    steering_destroy(steering);

    config.grammar = grammar_of("root ::= \"x\""); /* either the form or a call */
    config.single_call = false;
    steering = create(config);
    assert_true(allows(steering, "x") && allows(steering, "<tool_call>") && !allows(steering, "a"));
    take(steering, "<tool_call>");
    assert_true(steering_holds_call(steering) && !allows(steering, "x"));
    steering_destroy(steering);
    steering = create(config);
    take(steering, "x");
    assert_true(steering_finished(steering) && !allows(steering, "<tool_call>"));
    steering_destroy(steering);
    grammar_unref(config.grammar);
    grammar_unref(calls);
    json_object_put(tools);
}

static void take_text(struct steering *steering, const char *text)
{
    char one[2] = {0};
    while ((*one = *text++))
        take(steering, one);
}

static void test_headers_lead_to_the_content(void **state)
{
    (void)state;
    struct steering_config config = {.channels = true,
                                     .split = true,
                                     .may_think = true,
                                     .grammar = grammar_of("root ::= \"x\""),
                                     .trie = trie,
                                     .reasoning_budget = -1};
    struct steering *steering = create(config);
    assert_true(allows(steering, "<") && !allows(steering, "x") && !allows(steering, "<|im_end|>"));
    take_text(steering, "<|channel|>");
    assert_true(allows(steering, "a") && allows(steering, "f") && !allows(steering, "c"));
    take_text(steering, "analysis<|message|>");
    assert_true(allows(steering, "b") && !allows(steering, "<|im_end|>"));
    take_text(steering, "well<|end|>");
    assert_false(allows(steering, "x"));
    take_text(steering, "<|start|>assistant<|channel|>final<|message|>");
    assert_true(allows(steering, "x") && !allows(steering, "b"));
    take(steering, "x");
    assert_true(steering_finished(steering));
    steering_destroy(steering);

    config.grammar_is_calls = true;
    steering = create(config);
    take_text(steering, "<|channel|>");
    assert_true(allows(steering, "c") && !allows(steering, "f"));
    steering_destroy(steering);

    struct steering_config budget = {.channels = true, .split = true, .reasoning_budget = 1};
    steering = create(budget);
    take_text(steering, "<|channel|>analysis<|message|>a");
    assert_int_equal(count_allowed(steering), 1); /* of the end mark */
    steering_destroy(steering);
    grammar_unref(config.grammar);
}

/* The second call is held like the first, and free text may follow the section. */
static void test_each_call_of_a_section_is_held(void **state)
{
    (void)state;
    static const struct {
        enum tool_format format;
        const char *first, *second, *end;
    } cases[] = {
        {TOOL_FORMAT_MISTRAL, "[TOOL_CALLS][{\"name\": \"ab\", \"arguments\": {}}",
         ", {\"name\": \"", "ab\", \"arguments\": {}}]"},
        {TOOL_FORMAT_KIMI,
         "<|tool_calls_section_begin|><|tool_call_begin|>functions.ab:0"
         "<|tool_call_argument_begin|>{}<|tool_call_end|>",
         "<|tool_call_begin|>functions.",
         "ab:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"},
        {TOOL_FORMAT_INVOKE, "<minimax:tool_call>\n<invoke name=\"ab\">\n</invoke>",
         "\n<invoke name=\"", "ab\">\n</invoke>\n</minimax:tool_call>"},
    };
    struct json_object *tools = json_tokener_parse("[{\"function\":{\"name\":\"ab\"}}]");
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct grammar *calls;
        assert_int_equal(
            tool_grammar_build(&calls, cases[i].format, tools, TOOL_GRAMMAR_CALL, true, NULL),
            LM_OK);
        struct steering *steering = create((struct steering_config){.call_grammar = calls,
                                                                    .trie = trie,
                                                                    .tool_format = cases[i].format,
                                                                    .tools = tools,
                                                                    .reasoning_budget = -1});
        take_text(steering, "x ");
        take_text(steering, cases[i].first);
        assert_true(steering_holds_call(steering) && !allows(steering, "x"));
        take_text(steering, cases[i].second);
        assert_true(steering_holds_call(steering));
        assert_true(allows(steering, "a") && !allows(steering, "x"));
        take_text(steering, cases[i].end);
        assert_false(steering_holds_call(steering));
        take_text(steering, "x");
        steering_destroy(steering);
        grammar_unref(calls);
    }
    json_object_put(tools);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_to_steer),
        cmocka_unit_test(test_content_follows_its_grammar),
        cmocka_unit_test(test_reasoning_is_free_and_must_end),
        cmocka_unit_test(test_a_budget_closes_the_reasoning),
        cmocka_unit_test(test_the_requests_own_tokens),
        cmocka_unit_test(test_bad_words_are_not_completed),
        cmocka_unit_test(test_each_call_of_a_section_is_held),
        cmocka_unit_test(test_headers_lead_to_the_content),
        cmocka_unit_test(test_calls_are_held_from_their_marker_on),
    };
    return cmocka_run_group_tests(tests, open_vocabulary, close_vocabulary);
}
