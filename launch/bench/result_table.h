/* Results as tables: rows are JSON objects of one shape, which the formats show in their ways.
 *
 *   md     for people: chosen columns
 *   csv    all fields in one line, those of objects as OBJECT_FIELD, lists as JSON
 *   json   one list of the rows     jsonl  a row to a line     sql  a table to be created and
 * filled
 *
 * Ownership: a table owns its rows. */
#ifndef LEAN_LAUNCH_BENCH_RESULT_TABLE_H
#define LEAN_LAUNCH_BENCH_RESULT_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "proto/base/error.h"

struct json_object; /* json-c */

enum result_format { RESULT_MD, RESULT_CSV, RESULT_JSON, RESULT_JSONL, RESULT_SQL };

/* option: "-o". LM_E_USAGE: it names none. */
enum lm_status result_format_parse(enum result_format *out, const char *option, const char *text,
                                   struct lm_error *err);

/* A column of a table for people. */
struct result_column {
    char title[80];
    bool right; /* aligned */
    /* The cell of a row; malloc'ed, NULL: no memory. */
    char *(*cell)(const struct result_column *column, struct json_object *row);
    char key[80]; /* for cell */
};

/* columns: [n_column], for RESULT_MD. rows: a list. */
enum lm_status result_table_print(FILE *out, enum result_format format, struct json_object *rows,
                                  const struct result_column *columns, size_t n_column,
                                  struct lm_error *err);

/* One line of names and one for each row, of all fields that some row has. */
void result_print_csv(FILE *out, struct json_object *rows);

/* Columns that text takes in a terminal. */
size_t result_width(const char *text);

#endif
