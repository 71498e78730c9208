/* The results of a sweep: a folder with a line of JSON for each result, added case by case.
 *
 *   DIR/results.jsonl     {"case": HASH, "row": 0, "n_row": 2, "axes": {...}, "status": "ok", ...}
 *   DIR/results.csv       the same
 *   DIR/environment.json  what it was measured on
 *   DIR/log.txt           what the runs said
 *
 * A case is in the file with all of its rows or with none: rows of one that was cut off, by a kill
 * or a full disk, are taken back, at once or when the folder is opened again.
 *
 * Ownership: an open log holds a lock on the folder. Threads: one owner. */
#ifndef LEAN_LAUNCH_BENCH_RESULT_LOG_H
#define LEAN_LAUNCH_BENCH_RESULT_LOG_H

#include <stdbool.h>

#include "proto/base/error.h"

struct json_object; /* json-c */
struct result_log;

/* Makes the folder where there is none. LM_E_BUSY: another process has it open; LM_E_FORMAT:
 * results.jsonl holds what is no result, with the line. */
enum lm_status result_log_open(struct result_log **out, const char *folder, struct lm_error *err);
void result_log_close(struct result_log *log); /* NULL is legal */

/* Whether the case is in it. */
bool result_log_has(const struct result_log *log, const char *hash);

/* Adds a case: rows, a list of objects, get "case", "row" and "n_row". LM_E_NO_SPACE, LM_E_IO:
 * nothing was added. */
enum lm_status result_log_add(struct result_log *log, const char *hash, struct json_object *rows,
                              struct lm_error *err);

/* All rows; belongs to the log. */
struct json_object *result_log_rows(const struct result_log *log);

/* Writes results.csv anew. */
enum lm_status result_log_write_csv(const struct result_log *log, struct lm_error *err);

/* The rows of a folder, for readers; the caller owns the list. */
enum lm_status result_log_read(struct json_object **out, const char *folder, struct lm_error *err);

#endif
