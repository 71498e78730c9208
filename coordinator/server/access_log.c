#include "coordinator/server/access_log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/server/expert_report.h"
#include "coordinator/server/json_write.h"
#include "proto/base/byte_buffer.h"
#include "proto/base/log.h"

/* A pipe takes this much at once or nothing (PIPE_BUF). */
enum { MAX_LINE_BYTES = 4096 };

static const double reopen_after_s = 1;

struct access_log {
    const char *path; /* borrowed; NULL: stderr */
    int fd;
    bool json;
    uint64_t n_dropped;
    double looked_s; /* when path was last compared with fd */
};

static int open_file(const char *path)
{
    return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0640);
}

enum lm_status access_log_open(struct access_log **out, const char *path, bool json,
                               struct lm_error *err)
{
    struct access_log *log = calloc(1, sizeof(*log));
    if (!log) return lm_fail(err, LM_E_NO_MEM, "no memory for the access log");
    log->path = path;
    log->json = json;
    log->fd = path ? open_file(path) : STDERR_FILENO;
    if (log->fd < 0) {
        free(log);
        return lm_fail_errno(err, "access log %s", path);
    }
    *out = log;
    return LM_OK;
}

void access_log_close(struct access_log *log)
{
    if (!log) return;
    if (log->path && log->fd >= 0) close(log->fd);
    free(log);
}

/* Whoever rotates logs moves the file away. */
static void reopen_if_moved(struct access_log *log)
{
    struct stat open_now, at_path;
    const double now_s = log_now_s();
    if (!log->path || now_s - log->looked_s < reopen_after_s) return;
    log->looked_s = now_s;
    if (log->fd >= 0 && !fstat(log->fd, &open_now) && !stat(log->path, &at_path) &&
        open_now.st_ino == at_path.st_ino && open_now.st_dev == at_path.st_dev)
        return;
    const int fd = open_file(log->path);
    if (fd < 0) return; /* the old one is better than none */
    if (log->fd >= 0) close(log->fd);
    log->fd = fd;
}

/* All of the line, or nothing of it. */
static bool put_line(const struct access_log *log, const char *line, size_t n)
{
    struct pollfd writable = {.fd = log->fd, .events = POLLOUT};
    if (log->fd < 0 || poll(&writable, 1, 0) != 1 || !(writable.revents & POLLOUT)) return false;
    const ssize_t n_written = write(log->fd, line, n);
    if (n_written < 0 || (size_t)n_written == n) return n_written >= 0;
    /* the disk filled up in the middle: the part must not run into the next line */
    struct stat info;
    if (!fstat(log->fd, &info) && S_ISREG(info.st_mode) &&
        ftruncate(log->fd, info.st_size - n_written)) {
        /* the part stays, and its line is lost like the others */
    }
    return false;
}

static void format_time(char text[40])
{
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    const double at = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    const time_t seconds = (time_t)at;
    gmtime_r(&seconds, &parts);
    const size_t n = strftime(text, 32, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(text + n, 40 - n, ".%03dZ", (int)((at - (double)seconds) * 1000));
}

static void format_experts(struct byte_buffer *line, const struct expert_usage *experts)
{
    byte_buffer_printf(line,
                       " experts=%" PRIu64 " hits=%" PRIu64 " joined=%" PRIu64 " misses=%" PRIu64
                       " shared=%" PRIu64 " read=%" PRIu64 "B waited=%.1fms",
                       experts->n_lookup, experts->n_hit, experts->n_joined, experts->n_miss,
                       experts->n_shared, experts->miss_bytes, experts->wait_s * 1e3);
}

static void format_text(struct byte_buffer *line, const struct http_record *record, const char *now)
{
    const struct http_usage *usage = &record->usage;
    byte_buffer_printf(line, "%s %s %s %s %s %d", now, record->request_id, record->remote,
                       record->method, record->route, record->status);
    const bool generated = usage->finish || usage->n_prompt;
    if (generated)
        byte_buffer_printf(
            line, " prompt=%zu cached=%zu generated=%zu queue=%.1fms first=%.1fms %.1ftok/s",
            usage->n_prompt, usage->n_cached, usage->n_generated, usage->queue_s * 1e3,
            usage->first_token_s * 1e3, usage->tokens_per_s);
    if (usage->n_draft)
        byte_buffer_printf(line, " drafts=%zu accepted=%zu", usage->n_draft,
                           usage->n_draft_accepted);
    if (expert_usage_any(&usage->experts)) format_experts(line, &usage->experts);
    if (generated)
        byte_buffer_printf(line, " %s", usage->finish ? usage->finish : "-");
    else if (record->code != API_OK)
        byte_buffer_printf(line, " %s", api_code_name(record->code));
    byte_buffer_put_text(line, "\n");
}

static void format_json(struct byte_buffer *line, const struct http_record *record, const char *now)
{
    const struct http_usage *usage = &record->usage;
    struct json_writer experts = {0};
    byte_buffer_printf(line,
                       "{\"time\":\"%s\",\"request_id\":\"%s\",\"remote\":\"%s\","
                       "\"method\":\"%s\",\"route\":\"%s\",\"status\":%d,\"seconds\":%.6f",
                       now, record->request_id, record->remote, record->method, record->route,
                       record->status, record->end_s - record->accepted_s);
    byte_buffer_printf(line,
                       ",\"prompt_tokens\":%zu,\"cached_tokens\":%zu,\"generated_tokens\":%zu,"
                       "\"draft_n\":%zu,\"draft_n_accepted\":%zu,"
                       "\"queue_ms\":%.3f,\"first_token_ms\":%.3f,\"tokens_per_second\":%.3f",
                       usage->n_prompt, usage->n_cached, usage->n_generated, usage->n_draft,
                       usage->n_draft_accepted, usage->queue_s * 1e3, usage->first_token_s * 1e3,
                       usage->tokens_per_s);
    byte_buffer_put_text(line, ",\"experts\":");
    expert_usage_put(&experts, &usage->experts);
    byte_buffer_put(line, experts.text.data, experts.text.n);
    line->failed |= experts.text.failed;
    byte_buffer_free(&experts.text);
    if (usage->finish)
        byte_buffer_printf(line, ",\"finish_reason\":\"%s\"", usage->finish);
    else
        byte_buffer_put_text(line, ",\"finish_reason\":null");
    if (record->code != API_OK)
        byte_buffer_printf(line, ",\"code\":\"%s\"}\n", api_code_name(record->code));
    else
        byte_buffer_put_text(line, ",\"code\":null}\n");
}

void access_log_write(struct access_log *log, const struct http_record *record)
{
    char now[40];
    struct byte_buffer line = {0};
    reopen_if_moved(log);
    format_time(now);
    if (log->n_dropped) {
        if (log->json)
            byte_buffer_printf(&line, "{\"time\":\"%s\",\"dropped_lines\":%llu}\n", now,
                               (unsigned long long)log->n_dropped);
        else
            byte_buffer_printf(&line, "%s %llu lines could not be written\n", now,
                               (unsigned long long)log->n_dropped);
    }
    if (log->json)
        format_json(&line, record, now);
    else
        format_text(&line, record, now);
    if (!line.failed && line.n <= MAX_LINE_BYTES && put_line(log, line.data, line.n))
        log->n_dropped = 0;
    else
        log->n_dropped++;
    byte_buffer_free(&line);
}
