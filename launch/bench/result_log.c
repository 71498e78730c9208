/* results.jsonl and what is made from it. */
#include "launch/bench/result_log.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch/bench/result_table.h"
#include "launch/bench/write_file.h"
#include "proto/base/read_all.h"

enum { MAX_BYTES = 1 << 30 };

struct result_log {
    char *folder, *path;
    int fd;
    off_t n_byte; /* of whole cases */
    struct json_object *rows;
};

static int64_t int_of(struct json_object *row, const char *key)
{
    struct json_object *value = NULL;
    return json_object_object_get_ex(row, key, &value) ? json_object_get_int64(value) : -1;
}

static const char *case_of(struct json_object *row)
{
    struct json_object *value = NULL;
    return json_object_object_get_ex(row, "case", &value) ? json_object_get_string(value) : "";
}

/* Reads lines into rows. *n_whole: bytes up to the end of the last whole case; rows behind it are
 * not kept. */
static enum lm_status parse(char *bytes, size_t n, const char *path, struct json_object *rows,
                            size_t *n_whole, struct lm_error *err)
{
    size_t at = 0, number = 1, n_row_whole = 0;
    *n_whole = 0;
    for (char *end; at < n && (end = memchr(bytes + at, '\n', n - at)); number++) {
        *end = 0;
        struct json_object *row = json_tokener_parse(bytes + at);
        if (!json_object_is_type(row, json_type_object) || !*case_of(row) ||
            int_of(row, "n_row") < 1) {
            json_object_put(row);
            return lm_fail(err, LM_E_FORMAT, "%s: line %zu is no result", path, number);
        }
        json_object_array_add(rows, row);
        at = (size_t)(end - bytes) + 1;
        if (int_of(row, "row") + 1 != int_of(row, "n_row")) continue;
        *n_whole = at;
        n_row_whole = json_object_array_length(rows);
    }
    const size_t n_row = json_object_array_length(rows);
    if (n_row > n_row_whole) json_object_array_del_idx(rows, n_row_whole, n_row - n_row_whole);
    return LM_OK;
}

enum lm_status result_log_read(struct json_object **out, const char *folder, struct lm_error *err)
{
    char path[4096], *bytes;
    size_t n, n_whole;
    snprintf(path, sizeof(path), "%.4000s/results.jsonl", folder);
    enum lm_status status = read_all_path(path, MAX_BYTES, &bytes, &n, err);
    if (status != LM_OK) return status;
    struct json_object *rows = json_object_new_array();
    status = parse(bytes, n, path, rows, &n_whole, err);
    free(bytes);
    if (status == LM_OK)
        *out = rows;
    else
        json_object_put(rows);
    return status;
}

static enum lm_status open_file(struct result_log *log, struct lm_error *err)
{
    char *bytes;
    size_t n, n_whole = 0;
    log->fd = open(log->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (log->fd < 0) return lm_fail_errno(err, "%s: open", log->path);
    if (flock(log->fd, LOCK_EX | LOCK_NB))
        return errno == EWOULDBLOCK
                   ? lm_fail(err, LM_E_BUSY, "%s: another sweep writes to it", log->folder)
                   : lm_fail_errno(err, "%s: lock", log->path);
    enum lm_status status = read_all(log->fd, log->path, MAX_BYTES, &bytes, &n, err);
    if (status != LM_OK) return status;
    status = parse(bytes, n, log->path, log->rows, &n_whole, err);
    free(bytes);
    if (status == LM_OK && n_whole < n && ftruncate(log->fd, (off_t)n_whole))
        status = lm_fail_errno(err, "%s: truncate", log->path);
    log->n_byte = (off_t)n_whole;
    return status;
}

enum lm_status result_log_open(struct result_log **out, const char *folder, struct lm_error *err)
{
    struct result_log *log = calloc(1, sizeof(*log));
    if (!log) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", folder);
    log->fd = -1;
    log->folder = strdup(folder);
    log->rows = json_object_new_array();
    enum lm_status status = log->folder && asprintf(&log->path, "%s/results.jsonl", folder) > 0
                                ? LM_OK
                                : lm_fail(err, LM_E_NO_MEM, "%s: no memory", folder);
    if (status == LM_OK && mkdir(folder, 0777) && errno != EEXIST)
        status = lm_fail_errno(err, "%s: make the folder", folder);
    if (status == LM_OK) status = open_file(log, err);
    if (status != LM_OK) {
        result_log_close(log);
        return status;
    }
    *out = log;
    return LM_OK;
}

void result_log_close(struct result_log *log)
{
    if (!log) return;
    if (log->fd >= 0) close(log->fd);
    json_object_put(log->rows);
    free(log->path);
    free(log->folder);
    free(log);
}

bool result_log_has(const struct result_log *log, const char *hash)
{
    for (size_t i = 0; i < json_object_array_length(log->rows); i++)
        if (!strcmp(case_of(json_object_array_get_idx(log->rows, i)), hash)) return true;
    return false;
}

/* All of it, or what was there before. */
static enum lm_status append(struct result_log *log, const char *bytes, size_t n,
                             struct lm_error *err)
{
    size_t at = 0;
    ssize_t written = 0;
    errno = 0;
    while (at < n && (written = pwrite(log->fd, bytes + at, n - at, log->n_byte + (off_t)at)) > 0)
        at += (size_t)written;
    if (at == n && fsync(log->fd) == 0) {
        log->n_byte += (off_t)n;
        return LM_OK;
    }
    if (!errno) errno = ENOSPC;
    const enum lm_status status = lm_fail_errno(err, "%s: write", log->path);
    (void)!ftruncate(log->fd, log->n_byte); /* if not now, when it is opened again */
    return status;
}

enum lm_status result_log_add(struct result_log *log, const char *hash, struct json_object *rows,
                              struct lm_error *err)
{
    const size_t n_row = json_object_array_length(rows);
    char *text = NULL;
    size_t n = 0;
    FILE *lines = open_memstream(&text, &n);
    if (!lines) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", log->path);
    for (size_t i = 0; i < n_row; i++) {
        struct json_object *row = json_object_array_get_idx(rows, i);
        json_object_object_add(row, "case", json_object_new_string(hash));
        json_object_object_add(row, "row", json_object_new_int64((int64_t)i));
        json_object_object_add(row, "n_row", json_object_new_int64((int64_t)n_row));
    }
    enum lm_status status = result_table_print(lines, RESULT_JSONL, rows, NULL, 0, err);
    if (fclose(lines) && status == LM_OK)
        status = lm_fail(err, LM_E_NO_MEM, "%s: no memory", log->path);
    if (status == LM_OK) status = append(log, text, n, err);
    for (size_t i = 0; i < n_row && status == LM_OK; i++)
        json_object_array_add(log->rows, json_object_get(json_object_array_get_idx(rows, i)));
    free(text);
    return status;
}

struct json_object *result_log_rows(const struct result_log *log)
{
    return log->rows;
}

enum lm_status result_log_write_csv(const struct result_log *log, struct lm_error *err)
{
    char path[4096], *text = NULL;
    size_t n = 0;
    FILE *lines = open_memstream(&text, &n);
    if (!lines) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", log->path);
    snprintf(path, sizeof(path), "%.4000s/results.csv", log->folder);
    result_print_csv(lines, log->rows); /* cases that failed have fewer fields */
    enum lm_status status =
        fclose(lines) ? lm_fail(err, LM_E_NO_MEM, "%s: no memory", path) : LM_OK;
    if (status == LM_OK) status = write_file(path, text, n, err);
    free(text);
    return status;
}
