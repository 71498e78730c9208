/* A made-up vocabulary of any size for a byte-level BPE tokenizer.
 *
 * Ids: the 256 bytes in the order of their mapped characters, then the entries made by merges,
 * then the special tokens. An entry is an existing string plus one letter, in breadth-first order
 * from the letters and the space, so each string comes about in exactly one way and its merge is
 * "string letter". Letters come by their frequency in English. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/pack/synth_shape.h"

enum { TEXT_BYTES = 12, MERGE_BYTES = 16, N_BYTE = 256 };

static const char letters[] = "etaoinshrdlucmfwygpbvkqxjz";
enum { N_LETTER = sizeof(letters) - 1, N_ROOT = N_LETTER + 1 };

enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4 };

struct special {
    const char *text;
    int32_t type;
};
/* The first is the begin token, the third the end of a turn. */
static const struct special specials[] = {
    {"<|endoftext|>", TOKEN_CONTROL},
    {"<|im_start|>", TOKEN_CONTROL},
    {"<|im_end|>", TOKEN_CONTROL},
    {"<think>", TOKEN_USER_DEFINED},
    {"</think>", TOKEN_USER_DEFINED},
    {"<tool_call>", TOKEN_USER_DEFINED},
    {"</tool_call>", TOKEN_USER_DEFINED},
    {"<tool_response>", TOKEN_USER_DEFINED},
    {"</tool_response>", TOKEN_USER_DEFINED},
};
enum { N_SPECIAL = sizeof(specials) / sizeof(specials[0]) };
_Static_assert(SYNTH_VOCAB_MIN == N_BYTE + N_SPECIAL, "bytes and special tokens");

static const char chat_template[] =
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking %}{{- '<think>\\n' }}{%- endif %}"
    "{%- endif %}";

struct vocab {
    char *text;  /* [n_token][TEXT_BYTES], of bytes and entries */
    char *merge; /* [n_merge][MERGE_BYTES] */
    struct gguf_string *tokens, *merges;
    int32_t *types;
    uint32_t n_token, n_merge;
};

static size_t put_utf8(char *out, uint32_t code)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 63));
    return 2;
}

/* GPT-2's map: printable bytes stand for themselves, the others follow from U+0100 on. */
static void add_bytes(struct vocab *vocab)
{
    uint32_t n = 0, n_other = 0;
    for (int printable = 1; printable >= 0; printable--)
        for (uint32_t byte = 0; byte < N_BYTE; byte++) {
            const bool is_printable =
                (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
            if (is_printable != (bool)printable) continue;
            char *text = vocab->text + (size_t)n * TEXT_BYTES;
            vocab->tokens[n] =
                (struct gguf_string){text, put_utf8(text, is_printable ? byte : 0x100 + n_other++)};
            vocab->types[n++] = TOKEN_NORMAL;
        }
}

static void add_entry(struct vocab *vocab, struct gguf_string left, char letter, uint32_t index)
{
    char *merge = vocab->merge + (size_t)index * MERGE_BYTES;
    char *text = vocab->text + (size_t)(N_BYTE + index) * TEXT_BYTES;
    memcpy(text, left.data, left.n);
    text[left.n] = letter;
    memcpy(merge, left.data, left.n);
    merge[left.n] = ' ';
    merge[left.n + 1] = letter;
    vocab->tokens[N_BYTE + index] = (struct gguf_string){text, left.n + 1};
    vocab->merges[index] = (struct gguf_string){merge, left.n + 2};
    vocab->types[N_BYTE + index] = TOKEN_NORMAL;
}

static void add_entries(struct vocab *vocab)
{
    for (uint32_t index = 0; index < vocab->n_merge; index++) {
        const uint32_t from = index / N_LETTER; /* of the roots, then of the entries themselves */
        struct gguf_string left = {"\xc4\xa0", 2}; /* the space as the map writes it */
        if (from >= 1 && from < N_ROOT) left = (struct gguf_string){&letters[from - 1], 1};
        if (from >= N_ROOT) left = vocab->tokens[N_BYTE + from - N_ROOT];
        add_entry(vocab, left, letters[index % N_LETTER], index);
    }
}

static void add_specials(struct vocab *vocab)
{
    for (uint32_t i = 0; i < N_SPECIAL; i++) {
        const uint32_t id = N_BYTE + vocab->n_merge + i;
        vocab->tokens[id] = (struct gguf_string){specials[i].text, strlen(specials[i].text)};
        vocab->types[id] = specials[i].type;
    }
}

static const char *pre_tokenizer(const char *arch)
{
    if (!strcmp(arch, "qwen35moe") || !strcmp(arch, "qwen35")) return "qwen35";
    if (!strcmp(arch, "afmoe")) return "afmoe";
    return strcmp(arch, "llama") ? "qwen2" : "llama-bpe";
}

static void put_keys(struct gguf_writer *writer, const struct vocab *vocab, const char *arch)
{
    const char *pre = pre_tokenizer(arch);
    const uint32_t first_special = N_BYTE + vocab->n_merge;
    gguf_writer_string(writer, "tokenizer.ggml.model", "gpt2", 4);
    gguf_writer_string(writer, "tokenizer.ggml.pre", pre, strlen(pre));
    gguf_writer_strings(writer, "tokenizer.ggml.tokens", vocab->tokens, vocab->n_token);
    gguf_writer_array(writer, "tokenizer.ggml.token_type", GGUF_I32, vocab->types, vocab->n_token);
    gguf_writer_strings(writer, "tokenizer.ggml.merges", vocab->merges, vocab->n_merge);
    gguf_writer_u32(writer, "tokenizer.ggml.bos_token_id", first_special);
    gguf_writer_u32(writer, "tokenizer.ggml.eos_token_id", first_special + 2);
    gguf_writer_u32(writer, "tokenizer.ggml.padding_token_id", first_special);
    gguf_writer_bool(writer, "tokenizer.ggml.add_bos_token", false);
    gguf_writer_string(writer, "tokenizer.chat_template", chat_template, sizeof(chat_template) - 1);
}

enum lm_status synth_put_tokenizer(struct gguf_writer *writer, const struct synth_shape *shape,
                                   struct lm_error *err)
{
    enum lm_status status = LM_OK;
    const size_t n_token = shape->n_vocab, n_merge = n_token - SYNTH_VOCAB_MIN;
    struct vocab vocab = {
        .text = calloc(n_token, TEXT_BYTES),
        .merge = calloc(n_merge + 1, MERGE_BYTES),
        .tokens = calloc(n_token, sizeof(struct gguf_string)),
        .merges = calloc(n_merge + 1, sizeof(struct gguf_string)),
        .types = calloc(n_token, sizeof(int32_t)),
        .n_token = (uint32_t)n_token,
        .n_merge = (uint32_t)n_merge,
    };
    if (vocab.text && vocab.merge && vocab.tokens && vocab.merges && vocab.types) {
        add_bytes(&vocab);
        add_entries(&vocab);
        add_specials(&vocab);
        put_keys(writer, &vocab, shape->arch);
    } else {
        status = lm_fail(err, LM_E_NO_MEM, "no memory for a vocabulary of %zu", n_token);
    }
    free(vocab.text);
    free(vocab.merge);
    free(vocab.tokens);
    free(vocab.merges);
    free(vocab.types);
    return status;
}
