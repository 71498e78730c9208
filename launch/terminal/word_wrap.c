/* Streaming word wrap. */
#include "launch/terminal/word_wrap.h"

#include <string.h>

#include "launch/terminal/text_width.h"

void word_wrap_init(struct word_wrap *wrap, int n_column)
{
    *wrap = (struct word_wrap){.n_column = n_column, .line_start = true};
}

/* Prints the held word, on the next line if it does not fit this one. */
void word_wrap_flush(struct word_wrap *wrap, FILE *out)
{
    if (!wrap->n_word) return;
    const bool fence = wrap->line_start && wrap->n_word >= 3 &&
                       (!memcmp(wrap->word, "```", 3) || !memcmp(wrap->word, "~~~", 3));
    const bool fits = wrap->column + wrap->n_space + wrap->word_columns <= wrap->n_column;
    if (wrap->n_column && !fits && wrap->column > 0 && !wrap->in_code && !fence) {
        fputc('\n', out);
        wrap->column = wrap->n_space = 0;
    }
    fprintf(out, "%*s%.*s", wrap->n_space, "", (int)wrap->n_word, wrap->word);
    wrap->column += wrap->n_space + wrap->word_columns;
    wrap->n_space = wrap->word_columns = 0;
    wrap->n_word = 0;
    wrap->line_start = false;
    if (fence) wrap->in_code = !wrap->in_code;
}

static void end_line(struct word_wrap *wrap, FILE *out)
{
    word_wrap_flush(wrap, out);
    fputc('\n', out);
    wrap->column = wrap->n_space = 0;
    wrap->line_start = true;
}

void word_wrap_push(struct word_wrap *wrap, const char *text, size_t n, FILE *out)
{
    for (size_t i = 0; i < n;) {
        int width;
        const size_t length = text_char(text + i, n - i, &width);
        if (text[i] == '\n') {
            end_line(wrap, out);
        } else if (text[i] == ' ') {
            word_wrap_flush(wrap, out);
            wrap->n_space++;
        } else if (text[i] == '\t') {
            word_wrap_flush(wrap, out);
            wrap->n_space += 8 - (wrap->column + wrap->n_space) % 8;
        } else {
            if (width == 2 || wrap->n_word + length > sizeof(wrap->word))
                word_wrap_flush(wrap, out);
            memcpy(wrap->word + wrap->n_word, text + i, length);
            wrap->n_word += length;
            wrap->word_columns += width;
        }
        i += length;
    }
    /* Code and lines without a limit need no holding back, but for a fence that is being opened. */
    if ((wrap->in_code && !wrap->line_start) || !wrap->n_column) word_wrap_flush(wrap, out);
}
