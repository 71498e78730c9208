#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/text/reasoning.h"

struct parts {
    char text[2][400]; /* by enum reasoning_part */
    size_t n[2];
    bool channels;
};

static void collect(void *context, enum reasoning_part part, const char *bytes, size_t n)
{
    struct parts *parts = context;
    assert_true(n > 0);
    assert_true(parts->n[part] + n < sizeof(parts->text[part]));
    if (!parts->channels) /* never goes back */
        assert_false(part == PART_REASONING && parts->n[PART_CONTENT]);
    memcpy(parts->text[part] + parts->n[part], bytes, n);
    parts->n[part] += n;
}

enum beginning { CLOSED, OPENED, CHANNELS, CHANNELS_OPENED, CHANNELS_ANSWER };

static void check(enum beginning begin, const char *text, const char *reasoning,
                  const char *content)
{
    const size_t n = strlen(text);
    uint32_t seed = 12345;
    for (int round = 0; round < 200; round++) { /* whole, byte by byte, then cut at random */
        struct parts parts = {.channels = begin >= CHANNELS};
        struct reasoning_splitter splitter;
        if (parts.channels)
            reasoning_init_channels(&splitter, begin == CHANNELS_OPENED, begin == CHANNELS_ANSWER,
                                    collect, &parts);
        else
            reasoning_init(&splitter, begin == OPENED, collect, &parts);
        for (size_t at = 0; at < n;) {
            seed = seed * 1664525 + 1013904223;
            size_t n_piece = round == 0 ? n : round == 1 ? 1 : 1 + (seed >> 16) % 7;
            if (n_piece > n - at) n_piece = n - at;
            reasoning_push(&splitter, text + at, n_piece);
            at += n_piece;
        }
        reasoning_finish(&splitter);
        assert_string_equal(parts.text[PART_REASONING], reasoning);
        assert_string_equal(parts.text[PART_CONTENT], content);
    }
}

static void test_opened_by_the_prompt(void **state)
{
    (void)state;
    check(OPENED, "I think.\n</think>\n\nYes.", "I think.", "Yes.");
    check(OPENED, "\n\na\n\nb\n\n\n</think>c\n", "a\n\nb", "c\n");
    check(OPENED, "never closed", "never closed", "");
    check(OPENED, "</think>at once", "", "at once");
    check(OPENED, "a</thin</think>b", "a</thin", "b");
    check(OPENED, "a<</think>b</think>c<think>", "a<", "b</think>c<think>");
    check(OPENED, "cut in the marker\n</thi", "cut in the marker\n</thi", "");
    check(OPENED, "", "", "");
    check(OPENED, "\xC3\xA9</think>\n\xF0\x9F\x99\x82", "\xC3\xA9", "\xF0\x9F\x99\x82");
}

static void test_opened_by_the_model(void **state)
{
    (void)state;
    check(CLOSED, "<think>\nwell\n</think>\n\nYes.", "well", "Yes.");
    check(CLOSED, " \n<think>well</think>Yes.", "well", "Yes.");
    check(CLOSED, "<think>no end", "no end", "");
}

static void test_no_reasoning(void **state)
{
    (void)state;
    check(CLOSED, "Hello.\n", "", "Hello.\n");
    check(CLOSED, "\n\n Hello <think>x</think>", "", "\n\n Hello <think>x</think>");
    check(CLOSED, "<thin", "", "<thin");
    check(CLOSED, "<thinking>", "", "<thinking>");
    check(CLOSED, " \n ", "", " \n ");
    check(CLOSED, "</think>x", "", "</think>x");
    check(CLOSED, "                                        <think>x", "",
          "                                        <think>x");
}

#define FINAL "<|channel|>final<|message|>"
#define ANALYSIS "<|channel|>analysis<|message|>"
#define NEXT "<|end|><|start|>assistant"
#define TO "<|channel|>commentary to="

static void test_channels(void **state)
{
    (void)state;
    check(CHANNELS, ANALYSIS "Well <b>\n" NEXT FINAL "\nYes.<|return|>", "Well <b>\n", "\nYes.");
    check(CHANNELS, FINAL "Yes <|end", "", "Yes <|end");
    check(CHANNELS, ANALYSIS "no end", "no end", "");
    check(CHANNELS, ANALYSIS "<<|end|>" ANALYSIS "b<|start|>assistant" FINAL "c", "<b", "c");
    check(CHANNELS_OPENED, "thought" NEXT FINAL "said", "thought", "said");
    check(CHANNELS_ANSWER, "said<|return|>", "", "said");
    check(CHANNELS,
          "<|channel|>commentary<|message|>I look." NEXT TO "functions.f <|constrain|>json"
          "<|message|>{}<|call|>",
          "", "I look." TO "functions.f <|constrain|>json<|message|>{}<|call|>");
    check(CHANNELS,
          ANALYSIS "a" NEXT " to=functions.f<|channel|>commentary json<|message|>{\"<\":1}", "a",
          TO "functions.f<|channel|>commentary json<|message|>{\"<\":1}");
    check(CHANNELS, "<|channel|>analysis to=python code<|message|>1+1" NEXT FINAL "2", "1+1", "2");
    check(CHANNELS, "<|start|>assistant" FINAL "x", "", "x");
    check(CHANNELS, "plain <|channel|> text", "", "plain <|channel|> text");
    check(CHANNELS, " tools <|end|>", "", " tools <|end|>");
    check(CHANNELS, "<|channel", "", "");
    check(CHANNELS, ANALYSIS "a" NEXT, "a", "");
    check(CHANNELS, ANALYSIS "a<|end|>and so on", "a", "and so on");
    check(CHANNELS, FINAL "\xC3\xA9\xF0\x9F\x99\x82", "", "\xC3\xA9\xF0\x9F\x99\x82");
    char text[300] = "<|channel|>"; /* a header that never ends */
    memset(text + 11, 'x', 200);
    check(CHANNELS, text, "", text);
}

/* What can be told is given out at once: nothing but a marker's part or white space waits. */
static void test_holds_back_no_more_than_a_marker(void **state)
{
    (void)state;
    static const char text[] = "abc <x </th y\n\nz </think>\ncontent";
    struct parts parts = {0};
    struct reasoning_splitter splitter;
    reasoning_init(&splitter, true, collect, &parts);
    for (size_t i = 0; i + 1 < sizeof(text); i++) {
        reasoning_push(&splitter, text + i, 1);
        assert_true(parts.n[0] + parts.n[1] + 11 > i);
    }
}

static void test_prompts(void **state)
{
    (void)state;
    assert_true(reasoning_prompt_opens("user<think>\n", 12));
    assert_true(reasoning_prompt_opens("<think>", 7));
    assert_true(reasoning_prompt_opens(ANALYSIS, sizeof(ANALYSIS) - 1));
    assert_false(reasoning_prompt_opens("<think>\n\n</think>\n\n", 19));
    assert_false(reasoning_prompt_opens("<think> a", 9));
    assert_false(reasoning_prompt_opens("", 0));
    assert_false(reasoning_prompt_opens("think>", 6));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opened_by_the_prompt),
        cmocka_unit_test(test_opened_by_the_model),
        cmocka_unit_test(test_no_reasoning),
        cmocka_unit_test(test_channels),
        cmocka_unit_test(test_holds_back_no_more_than_a_marker),
        cmocka_unit_test(test_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
