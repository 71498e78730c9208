/* Draws documents of JSON schemas, for test_grammar_random.py.
 *
 *   grammar_driver MODEL.gguf
 *
 * Each line of stdin is {"schema": S, "seed": N, "count": N, "pretty": BOOLEAN}. Answers with one
 * JSON line: {"documents": [TEXT, ...], "unfinished": N}, or {"error": MESSAGE, "status": N}. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/text/tokenizer.h"
#include "proto/gguf/gguf.h"
#include "tests/e2e/token_sampler.h"

enum { N_TOKEN_MAX = 1500, N_BYTES_MAX = 1 << 18 };

struct vocabulary {
    struct trie_token *tokens;
    uint32_t n_vocab;
    struct token_trie *trie;
};

static void die(const char *what)
{
    fprintf(stderr, "grammar_driver: %s\n", what);
    exit(1);
}

static void load(struct vocabulary *vocab, const char *path)
{
    struct gguf_file *file;
    struct tokenizer *tokenizer;
    struct lm_error err = {0};
    if (gguf_open(&file, path, &err) != LM_OK ||
        tokenizer_create(&tokenizer, file, &err) != LM_OK ||
        token_trie_create(&vocab->trie, tokenizer, &err) != LM_OK)
        die(err.message);
    vocab->n_vocab = tokenizer_n_vocab(tokenizer);
    vocab->tokens = calloc(vocab->n_vocab, sizeof(*vocab->tokens));
    if (!vocab->tokens) die("no memory");
    for (uint32_t id = 0; id < vocab->n_vocab; id++)
        if (!tokenizer_is_end(tokenizer, (int32_t)id))
            vocab->tokens[id].bytes =
                tokenizer_token_bytes(tokenizer, (int32_t)id, false, &vocab->tokens[id].n);
}

/* A document into text; its length, or -1: it did not end. Any disagreement of mask and matcher is
 * fatal. */
static long draw(const struct vocabulary *vocab, struct grammar *grammar,
                 struct token_sampler *sampler, char *text)
{
    struct grammar_matcher *matcher;
    long n = 0;
    bool ended = false;
    if (grammar_matcher_create(&matcher, grammar, vocab->trie, NULL) != LM_OK) die("no memory");
    for (int step = 0; step < N_TOKEN_MAX && !ended; step++) {
        const uint32_t *mask = grammar_matcher_mask(matcher);
        sampler->ending = step < 40 ? 3 : step < 200 ? 20 : 300;
        const int32_t token = token_sampler_draw(sampler, vocab->tokens, vocab->n_vocab, mask);
        if (token < 0 && !grammar_matcher_finished(matcher)) die("nothing may follow");
        ended = token < 0 || (grammar_matcher_complete(matcher) && step > 3 &&
                              !token_sampler_random(sampler, 2));
        if (ended) break;
        const struct trie_token *drawn = &vocab->tokens[token];
        if (!grammar_matcher_take(matcher, drawn->bytes, drawn->n))
            die("a token of the mask is refused");
        if (n + (long)drawn->n > N_BYTES_MAX) break;
        memcpy(text + n, drawn->bytes, drawn->n);
        n += (long)drawn->n;
    }
    grammar_matcher_destroy(matcher);
    return ended ? n : -1;
}

static struct json_object *answer(const struct vocabulary *vocab, struct json_object *request)
{
    static char text[N_BYTES_MAX];
    struct json_object *out = json_object_new_object(), *documents = json_object_new_array();
    struct json_object *schema = json_object_object_get(request, "schema");
    const int count = json_object_get_int(json_object_object_get(request, "count"));
    const bool pretty = json_object_get_boolean(json_object_object_get(request, "pretty"));
    struct token_sampler sampler = {
        .state = (uint64_t)json_object_get_int64(json_object_object_get(request, "seed"))};
    struct grammar *grammar;
    struct lm_error err = {0};
    int n_unfinished = 0;
    const enum lm_status status = grammar_from_schema(&grammar, schema, pretty, &err);
    if (status != LM_OK) {
        json_object_put(documents);
        json_object_object_add(out, "error", json_object_new_string(err.message));
        json_object_object_add(out, "status", json_object_new_int(status));
        return out;
    }
    for (int i = 0; i < count; i++) {
        const long n = draw(vocab, grammar, &sampler, text);
        n_unfinished += n < 0;
        if (n >= 0) json_object_array_add(documents, json_object_new_string_len(text, (int)n));
    }
    grammar_unref(grammar);
    json_object_object_add(out, "documents", documents);
    json_object_object_add(out, "unfinished", json_object_new_int(n_unfinished));
    return out;
}

int main(int argc, char **argv)
{
    struct vocabulary vocab;
    char *line = NULL;
    size_t room = 0;
    if (argc != 2) die("usage: grammar_driver MODEL.gguf");
    load(&vocab, argv[1]);
    while (getline(&line, &room, stdin) > 0) {
        struct json_object *request = json_tokener_parse(line);
        if (!request) die("a line that is not JSON");
        struct json_object *out = answer(&vocab, request);
        printf("%s\n", json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN));
        fflush(stdout);
        json_object_put(out);
        json_object_put(request);
    }
    free(line);
    return 0;
}
