/* What constrained decoding costs: compiling a schema, and the mask of each token.
 *
 *   bench_grammar [VOCAB.gguf | -] [--tokens 400] [--seed 1]
 *
 * Without a file a vocabulary of 248k made-up tokens is used. A document is drawn at random under
 * each grammar, cold; then it is replayed with everything cached, as a second request with the
 * same schema would find it. One thread. Time on a quiet machine only. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "bench/bench_arguments.h"
#include "coordinator/grammar/grammar.h"
#include "coordinator/text/tokenizer.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "tests/e2e/token_sampler.h"

enum { N_MADE_UP = 248000 };

struct vocabulary {
    struct trie_token *tokens;
    uint32_t n_vocab;
    int32_t end;
    struct gguf_file *file;
    struct tokenizer *tokenizer;
    char *bytes; /* of made-up tokens */
};

static void die(const char *what)
{
    fprintf(stderr, "bench_grammar: %s\n", what);
    exit(1);
}

/* Single bytes, then words of syllables, numbers of letters of other scripts, and signs. */
static void make_up(struct vocabulary *vocab)
{
    static const char *const syllables[] = {
        "ba", "con", "de", "er", "fi", "gra", "in",  "lo",  "men", "na", "or", "per", "ra",
        "st", "ti",  "un", "ve", "xy", "z",   "ion", "ing", "ed",  "s",  "A",  "B",   "The"};
    static const char *const signs[] = {"\"", "\",", "\":", "{\"", "}",  "]", "[", ",",  ":", ";",
                                        "(",  ")",   "\n",  "\t",  "  ", "=", "_", "\\", "/", "."};
    struct token_sampler random = {.state = 7};
    vocab->n_vocab = N_MADE_UP + 1;
    vocab->end = N_MADE_UP;
    vocab->tokens = calloc(vocab->n_vocab, sizeof(*vocab->tokens));
    vocab->bytes = malloc(32 * (size_t)N_MADE_UP);
    if (!vocab->tokens || !vocab->bytes) die("no memory");
    for (uint32_t id = 0; id < N_MADE_UP; id++) {
        char *const at = vocab->bytes + 32 * (size_t)id;
        size_t n = 0;
        if (id < 256)
            at[n++] = (char)id;
        else if (id % 8 < 5) {
            if (id & 1) at[n++] = ' ';
            for (uint32_t i = 1 + token_sampler_random(&random, 4); i--;)
                n += (size_t)sprintf(at + n, "%s", syllables[token_sampler_random(&random, 26)]);
        } else if (id % 8 < 7)
            for (uint32_t i = 1 + token_sampler_random(&random, 4); i--; n += 3)
                snprintf(at + n, 4, "%c%c%c", (char)(0xe4 + token_sampler_random(&random, 5)),
                         (char)(0x80 + token_sampler_random(&random, 64)),
                         (char)(0x80 + token_sampler_random(&random, 64)));
        else
            for (uint32_t i = 1 + token_sampler_random(&random, 3); i--;)
                n += (size_t)sprintf(at + n, "%s%s", signs[token_sampler_random(&random, 20)],
                                     token_sampler_random(&random, 4) ? "" : "a");
        vocab->tokens[id] = (struct trie_token){at, n};
    }
}

static void load(struct vocabulary *vocab, const char *path)
{
    struct lm_error err = {0};
    if (gguf_open(&vocab->file, path, &err) != LM_OK ||
        tokenizer_create(&vocab->tokenizer, vocab->file, &err) != LM_OK)
        die(err.message);
    vocab->n_vocab = tokenizer_n_vocab(vocab->tokenizer);
    vocab->end = tokenizer_eos(vocab->tokenizer);
    vocab->tokens = calloc(vocab->n_vocab, sizeof(*vocab->tokens));
    if (!vocab->tokens) die("no memory");
    for (uint32_t id = 0; id < vocab->n_vocab; id++)
        if ((int32_t)id != vocab->end)
            vocab->tokens[id].bytes =
                tokenizer_token_bytes(vocab->tokenizer, (int32_t)id, false, &vocab->tokens[id].n);
}

/* About 10 KiB with what schemas of tools and extractions have in them. */
static struct json_object *make_schema(size_t *n_bytes)
{
    static char text[20000];
    size_t n =
        (size_t)sprintf(text, "{\"type\":\"object\",\"$defs\":{\"item\":{\"type\":\"object\","
                              "\"properties\":{\"id\":{\"type\":\"string\",\"format\":\"uuid\"},"
                              "\"price\":{\"type\":\"number\",\"minimum\":0},\"tags\":{\"type\":"
                              "\"array\",\"items\":{\"type\":\"string\"},\"maxItems\":10},"
                              "\"parts\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/item\"}"
                              "}},\"required\":[\"id\",\"price\"]}},\"properties\":{");
    for (int i = 0; n < 10 * 1024 - 400; i++)
        n += (size_t)sprintf(
            text + n,
            "%s\"name_%d\":{\"type\":\"string\",\"description\":\"the name of thing "
            "%d\",\"minLength\":1,"
            "\"maxLength\":%d},\"count_%d\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":%d},"
            "\"when_%d\":{\"type\":\"string\",\"format\":\"date-time\"},\"kind_%d\":{\"enum\":["
            "\"small\","
            "\"medium\",\"large\",\"kind %d\"]},\"code_%d\":{\"type\":\"string\",\"pattern\":"
            "\"^[A-Z]{2}-[0-9]{4,%d}$\"},\"ref_%d\":{\"anyOf\":[{\"$ref\":\"#/$defs/"
            "item\"},{\"type\":"
            "\"null\"}]}",
            i ? "," : "", i, i, 40 + i, i, 1000 + 37 * i, i, i, i, i, 5 + i % 4, i);
    strcpy(text + n, "},\"required\":[\"name_0\",\"when_1\",\"code_1\",\"ref_2\"]}");
    *n_bytes = strlen(text);
    return json_tokener_parse(text);
}

static int compare_times(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void print_times(const char *what, double *times, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += times[i];
    qsort(times, n, sizeof(*times), compare_times);
    printf("  %-12s mean %8.1f us  median %8.1f  p99 %8.1f  max %8.1f  (%zu tokens)\n", what,
           1e6 * sum / (double)n, 1e6 * times[n / 2], 1e6 * times[n * 99 / 100], 1e6 * times[n - 1],
           n);
}

/* Follows `drawn` [*n_drawn], or draws it if it is empty. */
static void run(const struct vocabulary *vocab, const struct token_trie *trie,
                struct grammar *grammar, const char *what, int32_t *drawn, size_t *n_drawn,
                size_t n_max, uint32_t seed)
{
    struct grammar_matcher *matcher;
    struct token_sampler sampler = {.state = seed, .ending = 3};
    const bool replay = *n_drawn > 0;
    double *masks = calloc(n_max, sizeof(*masks)), *takes = calloc(n_max, sizeof(*takes));
    if (!masks || !takes || grammar_matcher_create(&matcher, grammar, trie, NULL) != LM_OK)
        die("no memory");
    size_t n = 0;
    while (n < (replay ? *n_drawn : n_max)) {
        const double begin = log_now_s();
        const uint32_t *mask = grammar_matcher_mask(matcher);
        masks[n] = log_now_s() - begin;
        const int32_t token =
            replay ? drawn[n] : token_sampler_draw(&sampler, vocab->tokens, vocab->n_vocab, mask);
        if (token < 0) break;
        const double middle = log_now_s();
        if (!grammar_matcher_take(matcher, vocab->tokens[token].bytes, vocab->tokens[token].n))
            die("a token of the mask is refused");
        takes[n] = log_now_s() - middle;
        drawn[n++] = token;
    }
    *n_drawn = n;
    if (!n) die("nothing was drawn");
    print_times(what, masks, n);
    if (replay) print_times("take", takes, n);
    grammar_matcher_destroy(matcher);
    free(takes);
    free(masks);
}

static void measure(const struct vocabulary *vocab, struct token_trie *trie,
                    struct grammar *grammar, const char *name, size_t n_max, uint32_t seed)
{
    int32_t *drawn = calloc(n_max, sizeof(*drawn));
    size_t n_drawn = 0;
    if (!drawn) die("no memory");
    printf("%s\n", name);
    run(vocab, trie, grammar, "mask, cold", drawn, &n_drawn, n_max, seed);
    run(vocab, trie, grammar, "mask, warm", drawn, &n_drawn, n_max, seed);
    free(drawn);
    grammar_unref(grammar);
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "-";
    const size_t n_max = number_argument(argc, argv, "--tokens", 400);
    const uint32_t seed = number_argument(argc, argv, "--seed", 1);
    struct vocabulary vocab = {0};
    struct lm_error err = {0};
    struct token_trie *trie;
    struct grammar *grammar;
    if (strcmp(path, "-"))
        load(&vocab, path);
    else
        make_up(&vocab);

    double begin = log_now_s();
    if (token_trie_build(&trie, vocab.tokens, vocab.n_vocab, &vocab.end, 1, &err) != LM_OK)
        die(err.message);
    printf("%u tokens: tree of %u nodes, deepest %u, in %.0f ms\n", vocab.n_vocab, trie->n_node,
           trie->depth_max, 1e3 * (log_now_s() - begin));

    size_t n_bytes;
    struct json_object *schema = make_schema(&n_bytes);
    double best = 1e9;
    for (int i = 0; i < 10; i++) {
        begin = log_now_s();
        if (grammar_from_schema(&grammar, schema, false, &err) != LM_OK) die(err.message);
        const double seconds = log_now_s() - begin;
        if (!i)
            printf("schema of %zu bytes: compiled in %.2f ms the first time", n_bytes,
                   1e3 * seconds);
        if (seconds < best) best = seconds;
        if (i < 9) grammar_unref(grammar);
    }
    printf(", %.2f ms at best\n", 1e3 * best);
    json_object_put(schema);
    measure(&vocab, trie, grammar, "that schema", n_max, seed);

    if (grammar_from_schema(&grammar, NULL, false, &err) != LM_OK) die(err.message);
    measure(&vocab, trie, grammar, "any JSON object", n_max, seed);

    schema = json_tokener_parse("{\"type\":\"string\",\"maxLength\":200}");
    if (grammar_from_schema(&grammar, schema, false, &err) != LM_OK) die(err.message);
    json_object_put(schema);
    measure(&vocab, trie, grammar, "a string of at most 200", n_max, seed);

    static const char gbnf[] = "root ::= line+\nline ::= word (\" \" word)* \"\\n\"\n"
                               "word ::= [a-zA-Z]+ | [0-9]{1,8} | \"(\" root \")\"\n";
    if (grammar_from_gbnf(&grammar, gbnf, strlen(gbnf), &err) != LM_OK) die(err.message);
    measure(&vocab, trie, grammar, "GBNF: words, lines, parentheses", n_max, seed);

    token_trie_destroy(trie);
    free(vocab.tokens);
    free(vocab.bytes);
    tokenizer_destroy(vocab.tokenizer);
    gguf_close(vocab.file);
    return 0;
}
