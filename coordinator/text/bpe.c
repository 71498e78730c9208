#include "coordinator/text/bpe.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "coordinator/text/unicode.h"

enum {
    N_ALPHABET = 256 + 68,     /* code points from 0 that may stand for a byte */
    N_SHORT_WORD = 48,         /* bytes; above it a heap finds the next merge */
    MAX_POOL_BYTES = INT32_MAX /* of all texts, so that 32-bit offsets do */
};
#define NO_RANK UINT32_MAX

/* A text that a symbol can have: pieces [0, n_token) are the tokens, those that follow occur in
 * merges only. */
struct piece {
    uint32_t text_at, n_text; /* in the pool */
};

struct piece_slot {
    uint32_t piece; /* + 1; 0: free */
    uint32_t hash;  /* upper half, to spare the look at the text */
};

struct merge {
    uint32_t left, right; /* pieces; left == NO_RANK: free slot */
    uint32_t rank;
    uint32_t piece; /* what they become */
};

struct bpe {
    bool ignore_merges;
    uint16_t code_of[256];       /* byte to code point */
    int16_t byte_of[N_ALPHABET]; /* code point to byte, -1: none */
    uint32_t byte_piece[256];    /* the piece of one byte, set after the last token */
    char *pool;                  /* all texts, back to back */
    size_t n_pool, n_pool_max;
    struct piece *pieces;
    uint32_t n_piece, n_piece_max;
    uint32_t n_token, n_token_max; /* so far, and of the whole vocabulary */
    size_t n_text_max;             /* bytes of the longest token */
    struct piece_slot *slots;      /* open addressing, at most half full */
    uint32_t slot_mask;
    struct merge *merges; /* open addressing; sized for n_merge_max, half full then */
    uint32_t merge_mask;
    unsigned merge_shift;
    uint32_t n_merge, n_merge_max;
    uint32_t next_made; /* the token that the next merge may well make */
    atomic_bool *whole; /* [n_token_max]: its bytes are known to merge to just itself */
};

static void make_alphabet(struct bpe *bpe)
{
    uint16_t next = 256;
    memset(bpe->byte_of, -1, sizeof(bpe->byte_of));
    for (int byte = 0; byte < 256; byte++) {
        const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        bpe->code_of[byte] = printable ? (uint16_t)byte : next++;
        bpe->byte_of[bpe->code_of[byte]] = (int16_t)byte;
    }
    assert(next == N_ALPHABET);
}

/* The text of a byte: one or two bytes of UTF-8. */
static size_t byte_to_text(const struct bpe *bpe, unsigned char byte, char *text)
{
    const unsigned code = bpe->code_of[byte];
    if (code < 0x80) {
        text[0] = (char)code;
        return 1;
    }
    text[0] = (char)(0xC0 | code >> 6);
    text[1] = (char)(0x80 | (code & 0x3F));
    return 2;
}

bool bpe_text_to_bytes(const struct bpe *bpe, const char *text, size_t n, char *bytes,
                       size_t *n_bytes)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n;) {
        if (unicode_sequence(text + i, n - i) <= 0) return false;
        unsigned length;
        const uint32_t code = unicode_decode(text + i, &length);
        if (code >= N_ALPHABET || bpe->byte_of[code] < 0) return false;
        bytes[n_out++] = (char)bpe->byte_of[code];
        i += length;
    }
    *n_bytes = n_out;
    return true;
}

/* Pieces by text. */

static struct piece_slot *find_slot(const struct bpe *bpe, const char *text, size_t n,
                                    uint64_t hash)
{
    const uint32_t tag = (uint32_t)(hash >> 32);
    for (uint32_t i = (uint32_t)hash & bpe->slot_mask;; i = (i + 1) & bpe->slot_mask) {
        struct piece_slot *slot = &bpe->slots[i];
        if (!slot->piece) return slot;
        if (slot->hash != tag) continue;
        const struct piece *piece = &bpe->pieces[slot->piece - 1];
        if (piece->n_text == n && !memcmp(bpe->pool + piece->text_at, text, n)) return slot;
    }
}

static bool grow_slots(struct bpe *bpe)
{
    const uint32_t n_slot = (bpe->slot_mask + 1) * 2;
    struct piece_slot *slots = n_slot ? calloc(n_slot, sizeof(*slots)) : NULL;
    if (!slots) return false;
    free(bpe->slots);
    bpe->slots = slots;
    bpe->slot_mask = n_slot - 1;
    for (uint32_t i = 0; i < bpe->n_piece; i++) {
        const struct piece *piece = &bpe->pieces[i];
        const char *text = bpe->pool + piece->text_at;
        const uint64_t hash = XXH3_64bits(text, piece->n_text);
        *find_slot(bpe, text, piece->n_text, hash) =
            (struct piece_slot){.piece = i + 1, .hash = (uint32_t)(hash >> 32)};
    }
    return true;
}

static bool reserve_pool(struct bpe *bpe, size_t n)
{
    if (n <= bpe->n_pool_max - bpe->n_pool) return true;
    if (n > MAX_POOL_BYTES - bpe->n_pool) return false;
    size_t n_max = bpe->n_pool_max * 2 > bpe->n_pool + n ? bpe->n_pool_max * 2 : bpe->n_pool + n;
    if (n_max > MAX_POOL_BYTES) n_max = MAX_POOL_BYTES;
    char *pool = realloc(bpe->pool, n_max);
    if (!pool) return false;
    bpe->pool = pool;
    bpe->n_pool_max = n_max;
    return true;
}

static bool reserve_piece(struct bpe *bpe)
{
    if (bpe->n_piece < bpe->n_piece_max) return true;
    const size_t n_max = (size_t)bpe->n_piece_max * 2;
    if (n_max > INT32_MAX) return false;
    struct piece *pieces = realloc(bpe->pieces, n_max * sizeof(*pieces));
    if (!pieces) return false;
    bpe->pieces = pieces;
    bpe->n_piece_max = (uint32_t)n_max;
    return true;
}

/* Filling a large vocabulary is waiting for memory: what is known of a search early is fetched. */
static uint64_t hash_ahead(const struct bpe *bpe, const char *text, size_t n)
{
    const uint64_t hash = XXH3_64bits(text, n);
    __builtin_prefetch(&bpe->slots[(uint32_t)hash & bpe->slot_mask]);
    return hash;
}

/* The piece with this text, made if there is none; *known tells. False: no memory. */
static bool intern_piece(struct bpe *bpe, const char *text, size_t n, uint64_t hash,
                         uint32_t *piece, bool *known)
{
    struct piece_slot *slot = find_slot(bpe, text, n, hash);
    *known = slot->piece;
    if (slot->piece) {
        *piece = slot->piece - 1;
        return true;
    }
    if (!reserve_pool(bpe, n) || !reserve_piece(bpe)) return false;
    if (bpe->n_piece >= bpe->slot_mask / 2) {
        if (!grow_slots(bpe)) return false;
        slot = find_slot(bpe, text, n, hash);
    }
    if (n) memcpy(bpe->pool + bpe->n_pool, text, n);
    bpe->pieces[bpe->n_piece] =
        (struct piece){.text_at = (uint32_t)bpe->n_pool, .n_text = (uint32_t)n};
    bpe->n_pool += n;
    *slot = (struct piece_slot){.piece = bpe->n_piece + 1, .hash = (uint32_t)(hash >> 32)};
    *piece = bpe->n_piece++;
    return true;
}

int32_t bpe_find(const struct bpe *bpe, const char *text, size_t n)
{
    if (n > bpe->n_text_max) return -1;
    const uint32_t piece = find_slot(bpe, text, n, XXH3_64bits(text, n))->piece;
    return piece && piece <= bpe->n_token ? (int32_t)(piece - 1) : -1;
}

const char *bpe_text(const struct bpe *bpe, int32_t id, size_t *n)
{
    assert(id >= 0 && (uint32_t)id < bpe->n_token);
    *n = bpe->pieces[id].n_text;
    return bpe->pool + bpe->pieces[id].text_at;
}

/* Merges by pair of pieces. */

static struct merge *find_merge(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    const uint64_t hash = ((uint64_t)left << 32 | right) * UINT64_C(0x9E3779B97F4A7C15);
    for (uint32_t i = (uint32_t)(hash >> bpe->merge_shift);; i = (i + 1) & bpe->merge_mask) {
        struct merge *merge = &bpe->merges[i];
        if ((merge->left == left && merge->right == right) || merge->left == NO_RANK) return merge;
    }
}

/* Filling. */

static size_t table_size(size_t n)
{
    size_t size = 1024;
    while (size < n * 2 + 2)
        size *= 2;
    return size;
}

enum lm_status bpe_create(struct bpe **out, bool ignore_merges, size_t n_token, size_t n_merge,
                          struct lm_error *err)
{
    if (n_token > INT32_MAX / 4 || n_merge > INT32_MAX / 4)
        return lm_fail(err, LM_E_LIMIT, "vocabulary of %zu tokens and %zu merges is too large",
                       n_token, n_merge);
    struct bpe *bpe = calloc(1, sizeof(*bpe));
    if (!bpe) goto no_memory;
    const size_t n_slot = table_size(n_token + 512), n_merge_slot = table_size(n_merge);
    bpe->ignore_merges = ignore_merges;
    bpe->n_token_max = (uint32_t)n_token;
    bpe->n_merge_max = (uint32_t)n_merge;
    bpe->n_piece_max = (uint32_t)n_token + 512;
    bpe->n_pool_max = 4096 + 8 * n_token;
    bpe->slot_mask = (uint32_t)n_slot - 1;
    bpe->merge_mask = (uint32_t)n_merge_slot - 1;
    bpe->merge_shift = 64 - (unsigned)__builtin_ctzll(n_merge_slot);
    bpe->pool = malloc(bpe->n_pool_max);
    bpe->pieces = malloc(bpe->n_piece_max * sizeof(*bpe->pieces));
    bpe->slots = calloc(n_slot, sizeof(*bpe->slots));
    bpe->merges = malloc(n_merge_slot * sizeof(*bpe->merges));
    bpe->whole = calloc(n_token + 1, sizeof(*bpe->whole));
    if (!bpe->pool || !bpe->pieces || !bpe->slots || !bpe->merges || !bpe->whole) goto no_memory;
    memset(bpe->merges, 0xFF, n_merge_slot * sizeof(*bpe->merges));
    make_alphabet(bpe);
    *out = bpe;
    return LM_OK;

no_memory:
    bpe_destroy(bpe);
    return lm_fail(err, LM_E_NO_MEM, "no memory for a vocabulary of %zu tokens", n_token);
}

void bpe_destroy(struct bpe *bpe)
{
    if (!bpe) return;
    free(bpe->whole);
    free(bpe->merges);
    free(bpe->slots);
    free(bpe->pieces);
    free(bpe->pool);
    free(bpe);
}

enum lm_status bpe_add_token(struct bpe *bpe, const char *text, size_t n, struct lm_error *err)
{
    assert(bpe->n_token < bpe->n_token_max);
    uint32_t piece;
    bool known;
    if (!intern_piece(bpe, text, n, XXH3_64bits(text, n), &piece, &known)) goto no_memory;
    if (known)
        return lm_fail(err, LM_E_FORMAT, "tokens %u and %u have the same text", piece,
                       bpe->n_token);
    bpe->n_token++;
    if (n > bpe->n_text_max) bpe->n_text_max = n;
    if (bpe->n_token < bpe->n_token_max) return LM_OK;

    for (int byte = 0; byte < 256; byte++) {
        char byte_text[2];
        const size_t n_byte_text = byte_to_text(bpe, (unsigned char)byte, byte_text);
        if (!intern_piece(bpe, byte_text, n_byte_text, XXH3_64bits(byte_text, n_byte_text),
                          &bpe->byte_piece[byte], &known))
            goto no_memory;
    }
    return LM_OK;

no_memory:
    return lm_fail(err, LM_E_NO_MEM, "no memory for token %u of %zu bytes", bpe->n_token, n);
}

/* The piece that a merge makes. Vocabularies list their tokens in the order of the merges that
 * make them, so it is most often the one after the last, which costs no search. */
static bool intern_made(struct bpe *bpe, const char *text, size_t n, uint32_t *made)
{
    bool known;
    const struct piece *const next = &bpe->pieces[bpe->next_made];
    if (bpe->next_made < bpe->n_token && next->n_text == n &&
        !memcmp(bpe->pool + next->text_at, text, n))
        *made = bpe->next_made;
    else if (!intern_piece(bpe, text, n, XXH3_64bits(text, n), made, &known))
        return false;
    /* A token made a second time, by another pair, is no step back. */
    if (*made >= bpe->next_made && *made < bpe->n_token) bpe->next_made = *made + 1;
    return true;
}

enum lm_status bpe_add_merge(struct bpe *bpe, const char *text, size_t n, struct lm_error *err)
{
    assert(bpe->n_token == bpe->n_token_max && bpe->n_merge < bpe->n_merge_max);
    const uint32_t rank = bpe->n_merge;
    const char *const space = n > 1 ? memchr(text + 1, ' ', n - 1) : NULL;
    if (!space) return lm_fail(err, LM_E_FORMAT, "merge %u has no space", rank);
    const size_t n_left = (size_t)(space - text), n_right = n - n_left - 1;

    char stack[256];
    char *const joined = n <= sizeof(stack) ? stack : malloc(n);
    uint32_t left, right, piece;
    bool known;
    if (!joined) goto no_memory;
    memcpy(joined, text, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    const uint64_t hash_left = hash_ahead(bpe, joined, n_left);
    const uint64_t hash_right = hash_ahead(bpe, joined + n_left, n_right);
    const bool interned = intern_piece(bpe, joined, n_left, hash_left, &left, &known) &&
                          intern_piece(bpe, joined + n_left, n_right, hash_right, &right, &known) &&
                          intern_made(bpe, joined, n - 1, &piece);
    if (joined != stack) free(joined);
    if (!interned) goto no_memory;

    bpe->n_merge++;
    struct merge *const merge = find_merge(bpe, left, right);
    if (merge->left == NO_RANK)
        *merge = (struct merge){.left = left, .right = right, .rank = rank, .piece = piece};
    return LM_OK;

no_memory:
    return lm_fail(err, LM_E_NO_MEM, "no memory for merge %u", rank);
}

/* Encoding. */

void bpe_output_fini(struct bpe_output *output)
{
    free(output->ids);
    free(output->scratch);
    *output = (struct bpe_output){0};
}

bool bpe_output_push(struct bpe_output *output, int32_t id)
{
    if (output->n_id == output->n_id_max) {
        const size_t n_max = output->n_id_max ? output->n_id_max * 2 : 64;
        int32_t *ids = realloc(output->ids, n_max * sizeof(*ids));
        if (!ids) return false;
        output->ids = ids;
        output->n_id_max = n_max;
    }
    output->ids[output->n_id++] = id;
    return true;
}

static void *reserve_scratch(struct bpe_output *output, size_t n_bytes)
{
    if (n_bytes > output->n_scratch_bytes) {
        free(output->scratch);
        output->scratch = malloc(n_bytes);
        output->n_scratch_bytes = output->scratch ? n_bytes : 0;
    }
    return output->scratch;
}

/* The ids of a piece: its own, or if it is no token those of the bytes of its text, where they
 * are tokens. */
static bool push_piece(const struct bpe *bpe, uint32_t piece, struct bpe_output *output)
{
    if (piece < bpe->n_token) return bpe_output_push(output, (int32_t)piece);
    const char *text = bpe->pool + bpe->pieces[piece].text_at;
    for (size_t i = 0; i < bpe->pieces[piece].n_text; i++) {
        const int32_t id = bpe_find(bpe, text + i, 1);
        if (id >= 0 && !bpe_output_push(output, id)) return false;
    }
    return true;
}

/* pairs[i] is what symbols i and i + 1 become; rank NO_RANK if nothing. */
struct pair {
    uint32_t rank, piece;
};

static struct pair look_up_pair(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    const struct merge *merge = find_merge(bpe, left, right);
    return (struct pair){.rank = merge->rank, .piece = merge->piece}; /* a free slot is all ones */
}

static bool merge_short(const struct bpe *bpe, const unsigned char *word, size_t n,
                        struct bpe_output *output)
{
    uint32_t symbols[N_SHORT_WORD];
    struct pair pairs[N_SHORT_WORD];
    for (size_t i = 0; i < n; i++)
        symbols[i] = bpe->byte_piece[word[i]];
    for (size_t i = 0; i + 1 < n; i++)
        pairs[i] = look_up_pair(bpe, symbols[i], symbols[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (pairs[i].rank < pairs[best].rank) best = i;
        if (pairs[best].rank == NO_RANK) break;
        symbols[best] = pairs[best].piece;
        n--;
        memmove(symbols + best + 1, symbols + best + 2, (n - best - 1) * sizeof(*symbols));
        memmove(pairs + best, pairs + best + 1, (n - best - 1) * sizeof(*pairs));
        if (best > 0) pairs[best - 1] = look_up_pair(bpe, symbols[best - 1], symbols[best]);
        if (best + 1 < n) pairs[best] = look_up_pair(bpe, symbols[best], symbols[best + 1]);
    }
    for (size_t i = 0; i < n; i++)
        if (!push_piece(bpe, symbols[i], output)) return false;
    return true;
}

/* A symbol of a long word: a doubly linked list in an array, by position of its first byte. */
struct symbol {
    uint32_t piece, before, after; /* after of the last and before of the first: NO_RANK */
    struct pair pair;              /* with the symbol after it */
};

/* Binary heap of rank << 32 | position, smallest on top: lowest rank, then leftmost. */
static void heap_push(uint64_t *heap, size_t *n, uint64_t key)
{
    size_t i = (*n)++;
    for (; i && heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = key;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n)
{
    const uint64_t top = heap[0], key = heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[i] = heap[child];
    }
    heap[i] = key;
    return top;
}

/* Looks the pair of a symbol and its successor up; a new pair enters the heap. */
static void pair_up(const struct bpe *bpe, struct symbol *symbols, uint32_t at, uint64_t *heap,
                    size_t *n_heap)
{
    struct symbol *const symbol = &symbols[at];
    symbol->pair.rank = NO_RANK;
    if (symbol->after == NO_RANK) return;
    symbol->pair = look_up_pair(bpe, symbol->piece, symbols[symbol->after].piece);
    if (symbol->pair.rank != NO_RANK)
        heap_push(heap, n_heap, (uint64_t)symbol->pair.rank << 32 | at);
}

static enum lm_status merge_long(const struct bpe *bpe, const unsigned char *word, size_t n,
                                 struct bpe_output *output, struct lm_error *err)
{
    if (n > INT32_MAX)
        return lm_fail(err, LM_E_LIMIT, "a word of %zu bytes is longer than 2^31 - 1", n);
    /* A merge takes one key from the heap and adds two at most: never more than 2 n at once. */
    uint64_t *const heap = reserve_scratch(output, n * (2 * sizeof(*heap) + sizeof(struct symbol)));
    if (!heap) return lm_fail(err, LM_E_NO_MEM, "no memory to tokenize a word of %zu bytes", n);
    struct symbol *const symbols = (struct symbol *)(heap + 2 * n);
    size_t n_heap = 0;
    for (uint32_t i = 0; i < n; i++)
        symbols[i] = (struct symbol){.piece = bpe->byte_piece[word[i]],
                                     .before = i ? i - 1 : NO_RANK,
                                     .after = i + 1 < n ? i + 1 : NO_RANK};
    for (uint32_t i = 0; i < n; i++)
        pair_up(bpe, symbols, i, heap, &n_heap);

    while (n_heap) {
        const uint64_t key = heap_pop(heap, &n_heap);
        const uint32_t at = (uint32_t)key;
        struct symbol *const symbol = &symbols[at];
        if (symbol->pair.rank != key >> 32) continue; /* its pair has changed since */
        struct symbol *const next = &symbols[symbol->after];
        symbol->piece = symbol->pair.piece;
        symbol->after = next->after;
        next->pair.rank = NO_RANK;
        if (symbol->after != NO_RANK) symbols[symbol->after].before = at;
        if (symbol->before != NO_RANK) pair_up(bpe, symbols, symbol->before, heap, &n_heap);
        pair_up(bpe, symbols, at, heap, &n_heap);
    }
    for (uint32_t at = 0; at != NO_RANK; at = symbols[at].after)
        if (!push_piece(bpe, symbols[at].piece, output))
            return lm_fail(err, LM_E_NO_MEM, "no memory for %zu token ids", output->n_id + 1);
    return LM_OK;
}

static enum lm_status merge_word(const struct bpe *bpe, const char *word, size_t n,
                                 struct bpe_output *output, struct lm_error *err)
{
    const unsigned char *const bytes = (const unsigned char *)word;
    if (n > N_SHORT_WORD) return merge_long(bpe, bytes, n, output, err);
    if (merge_short(bpe, bytes, n, output)) return LM_OK;
    return lm_fail(err, LM_E_NO_MEM, "no memory for %zu token ids", output->n_id + 1);
}

/* The token that is the whole word, -1 if there is none. False: no memory. */
static bool find_word(const struct bpe *bpe, const char *word, size_t n, struct bpe_output *output,
                      int32_t *id)
{
    char stack[2 * N_SHORT_WORD];
    *id = -1;
    if (n > bpe->n_text_max) return true;
    char *const text = n <= N_SHORT_WORD ? stack : reserve_scratch(output, 2 * n);
    if (!text) return false;
    size_t n_text = 0;
    for (size_t i = 0; i < n; i++)
        n_text += byte_to_text(bpe, (unsigned char)word[i], text + n_text);
    *id = bpe_find(bpe, text, n_text);
    return true;
}

enum lm_status bpe_encode_word(const struct bpe *bpe, const char *word, size_t n,
                               struct bpe_output *output, struct lm_error *err)
{
    int32_t id;
    if (!find_word(bpe, word, n, output, &id))
        return lm_fail(err, LM_E_NO_MEM, "no memory to tokenize a word of %zu bytes", n);
    if (id < 0) return merge_word(bpe, word, n, output, err);
    atomic_bool *const whole = &bpe->whole[id];
    if (bpe->ignore_merges || atomic_load_explicit(whole, memory_order_relaxed)) {
        if (bpe_output_push(output, id)) return LM_OK;
        return lm_fail(err, LM_E_NO_MEM, "no memory for %zu token ids", output->n_id + 1);
    }
    const size_t n_before = output->n_id;
    const enum lm_status status = merge_word(bpe, word, n, output, err);
    if (status == LM_OK && output->n_id == n_before + 1 && output->ids[n_before] == id)
        atomic_store_explicit(whole, true, memory_order_relaxed);
    return status;
}
