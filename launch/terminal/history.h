/* The lines that were entered, kept in a file between sessions.
 *
 * One entry per line of the file, newlines and backslashes in it escaped; mode 0600, at most
 * HISTORY_MAX entries. Entries are appended as they come, so that several sessions share a file. A
 * file that cannot be read or written gives one warning and no error. */
#ifndef LEAN_LAUNCH_TERMINAL_HISTORY_H
#define LEAN_LAUNCH_TERMINAL_HISTORY_H

#include <stddef.h>

#include "proto/base/error.h"

enum { HISTORY_MAX = 10000 };

struct history;

/* path: the file, made with its folders when the first entry comes; NULL: memory only. */
enum lm_status history_open(struct history **out, const char *path, struct lm_error *err);
void history_close(struct history *history);

/* Adds text, unless it is empty or the newest entry already. */
void history_add(struct history *history, const char *text);

size_t history_count(const struct history *history);
/* Entry i, the oldest being 0; lives until the next history_add. */
const char *history_at(const struct history *history, size_t i);

#endif
