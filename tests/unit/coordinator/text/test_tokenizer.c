/* The tokenizer with vocabularies made for the purpose: merging and special tokens against naive
 * versions, roles of tokens, the way back to text, and vocabularies that are wrong. */
#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>

#include "coordinator/text/tokenizer.h"
#include "tests/unit/proto/gguf/gguf_image.h"

enum { MAX_TOKEN = 400, MAX_MERGE = 100 };

/* A vocabulary to be: the id of a byte is its value, other tokens follow. */
struct vocabulary {
    const char *pre;
    char tokens[MAX_TOKEN][64];
    int32_t kinds[MAX_TOKEN];
    size_t n_token;
    const char *merges[MAX_MERGE];
    size_t n_merge;
    const char *flag; /* tokenizer.ggml.FLAG = true */
    const char *id_key;
    uint32_t id;
};

static void append_utf8(char *text, unsigned code)
{
    const size_t n = strlen(text);
    if (code < 0x80) {
        text[n] = (char)code;
    } else {
        text[n] = (char)(0xC0 | code >> 6);
        text[n + 1] = (char)(0x80 | (code & 63));
    }
}

/* Appends the letter of a byte: printable Latin-1 as itself, the others from U+0100 in order. */
static void append_letter(char *text, unsigned char byte)
{
    unsigned shifted = 256;
    for (unsigned code = 0; code < 256; code++) {
        const bool itself = (code > 32 && code < 127) || (code > 160 && code != 173);
        if (code == byte) append_utf8(text, itself ? code : shifted);
        shifted += !itself;
    }
}

static int32_t add_token(struct vocabulary *vocabulary, const char *text, enum token_kind kind)
{
    assert_true(vocabulary->n_token < MAX_TOKEN);
    snprintf(vocabulary->tokens[vocabulary->n_token], 64, "%s", text);
    vocabulary->kinds[vocabulary->n_token] = (int32_t)kind;
    return (int32_t)vocabulary->n_token++;
}

static void init(struct vocabulary *vocabulary, const char *pre)
{
    memset(vocabulary, 0, sizeof(*vocabulary));
    vocabulary->pre = pre;
    for (unsigned byte = 0; byte < 256; byte++) {
        append_letter(vocabulary->tokens[byte], (unsigned char)byte);
        vocabulary->kinds[byte] = TOKEN_NORMAL;
    }
    vocabulary->n_token = 256;
}

static void add_merge(struct vocabulary *vocabulary, const char *merge)
{
    vocabulary->merges[vocabulary->n_merge++] = merge;
}

static void put_strings(struct image *image, const char *key, uint64_t n)
{
    put_key(image, key, GGUF_ARRAY);
    put_u32(image, GGUF_STRING);
    put_u64(image, n);
}

static void build(struct image *image, const struct vocabulary *vocabulary)
{
    image->n = 0;
    put_header(image, 3, 0, 5u + !!vocabulary->flag + !!vocabulary->id_key);
    put_key(image, "tokenizer.ggml.model", GGUF_STRING);
    put_string(image, "gpt2");
    put_key(image, "tokenizer.ggml.pre", GGUF_STRING);
    put_string(image, vocabulary->pre);
    put_strings(image, "tokenizer.ggml.tokens", vocabulary->n_token);
    for (size_t i = 0; i < vocabulary->n_token; i++)
        put_string(image, vocabulary->tokens[i]);
    put_key(image, "tokenizer.ggml.token_type", GGUF_ARRAY);
    put_u32(image, GGUF_I32);
    put_u64(image, vocabulary->n_token);
    put(image, vocabulary->kinds, vocabulary->n_token * 4);
    put_strings(image, "tokenizer.ggml.merges", vocabulary->n_merge);
    for (size_t i = 0; i < vocabulary->n_merge; i++)
        put_string(image, vocabulary->merges[i]);
    char key[64];
    if (vocabulary->flag) {
        snprintf(key, sizeof(key), "tokenizer.ggml.%s", vocabulary->flag);
        put_key(image, key, GGUF_BOOL);
        put(image, "\1", 1);
    }
    if (vocabulary->id_key) {
        snprintf(key, sizeof(key), "tokenizer.ggml.%s", vocabulary->id_key);
        put_key(image, key, GGUF_U32);
        put_u32(image, vocabulary->id);
    }
}

static enum lm_status create_image(struct tokenizer **tokenizer, const struct image *image,
                                   struct lm_error *err)
{
    struct gguf_file *file;
    enum lm_status status = open_bytes(&file, image->data, image->n, err);
    if (status != LM_OK) fail_msg("%s", err->message);
    status = tokenizer_create(tokenizer, file, err);
    gguf_close(file);
    return status;
}

static struct tokenizer *create(const struct vocabulary *vocabulary)
{
    static struct image image;
    struct tokenizer *tokenizer;
    struct lm_error err = {0};
    build(&image, vocabulary);
    if (create_image(&tokenizer, &image, &err) != LM_OK) fail_msg("%s", err.message);
    return tokenizer;
}

static int32_t *encode(const struct tokenizer *tokenizer, const char *text, size_t n,
                       bool parse_special, bool add_special, size_t *n_ids)
{
    int32_t *ids;
    struct lm_error err = {0};
    if (tokenizer_encode(tokenizer, text, n, parse_special, add_special, &ids, n_ids, &err))
        fail_msg("%s", err.message);
    return ids;
}

/* The ids as their texts with bars between, so that a failure can be read. */
static void assert_pieces(const struct tokenizer *tokenizer, const char *text, bool parse_special,
                          bool add_special, const char *expected)
{
    size_t n_ids, n_bytes;
    char got[4096] = "";
    int32_t *ids = encode(tokenizer, text, strlen(text), parse_special, add_special, &n_ids);
    for (size_t i = 0; i < n_ids; i++) {
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], true, &n_bytes);
        snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s%.*s", i ? "|" : "", (int)n_bytes,
                 bytes);
    }
    free(ids);
    assert_string_equal(got, expected);
}

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static void lowest_rank_merges_first_and_leftmost(void **state)
{
    (void)state;
    struct vocabulary vocabulary;
    init(&vocabulary, "qwen2");
    static const char *const tokens[] = {"bc", "ab", "aa", "abc", "aaaa"};
    for (size_t i = 0; i < 5; i++)
        add_token(&vocabulary, tokens[i], TOKEN_NORMAL);
    static const char *const merges[] = {"b c", "a b", "ab c", "b c", "a a", "aa aa"};
    for (size_t i = 0; i < 6; i++)
        add_merge(&vocabulary, merges[i]);
    struct tokenizer *tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "abc", true, false, "a|bc"); /* a token, but not what merging gives */
    assert_pieces(tokenizer, "ab", true, false, "ab");
    assert_pieces(tokenizer, "abab", true, false, "ab|ab");
    assert_pieces(tokenizer, "aaa", true, false, "aa|a");
    assert_pieces(tokenizer, "aaaaaaa", true, false, "aaaa|aa|a");
    assert_pieces(tokenizer, "abc", true, false, "a|bc"); /* the same the second time */
    assert_pieces(tokenizer, "", true, true, "");
    tokenizer_destroy(tokenizer);
    vocabulary.pre = "llama-bpe";
    tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "abc", true, false, "abc"); /* ignores merges for whole words */
    assert_pieces(tokenizer, "abcb", true, false, "a|bc|b");
    tokenizer_destroy(tokenizer);
}

static void pieces_that_are_no_tokens_fall_back_to_bytes(void **state)
{
    (void)state;
    struct vocabulary vocabulary;
    init(&vocabulary, "qwen2");
    add_token(&vocabulary, "xyz", TOKEN_NORMAL);
    add_token(&vocabulary, "zq", TOKEN_NORMAL);
    strcpy(vocabulary.tokens['q'], "qq"); /* no token for the byte q */
    add_merge(&vocabulary, "x y");        /* xy is none either */
    add_merge(&vocabulary, "xy z");
    add_merge(&vocabulary, "p q");
    struct tokenizer *tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "xyz", true, false, "xyz"); /* by way of xy */
    assert_pieces(tokenizer, "xyw", true, false, "x|y|w");
    assert_pieces(tokenizer, "wqw", true, false, "w|w");
    assert_pieces(tokenizer, "apq", true, false, "a|p");
    assert_pieces(tokenizer, "zq", true, false, "z"); /* a token that its bytes do not lead to */
    assert_pieces(tokenizer, "zq", true, false, "z");
    tokenizer_destroy(tokenizer);
}

/* Merging as one would write it first. out: room for twice the word. Bars cut the word into symbols
 * from the start, and a merge takes one away. */
static void naive_merge(const struct vocabulary *vocabulary, const char *word, char *out)
{
    size_t n = 0;
    for (const char *at = word; *at; at++) {
        out[n++] = *at;
        out[n++] = '|';
    }
    out[n ? n - 1 : 0] = '\0';
    for (;;) {
        size_t best_rank = vocabulary->n_merge;
        char *best_bar = NULL;
        char *left = out;
        for (char *bar; (bar = strchr(left, '|')); left = bar + 1) {
            const size_t n_left = (size_t)(bar - left), n_right = strcspn(bar + 1, "|");
            for (size_t rank = 0; rank < best_rank; rank++) {
                const char *merge = vocabulary->merges[rank];
                if (strlen(merge) == n_left + 1 + n_right && !memcmp(merge, left, n_left) &&
                    !memcmp(merge + n_left + 1, bar + 1, n_right)) {
                    best_rank = rank;
                    best_bar = bar;
                }
            }
        }
        if (!best_bar) break;
        memmove(best_bar, best_bar + 1, strlen(best_bar));
    }
}

static void short_and_long_words_match_naive_merging(void **state)
{
    (void)state;
    uint64_t random = 7;
    for (int round = 0; round < 40; round++) {
        struct vocabulary vocabulary;
        static char merges[24][64];
        init(&vocabulary, "qwen2");
        while (vocabulary.n_merge < 24) { /* of letters and what earlier merges give */
            const char *side[2];
            for (int k = 0; k < 2; k++) {
                const size_t pick = next_random(&random) % (3 + vocabulary.n_token - 256);
                side[k] = pick < 3 ? &"a\0b\0c"[2 * pick] : vocabulary.tokens[253 + pick];
            }
            char joined[64];
            if (strlen(side[0]) + strlen(side[1]) > 20) continue; /* keeps texts short */
            snprintf(joined, sizeof(joined), "%s%s", side[0], side[1]);
            bool known = false;
            for (size_t i = 256; i < vocabulary.n_token; i++)
                known |= !strcmp(vocabulary.tokens[i], joined);
            char *merge = merges[vocabulary.n_merge];
            snprintf(merge, 64, "%s %s", side[0], side[1]);
            add_merge(&vocabulary, merge);
            if (!known) add_token(&vocabulary, joined, TOKEN_NORMAL);
        }
        struct tokenizer *tokenizer = create(&vocabulary);
        static const size_t lengths[] = {1, 2, 5, 17, 47, 48, 49, 50, 120, 600};
        for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
            char word[601] = "", expected[1300];
            for (size_t k = 0; k < lengths[i]; k++)
                word[k] = (char)('a' + next_random(&random) % 3);
            word[lengths[i]] = '\0';
            naive_merge(&vocabulary, word, expected);
            assert_pieces(tokenizer, word, true, false, expected);
        }
        tokenizer_destroy(tokenizer);
    }
}

static void long_word_takes_no_quadratic_time(void **state)
{
    (void)state; /* quadratic would be hours */
    enum { N = 1 << 22 };
    struct vocabulary vocabulary;
    init(&vocabulary, "qwen2");
    add_token(&vocabulary, "ab", TOKEN_NORMAL);
    add_token(&vocabulary, "abab", TOKEN_NORMAL);
    add_merge(&vocabulary, "a b");
    add_merge(&vocabulary, "ab ab");
    struct tokenizer *tokenizer = create(&vocabulary);
    char *text = malloc(N);
    for (size_t i = 0; i < N; i++)
        text[i] = "ab"[i % 2];
    size_t n_ids;
    int32_t *ids = encode(tokenizer, text, N, true, false, &n_ids);
    assert_int_equal(n_ids, N / 4);
    free(ids);
    memset(text, '7', N); /* and so for the cut into words */
    free(encode(tokenizer, text, N, true, false, &n_ids));
    assert_int_equal(n_ids, N);
    free(text);
    tokenizer_destroy(tokenizer);
}

static void special_tokens_are_cut_out_by_kind(void **state)
{
    (void)state;
    struct vocabulary vocabulary;
    init(&vocabulary, "qwen2");
    add_token(&vocabulary, "<c>", TOKEN_CONTROL);
    add_token(&vocabulary, "<u>", TOKEN_USER_DEFINED);
    add_token(&vocabulary, "<k>", TOKEN_UNKNOWN);
    add_token(&vocabulary, "<n>", TOKEN_NORMAL);
    add_token(&vocabulary, "<x>", TOKEN_UNUSED);
    struct tokenizer *tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "a<c><u><k><n><x>", true, false, "a|<c>|<u>|<k>|<|n|>|<|x|>");
    assert_pieces(tokenizer, "a<c><u><k>", false, false, "a|<|c|>|<u>|<|k|>");
    /* On the way back only normal and user-defined ones show. */
    for (int32_t id = 256; id < 261; id++) {
        size_t n;
        tokenizer_token_bytes(tokenizer, id, true, &n);
        assert_int_equal(n, 3);
        tokenizer_token_bytes(tokenizer, id, false, &n);
        assert_int_equal(n, id == 257 || id == 259 ? 3 : 0);
        assert_int_equal(tokenizer_token_kind(tokenizer, id), vocabulary.kinds[id]);
    }
    size_t n;
    tokenizer_token_bytes(tokenizer, 261, true, &n);
    assert_int_equal(n, 0);
    tokenizer_token_bytes(tokenizer, -1, true, &n);
    assert_int_equal(n, 0);
    assert_int_equal(tokenizer_find(tokenizer, "<u>", 3), 257);
    assert_int_equal(tokenizer_find(tokenizer, "<u", 2), -1);
    assert_int_equal(tokenizer_n_vocab(tokenizer), 261);
    tokenizer_destroy(tokenizer);
}

/* The reference's way: one special token after the other through all that is still raw. */
static void naive_specials(const struct vocabulary *vocabulary, const char *text, char *out)
{
    const size_t n = strlen(text);
    int32_t owner[256]; /* per byte: -1 raw, id at the first byte of a token, -2 inside it */
    for (size_t i = 0; i < n; i++)
        owner[i] = -1;
    for (size_t length = 63; length > 0; length--)
        for (size_t id = 256; id < vocabulary->n_token; id++) {
            if (strlen(vocabulary->tokens[id]) != length) continue;
            for (size_t i = 0; i + length <= n; i++) {
                bool raw = !strncmp(text + i, vocabulary->tokens[id], length);
                for (size_t k = 0; k < length && raw; k++)
                    raw = owner[i + k] == -1;
                for (size_t k = 0; k < length && raw; k++)
                    owner[i + k] = k ? -2 : (int32_t)id;
            }
        }
    *out = '\0';
    for (size_t i = 0; i < n; i++) {
        if (i && owner[i] != -2) *out++ = '|';
        *out++ = text[i];
        *out = '\0';
    }
}

static void overlapping_specials_match_naive_search(void **state)
{
    (void)state;
    uint64_t random = 9;
    for (int round = 0; round < 300; round++) {
        struct vocabulary vocabulary;
        init(&vocabulary, "qwen2");
        const size_t n_special = 1 + next_random(&random) % 12;
        while (vocabulary.n_token < 256 + n_special) {
            char text[8] = "";
            const size_t n = 2 + next_random(&random) % 5;
            for (size_t i = 0; i < n; i++)
                text[i] = "<=>"[next_random(&random) % 3];
            bool known = false;
            for (size_t i = 256; i < vocabulary.n_token; i++)
                known |= !strcmp(vocabulary.tokens[i], text);
            if (!known) add_token(&vocabulary, text, TOKEN_USER_DEFINED);
        }
        struct tokenizer *tokenizer = create(&vocabulary);
        for (int k = 0; k < 20; k++) {
            char text[200] = "", expected[500];
            const size_t n = next_random(&random) % 60;
            for (size_t i = 0; i < n; i++)
                text[i] = "<=>"[next_random(&random) % 3];
            naive_specials(&vocabulary, text, expected);
            assert_pieces(tokenizer, text, false, false, expected);
        }
        tokenizer_destroy(tokenizer);
    }
}

static void texts_and_keys_give_tokens_their_roles(void **state)
{
    (void)state;
    struct vocabulary vocabulary;
    init(&vocabulary, "qwen2");
    const int32_t slash_s = add_token(&vocabulary, "</s>", TOKEN_NORMAL);
    const int32_t s = add_token(&vocabulary, "<s>", TOKEN_NORMAL);
    const int32_t im_end = add_token(&vocabulary, "<|im_end|>", TOKEN_USER_DEFINED);
    const int32_t pad_first = add_token(&vocabulary, "<PAD>", TOKEN_NORMAL);
    const int32_t pad_later = add_token(&vocabulary, "[PAD]", TOKEN_NORMAL);
    const int32_t prefix = add_token(&vocabulary, "<fim_prefix>", TOKEN_NORMAL);
    const int32_t deepseek = add_token(&vocabulary,
                                       "<\xEF\xBD\x9C"
                                       "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
                                       TOKEN_CONTROL);
    vocabulary.id_key = "eot_token_id";
    vocabulary.id = 'x';
    struct tokenizer *tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "</s><s><PAD>[PAD]", true, false, "</s>|<|s|>|<PAD>|[|P|A|D|]");
    assert_pieces(tokenizer, "</s><|im_end|>", false, false, "<|/|s|>|<|||i|m|_|e|n|d|||>");
    const struct {
        int32_t id;
        enum token_kind kind;
        bool is_end;
    } roles[] = {
        {slash_s, TOKEN_CONTROL, true},   {s, TOKEN_NORMAL, false},
        {im_end, TOKEN_CONTROL, true},    {pad_first, TOKEN_CONTROL, true},
        {pad_later, TOKEN_NORMAL, false}, {prefix, TOKEN_CONTROL, false},
        {deepseek, TOKEN_CONTROL, true},  {'x', TOKEN_NORMAL, true},
    };
    for (size_t i = 0; i < sizeof(roles) / sizeof(*roles); i++) {
        assert_int_equal(tokenizer_token_kind(tokenizer, roles[i].id), roles[i].kind);
        assert_int_equal(tokenizer_is_end(tokenizer, roles[i].id), roles[i].is_end);
    }
    assert_int_equal(tokenizer_bos(tokenizer), -1);
    assert_int_equal(tokenizer_eos(tokenizer), -1);
    tokenizer_destroy(tokenizer);
}

static void begin_and_end_are_added_as_the_file_says(void **state)
{
    (void)state;
    struct vocabulary vocabulary;
    init(&vocabulary, "llama-bpe");
    vocabulary.id_key = "bos_token_id";
    vocabulary.id = 'B';
    struct tokenizer *tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "x", true, true, "B|x"); /* the default of this pre-tokenizer */
    assert_pieces(tokenizer, "x", true, false, "x");
    tokenizer_destroy(tokenizer);
    vocabulary.pre = "qwen2";
    tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "x", true, true, "x");
    tokenizer_destroy(tokenizer);
    vocabulary.flag = "add_bos_token";
    tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "", true, true, "B");
    tokenizer_destroy(tokenizer);
    vocabulary.flag = "add_eos_token";
    vocabulary.id_key = "eos_token_id";
    tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "x", true, true, "x|B");
    assert_true(tokenizer_is_end(tokenizer, 'B'));
    tokenizer_destroy(tokenizer);
    vocabulary.id = 256; /* no such token: as if the key were not there */
    tokenizer = create(&vocabulary);
    assert_pieces(tokenizer, "x", true, true, "x");
    assert_int_equal(tokenizer_eos(tokenizer), -1);
    tokenizer_destroy(tokenizer);
}

/* Bytes that begin no character count as U+FFFD each; all else comes back as it was. */
static void text_survives_the_round_trip(void **state)
{
    (void)state;
    static const char *const pres[] = {"qwen2",  "qwen35", "afmoe", "llama-bpe",
                                       "smollm", "gpt-2",  "lean"};
    static const char *const parts[] = {
        "a",
        "Z",
        "'S",
        "7",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\xC3\xA9",
        "\xCC\x81",
        "\xE4\xBD\xA0",
        "\xE0\xB9\x80",
        "\xF0\x9F\x99\x82",
        "!?",
        "\xC2\x85",
        "\xE3\x80\x80",
        "\xD9\xA3",
        "<|",
        "\xEF\xBF\xBF",
        "\xF4\x8F\xBF\xBF",
        "\x7F",
    };
    static const char *const bad[] = {
        "\x80", "\xC3", "\xC0\x80", "\xE4\xBD", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF"};
    uint64_t random = 13;
    for (size_t pre = 0; pre < sizeof(pres) / sizeof(*pres); pre++) {
        struct vocabulary vocabulary;
        init(&vocabulary, pres[pre]);
        struct tokenizer *tokenizer = create(&vocabulary);
        assert_string_equal(tokenizer_pre_name(tokenizer), pres[pre]);
        for (int round = 0; round < 500; round++) {
            char text[400] = "", expected[1200] = "", got[1200] = "";
            const size_t n_part = next_random(&random) % 40;
            for (size_t i = 0; i < n_part; i++) {
                const bool is_bad = next_random(&random) % 8 == 0;
                const char *part =
                    is_bad ? bad[next_random(&random) % 7] : parts[next_random(&random) % 21];
                strcat(text, part);
                for (size_t k = 0; is_bad && k < strlen(part); k++)
                    strcat(expected, "\xEF\xBF\xBD");
                if (is_bad) strcat(text, "."); /* so that no two of them make a character */
                strcat(expected, is_bad ? "." : part);
            }
            size_t n_ids, n_bytes;
            int32_t *ids = encode(tokenizer, text, strlen(text), true, false, &n_ids);
            for (size_t i = 0; i < n_ids; i++) {
                const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], false, &n_bytes);
                strncat(got, bytes, n_bytes);
            }
            assert_string_equal(got, expected);
            free(ids);
        }
        tokenizer_destroy(tokenizer);
    }
}

static void decoder_gives_whole_characters(void **state)
{
    (void)state;
#define FFFD "\xEF\xBF\xBD"
    static const struct {
        const char *bytes, *text; /* as Python decodes with errors="replace" */
    } cases[] = {
        {"plain", "plain"},
        {"\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x99\x82", "\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x99\x82"},
        {"a\x80z", "a" FFFD "z"},
        {"\xE4\xBDz", FFFD "z"},
        {"\xE4\xE4\xBD\xA0", FFFD "\xE4\xBD\xA0"},
        {"\xF0\x9F\x99", FFFD},
        {"\xF0\x9F\xC3\xA9", FFFD "\xC3\xA9"},
        {"\xC0\x80", FFFD FFFD},
        {"\xED\xA0\x80", FFFD FFFD FFFD},
        {"\xF4\x90\x80\x80", FFFD FFFD FFFD FFFD},
        {"\xE0\x80\x80", FFFD FFFD FFFD},
        {"\xFF\xFE", FFFD FFFD},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const size_t n = strlen(cases[i].bytes);
        for (size_t cut = 0; cut <= n; cut++)            /* in two tokens, wherever they meet */
            for (size_t next = cut; next <= n; next++) { /* in three */
                struct token_decoder decoder = {0};
                const size_t cuts[] = {0, cut, next, n};
                char got[100];
                size_t n_got = 0;
                for (size_t k = 0; k < 3; k++)
                    n_got += token_decoder_push(&decoder, cases[i].bytes + cuts[k],
                                                cuts[k + 1] - cuts[k], k == 2, got + n_got);
                assert_int_equal(n_got, strlen(cases[i].text));
                assert_memory_equal(got, cases[i].text, n_got);
                assert_int_equal(decoder.n_pending, 0);
            }
    }
    struct token_decoder decoder = {0};
    char got[24];
    assert_int_equal(token_decoder_push(&decoder, "a\xF0\x9F", 3, false, got), 1);
    assert_int_equal(token_decoder_push(&decoder, "\x99", 1, false, got), 0);
    assert_int_equal(token_decoder_push(&decoder, "\x82", 1, false, got), 4);
}

/* What is wrong with a vocabulary is said in one line. */
static void wrong_vocabularies_are_refused(void **state)
{
    (void)state;
    static struct image image;
    struct vocabulary vocabulary;
    struct tokenizer *tokenizer = NULL;
    struct lm_error err;
#define ASSERT_REFUSED(status, part)                                                               \
    do {                                                                                           \
        assert_int_equal(create_image(&tokenizer, &image, &err), status);                          \
        if (!strstr(err.message, part)) fail_msg("\"%s\" lacks \"%s\"", err.message, part);        \
        assert_null(tokenizer);                                                                    \
    } while (0)
    init(&vocabulary, "no-such");
    build(&image, &vocabulary);
    ASSERT_REFUSED(LM_E_UNSUPPORTED, "unknown pre-tokenizer \"no-such\"");
    init(&vocabulary, "qwen2");
    add_token(&vocabulary, "a", TOKEN_NORMAL);
    build(&image, &vocabulary);
    ASSERT_REFUSED(LM_E_FORMAT, "tokenizer.ggml.tokens: tokens 97 and 256 have the same text");
    init(&vocabulary, "qwen2");
    vocabulary.kinds[5] = 7;
    build(&image, &vocabulary);
    ASSERT_REFUSED(LM_E_FORMAT, "token_type of token 5 is 7");
    init(&vocabulary, "qwen2");
    add_merge(&vocabulary, "a b");
    add_merge(&vocabulary, "ab");
    build(&image, &vocabulary);
    ASSERT_REFUSED(LM_E_FORMAT, "tokenizer.ggml.merges: merge 1 has no space");
    init(&vocabulary, "qwen2");
    vocabulary.n_token = 0;
    build(&image, &vocabulary);
    ASSERT_REFUSED(LM_E_FORMAT, "tokenizer.ggml.tokens is empty");

    image.n = 0;
    put_header(&image, 3, 0, 0);
    ASSERT_REFUSED(LM_E_FORMAT, "no key tokenizer.ggml.model");
    image.n = 0;
    put_header(&image, 3, 0, 1);
    put_key(&image, "tokenizer.ggml.model", GGUF_STRING);
    put_string(&image, "llama");
    ASSERT_REFUSED(LM_E_UNSUPPORTED, "tokenizer model \"llama\"");
    image.n = 0;
    put_header(&image, 3, 0, 1);
    put_key(&image, "tokenizer.ggml.model", GGUF_STRING);
    put_string(&image, "gpt2");
    ASSERT_REFUSED(LM_E_UNSUPPORTED, "no key tokenizer.ggml.pre");
    image.n = 0;
    put_header(&image, 3, 0, 3);
    put_key(&image, "tokenizer.ggml.model", GGUF_STRING);
    put_string(&image, "gpt2");
    put_key(&image, "tokenizer.ggml.pre", GGUF_STRING);
    put_string(&image, "qwen2");
    put_key(&image, "tokenizer.ggml.tokens", GGUF_STRING);
    put_string(&image, "not an array");
    ASSERT_REFUSED(LM_E_FORMAT, "tokenizer.ggml.tokens is not an array of strings");
}

static void empty_texts_get_a_name(void **state)
{
    (void)state;
    struct vocabulary vocabulary;
    init(&vocabulary, "qwen2");
    add_token(&vocabulary, "", TOKEN_UNUSED);
    add_token(&vocabulary, "", TOKEN_CONTROL);
    struct tokenizer *tokenizer = create(&vocabulary);
    assert_int_equal(tokenizer_find(tokenizer, "[EMPTY_256]", 11), 256);
    assert_pieces(tokenizer, "[EMPTY_257]", true, false, "[EMPTY_257]");
    tokenizer_destroy(tokenizer);
    tokenizer_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lowest_rank_merges_first_and_leftmost),
        cmocka_unit_test(pieces_that_are_no_tokens_fall_back_to_bytes),
        cmocka_unit_test(short_and_long_words_match_naive_merging),
        cmocka_unit_test(long_word_takes_no_quadratic_time),
        cmocka_unit_test(special_tokens_are_cut_out_by_kind),
        cmocka_unit_test(overlapping_specials_match_naive_search),
        cmocka_unit_test(texts_and_keys_give_tokens_their_roles),
        cmocka_unit_test(begin_and_end_are_added_as_the_file_says),
        cmocka_unit_test(text_survives_the_round_trip),
        cmocka_unit_test(decoder_gives_whole_characters),
        cmocka_unit_test(wrong_vocabularies_are_refused),
        cmocka_unit_test(empty_texts_get_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
