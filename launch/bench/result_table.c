/* The formats of results. */
#include "launch/bench/result_table.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

enum lm_status result_format_parse(enum result_format *out, const char *option, const char *text,
                                   struct lm_error *err)
{
    static const char *const names[] = {[RESULT_MD] = "md",
                                        [RESULT_CSV] = "csv",
                                        [RESULT_JSON] = "json",
                                        [RESULT_JSONL] = "jsonl",
                                        [RESULT_SQL] = "sql"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i], text)) continue;
        *out = (enum result_format)i;
        return LM_OK;
    }
    return lm_fail(err, LM_E_USAGE, "%s must be one of md|csv|json|jsonl|sql, got '%.80s'", option,
                   text);
}

/* ---- flat rows ---------------------------------------------------------------------------- */

static void flatten_into(struct json_object *flat, const char *prefix, struct json_object *row)
{
    json_object_object_foreach(row, key, value)
    {
        char name[160];
        snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "_" : "", key);
        if (json_object_is_type(value, json_type_object))
            flatten_into(flat, name, value);
        else
            json_object_object_add(flat, name, json_object_get(value));
    }
}

/* A row as "FIELD": value without objects in it. */
static struct json_object *flatten(struct json_object *row)
{
    struct json_object *flat = json_object_new_object();
    flatten_into(flat, "", row);
    return flat;
}

/* Whether what is an object in another row makes fields of it: then being null is none of its own.
 */
static bool is_object_elsewhere(struct json_object *fields, const char *name)
{
    const size_t n = strlen(name);
    json_object_object_foreach(fields, key, value)
    {
        (void)value;
        if (!strncmp(key, name, n) && key[n] == '_') return true;
    }
    return false;
}

/* The fields of all rows, in the order in which they first come; with a value that some row has. */
static struct json_object *all_fields(struct json_object *rows)
{
    struct json_object *all = json_object_new_object(), *fields = json_object_new_object();
    for (size_t i = 0; i < json_object_array_length(rows); i++) {
        struct json_object *flat = flatten(json_object_array_get_idx(rows, i));
        json_object_object_foreach(flat, name, value)
        {
            if (value || !json_object_object_get_ex(all, name, NULL))
                json_object_object_add(all, name, json_object_get(value));
        }
        json_object_put(flat);
    }
    json_object_object_foreach(all, key, found)
    {
        if (found || !is_object_elsewhere(all, key))
            json_object_object_add(fields, key, json_object_get(found));
    }
    json_object_put(all);
    return fields;
}

/* A row with just these fields, null where it has none. */
static struct json_object *fit(struct json_object *row, struct json_object *fields)
{
    struct json_object *flat = flatten(row), *fitted = json_object_new_object();
    json_object_object_foreach(fields, key, unused)
    {
        struct json_object *value = NULL;
        (void)unused;
        json_object_object_get_ex(flat, key, &value);
        json_object_object_add(fitted, key, json_object_get(value));
    }
    json_object_put(flat);
    return fitted;
}

/* Numbers as JSON has them, strings as they are, lists as JSON. */
static const char *value_text(struct json_object *value)
{
    if (!value) return "";
    if (json_object_is_type(value, json_type_string)) return json_object_get_string(value);
    return json_object_to_json_string_ext(value,
                                          JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
}

static void print_quoted(FILE *out, const char *text, char quote)
{
    putc(quote, out);
    for (; *text; text++) {
        if (*text == quote) putc(quote, out);
        putc(*text, out);
    }
    putc(quote, out);
}

static void print_csv_cell(FILE *out, const char *text)
{
    if (strpbrk(text, ",\"\r\n"))
        print_quoted(out, text, '"');
    else
        fputs(text, out);
}

static void print_csv_names(FILE *out, struct json_object *flat)
{
    const char *separator = "";
    json_object_object_foreach(flat, key, value)
    {
        (void)value;
        fputs(separator, out);
        print_csv_cell(out, key);
        separator = ",";
    }
    putc('\n', out);
}

static void print_csv_values(FILE *out, struct json_object *flat)
{
    const char *separator = "";
    json_object_object_foreach(flat, key, value)
    {
        (void)key;
        fputs(separator, out);
        print_csv_cell(out, value_text(value));
        separator = ",";
    }
    putc('\n', out);
}

static const char *sql_type(struct json_object *value)
{
    switch (json_object_get_type(value)) {
    case json_type_boolean:
    case json_type_int:
        return "INTEGER";
    case json_type_double:
        return "REAL";
    default:
        return "TEXT";
    }
}

static void print_sql_value(FILE *out, struct json_object *value)
{
    if (!value)
        fputs("NULL", out);
    else if (json_object_is_type(value, json_type_boolean))
        fputs(json_object_get_boolean(value) ? "1" : "0", out);
    else if (json_object_is_type(value, json_type_int) ||
             json_object_is_type(value, json_type_double))
        fputs(value_text(value), out);
    else
        print_quoted(out, value_text(value), '\'');
}

static void create_sql(FILE *out, struct json_object *fields)
{
    const char *separator = "";
    fputs("CREATE TABLE IF NOT EXISTS lean_bench (", out);
    json_object_object_foreach(fields, key, value)
    {
        fprintf(out, "%s\n  %s %s", separator, key, sql_type(value));
        separator = ",";
    }
    fputs("\n);\n", out);
}

static void insert_sql(FILE *out, struct json_object *flat)
{
    const char *separator = "";
    fputs("INSERT INTO lean_bench (", out);
    json_object_object_foreach(flat, name, unused)
    {
        (void)unused;
        fprintf(out, "%s%s", separator, name);
        separator = ", ";
    }
    fputs(") VALUES (", out);
    separator = "";
    json_object_object_foreach(flat, also_name, value)
    {
        (void)also_name;
        fputs(separator, out);
        print_sql_value(out, value);
        separator = ", ";
    }
    fputs(");\n", out);
}

static void print_fitted(FILE *out, struct json_object *rows,
                         void (*print_names)(FILE *out, struct json_object *fields),
                         void (*print_row)(FILE *out, struct json_object *flat))
{
    struct json_object *fields = all_fields(rows);
    print_names(out, fields);
    for (size_t i = 0; i < json_object_array_length(rows); i++) {
        struct json_object *fitted = fit(json_object_array_get_idx(rows, i), fields);
        print_row(out, fitted);
        json_object_put(fitted);
    }
    json_object_put(fields);
}

void result_print_csv(FILE *out, struct json_object *rows)
{
    print_fitted(out, rows, print_csv_names, print_csv_values);
}

/* ---- for people --------------------------------------------------------------------------- */

size_t result_width(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void print_cell(FILE *out, const char *text, size_t width, bool right)
{
    const size_t own = result_width(text);
    const int pad = (int)(width > own ? width - own : 0);
    if (right)
        fprintf(out, "| %*s%s ", pad, "", text);
    else
        fprintf(out, "| %s%*s ", text, pad, "");
}

static void print_rule(FILE *out, size_t width, bool right)
{
    fputs("| ", out);
    for (size_t i = 0; i + right < width; i++)
        putc('-', out);
    fputs(right ? ": " : " ", out);
}

/* cells: [1 + n_row][n_column], the first row the titles; all of them malloc'ed. */
static void print_md(FILE *out, char *const *cells, size_t n_row,
                     const struct result_column *columns, size_t n_column)
{
    for (size_t i = 0; i <= n_row; i++) {
        for (int rule = 0; rule <= (i == 0); rule++) {
            for (size_t c = 0; c < n_column; c++) {
                size_t width = 3;
                for (size_t k = 0; k <= n_row; k++) {
                    const size_t own = result_width(cells[k * n_column + c]);
                    if (own > width) width = own;
                }
                if (rule)
                    print_rule(out, width, columns[c].right);
                else
                    print_cell(out, cells[i * n_column + c], width, columns[c].right);
            }
            fputs("|\n", out);
        }
    }
}

static enum lm_status print_table(FILE *out, struct json_object *rows,
                                  const struct result_column *columns, size_t n_column,
                                  struct lm_error *err)
{
    const size_t n_row = json_object_array_length(rows);
    char **cells = calloc((n_row + 1) * n_column, sizeof(*cells));
    bool complete = cells != NULL;
    for (size_t i = 0; complete && i < (n_row + 1) * n_column; i++) {
        const struct result_column *column = &columns[i % n_column];
        cells[i] = i < n_column
                       ? strdup(column->title)
                       : column->cell(column, json_object_array_get_idx(rows, i / n_column - 1));
        complete = cells[i] != NULL;
    }
    if (complete) print_md(out, cells, n_row, columns, n_column);
    for (size_t i = 0; cells && i < (n_row + 1) * n_column; i++)
        free(cells[i]);
    free(cells);
    return complete ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a table");
}

enum lm_status result_table_print(FILE *out, enum result_format format, struct json_object *rows,
                                  const struct result_column *columns, size_t n_column,
                                  struct lm_error *err)
{
    const int flags = JSON_C_TO_STRING_NOSLASHESCAPE;
    switch (format) {
    case RESULT_MD:
        return print_table(out, rows, columns, n_column, err);
    case RESULT_CSV:
        result_print_csv(out, rows);
        break;
    case RESULT_SQL:
        print_fitted(out, rows, create_sql, insert_sql);
        break;
    case RESULT_JSON:
        fprintf(out, "%s\n",
                json_object_to_json_string_ext(rows, flags | JSON_C_TO_STRING_PRETTY |
                                                         JSON_C_TO_STRING_SPACED));
        break;
    case RESULT_JSONL:
        for (size_t i = 0; i < json_object_array_length(rows); i++)
            fprintf(out, "%s\n",
                    json_object_to_json_string_ext(json_object_array_get_idx(rows, i),
                                                   flags | JSON_C_TO_STRING_PLAIN));
        break;
    }
    return LM_OK;
}
