/* History in memory and in a file. */
#include "launch/terminal/history.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/base/log.h"
#include "proto/base/read_all.h"

enum { MAX_FILE_BYTES = 256 << 20 };

struct history {
    char **entries; /* [n_entry], a queue: the oldest first */
    size_t n_entry, room;
    char *path; /* NULL: memory only */
};

static bool append(struct history *history, char *entry)
{
    if (history->n_entry == HISTORY_MAX) {
        free(history->entries[0]);
        memmove(history->entries, history->entries + 1, (HISTORY_MAX - 1) * sizeof(char *));
        history->n_entry--;
    }
    if (history->n_entry == history->room) {
        const size_t room = history->room ? 2 * history->room : 64;
        char **entries = realloc(history->entries, room * sizeof(*entries));
        if (!entries) return false;
        history->entries = entries;
        history->room = room;
    }
    history->entries[history->n_entry++] = entry;
    return true;
}

static void write_escaped(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            fputs("\\n", out);
        else if (*text == '\\')
            fputs("\\\\", out);
        else
            fputc(*text, out);
    }
    fputc('\n', out);
}

/* A line of the file as the entry it stands for; malloc'ed. */
static char *unescape(const char *line, size_t n)
{
    char *entry = malloc(n + 1);
    size_t n_entry = 0;
    for (size_t i = 0; entry && i < n; i++) {
        const bool escaped = line[i] == '\\' && i + 1 < n;
        if (escaped) i++;
        entry[n_entry++] = escaped && line[i] == 'n' ? '\n' : line[i];
    }
    if (entry) entry[n_entry] = '\0';
    return entry;
}

/* Reads the file; returns how many lines it has. */
static size_t load(struct history *history)
{
    char *text;
    size_t n, n_line = 0;
    struct lm_error err;
    if (access(history->path, F_OK)) return 0;
    if (read_all_path(history->path, MAX_FILE_BYTES, &text, &n, &err) != LM_OK) {
        log_warning("history: %s", err.message);
        return 0;
    }
    for (const char *line = text, *end; (end = memchr(line, '\n', n - (size_t)(line - text)));
         line = end + 1) {
        char *entry = unescape(line, (size_t)(end - line));
        if (!entry || !append(history, entry)) free(entry);
        n_line++;
    }
    free(text);
    return n_line;
}

/* Makes the folders that path lies in, readable by the user only. */
static void make_folders(const char *path)
{
    char *folder = strdup(path);
    for (char *slash = folder; slash && (slash = strchr(slash + 1, '/')); *slash = '/') {
        *slash = '\0';
        mkdir(folder, 0700);
    }
    free(folder);
}

/* Replaces the file by what is in memory, which is its newest part. */
static void rewrite(const struct history *history)
{
    char *temporary = NULL;
    if (asprintf(&temporary, "%s.%ld", history->path, (long)getpid()) < 0) return;
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    for (size_t i = 0; file && i < history->n_entry; i++)
        write_escaped(file, history->entries[i]);
    if (!file || fclose(file) || rename(temporary, history->path)) unlink(temporary);
    free(temporary);
}

enum lm_status history_open(struct history **out, const char *path, struct lm_error *err)
{
    struct history *history = calloc(1, sizeof(*history));
    if (!history || (path && !(history->path = strdup(path)))) {
        free(history);
        return lm_fail(err, LM_E_NO_MEM, "no memory for the history");
    }
    if (path && load(history) > HISTORY_MAX) rewrite(history);
    *out = history;
    return LM_OK;
}

void history_close(struct history *history)
{
    if (!history) return;
    for (size_t i = 0; i < history->n_entry; i++)
        free(history->entries[i]);
    free(history->entries);
    free(history->path);
    free(history);
}

void history_add(struct history *history, const char *text)
{
    if (!*text) return;
    if (history->n_entry && !strcmp(history->entries[history->n_entry - 1], text)) return;
    char *entry = strdup(text);
    if (!entry || !append(history, entry)) {
        free(entry);
        return;
    }
    if (!history->path) return;
    int fd = open(history->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 && errno == ENOENT) {
        make_folders(history->path);
        fd = open(history->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    }
    FILE *file = fd < 0 ? NULL : fdopen(fd, "a");
    if (file) write_escaped(file, text);
    if (!file || fclose(file)) {
        log_warning("history: %s: %s; not kept", history->path, strerror(errno));
        free(history->path);
        history->path = NULL;
    }
}

size_t history_count(const struct history *history)
{
    return history->n_entry;
}

const char *history_at(const struct history *history, size_t i)
{
    return history->entries[i];
}
