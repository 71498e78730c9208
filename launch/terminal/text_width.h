/* Columns that text takes on a terminal: wide characters two, combining ones none.
 *
 * Widths are the C library's; the program sets LC_CTYPE to a UTF-8 locale first
 * (text_width_init), else every character outside ASCII counts as one column. */
#ifndef LEAN_LAUNCH_TERMINAL_TEXT_WIDTH_H
#define LEAN_LAUNCH_TERMINAL_TEXT_WIDTH_H

#include <stddef.h>

/* Before other threads start. */
void text_width_init(void);

/* Bytes of the first character of text (n >= 1), its columns in *width: 0 for a combining one, -1
 * for a control character. A malformed byte is a character of one column. */
size_t text_char(const char *text, size_t n, int *width);

/* Control characters count as nothing. */
int text_columns(const char *text, size_t n);

/* Columns of the terminal that fd is, 80 if it is none or does not say; *n_line may be NULL. */
int terminal_columns(int fd, int *n_line);

#endif
