#include "coordinator/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/text/bpe.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/unicode.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"

#define KEY "tokenizer.ggml."

/* What a token's text stands for, and what it means. */
struct token {
    const char *bytes; /* in the tokenizer's pool, or the text itself */
    uint32_t n_bytes;
    unsigned char kind; /* enum token_kind */
    bool is_end;
};

struct tokenizer {
    struct bpe *bpe;
    const struct pretokenizer *pretokenizer;
    struct token *tokens; /* [n_vocab] */
    uint32_t n_vocab;
    char *pool;       /* bytes of the tokens whose text is not their bytes */
    int32_t bos, eos; /* -1: none */
    bool add_bos, add_eos;
    /* Tokens that are cut out of the raw text, sorted by text; those that begin with byte b are
     * [special_from[b], special_from[b + 1]). */
    int32_t *specials;
    size_t n_special;
    uint32_t special_from[257];
};

/* Texts that end a generation whatever the file says of them. */
static const char *const end_texts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
    ("<\xEF\xBD\x9C"
     "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"),
};

/* Fill-in-the-middle tokens, one of each kind: the file's key, else the first text found. */
static const struct fim_kind {
    const char *key;
    bool is_end;
    const char *texts[7];
} fim_kinds[] = {
    {KEY "fim_pre_token_id",
     false,
     {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>",
      "<\xEF\xBD\x9C"
      "fim\xE2\x96\x81"
      "begin\xEF\xBD\x9C>",
      "<PRE>", "\xE2\x96\x81<PRE>", "<|code_prefix|>"}},
    {KEY "fim_suf_token_id",
     false,
     {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>",
      "<\xEF\xBD\x9C"
      "fim\xE2\x96\x81hole\xEF\xBD\x9C>",
      "<SUF>", "\xE2\x96\x81<SUF>", "<|code_suffix|>"}},
    {KEY "fim_mid_token_id",
     false,
     {"<|fim_middle|>", "<fim-middle>", "<fim_middle>",
      "<\xEF\xBD\x9C"
      "fim\xE2\x96\x81"
      "end\xEF\xBD\x9C>",
      "<MID>", "\xE2\x96\x81<MID>", "<|code_middle|>"}},
    {KEY "fim_pad_token_id", true, {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
    {KEY "fim_rep_token_id",
     true,
     {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
    {KEY "fim_sep_token_id", true, {"<|file_sep|>"}},
};

/* Reading the vocabulary. */

static enum lm_status read_model(struct tokenizer *tokenizer, const struct gguf_file *file,
                                 struct lm_error *err)
{
    struct gguf_string model = {0}, pre = {0};
    bool found;
    char shown[80];
    enum lm_status status = gguf_get_string(file, KEY "model", &model, &found, err);
    if (status != LM_OK) return status;
    if (!found)
        return lm_fail(err, LM_E_FORMAT, "%s: no key " KEY "model, so no vocabulary",
                       gguf_path(file));
    if (model.n != 4 || memcmp(model.data, "gpt2", 4))
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: tokenizer model \"%s\", only gpt2 is supported",
                       gguf_path(file), log_printable(model.data, model.n, shown, sizeof(shown)));
    status = gguf_get_string(file, KEY "pre", &pre, &found, err);
    if (status != LM_OK) return status;
    if (!found)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: no key " KEY "pre, so no way to split text",
                       gguf_path(file));
    tokenizer->pretokenizer = pretokenizer_find(pre.data, pre.n);
    if (!tokenizer->pretokenizer)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s: unknown pre-tokenizer \"%s\"", gguf_path(file),
                       log_printable(pre.data, pre.n, shown, sizeof(shown)));
    return LM_OK;
}

static enum lm_status find_string_array(const struct gguf_kv **out, const struct gguf_file *file,
                                        const char *key, struct lm_error *err)
{
    const struct gguf_kv *kv = gguf_find_kv(file, key);
    if (!kv) return lm_fail(err, LM_E_FORMAT, "%s: no key %s", gguf_path(file), key);
    if (kv->type != GGUF_ARRAY || kv->element != GGUF_STRING)
        return lm_fail(err, LM_E_FORMAT, "%s: %s is not an array of strings", gguf_path(file), key);
    *out = kv;
    return LM_OK;
}

/* Adds the name of the file and the key to a message of bpe's. */
static enum lm_status name_array(const struct gguf_file *file, const char *key,
                                 enum lm_status status, struct lm_error *err)
{
    if (!err) return status;
    const struct lm_error cause = *err;
    return lm_fail(err, status, "%s: %s: %.800s", gguf_path(file), key, cause.message);
}

static enum lm_status read_texts(struct tokenizer *tokenizer, const struct gguf_file *file,
                                 struct lm_error *err)
{
    const struct gguf_kv *tokens = NULL, *merges = NULL;
    enum lm_status status = find_string_array(&tokens, file, KEY "tokens", err);
    if (status == LM_OK) status = find_string_array(&merges, file, KEY "merges", err);
    if (status != LM_OK) return status;
    if (!tokens->n) return lm_fail(err, LM_E_FORMAT, "%s: " KEY "tokens is empty", gguf_path(file));
    status = bpe_create(&tokenizer->bpe, tokenizer->pretokenizer->ignore_merges, tokens->n,
                        merges->n, err);
    tokenizer->n_vocab = (uint32_t)tokens->n;
    for (uint64_t i = 0; i < tokens->n && status == LM_OK; i++) {
        struct gguf_string text = gguf_array_string(file, tokens, i);
        char empty[32]; /* a text must be unique; this one cannot be meant */
        if (!text.n) {
            text.n = (size_t)snprintf(empty, sizeof(empty), "[EMPTY_%u]", (unsigned)i);
            text.data = empty;
        }
        status = bpe_add_token(tokenizer->bpe, text.data, text.n, err);
    }
    if (status != LM_OK) return name_array(file, KEY "tokens", status, err);
    for (uint64_t i = 0; i < merges->n && status == LM_OK; i++) {
        const struct gguf_string text = gguf_array_string(file, merges, i);
        status = bpe_add_merge(tokenizer->bpe, text.data, text.n, err);
    }
    return status == LM_OK ? LM_OK : name_array(file, KEY "merges", status, err);
}

static enum lm_status read_kinds(struct tokenizer *tokenizer, const struct gguf_file *file,
                                 struct lm_error *err)
{
    const struct gguf_kv *kv = gguf_find_kv(file, KEY "token_type");
    if (kv &&
        (kv->type != GGUF_ARRAY || kv->n != tokenizer->n_vocab || kv->element == GGUF_STRING ||
         kv->element == GGUF_ARRAY || kv->element == GGUF_F32 || kv->element == GGUF_F64))
        return lm_fail(err, LM_E_FORMAT, "%s: " KEY "token_type is not an array of %u integers",
                       gguf_path(file), tokenizer->n_vocab);
    for (uint32_t i = 0; i < tokenizer->n_vocab; i++) {
        const int64_t kind = kv ? gguf_array_int(kv, i) : TOKEN_NORMAL;
        if (kind < 0 || kind > TOKEN_BYTE)
            return lm_fail(err, LM_E_FORMAT, "%s: " KEY "token_type of token %u is %lld",
                           gguf_path(file), i, (long long)kind);
        tokenizer->tokens[i].kind = kind ? (unsigned char)kind : TOKEN_UNUSED;
    }
    return LM_OK;
}

/* A token named by a key; -1: no such key, or no such token, which some published files have. */
static enum lm_status read_id(int32_t *id, const struct tokenizer *tokenizer,
                              const struct gguf_file *file, const char *key, struct lm_error *err)
{
    uint32_t value;
    bool found;
    *id = -1;
    const enum lm_status status = gguf_get_u32(file, key, &value, &found, err);
    if (status != LM_OK || !found) return status;
    if (value < tokenizer->n_vocab)
        *id = (int32_t)value;
    else
        log_verbose("%s: %s is %u, the vocabulary has %u tokens; ignored", gguf_path(file), key,
                    value, tokenizer->n_vocab);
    return LM_OK;
}

static int32_t find_text(const struct tokenizer *tokenizer, const char *text)
{
    return bpe_find(tokenizer->bpe, text, strlen(text));
}

/* Special ids, and the tokens that are control tokens by their text whatever their type says. */
static enum lm_status read_roles(struct tokenizer *tokenizer, const struct gguf_file *file,
                                 struct lm_error *err)
{
    tokenizer->add_bos = tokenizer->pretokenizer->add_bos;
    enum lm_status status =
        gguf_get_bool(file, KEY "add_bos_token", &tokenizer->add_bos, NULL, err);
    if (status == LM_OK)
        status = gguf_get_bool(file, KEY "add_eos_token", &tokenizer->add_eos, NULL, err);
    if (status == LM_OK)
        status = read_id(&tokenizer->bos, tokenizer, file, KEY "bos_token_id", err);

    if (status == LM_OK)
        status = read_id(&tokenizer->eos, tokenizer, file, KEY "eos_token_id", err);
    int32_t eot = -1, eom = -1;
    if (status == LM_OK) status = read_id(&eot, tokenizer, file, KEY "eot_token_id", err);
    if (status == LM_OK) status = read_id(&eom, tokenizer, file, KEY "eom_token_id", err);
    if (status != LM_OK) return status;

    if (tokenizer->eos >= 0) tokenizer->tokens[tokenizer->eos].is_end = true;
    if (eot >= 0) tokenizer->tokens[eot].is_end = true;
    if (eom >= 0) tokenizer->tokens[eom].is_end = true;
    for (size_t i = 0; i < sizeof(end_texts) / sizeof(*end_texts); i++) {
        const int32_t id = find_text(tokenizer, end_texts[i]);
        if (id < 0) continue;
        tokenizer->tokens[id].kind = TOKEN_CONTROL;
        tokenizer->tokens[id].is_end = true;
    }
    /* Where other tokens end an answer, this one ends one of its messages. */
    const int32_t end = find_text(tokenizer, "<|end|>");
    if (end >= 0 && end != tokenizer->eos && end != eot && end != eom &&
        find_text(tokenizer, "<|return|>") >= 0 && find_text(tokenizer, "<|call|>") >= 0)
        tokenizer->tokens[end].is_end = false;
    for (size_t i = 0; i < sizeof(fim_kinds) / sizeof(*fim_kinds) && status == LM_OK; i++) {
        const struct fim_kind *fim = &fim_kinds[i];
        int32_t id;
        status = read_id(&id, tokenizer, file, fim->key, err);
        for (size_t k = 0; k < 7 && fim->texts[k] && id < 0; k++) {
            id = find_text(tokenizer, fim->texts[k]);
            if (id >= 0) tokenizer->tokens[id].kind = TOKEN_CONTROL;
        }
        if (id >= 0 && fim->is_end) tokenizer->tokens[id].is_end = true;
    }
    return status;
}

/* Bytes of normal tokens; the texts of the others are meant literally. */
static enum lm_status make_bytes(struct tokenizer *tokenizer, struct lm_error *err)
{
    size_t n_pool = 0;
    for (uint32_t i = 0; i < tokenizer->n_vocab; i++) {
        size_t n;
        bpe_text(tokenizer->bpe, (int32_t)i, &n);
        n_pool += n;
    }
    tokenizer->pool = malloc(n_pool + 1);
    if (!tokenizer->pool)
        return lm_fail(err, LM_E_NO_MEM, "no memory for a vocabulary of %zu bytes", n_pool);
    char *free_at = tokenizer->pool;
    for (uint32_t i = 0; i < tokenizer->n_vocab; i++) {
        struct token *token = &tokenizer->tokens[i];
        size_t n, n_bytes;
        const char *text = bpe_text(tokenizer->bpe, (int32_t)i, &n);
        token->bytes = text;
        token->n_bytes = (uint32_t)n;
        if (token->kind != TOKEN_NORMAL ||
            !bpe_text_to_bytes(tokenizer->bpe, text, n, free_at, &n_bytes) ||
            (n_bytes == n && !memcmp(text, free_at, n)))
            continue;
        token->bytes = free_at;
        token->n_bytes = (uint32_t)n_bytes;
        free_at += n_bytes;
    }
    return LM_OK;
}

/* Special tokens. */

static int compare_text(const void *a, const void *b, void *bpe)
{
    size_t n_a, n_b;
    const char *const text_a = bpe_text(bpe, *(const int32_t *)a, &n_a);
    const char *const text_b = bpe_text(bpe, *(const int32_t *)b, &n_b);
    const int order = memcmp(text_a, text_b, n_a < n_b ? n_a : n_b);
    return order ? order : (n_a > n_b) - (n_a < n_b);
}

static bool is_special(const struct token *token)
{
    return token->kind == TOKEN_CONTROL || token->kind == TOKEN_USER_DEFINED ||
           token->kind == TOKEN_UNKNOWN;
}

static enum lm_status make_specials(struct tokenizer *tokenizer, struct lm_error *err)
{
    for (uint32_t i = 0; i < tokenizer->n_vocab; i++)
        tokenizer->n_special += is_special(&tokenizer->tokens[i]);
    tokenizer->specials = malloc((tokenizer->n_special + 1) * sizeof(*tokenizer->specials));
    if (!tokenizer->specials)
        return lm_fail(err, LM_E_NO_MEM, "no memory for %zu special tokens", tokenizer->n_special);
    size_t n = 0;
    for (uint32_t i = 0; i < tokenizer->n_vocab; i++)
        if (is_special(&tokenizer->tokens[i])) tokenizer->specials[n++] = (int32_t)i;
    qsort_r(tokenizer->specials, n, sizeof(*tokenizer->specials), compare_text, tokenizer->bpe);
    for (size_t i = 0; i < n; i++) {
        size_t n_text;
        const char *text = bpe_text(tokenizer->bpe, tokenizer->specials[i], &n_text);
        tokenizer->special_from[(unsigned char)text[0] + 1] = (uint32_t)i + 1;
    }
    for (int byte = 1; byte <= 256; byte++) /* bytes that none begins with */
        if (tokenizer->special_from[byte] < tokenizer->special_from[byte - 1])
            tokenizer->special_from[byte] = tokenizer->special_from[byte - 1];
    return LM_OK;
}

enum lm_status tokenizer_create(struct tokenizer **out, const struct gguf_file *file,
                                struct lm_error *err)
{
    struct tokenizer *tokenizer = calloc(1, sizeof(*tokenizer));
    if (!tokenizer) return lm_fail(err, LM_E_NO_MEM, "no memory for a tokenizer");
    enum lm_status status = read_model(tokenizer, file, err);
    if (status == LM_OK) status = read_texts(tokenizer, file, err);
    if (status != LM_OK) goto destroy;
    tokenizer->tokens = calloc(tokenizer->n_vocab, sizeof(*tokenizer->tokens));
    if (!tokenizer->tokens) {
        status = lm_fail(err, LM_E_NO_MEM, "no memory for %u tokens", tokenizer->n_vocab);
        goto destroy;
    }
    status = read_kinds(tokenizer, file, err);
    if (status == LM_OK) status = read_roles(tokenizer, file, err);
    if (status == LM_OK) status = make_bytes(tokenizer, err);
    if (status == LM_OK) status = make_specials(tokenizer, err);
    if (status != LM_OK) goto destroy;
    *out = tokenizer;
    return LM_OK;

destroy:
    tokenizer_destroy(tokenizer);
    return status;
}

void tokenizer_destroy(struct tokenizer *tokenizer)
{
    if (!tokenizer) return;
    free(tokenizer->specials);
    free(tokenizer->pool);
    free(tokenizer->tokens);
    bpe_destroy(tokenizer->bpe);
    free(tokenizer);
}

/* Encoding. */

/* A special token found in the text, before it is known whether another one takes the place. */
struct occurrence {
    size_t at;
    uint32_t n;
    int32_t id;
};

struct occurrences {
    struct occurrence *list;
    size_t n, n_max;
};

static bool occurrences_push(struct occurrences *found, struct occurrence occurrence)
{
    if (found->n == found->n_max) {
        const size_t n_max = found->n_max ? found->n_max * 2 : 32;
        struct occurrence *list = realloc(found->list, n_max * sizeof(*list));
        if (!list) return false;
        found->list = list;
        found->n_max = n_max;
    }
    found->list[found->n++] = occurrence;
    return true;
}

/* The first of the special tokens [from, to), all longer than depth, whose byte there is at least
 * the given one. */
static size_t bound_special(const struct tokenizer *tokenizer, size_t from, size_t to, size_t depth,
                            unsigned byte)
{
    while (from < to) {
        const size_t middle = from + (to - from) / 2;
        size_t n;
        const char *text = bpe_text(tokenizer->bpe, tokenizer->specials[middle], &n);
        if ((unsigned char)text[depth] < byte)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

/* Every special token that stands at text + at. The candidates are sorted by text, so those that
 * agree with the text up to a depth are one range, narrowed byte by byte. */
static bool find_specials_at(const struct tokenizer *tokenizer, const char *text, size_t n,
                             size_t at, bool parse_special, struct occurrences *found)
{
    const unsigned char first = (unsigned char)text[at];
    size_t from = tokenizer->special_from[first], to = tokenizer->special_from[first + 1];
    for (size_t depth = 1; from < to; depth++) {
        size_t n_text;
        bpe_text(tokenizer->bpe, tokenizer->specials[from], &n_text);
        if (n_text == depth) { /* the shortest sorts first */
            const int32_t id = tokenizer->specials[from++];
            if ((parse_special || tokenizer->tokens[id].kind == TOKEN_USER_DEFINED) &&
                !occurrences_push(found, (struct occurrence){at, (uint32_t)depth, id}))
                return false;
        }
        if (at + depth == n) break;
        const unsigned next = (unsigned char)text[at + depth];
        from = bound_special(tokenizer, from, to, depth, next);
        to = bound_special(tokenizer, from, to, depth, next + 1);
    }
    return true;
}

/* The order in which the reference takes special tokens: longest first, then by id, each from left
 * to right. */
static int compare_claim(const void *a, const void *b)
{
    const struct occurrence *const x = a, *const y = b;
    if (x->n != y->n) return x->n > y->n ? -1 : 1;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

static int compare_at(const void *a, const void *b)
{
    const struct occurrence *const x = a, *const y = b;
    return (x->at > y->at) - (x->at < y->at);
}

/* Keeps of the occurrences those that the reference would: a place once taken is gone. Whoever
 * came before is at least as long, so looking at both ends of a place is enough. */
static bool settle_claims(struct occurrences *found, size_t n_text)
{
    if (!found->n) return true;
    unsigned char *const taken = calloc(n_text / 8 + 1, 1);
    if (!taken) return false;
    qsort(found->list, found->n, sizeof(*found->list), compare_claim);
    size_t n_kept = 0;
    for (size_t i = 0; i < found->n; i++) {
        const struct occurrence claim = found->list[i];
        const size_t first = claim.at, last = claim.at + claim.n - 1;
        if ((taken[first / 8] >> first % 8 | taken[last / 8] >> last % 8) & 1) continue;
        for (size_t k = first; k <= last; k++)
            taken[k / 8] |= (unsigned char)(1u << k % 8);
        found->list[n_kept++] = claim;
    }
    free(taken);
    found->n = n_kept;
    qsort(found->list, found->n, sizeof(*found->list), compare_at);
    return true;
}

static enum lm_status encode_words(const struct tokenizer *tokenizer, const char *text, size_t n,
                                   struct bpe_output *output, struct lm_error *err)
{
    struct pretokenizer_cursor cursor;
    const char *word;
    size_t n_word;
    enum lm_status status = LM_OK;
    pretokenizer_begin(&cursor, tokenizer->pretokenizer, text, n);
    while (status == LM_OK && (n_word = pretokenizer_next(&cursor, &word)))
        status = bpe_encode_word(tokenizer->bpe, word, n_word, output, err);
    return status;
}

/* Text without special tokens. Each byte that begins no whole character becomes U+FFFD. */
static enum lm_status encode_fragment(const struct tokenizer *tokenizer, const char *text, size_t n,
                                      struct bpe_output *output, struct lm_error *err)
{
    size_t n_good = unicode_well_formed(text, n);
    if (n_good == n) return encode_words(tokenizer, text, n, output, err);
    if (n > SIZE_MAX / 3) return lm_fail(err, LM_E_LIMIT, "text of %zu bytes is too long", n);
    char *const repaired = malloc(3 * n);
    if (!repaired) return lm_fail(err, LM_E_NO_MEM, "no memory for a text of %zu bytes", n);
    size_t n_repaired = 0;
    while (n) {
        memcpy(repaired + n_repaired, text, n_good);
        n_repaired += n_good;
        text += n_good;
        n -= n_good;
        if (!n) break;
        memcpy(repaired + n_repaired, UNICODE_REPLACEMENT, 3);
        n_repaired += 3;
        text++;
        n--;
        n_good = unicode_well_formed(text, n);
    }
    const enum lm_status status = encode_words(tokenizer, repaired, n_repaired, output, err);
    free(repaired);
    return status;
}

/* Drops the control tokens that stretch over a fence. */
static void drop_fenced(const struct tokenizer *tokenizer, struct occurrences *found,
                        const size_t *fences, size_t n_fence)
{
    size_t n_kept = 0, next = 0;
    for (size_t i = 0; i < found->n; i++) { /* by place, as they were found */
        const struct occurrence special = found->list[i];
        while (next < n_fence && fences[next] <= special.at)
            next++;
        if (next < n_fence && fences[next] < special.at + special.n &&
            tokenizer->tokens[special.id].kind != TOKEN_USER_DEFINED)
            continue;
        found->list[n_kept++] = special;
    }
    found->n = n_kept;
}

/* Appends the ids of the whole text. */
static enum lm_status encode_text(const struct tokenizer *tokenizer, const char *text, size_t n,
                                  bool parse_special, const size_t *fences, size_t n_fence,
                                  struct bpe_output *output, struct lm_error *err)
{
    struct occurrences found = {0};
    enum lm_status status = LM_OK;
    bool enough_memory = true;
    for (size_t at = 0; at < n && enough_memory; at++) {
        const unsigned char first = (unsigned char)text[at];
        if (tokenizer->special_from[first] != tokenizer->special_from[first + 1])
            enough_memory = find_specials_at(tokenizer, text, n, at, parse_special, &found);
    }
    drop_fenced(tokenizer, &found, fences, n_fence);
    enough_memory = enough_memory && settle_claims(&found, n);
    size_t done = 0;
    for (size_t i = 0; i < found.n && enough_memory && status == LM_OK; i++) {
        const struct occurrence *const special = &found.list[i];
        status = encode_fragment(tokenizer, text + done, special->at - done, output, err);
        enough_memory = bpe_output_push(output, special->id);
        done = special->at + special->n;
    }
    free(found.list);
    if (status == LM_OK && !enough_memory)
        return lm_fail(err, LM_E_NO_MEM, "no memory to tokenize %zu bytes", n);
    return status == LM_OK ? encode_fragment(tokenizer, text + done, n - done, output, err)
                           : status;
}

/* bos, eos: to be added, or -1. */
static enum lm_status encode(const struct tokenizer *tokenizer, const char *text, size_t n,
                             bool parse_special, const size_t *fences, size_t n_fence, int32_t bos,
                             int32_t eos, int32_t **ids, size_t *n_ids, struct lm_error *err)
{
    struct bpe_output output = {0};
    enum lm_status status = LM_OK;
    const bool began = bos < 0 || bpe_output_push(&output, bos);
    if (began)
        status = encode_text(tokenizer, text, n, parse_special, fences, n_fence, &output, err);
    if (status != LM_OK) goto fini_output;
    /* An empty result is memory too, so that the caller need not tell it apart. */
    if (!began || (eos >= 0 && !bpe_output_push(&output, eos)) ||
        (!output.ids && !(output.ids = malloc(sizeof(*output.ids))))) {
        status = lm_fail(err, LM_E_NO_MEM, "no memory for %zu token ids", output.n_id + 1);
        goto fini_output;
    }
    *ids = output.ids;
    *n_ids = output.n_id;
    output.ids = NULL;

fini_output:
    bpe_output_fini(&output);
    return status;
}

enum lm_status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t n,
                                bool parse_special, bool add_special, int32_t **ids, size_t *n_ids,
                                struct lm_error *err)
{
    const int32_t bos = add_special && tokenizer->add_bos ? tokenizer->bos : -1;
    const int32_t eos = add_special && tokenizer->add_eos ? tokenizer->eos : -1;
    return encode(tokenizer, text, n, parse_special, NULL, 0, bos, eos, ids, n_ids, err);
}

enum lm_status tokenizer_encode_fenced(const struct tokenizer *tokenizer, const char *text,
                                       size_t n, const size_t *fences, size_t n_fence,
                                       int32_t **ids, size_t *n_ids, struct lm_error *err)
{
    return encode(tokenizer, text, n, true, fences, n_fence, -1, -1, ids, n_ids, err);
}

/* Questions. */

static bool in_vocabulary(const struct tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && (uint32_t)id < tokenizer->n_vocab;
}

const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, int32_t id, bool show_special,
                                  size_t *n)
{
    *n = 0;
    if (!in_vocabulary(tokenizer, id)) return "";
    const struct token *const token = &tokenizer->tokens[id];
    if (show_special || token->kind == TOKEN_NORMAL || token->kind == TOKEN_USER_DEFINED)
        *n = token->n_bytes;
    return token->bytes;
}

bool tokenizer_control_at(const struct tokenizer *tokenizer, const char *text, size_t n,
                          size_t *n_text)
{
    const unsigned char first = n ? (unsigned char)*text : 0;
    size_t from = tokenizer->special_from[first], to = tokenizer->special_from[first + 1];
    *n_text = 0;
    for (size_t depth = 1; n && from < to; depth++) {
        size_t n_token;
        bpe_text(tokenizer->bpe, tokenizer->specials[from], &n_token);
        if (n_token == depth &&
            tokenizer->tokens[tokenizer->specials[from++]].kind != TOKEN_USER_DEFINED)
            *n_text = depth;
        if (depth == n) break;
        const unsigned next = (unsigned char)text[depth];
        from = bound_special(tokenizer, from, to, depth, next);
        to = bound_special(tokenizer, from, to, depth, next + 1);
    }
    return *n_text > 0;
}

uint32_t tokenizer_n_vocab(const struct tokenizer *tokenizer)
{
    return tokenizer->n_vocab;
}

enum token_kind tokenizer_token_kind(const struct tokenizer *tokenizer, int32_t id)
{
    return in_vocabulary(tokenizer, id) ? tokenizer->tokens[id].kind : TOKEN_UNUSED;
}

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text, size_t n)
{
    return bpe_find(tokenizer->bpe, text, n);
}

const char *tokenizer_pre_name(const struct tokenizer *tokenizer)
{
    return tokenizer->pretokenizer->name;
}

int32_t tokenizer_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->bos;
}

bool tokenizer_adds_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->add_bos && tokenizer->bos >= 0;
}

int32_t tokenizer_eos(const struct tokenizer *tokenizer)
{
    return tokenizer->eos;
}

bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id)
{
    return in_vocabulary(tokenizer, id) && tokenizer->tokens[id].is_end;
}

size_t token_decoder_push(struct token_decoder *decoder, const char *bytes, size_t n, bool flush,
                          char *out)
{
    char *const pending = (char *)decoder->pending;
    size_t n_out = 0;
    for (size_t i = 0; i < n;) {
        if (!decoder->n_pending) { /* what is whole goes through at once */
            const size_t n_whole = unicode_well_formed(bytes + i, n - i);
            memcpy(out + n_out, bytes + i, n_whole);
            n_out += n_whole;
            i += n_whole;
            if (i == n) break;
        }
        pending[decoder->n_pending] = bytes[i];
        const int length = unicode_sequence(pending, decoder->n_pending + 1);
        if (length > 0) {
            memcpy(out + n_out, pending, (size_t)length);
            n_out += (size_t)length;
            decoder->n_pending = 0;
            i++;
        } else if (length == 0) {
            decoder->n_pending++;
            i++;
        } else { /* the byte ends a sequence that it does not belong to, or belongs to none */
            memcpy(out + n_out, UNICODE_REPLACEMENT, 3);
            n_out += 3;
            if (!decoder->n_pending) i++;
            decoder->n_pending = 0;
        }
    }
    if (flush && decoder->n_pending) {
        memcpy(out + n_out, UNICODE_REPLACEMENT, 3);
        n_out += 3;
        decoder->n_pending = 0;
    }
    return n_out;
}
