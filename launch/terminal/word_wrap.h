/* Wraps an answer at the terminal's width while it streams in.
 *
 * A word is held back until it is complete, so that it moves to the next line as a whole; text
 * appears at most one word late. Lines of fenced code (``` or ~~~) pass as they are, and so does a
 * word longer than a line. Between wide characters a line may break anywhere. */
#ifndef LEAN_LAUNCH_TERMINAL_WORD_WRAP_H
#define LEAN_LAUNCH_TERMINAL_WORD_WRAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum { WORD_WRAP_MAX_WORD = 1024 };

struct word_wrap {
    int n_column; /* of the terminal; 0: no wrapping. May change between pushes */
    int column;   /* where the cursor stands */
    int n_space;  /* spaces seen but not printed */
    bool in_code;
    bool line_start; /* nothing but spaces was printed on this line */
    size_t n_word;   /* bytes held back */
    int word_columns;
    char word[WORD_WRAP_MAX_WORD];
};

void word_wrap_init(struct word_wrap *wrap, int n_column);

/* text: n bytes of whole characters, without control characters but newline and tab. */
void word_wrap_push(struct word_wrap *wrap, const char *text, size_t n, FILE *out);
void word_wrap_flush(struct word_wrap *wrap, FILE *out); /* the word that is held back */

#endif
