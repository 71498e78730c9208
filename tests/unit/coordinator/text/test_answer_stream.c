/* Tokens become text, parts and offsets the same way however the bytes are divided into tokens. */
#include <json-c/json.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/answer_stream.h"
#include "coordinator/text/tokenizer.h"
#include "tests/unit/cmocka_all.h"
#include "tests/unit/demo_vocabulary.h"

enum { TEXT_MAX = 2000, TOKENS_MAX = 400 };

static struct tokenizer *tokenizer;
static uint32_t seed = 1;

static uint32_t random_below(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

static int open_vocabulary(void **state)
{
    (void)state;
    tokenizer = demo_vocabulary_open();
    return 0;
}

static int close_vocabulary(void **state)
{
    (void)state;
    tokenizer_destroy(tokenizer);
    return 0;
}

struct heard {
    char text[2][TEXT_MAX]; /* by enum answer_part */
    size_t n[2];
    char bytes[3][TEXT_MAX]; /* of the settled tokens, by part */
    size_t n_bytes[3];
    int32_t ids[TOKENS_MAX];
    size_t offsets[TOKENS_MAX], n_token;
    enum answer_end end;
    char stop[40];
    size_t n_reasoning;
    char calls[TEXT_MAX]; /* [NAME ARGUMENTS] */
};

static void hear_text(void *context, enum answer_part part, const char *text, size_t n)
{
    struct heard *heard = context;
    assert_true(n > 0 && part <= ANSWER_CONTENT);
    memcpy(heard->text[part] + heard->n[part], text, n);
    heard->n[part] += n;
}

static void hear_token(void *context, const struct answer_token *token)
{
    struct heard *heard = context;
    size_t n;
    const char *bytes = tokenizer_token_bytes(tokenizer, token->sampled->id, true, &n);
    memcpy(heard->bytes[token->part] + heard->n_bytes[token->part], bytes, n);
    heard->n_bytes[token->part] += n;
    heard->offsets[heard->n_token] = token->offset;
    heard->ids[heard->n_token++] = token->sampled->id;
}

static void hear_call(void *context, const char *name, size_t n)
{
    char *calls = ((struct heard *)context)->calls;
    sprintf(calls + strlen(calls), "[%.*s ", (int)n, name);
}

static void hear_arguments(void *context, const char *bytes, size_t n)
{
    strncat(((struct heard *)context)->calls, bytes, n);
}

static void hear_call_end(void *context)
{
    strcat(((struct heard *)context)->calls, "]");
}

static struct heard listen(const struct answer_config *given, const int32_t *ids, size_t n)
{
    struct heard heard = {0};
    struct answer_config config = *given;
    struct answer_stream *stream;
    config.tokenizer = tokenizer;
    const struct answer_sink sink = {.on_text = hear_text,
                                     .on_token = hear_token,
                                     .on_call = hear_call,
                                     .on_arguments = hear_arguments,
                                     .on_call_end = hear_call_end,
                                     .context = &heard};
    assert_int_equal(answer_stream_create(&stream, &config, &sink, NULL), LM_OK);
    for (size_t i = 0; i < n; i++) {
        const struct sampled_token token = {.id = ids[i]};
        if (answer_stream_push(stream, &token) != ANSWER_OPEN) break;
    }
    answer_stream_finish(stream);
    heard.end = answer_stream_end(stream);
    const char *stop = answer_stream_stop_string(stream);
    if (stop) snprintf(heard.stop, sizeof(heard.stop), "%s", stop);
    heard.n_reasoning = answer_stream_n_reasoning(stream);
    answer_stream_destroy(stream);
    return heard;
}

/* The token of exactly these bytes, or -1. */
static int32_t find_bytes(const char *bytes, size_t n)
{
    for (uint32_t id = 0; id < tokenizer_n_vocab(tokenizer); id++) {
        size_t n_token;
        const char *token = tokenizer_token_bytes(tokenizer, (int32_t)id, true, &n_token);
        if (n_token == n && !memcmp(token, bytes, n)) return (int32_t)id;
    }
    return -1;
}

/* Divides text into tokens; style 0: as the tokenizer does, 1: byte by byte, 2: at random. Control
 * tokens stay whole. */
static size_t divide(const char *text, int style, int32_t *ids)
{
    const size_t n = strlen(text);
    size_t n_id = 0, n_piece;
    if (style == 0) {
        int32_t *whole;
        assert_int_equal(tokenizer_encode(tokenizer, text, n, true, false, &whole, &n_id, NULL),
                         LM_OK);
        memcpy(ids, whole, n_id * sizeof(*ids));
        free(whole);
        return n_id;
    }
    for (size_t at = 0; at < n; at += n_piece) {
        if (!tokenizer_control_at(tokenizer, text + at, n - at, &n_piece)) {
            n_piece = style == 1 ? 1 : 1 + random_below(6);
            if (n_piece > n - at) n_piece = n - at;
        }
        while ((ids[n_id] = find_bytes(text + at, n_piece)) < 0)
            n_piece--;
        assert_true(++n_id < TOKENS_MAX);
    }
    return n_id;
}

static void check(struct answer_config config, const char *text, const char *reasoning,
                  const char *content, enum answer_end end)
{
    for (int round = 0; round < 20; round++) {
        int32_t ids[TOKENS_MAX];
        const size_t n = divide(text, round < 2 ? round : 2, ids);
        const struct heard heard = listen(&config, ids, n);
        if (strcmp(heard.text[ANSWER_CONTENT], content))
            fail_msg("'%s' became '%s', not '%s'", text, heard.text[ANSWER_CONTENT], content);
        assert_string_equal(heard.text[ANSWER_REASONING], reasoning);
        assert_int_equal(heard.end, end);
        assert_true(heard.n_token <= n);
        assert_memory_equal(heard.ids, ids, heard.n_token * sizeof(*ids)); /* in order, each once */
        if (end == ANSWER_OPEN) assert_int_equal(heard.n_token, n);
        for (size_t i = 1; i < heard.n_token && !config.split; i++)
            assert_true(heard.offsets[i] >= heard.offsets[i - 1]);
    }
}

static void test_text_passes_whole(void **state)
{
    (void)state;
    const struct answer_config raw = {0};
    check(raw, "", "", "", ANSWER_OPEN);
    check(raw, "Once upon a time, \xC3\xA9\xF0\x9F\x99\x82 there was.", "",
          "Once upon a time, \xC3\xA9\xF0\x9F\x99\x82 there was.", ANSWER_OPEN);
    check(raw, "<think>raw</think>", "",
          tokenizer_control_at(tokenizer, "<think>", 7, &(size_t){0}) ? "raw"
                                                                      : "<think>raw</think>",
          ANSWER_OPEN);
}

static void test_stop_strings_end_it(void **state)
{
    (void)state;
    static const char *const stops[] = {"stop", "stopping", "END", "\n\n", "ab", "bcd"};
    const struct answer_config config = {.stops = stops, .n_stop = 6};
    check(config, "go on until stop here", "", "go on until ", ANSWER_STOP_STRING);
    check(config, "go on until stopping", "", "go on until ", ANSWER_STOP_STRING);
    check(config, "almost sto", "", "almost sto", ANSWER_OPEN);
    check(config, "line\nline\n\nmore", "", "line\nline", ANSWER_STOP_STRING);
    check(config, "xabcd", "", "x", ANSWER_STOP_STRING);
    check(config, "EN\nEND", "", "EN\n", ANSWER_STOP_STRING);
    struct answer_config with = config;
    with.include_stop = true;
    check(with, "go on until stop here", "", "go on until stop", ANSWER_STOP_STRING);
}

static void test_reasoning_is_told_from_content(void **state)
{
    (void)state;
    static const char *const stops[] = {"STOP"};
    struct answer_config config = {.split = true, .show_marks = true, .stops = stops, .n_stop = 1};
    check(config, "<think>\nwhy\n</think>\n\nbecause", "why", "because", ANSWER_OPEN);
    check(config, "plain <think>", "", "plain <think>", ANSWER_OPEN);
    check(config, "<think>thoughtSTOP", "thought", "", ANSWER_STOP_STRING);
    config.opened = true;
    check(config, "why</think>\n\nyes STOP", "why", "yes ", ANSWER_STOP_STRING);
    check(config, "only thought", "only thought", "", ANSWER_OPEN);
}

/* Joined, the bytes of the tokens of a part are its text, but for what was cut off. */
static void test_tokens_belong_to_the_part_they_became(void **state)
{
    (void)state;
    const struct answer_config config = {.split = true, .show_marks = true, .opened = true};
    static const char text[] = "some \xF0\x9F\x99\x82 thoughts</think>\n\nThe answer <b.";
    for (int round = 0; round < 20; round++) {
        int32_t ids[TOKENS_MAX];
        const size_t n = divide(text, round < 2 ? round : 2, ids);
        const struct heard heard = listen(&config, ids, n);
        assert_int_equal(heard.n_token, n);
        /* a token may straddle the marker where the division is at random */
        if (round < 2) {
            assert_string_equal(heard.bytes[ANSWER_REASONING], "some \xF0\x9F\x99\x82 thoughts");
            assert_string_equal(heard.bytes[ANSWER_CONTENT], "\n\nThe answer <b.");
            assert_string_equal(heard.bytes[ANSWER_MARKUP], "</think>");
        }
        assert_int_equal(heard.n_bytes[0] + heard.n_bytes[1] + heard.n_bytes[2], strlen(text));
        assert_true(heard.n_reasoning > 0 && heard.n_reasoning < n);
    }
}

static void test_offsets_count_characters(void **state)
{
    (void)state;
    const struct answer_config raw = {0};
    int32_t ids[TOKENS_MAX];
    /* a (2 bytes, 1 character), a lone beginning, x, a smile, end */
    const size_t n = divide("\xC3\xA9\xE2\x80x\xF0\x9F\x99\x82z", 1, ids);
    const struct heard heard = listen(&raw, ids, n);
    static const size_t offsets[] = {0, 0, 1, 1, 2, 3, 3, 3, 3, 4};
    assert_int_equal(n, 10);
    assert_string_equal(heard.text[ANSWER_CONTENT], "\xC3\xA9\xEF\xBF\xBDx\xF0\x9F\x99\x82z");
    for (size_t i = 0; i < n; i++)
        assert_int_equal(heard.offsets[i], offsets[i]);
    static const char *const stops[] = {"xy"};
    const struct answer_config config = {.stops = stops, .n_stop = 1};
    const size_t n_cut = divide("abxyz", 1, ids);
    const struct heard cut = listen(&config, ids, n_cut);
    assert_int_equal(cut.n_token, 4); /* the stop string's tokens stand at the end of the text */
    assert_int_equal(cut.offsets[2], 2);
    assert_int_equal(cut.offsets[3], 2);
}

static int32_t find(const char *text)
{
    const int32_t id = tokenizer_find(tokenizer, text, strlen(text));
    assert_true(id >= 0);
    return id;
}

static void test_tokens_end_it(void **state)
{
    (void)state;
    const int32_t a = find("a"), b = find("b"), end = find("<|im_end|>");
    const int32_t ids[] = {a, end, b, b, end, a};
    struct answer_config config = {0};
    struct heard heard = listen(&config, ids, 6);
    assert_int_equal(heard.end, ANSWER_END_TOKEN);
    assert_int_equal(heard.n_token, 2);
    assert_string_equal(heard.text[ANSWER_CONTENT], "a");

    config.min_tokens = 2; /* the first end token comes too early */
    heard = listen(&config, ids, 6);
    assert_int_equal(heard.end, ANSWER_END_TOKEN);
    assert_string_equal(heard.text[ANSWER_CONTENT], "abb");

    const int32_t stop_ids[] = {b};
    config = (struct answer_config){.stop_ids = stop_ids, .n_stop_id = 1, .min_tokens = 3};
    heard = listen(&config, ids, 6);
    assert_int_equal(heard.end, ANSWER_STOP_TOKEN);
    assert_string_equal(heard.text[ANSWER_CONTENT], "ab");

    /* a control token by its text, while another stop string may still begin */
    static const char *const stops[] = {"abc", "<|im_end|>"};
    config = (struct answer_config){.stops = stops, .n_stop = 2, .include_stop = true};
    const int32_t held[] = {a, b, end, a};
    heard = listen(&config, held, 4);
    assert_int_equal(heard.end, ANSWER_STOP_STRING);
    assert_string_equal(heard.stop, "<|im_end|>");
    assert_string_equal(heard.text[ANSWER_CONTENT], "ab<|im_end|>");
}

static void test_control_tokens_are_shown_on_demand(void **state)
{
    (void)state;
    const int32_t a = find("a"), begin = find("<|im_start|>");
    const int32_t ids[] = {a, begin, a};
    struct answer_config config = {0};
    assert_string_equal(listen(&config, ids, 3).text[ANSWER_CONTENT], "aa");
    assert_int_equal(listen(&config, ids, 3).n_token, 3);
    config.show_special = true;
    assert_string_equal(listen(&config, ids, 3).text[ANSWER_CONTENT], "a<|im_start|>a");
}

static void test_calls_are_told_from_content(void **state)
{
    (void)state;
    static const char call[] = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"\xC3\xA9 "
                               "}\"}}\n</tool_call>";
    char text[600];
    struct answer_config config = {
        .split = true,
        .opened = true,
        .show_marks = true,
        .tools = json_tokener_parse("[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"),
        .tool_format = TOOL_FORMAT_HERMES,
    };
    for (int single = 0; single < 2; single++) {
        config.single_call = single;
        snprintf(text, sizeof(text), "a <tool_call>b</think>\n\nLook:\n%s\n%s", call, call);
        for (int round = 0; round < 20; round++) {
            int32_t ids[TOKENS_MAX];
            const size_t n = divide(text, round < 2 ? round : 2, ids);
            const struct heard heard = listen(&config, ids, n);
            assert_string_equal(heard.text[ANSWER_REASONING], "a <tool_call>b");
            assert_string_equal(heard.text[ANSWER_CONTENT], "Look:\n");
            assert_string_equal(heard.calls, single ? "[f {\"x\":\"\xC3\xA9 }\"}]"
                                                    : "[f {\"x\":\"\xC3\xA9 }\"}]"
                                                      "[f {\"x\":\"\xC3\xA9 }\"}]");
            assert_int_equal(heard.end, single ? ANSWER_CALLED : ANSWER_OPEN);
            /* the tokens of calls are of no part */
            assert_null(strstr(heard.bytes[ANSWER_CONTENT], "name"));
            assert_non_null(strstr(heard.bytes[ANSWER_CONTENT], "Look"));
            assert_non_null(strstr(heard.bytes[ANSWER_MARKUP], "name"));
        }
    }
    check(config, "x</think><tool_call>\n{\"name\": \"g\"}", "x", "<tool_call>\n{\"name\": \"g\"}",
          ANSWER_OPEN);
    json_object_put(config.tools);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_passes_whole),
        cmocka_unit_test(test_stop_strings_end_it),
        cmocka_unit_test(test_reasoning_is_told_from_content),
        cmocka_unit_test(test_tokens_belong_to_the_part_they_became),
        cmocka_unit_test(test_offsets_count_characters),
        cmocka_unit_test(test_tokens_end_it),
        cmocka_unit_test(test_control_tokens_are_shown_on_demand),
        cmocka_unit_test(test_calls_are_told_from_content),
    };
    return cmocka_run_group_tests(tests, open_vocabulary, close_vocabulary);
}
