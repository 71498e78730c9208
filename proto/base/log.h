/* Log lines on stderr, and progress on anything that takes over a second.
 *
 * stdout carries results only; everything here goes to stderr. A log line is lower case, names
 * the thing and gives the numbers. Text that comes from a model or a file is passed through
 * log_printable first, so that no escape sequence reaches the terminal.
 *
 * Threads: all functions may be called from any thread; lines do not interleave. The settings are
 * made once by main before other threads start. */
#ifndef LEAN_PROTO_BASE_LOG_H
#define LEAN_PROTO_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_VERBOSE, LOG_DEBUG };
enum log_progress { LOG_PROGRESS_AUTO, LOG_PROGRESS_TTY, LOG_PROGRESS_PLAIN, LOG_PROGRESS_NONE };

struct log_config {
    enum log_level level;       /* lines above this level are dropped; LOG_INFO by default */
    enum log_progress progress; /* AUTO: redrawn bars if stderr is a terminal, else plain lines */
    bool color;                 /* decided by main from --color, NO_COLOR, TERM and isatty */
};

void log_configure(const struct log_config *config);
/* Before every line from now on: "[2] " of rank 2. Copied, and cut at 15 bytes. */
void log_set_prefix(const char *prefix);
enum log_progress log_progress(void); /* never AUTO */

/* Whether colours and other attributes are wanted. */
bool log_color(void);

/* "lean: warning: TEXT" for warnings and errors, "lean: TEXT" below. */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_verbose(...) log_line(LOG_VERBOSE, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

/* Shows lines at the bottom of the terminal, in place of those shown before; "" erases them.
 * Between two lines is a line break, none behind the last; what does not fit the terminal's width
 * is cut off. Lines of the log erase them and go on above. Only with LOG_PROGRESS_TTY. */
void log_redraw(const char *lines);

/* A bar for one long job: "WHAT  43% ███▌     4.12/9.31 GiB  118 MiB/s  44s". Nothing is shown in
 * the first second. unit_bytes: amounts are bytes, else plain counts of `unit`. */
struct log_bar {
    const char *what;
    const char *unit; /* NULL: bytes */
    uint64_t total;
    double started_s, shown_s; /* private */
    int shown_percent;
};
void log_bar_begin(struct log_bar *bar, const char *what, const char *unit, uint64_t total);
void log_bar_update(struct log_bar *bar, uint64_t done);
void log_bar_end(struct log_bar *bar); /* clears a redrawn bar; legal without update */

/* "17.3 GiB", "512 B": binary units, three significant digits. Returns text. */
const char *log_format_bytes(uint64_t n_bytes, char text[24]);
/* "1h02m", "3m07s", "12.4s", "85ms". Returns text. */
const char *log_format_seconds(double seconds, char text[24]);

/* Copies bytes with control characters (except newline and tab) and malformed UTF-8 shown as
 * visible escapes. Writes at most size bytes, NUL included; returns out. */
char *log_printable(const char *bytes, size_t n, char *out, size_t size);

/* Seconds of a monotonic clock. */
double log_now_s(void);

#endif
