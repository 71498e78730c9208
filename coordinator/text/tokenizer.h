/* Byte-level BPE tokenizer of a GGUF vocabulary.
 *
 * Text to ids: special tokens are cut out of the raw bytes first, the rest is split by the
 * vocabulary's pre-tokenizer pattern, each piece is mapped byte by byte to code points and merged
 * by rank. Ids to text: bytes, which need not be valid UTF-8 at a token's edge; struct
 * token_decoder joins them.
 *
 * Pre-tokenizers: qwen2 (deepseek-r1-qwen), qwen35, afmoe, llama-bpe (llama3, llama-v3), smollm,
 * gpt-2, lean (the demonstration model's: the pattern of qwen2).
 * Ownership: copies what it needs; the gguf_file may be closed.
 * Threads:   immutable after create; may be used from any thread. */
#ifndef LEAN_COORDINATOR_TEXT_TOKENIZER_H
#define LEAN_COORDINATOR_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct gguf_file;
struct tokenizer;

enum token_kind { /* as tokenizer.ggml.token_type */
                  TOKEN_NORMAL = 1,
                  TOKEN_UNKNOWN,
                  TOKEN_CONTROL,
                  TOKEN_USER_DEFINED,
                  TOKEN_UNUSED,
                  TOKEN_BYTE
};

/* LM_E_UNSUPPORTED: another tokenizer model or an unknown pre-tokenizer. LM_E_FORMAT: bad or
 * missing vocabulary keys. Vocabulary-only files will do. */
enum lm_status tokenizer_create(struct tokenizer **out, const struct gguf_file *file,
                                struct lm_error *err);
void tokenizer_destroy(struct tokenizer *tokenizer);

/* text: n bytes, any; a byte that begins no well-formed UTF-8 sequence counts as U+FFFD.
 * parse_special: control tokens in the text become their ids (user-defined ones always do).
 * add_special: begin and end tokens as the vocabulary says. *ids: malloc'ed, also when *n_ids is 0;
 * the caller frees it. LM_E_NO_MEM; LM_E_LIMIT: a word of 2^31 bytes or more. */
enum lm_status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t n,
                                bool parse_special, bool add_special, int32_t **ids, size_t *n_ids,
                                struct lm_error *err);

/* As tokenizer_encode with parse_special, but text before and behind a fence, an offset in it, is
 * not read together as a control token. fences: [n_fence], rising. */
enum lm_status tokenizer_encode_fenced(const struct tokenizer *tokenizer, const char *text,
                                       size_t n, const size_t *fences, size_t n_fence,
                                       int32_t **ids, size_t *n_ids, struct lm_error *err);
/* Whether the text begins with what parse_special would make a token of. n_text: its length. */
bool tokenizer_control_at(const struct tokenizer *tokenizer, const char *text, size_t n,
                          size_t *n_text);

/* The bytes that id stands for; control, unknown and unused tokens give their text only with
 * show_special. A view that lives as long as the tokenizer. id out of range: n = 0. */
const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, int32_t id, bool show_special,
                                  size_t *n);

uint32_t tokenizer_n_vocab(const struct tokenizer *tokenizer);
enum token_kind tokenizer_token_kind(const struct tokenizer *tokenizer, int32_t id);
/* The id of a token by its exact text, -1 if there is none. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text, size_t n);
const char *tokenizer_pre_name(const struct tokenizer *tokenizer);
int32_t tokenizer_bos(const struct tokenizer *tokenizer); /* -1: none */
/* Whether prompts begin with it: what add_special does. */
bool tokenizer_adds_bos(const struct tokenizer *tokenizer);
int32_t tokenizer_eos(const struct tokenizer *tokenizer);
/* Ends a generation: eos, eot and eom of the file, and the texts that publishers use for them. */
bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id);

/* Joins token bytes into well-formed UTF-8: bytes of an incomplete sequence wait for the next
 * token; a sequence that breaks off, and a byte that cannot belong to any, become U+FFFD (Unicode's
 * recommended practice, and what Python and browsers do). Zero-initialized. */
struct token_decoder {
    unsigned char pending[4];
    unsigned n_pending;
};
/* Appends n bytes; writes whole characters to out (room for 3 * (n + 4) bytes) and returns their
 * length. flush: nothing follows, so what is pending becomes U+FFFD. */
size_t token_decoder_push(struct token_decoder *decoder, const char *bytes, size_t n, bool flush,
                          char *out);

#endif
