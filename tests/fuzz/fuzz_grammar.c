/* Any bytes as a grammar: the first says which form (g: GBNF, r: regular expression, s: schema, c:
 * choice), the rest is its text. Whatever it is, it is compiled or refused with a message; under
 * what was compiled a document is drawn, and masks must keep what they promise. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/grammar/grammar.h"
#include "tests/e2e/token_sampler.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_VOCAB = 300, N_STEP = 64 };

/* All bytes and some words; the tree is kept, also across inputs. */
static const struct token_trie *vocabulary(struct trie_token *tokens)
{
    static const char *const words[] = {"\"",   "\":",  "{\"",      "\"}",      "}}",      "],",
                                        "true", "null", " the",     "abc",      "12",      "0.",
                                        "e-",   "\\u",  "\xc3\xa4", "\xe2\x82", "\x82\xac"};
    static char bytes[256];
    static struct token_trie *trie;
    const int32_t end = N_VOCAB - 1;
    for (int byte = 0; byte < 256; byte++) {
        bytes[byte] = (char)byte;
        tokens[byte] = (struct trie_token){&bytes[byte], 1};
    }
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        tokens[256 + i] = (struct trie_token){words[i], strlen(words[i])};
    if (!trie && token_trie_build(&trie, tokens, N_VOCAB, &end, 1, NULL) != LM_OK) abort();
    return trie;
}

static enum lm_status compile(struct grammar **out, uint8_t form, const char *text, size_t n,
                              struct lm_error *err)
{
    if (form == 'g') return grammar_from_gbnf(out, text, n, err);
    if (form == 'r') return grammar_from_regex(out, text, n, err);
    struct json_tokener *parser = json_tokener_new();
    struct json_object *json = json_tokener_parse_ex(parser, text, (int)n);
    enum lm_status status = lm_fail(err, LM_E_FORMAT, "no JSON");
    if (json)
        status = form == 'c' ? grammar_from_choice(out, json, err)
                             : grammar_from_schema(out, json, form & 1, err);
    json_object_put(json);
    json_tokener_free(parser);
    return status;
}

static void draw(struct grammar *grammar, uint64_t seed)
{
    struct trie_token tokens[N_VOCAB] = {0};
    const struct token_trie *trie = vocabulary(tokens);
    struct token_sampler sampler = {.state = seed, .ending = 3};
    struct grammar_matcher *matcher;
    if (grammar_matcher_create(&matcher, grammar, trie, NULL) != LM_OK) abort();
    for (int step = 0; step < N_STEP; step++) {
        const uint32_t *mask = grammar_matcher_mask(matcher);
        const bool may_end = mask[(N_VOCAB - 1) / 32] >> (N_VOCAB - 1) % 32 & 1;
        if (may_end != grammar_matcher_complete(matcher)) abort();
        const int32_t token = token_sampler_draw(&sampler, tokens, N_VOCAB, mask);
        if (token < 0) {
            if (!grammar_matcher_finished(matcher)) abort(); /* a dead end */
            break;
        }
        if (!grammar_matcher_take(matcher, tokens[token].bytes, tokens[token].n)) abort();
    }
    grammar_matcher_destroy(matcher);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct grammar *grammar;
    struct lm_error err = {0};
    if (size < 1) return 0;
    if (compile(&grammar, data[0], (const char *)data + 1, size - 1, &err) != LM_OK) {
        if (!err.message[0]) abort(); /* an error without a message */
        return 0;
    }
    draw(grammar, size);
    grammar_unref(grammar);
    return 0;
}
