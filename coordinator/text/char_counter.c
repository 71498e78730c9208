#include "coordinator/text/char_counter.h"

#include <string.h>

#include "coordinator/text/unicode.h"

size_t char_counter_count(const char *text, size_t n)
{
    size_t n_char = 0;
    for (size_t i = 0; i < n; i++)
        n_char += ((unsigned char)text[i] & 0xC0) != 0x80;
    return n_char;
}

size_t char_counter_add(struct char_counter *counter, const char *bytes, size_t n)
{
    enum { N_PIECE = 64 };
    struct token_decoder *decoder = &counter->decoder;
    char text[3 * (N_PIECE + 4)], joined[5];
    size_t before = counter->n_char;
    if (n && decoder->n_pending) {
        memcpy(joined, decoder->pending, decoder->n_pending);
        joined[decoder->n_pending] = *bytes;
        if (unicode_sequence(joined, decoder->n_pending + 1) < 0) before++; /* it broke off */
    }
    for (size_t i = 0; i < n; i += N_PIECE) {
        const size_t n_piece = n - i < N_PIECE ? n - i : N_PIECE;
        const size_t n_text = token_decoder_push(decoder, bytes + i, n_piece, false, text);
        counter->n_char += char_counter_count(text, n_text);
    }
    return before;
}
