/* Log lines, progress bars and the number formats a person reads. */
#include "proto/base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proto/base/utf8.h"

enum { LINE_BYTES_MAX = 8192 }; /* the rest is cut off */

/* Written once by log_configure before other threads start. */
static struct log_config config = {.level = LOG_INFO};
static char line_prefix[16]; /* the same */
/* Held while anything is written; n_drawn is guarded by it. */
static pthread_mutex_t write_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned n_drawn; /* lines that the next redraw replaces; the cursor is in the last */

void log_configure(const struct log_config *new_config)
{
    config = *new_config;
    if (config.progress == LOG_PROGRESS_AUTO)
        config.progress = isatty(STDERR_FILENO) ? LOG_PROGRESS_TTY : LOG_PROGRESS_PLAIN;
}

void log_set_prefix(const char *prefix)
{
    snprintf(line_prefix, sizeof(line_prefix), "%s", prefix);
}

enum log_progress log_progress(void)
{
    return config.progress;
}

bool log_color(void)
{
    return config.color;
}

/* Wrapping is off while lines are drawn, so that each takes one row. One write does it all: nothing
 * is seen half done, and whatever ends the process leaves the terminal as it should be; for the
 * same reason the cursor is not hidden. */
static void redraw_locked(const char *lines)
{
    char up[16] = "";
    if (n_drawn > 1) snprintf(up, sizeof(up), "\033[%uA", n_drawn - 1);
    if (n_drawn || *lines) fprintf(stderr, "\033[?7l\r%s\033[J%s\033[?7h", up, lines);
    n_drawn = *lines != '\0';
    for (const char *at = lines; (at = strchr(at, '\n')); at++)
        n_drawn++;
    fflush(stderr);
}

void log_redraw(const char *lines)
{
    if (config.progress != LOG_PROGRESS_TTY) return;
    pthread_mutex_lock(&write_lock);
    redraw_locked(lines);
    pthread_mutex_unlock(&write_lock);
}

void log_line(enum log_level level, const char *format, ...)
{
    static const char *const prefixes[] = {
        [LOG_ERROR] = "error: ", [LOG_WARNING] = "warning: ", [LOG_INFO] = "",
        [LOG_VERBOSE] = "",      [LOG_DEBUG] = "debug: ",
    };
    if (level > config.level) return;
    /* In one write: lines of other processes may go to the same pipe. */
    char text[LINE_BYTES_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    pthread_mutex_lock(&write_lock);
    redraw_locked("");
    fprintf(stderr, "%slean: %s%s\n", line_prefix, prefixes[level], text);
    pthread_mutex_unlock(&write_lock);
}

double log_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

const char *log_format_bytes(uint64_t n_bytes, char text[24])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)n_bytes;
    size_t unit = 0;
    for (; value >= 999.5 && unit + 1 < sizeof(units) / sizeof(units[0]); unit++)
        value /= 1024;
    const int decimals = unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(text, 24, "%.*f %s", decimals, value, units[unit]);
    return text;
}

const char *log_format_seconds(double seconds, char text[24])
{
    if (seconds >= 3600)
        snprintf(text, 24, "%dh%02dm", (int)(seconds / 3600), (int)(seconds / 60) % 60);
    else if (seconds >= 60)
        snprintf(text, 24, "%dm%02ds", (int)(seconds / 60), (int)seconds % 60);
    else if (seconds >= 1)
        snprintf(text, 24, "%.1fs", seconds);
    else
        snprintf(text, 24, "%.0fms", seconds * 1e3);
    return text;
}

void log_bar_begin(struct log_bar *bar, const char *what, const char *unit, uint64_t total)
{
    *bar = (struct log_bar){.what = what, .unit = unit, .total = total, .started_s = log_now_s()};
    bar->shown_s = bar->started_s;
}

static void format_amounts(const struct log_bar *bar, uint64_t done, double elapsed_s, char *text,
                           size_t size)
{
    char done_text[24], total_text[24], rate_text[24], eta_text[24];
    const double rate = (double)done / elapsed_s;
    const double eta_s = rate > 0 ? (double)(bar->total - done) / rate : 0;
    log_format_seconds(eta_s, eta_text);
    if (bar->unit)
        snprintf(text, size, "%llu/%llu %s  %.0f/s  %s", (unsigned long long)done,
                 (unsigned long long)bar->total, bar->unit, rate, eta_text);
    else
        snprintf(text, size, "%s/%s  %s/s  %s", log_format_bytes(done, done_text),
                 log_format_bytes(bar->total, total_text),
                 log_format_bytes((uint64_t)rate, rate_text), eta_text);
}

void log_bar_update(struct log_bar *bar, uint64_t done)
{
    const double now_s = log_now_s(), elapsed_s = now_s - bar->started_s;
    if (elapsed_s < 1 || !bar->total || config.progress == LOG_PROGRESS_NONE) return;
    if (done > bar->total) done = bar->total;
    const int percent = (int)(100.0 * (double)done / (double)bar->total);
    const bool redraw = config.progress == LOG_PROGRESS_TTY;
    if (redraw ? now_s - bar->shown_s < 0.1
               : now_s - bar->shown_s < 10 && percent < bar->shown_percent + 5)
        return;
    bar->shown_s = now_s;
    bar->shown_percent = percent;

    char amounts[128], blocks[20 * 3 + 1] = "", line[sizeof(amounts) + sizeof(blocks) + 64];
    format_amounts(bar, done, elapsed_s, amounts, sizeof(amounts));
    for (int i = 0; i < percent / 5; i++)
        strcat(blocks, "█");
    if (redraw) {
        snprintf(line, sizeof(line), "%s %3d%% %s%*s %s", bar->what, percent, blocks,
                 20 - percent / 5, "", amounts);
        log_redraw(line);
        return;
    }
    pthread_mutex_lock(&write_lock);
    fprintf(stderr, "%s %3d%%  %s\n", bar->what, percent, amounts);
    pthread_mutex_unlock(&write_lock);
}

void log_bar_end(struct log_bar *bar)
{
    (void)bar;
    log_redraw("");
}

char *log_printable(const char *bytes, size_t n, char *out, size_t size)
{
    size_t used = 0;
    for (size_t i = 0; i < n;) {
        const unsigned char *at = (const unsigned char *)bytes + i;
        const size_t length = utf8_decode(bytes + i, n - i, NULL);
        const bool c1_control = length == 2 && at[0] == 0xc2 && at[1] < 0xa0;
        const bool plain = length == 1 ? (*at >= 32 && *at != 127) || *at == '\n' || *at == '\t'
                                       : length > 1 && !c1_control;
        if (plain) {
            if (used + length >= size) break;
            memcpy(out + used, at, length);
            used += length;
            i += length;
        } else {
            if (used + 4 >= size) break;
            used += (size_t)snprintf(out + used, size - used, "\\x%02x", *at);
            i += 1;
        }
    }
    if (size) out[used] = '\0';
    return out;
}
