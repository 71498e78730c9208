/* The line editor: keys in, message out, screen redrawn after each key.
 *
 *   read_key      bytes and escape sequences to one struct key
 *   apply_key     what a key does to the text (edit_*), the history and the search
 *   draw          the text to rows, the rows to the terminal, in one write
 *
 * draw remembers in which of its rows it left the cursor; the next one goes up that many rows,
 * clears to the end of the screen and starts over, so nothing needs to be known of what was there.
 */
#include "launch/terminal/line_editor.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "launch/terminal/history.h"
#include "launch/terminal/interrupt.h"
#include "launch/terminal/text_width.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/base/utf8.h"

enum {
    ESCAPE_WAIT_MS = 50,         /* a lone Esc key, or the beginning of a sequence */
    MAX_MESSAGE_BYTES = 8 << 20, /* more is not taken from a paste or an external editor */
    TAB_COLUMNS = 4
};

/* Growing bytes, always NUL-terminated. */
struct buffer {
    char *bytes;
    size_t n, room;
};

struct completion {
    char **words; /* [n], owned */
    size_t n, start;
};

struct line_editor {
    struct line_editor_config config;
    bool is_terminal;
    struct termios cooked; /* how the terminal was before */

    struct buffer text;
    size_t cursor;        /* in text, always at a character */
    struct buffer killed; /* what Ctrl-Y puts back */

    size_t history_at;   /* entry shown; history_count: the message itself */
    struct buffer draft; /* the message, while an entry is shown */
    bool searching;      /* Ctrl-R: text shows the entry found */
    struct buffer query;

    bool listed;              /* the last key was a Tab that could not decide */
    int cursor_row;           /* of the last draw */
    bool resized;             /* since the last draw */
    unsigned char input[256]; /* bytes read but not yet used: [input_at, n_input) */
    size_t input_at, n_input;
    bool out_of_memory;
};

/* ---- buffers ---- */

static bool buffer_splice(struct buffer *buffer, size_t at, size_t n_removed, const char *bytes,
                          size_t n)
{
    const size_t n_new = buffer->n - n_removed + n;
    if (n_new + 1 > buffer->room) {
        const size_t room = 2 * (n_new + 1);
        char *grown = realloc(buffer->bytes, room);
        if (!grown) return false;
        buffer->bytes = grown;
        buffer->room = room;
    }
    memmove(buffer->bytes + at + n, buffer->bytes + at + n_removed, buffer->n - at - n_removed);
    memcpy(buffer->bytes + at, bytes, n);
    buffer->n = n_new;
    buffer->bytes[n_new] = '\0';
    return true;
}

static void buffer_add(struct line_editor *editor, struct buffer *buffer, const char *bytes,
                       size_t n)
{
    if (!buffer_splice(buffer, buffer->n, 0, bytes, n)) editor->out_of_memory = true;
}

static void buffer_set(struct line_editor *editor, struct buffer *buffer, const char *bytes,
                       size_t n)
{
    if (!buffer_splice(buffer, 0, buffer->n, bytes, n)) editor->out_of_memory = true;
}

/* ---- the screen ---- */

struct screen {
    struct buffer bytes; /* all rows, without line ends */
    size_t *row_start;   /* [n_row + 1] into bytes */
    size_t n_row, room;
    int column, n_column;
    int cursor_row, cursor_column;
};

static bool screen_new_row(struct screen *screen)
{
    if (screen->n_row + 2 > screen->room) {
        const size_t room = 2 * screen->room + 16;
        size_t *starts = realloc(screen->row_start, room * sizeof(*starts));
        if (!starts) return false;
        screen->row_start = starts;
        screen->room = room;
    }
    screen->row_start[screen->n_row++] = screen->bytes.n;
    screen->column = 0;
    return true;
}

/* Adds text of one line, breaking rows at the width. cursor: the byte of text before which the
 * cursor stands, or SIZE_MAX. */
static bool screen_add(struct screen *screen, const char *text, size_t n, size_t cursor)
{
    for (size_t i = 0; i < n;) {
        int width;
        const size_t length = text_char(text + i, n - i, &width);
        const bool tab = text[i] == '\t', malformed = !utf8_decode(text + i, n - i, NULL);
        if (tab) width = TAB_COLUMNS - screen->column % TAB_COLUMNS;
        const char *shown = tab ? "        " : malformed ? "\xef\xbf\xbd" : text + i;
        const size_t n_shown = tab ? (size_t)width : malformed ? 3 : width < 0 ? 0 : length;
        if (width < 0) width = 0;
        if (screen->column + width > screen->n_column && screen->column > 0 &&
            !screen_new_row(screen))
            return false;
        if (i == cursor) {
            screen->cursor_row = (int)screen->n_row - 1;
            screen->cursor_column = screen->column;
        }
        if (!buffer_splice(&screen->bytes, screen->bytes.n, 0, shown, n_shown)) return false;
        screen->column += width;
        i += length;
    }
    if (cursor == n) {
        if (screen->column >= screen->n_column && !screen_new_row(screen)) return false;
        screen->cursor_row = (int)screen->n_row - 1;
        screen->cursor_column = screen->column;
    }
    return true;
}

/* The message with its prompts as rows. */
static bool screen_layout(const struct line_editor *editor, struct screen *screen)
{
    char search[128];
    const char *prompt = editor->config.prompt;
    if (editor->searching) {
        snprintf(search, sizeof(search), "(search: %.100s) ", editor->query.bytes);
        prompt = search;
    }
    const char *text = editor->text.bytes, *end = text + editor->text.n;
    for (;;) {
        const char *line_end = memchr(text, '\n', (size_t)(end - text));
        if (!line_end) line_end = end;
        const char *cursor = editor->text.bytes + editor->cursor;
        const bool here = cursor >= text && cursor <= line_end;
        if (!screen_new_row(screen) || !screen_add(screen, prompt, strlen(prompt), SIZE_MAX) ||
            !screen_add(screen, text, (size_t)(line_end - text),
                        here ? (size_t)(cursor - text) : SIZE_MAX))
            return false;
        if (line_end == end) break;
        text = line_end + 1;
        prompt = editor->config.continuation;
    }
    screen->row_start[screen->n_row] = screen->bytes.n;
    return true;
}

static void write_out(struct line_editor *editor, const char *bytes, size_t n)
{
    while (n > 0) {
        const ssize_t written = write(editor->config.out_fd, bytes, n);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return; /* the input side will tell */
        bytes += written;
        n -= (size_t)written;
    }
}

static void LM_PRINTF(2, 3) out_printf(struct buffer *out, const char *format, ...)
{
    char text[64];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    buffer_splice(out, out->n, 0, text, (size_t)n);
}

/* whole: all rows, though the first ones scroll away; else those around the cursor that fit. */
static void draw_rows(struct line_editor *editor, bool whole)
{
    int n_line;
    struct screen screen = {.n_column = terminal_columns(editor->config.out_fd, &n_line)};
    struct buffer out = {0};
    if (!screen_layout(editor, &screen)) {
        editor->out_of_memory = true;
        goto free_buffers;
    }
    const size_t height = whole ? screen.n_row : (size_t)(n_line > 1 ? n_line : 1);
    size_t first = 0;
    if (screen.n_row > height && (size_t)screen.cursor_row >= height)
        first = (size_t)screen.cursor_row - height + 1;
    const size_t last = first + height < screen.n_row ? first + height : screen.n_row;

    /* A terminal that was resized may or may not have wrapped its rows anew: go up as far as is
     * right in either case, so that nothing above the message is lost. */
    const int row = screen.cursor_row - (int)first;
    if (editor->resized && row < editor->cursor_row) editor->cursor_row = row;
    editor->resized = false;
    if (editor->cursor_row > 0) out_printf(&out, "\x1b[%dA", editor->cursor_row);
    out_printf(&out, "\r\x1b[J");
    for (size_t r = first; r < last; r++) {
        if (r > first) out_printf(&out, "\r\n");
        const size_t start = screen.row_start[r];
        buffer_splice(&out, out.n, 0, screen.bytes.bytes + start, screen.row_start[r + 1] - start);
    }
    const int up = (int)last - 1 - screen.cursor_row;
    if (up > 0) out_printf(&out, "\x1b[%dA", up);
    out_printf(&out, "\r");
    if (screen.cursor_column > 0) out_printf(&out, "\x1b[%dC", screen.cursor_column);
    editor->cursor_row = row;
    if (out.bytes) write_out(editor, out.bytes, out.n);
free_buffers:
    free(out.bytes);
    free(screen.bytes.bytes);
    free(screen.row_start);
}

static void draw(struct line_editor *editor)
{
    draw_rows(editor, false);
}

/* Leaves the message standing and goes to the line below it. */
static void leave_message(struct line_editor *editor)
{
    editor->cursor = editor->text.n;
    draw_rows(editor, true);
    write_out(editor, "\r\n", 2);
    editor->cursor_row = 0;
}

/* ---- the terminal ---- */

static void enter_raw(struct line_editor *editor)
{
    if (!editor->is_terminal) return;
    struct termios raw = editor->cooked;
    raw.c_iflag &= ~(tcflag_t)(BRKINT | ICRNL | INPCK | ISTRIP | IXON);
    raw.c_lflag &= ~(tcflag_t)(ECHO | ICANON | IEXTEN | ISIG);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    tcsetattr(editor->config.in_fd, TCSADRAIN, &raw);
    write_out(editor, "\x1b[?2004h", 8);
}

static void leave_raw(struct line_editor *editor)
{
    if (!editor->is_terminal) return;
    write_out(editor, "\x1b[?2004l", 8);
    tcsetattr(editor->config.in_fd, TCSADRAIN, &editor->cooked);
}

/* ---- keys ---- */

enum key_code {
    KEY_NONE,    /* an unknown sequence */
    KEY_TEXT,    /* a character */
    KEY_CONTROL, /* Ctrl with key.byte, a letter */
    KEY_ENTER,
    KEY_NEWLINE,
    KEY_TAB,
    KEY_BACKSPACE,
    KEY_DELETE,
    KEY_LEFT,
    KEY_RIGHT,
    KEY_UP,
    KEY_DOWN,
    KEY_HOME,
    KEY_END,
    KEY_WORD_LEFT,
    KEY_WORD_RIGHT,
    KEY_DELETE_WORD,
    KEY_ESCAPE,
    KEY_PASTE, /* what follows, up to the end of the paste */
    KEY_RESIZE,
    KEY_TERMINATED, /* a signal asks the process to end */
    KEY_EOF         /* the input ended or failed */
};

struct key {
    enum key_code code;
    char byte;    /* of KEY_CONTROL */
    char text[4]; /* of KEY_TEXT */
    size_t n;
};

/* Whether a byte can be read within wait_ms; -1 waits for ever, and then signals end the wait. */
static bool wait_for_input(struct line_editor *editor, int wait_ms)
{
    if (editor->input_at < editor->n_input) return true;
    struct pollfd fds[2] = {{.fd = editor->config.in_fd, .events = POLLIN},
                            {.fd = interrupt_fd(), .events = POLLIN}};
    const nfds_t n_fd = wait_ms < 0 ? 2 : 1;
    while (poll(fds, n_fd, wait_ms) < 0)
        if (errno != EINTR) break;
    return fds[0].revents != 0;
}

/* The next byte, -1 at the end of the input. */
static int read_byte(struct line_editor *editor)
{
    if (editor->input_at == editor->n_input) {
        ssize_t n;
        do
            n = read(editor->config.in_fd, editor->input, sizeof(editor->input));
        while (n < 0 && errno == EINTR);
        if (n <= 0) return -1;
        editor->input_at = 0;
        editor->n_input = (size_t)n;
    }
    return editor->input[editor->input_at++];
}

/* After "ESC [": parameters, then the byte that ends the sequence. */
static struct key read_sequence(struct line_editor *editor)
{
    static const struct {
        const char *sequence;
        enum key_code code;
    } known[] = {
        {"A", KEY_UP},           {"B", KEY_DOWN},          {"C", KEY_RIGHT},
        {"D", KEY_LEFT},         {"H", KEY_HOME},          {"F", KEY_END},
        {"1~", KEY_HOME},        {"7~", KEY_HOME},         {"4~", KEY_END},
        {"8~", KEY_END},         {"3~", KEY_DELETE},       {"1;5C", KEY_WORD_RIGHT},
        {"1;5D", KEY_WORD_LEFT}, {"1;3C", KEY_WORD_RIGHT}, {"1;3D", KEY_WORD_LEFT},
        {"200~", KEY_PASTE},     {"13;3u", KEY_NEWLINE},   {"13;2u", KEY_NEWLINE},
    };
    char sequence[16];
    size_t n = 0;
    int byte;
    do {
        byte = read_byte(editor);
        if (byte < 0) return (struct key){.code = KEY_EOF};
        if (n + 1 < sizeof(sequence)) sequence[n++] = (char)byte;
    } while (byte < 0x40 || byte > 0x7e);
    sequence[n] = '\0';
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (!strcmp(sequence, known[i].sequence)) return (struct key){.code = known[i].code};
    return (struct key){.code = KEY_NONE};
}

/* After ESC: a sequence, Alt with a key, or the Esc key alone. */
static struct key read_escape(struct line_editor *editor)
{
    if (!wait_for_input(editor, ESCAPE_WAIT_MS)) return (struct key){.code = KEY_ESCAPE};
    const int byte = read_byte(editor);
    switch (byte) {
    case '[':
    case 'O':
        return read_sequence(editor);
    case '\r':
    case '\n':
        return (struct key){.code = KEY_NEWLINE};
    case 'b':
    case 'B':
        return (struct key){.code = KEY_WORD_LEFT};
    case 'f':
    case 'F':
        return (struct key){.code = KEY_WORD_RIGHT};
    case 'd':
    case 'D':
        return (struct key){.code = KEY_DELETE_WORD};
    case 127:
    case 8:
        return (struct key){.code = KEY_CONTROL, .byte = 'w'};
    default:
        return (struct key){.code = byte < 0 ? KEY_EOF : KEY_NONE};
    }
}

/* The character that starts with lead; malformed bytes are dropped. */
static struct key read_character(struct line_editor *editor, int lead)
{
    struct key key = {.code = KEY_TEXT, .text = {(char)lead}, .n = 1};
    const size_t length = lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    while (key.n < length) {
        if (!wait_for_input(editor, ESCAPE_WAIT_MS)) break;
        const int byte = read_byte(editor);
        if (byte < 0) return (struct key){.code = KEY_EOF};
        if ((byte & 0xc0) != 0x80) { /* not of this character: the next key begins here */
            editor->input_at--;
            break;
        }
        key.text[key.n++] = (char)byte;
    }
    int width;
    text_char(key.text, key.n, &width);
    if (!utf8_decode(key.text, key.n, NULL) || width < 0) key.code = KEY_NONE;
    return key;
}

static struct key read_key(struct line_editor *editor)
{
    do {
        if (interrupt_take(INTERRUPT_END)) return (struct key){.code = KEY_TERMINATED};
        if (interrupt_take(INTERRUPT_STOP)) return (struct key){.code = KEY_CONTROL, .byte = 'c'};
        if (interrupt_take(INTERRUPT_RESIZE)) return (struct key){.code = KEY_RESIZE};
    } while (!wait_for_input(editor, -1));
    const int byte = read_byte(editor);
    switch (byte) {
    case -1:
        return (struct key){.code = KEY_EOF};
    case '\r':
        return (struct key){.code = KEY_ENTER};
    case '\n':
        return (struct key){.code = KEY_NEWLINE};
    case '\t':
        return (struct key){.code = KEY_TAB};
    case 27:
        return read_escape(editor);
    case 8:
    case 127:
        return (struct key){.code = KEY_BACKSPACE};
    default:
        if (byte < 27) return (struct key){.code = KEY_CONTROL, .byte = (char)('a' + byte - 1)};
        if (byte < 32) return (struct key){.code = KEY_NONE};
        return read_character(editor, byte);
    }
}

/* ---- editing ---- */

static void insert(struct line_editor *editor, const char *bytes, size_t n)
{
    if (editor->text.n + n > MAX_MESSAGE_BYTES) return;
    if (!buffer_splice(&editor->text, editor->cursor, 0, bytes, n))
        editor->out_of_memory = true;
    else
        editor->cursor += n;
}

static void set_text(struct line_editor *editor, const char *text, size_t n)
{
    buffer_set(editor, &editor->text, text, n);
    editor->cursor = editor->text.n;
}

/* The character before at, and the combining ones that stand on it. */
static size_t previous_char(const struct line_editor *editor, size_t at)
{
    const char *text = editor->text.bytes;
    int width;
    while (at > 0) {
        do
            at--;
        while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
        text_char(text + at, editor->text.n - at, &width);
        if (width != 0) break;
    }
    return at;
}

static size_t next_char(const struct line_editor *editor, size_t at)
{
    const char *text = editor->text.bytes;
    const size_t n = editor->text.n;
    int width;
    if (at < n) at += text_char(text + at, n - at, &width);
    while (at < n) {
        const size_t length = text_char(text + at, n - at, &width);
        if (width != 0) break;
        at += length;
    }
    return at;
}

static bool is_word_byte(char c)
{
    return isalnum((unsigned char)c) || (unsigned char)c >= 0x80 || c == '_';
}

static size_t word_left(const struct line_editor *editor)
{
    size_t at = editor->cursor;
    while (at > 0 && !is_word_byte(editor->text.bytes[at - 1]))
        at--;
    while (at > 0 && is_word_byte(editor->text.bytes[at - 1]))
        at--;
    return at;
}

static size_t word_right(const struct line_editor *editor)
{
    size_t at = editor->cursor;
    while (at < editor->text.n && !is_word_byte(editor->text.bytes[at]))
        at++;
    while (at < editor->text.n && is_word_byte(editor->text.bytes[at]))
        at++;
    return at;
}

/* Ctrl-W: back over blanks, then to the next blank. */
static size_t blank_left(const struct line_editor *editor)
{
    size_t at = editor->cursor;
    while (at > 0 && isspace((unsigned char)editor->text.bytes[at - 1]))
        at--;
    while (at > 0 && !isspace((unsigned char)editor->text.bytes[at - 1]))
        at--;
    return at;
}

static size_t line_start(const struct line_editor *editor, size_t at)
{
    while (at > 0 && editor->text.bytes[at - 1] != '\n')
        at--;
    return at;
}

static size_t line_end(const struct line_editor *editor, size_t at)
{
    while (at < editor->text.n && editor->text.bytes[at] != '\n')
        at++;
    return at;
}

static void remove_between(struct line_editor *editor, size_t from, size_t to, bool keep)
{
    if (from == to) return;
    if (keep) buffer_set(editor, &editor->killed, editor->text.bytes + from, to - from);
    buffer_splice(&editor->text, from, to - from, "", 0);
    editor->cursor = from;
}

/* Ctrl-K at the end of a line takes the line break. */
static void kill_to_line_end(struct line_editor *editor)
{
    const size_t end = line_end(editor, editor->cursor);
    const bool at_break = end == editor->cursor && end < editor->text.n;
    remove_between(editor, editor->cursor, at_break ? end + 1 : end, true);
}

/* To the same column of the line above or below; false if there is none. */
static bool move_line(struct line_editor *editor, int direction)
{
    const size_t start = line_start(editor, editor->cursor), end = line_end(editor, editor->cursor);
    if (direction < 0 ? start == 0 : end == editor->text.n) return false;
    const int column = text_columns(editor->text.bytes + start, editor->cursor - start);
    size_t at = direction < 0 ? line_start(editor, start - 1) : end + 1;
    const size_t target_end = line_end(editor, at);
    const size_t target_start = at;
    while (at < target_end &&
           text_columns(editor->text.bytes + target_start, at - target_start) < column)
        at = next_char(editor, at);
    editor->cursor = at;
    return true;
}

/* ---- history ---- */

static size_t history_n(const struct line_editor *editor)
{
    return editor->config.history ? history_count(editor->config.history) : 0;
}

static void show_entry(struct line_editor *editor, size_t index)
{
    const size_t n = history_n(editor);
    if (editor->history_at == n)
        buffer_set(editor, &editor->draft, editor->text.bytes, editor->text.n);
    editor->history_at = index;
    if (index == n) {
        set_text(editor, editor->draft.bytes, editor->draft.n);
    } else {
        const char *entry = history_at(editor->config.history, index);
        set_text(editor, entry, strlen(entry));
    }
}

static void history_move(struct line_editor *editor, int direction)
{
    if (direction < 0 && editor->history_at > 0)
        show_entry(editor, editor->history_at - 1);
    else if (direction > 0 && editor->history_at < history_n(editor))
        show_entry(editor, editor->history_at + 1);
}

/* Shows the newest entry below `before` that contains the query; none: all stays. */
static void search_back(struct line_editor *editor, size_t before)
{
    for (size_t i = before; i-- > 0;) {
        const char *found = strstr(history_at(editor->config.history, i), editor->query.bytes);
        if (!found) continue;
        const size_t offset = (size_t)(found - history_at(editor->config.history, i));
        show_entry(editor, i);
        editor->cursor = offset;
        return;
    }
}

static void search_begin(struct line_editor *editor)
{
    editor->searching = true;
    buffer_set(editor, &editor->query, "", 0);
}

/* A key during the search. True: the search is over and the key is to be applied as usual. */
static bool search_key(struct line_editor *editor, const struct key *key)
{
    const bool control = key->code == KEY_CONTROL;
    if (key->code == KEY_TEXT) {
        buffer_add(editor, &editor->query, key->text, key->n);
        const size_t n = history_n(editor);
        search_back(editor, editor->history_at < n ? editor->history_at + 1 : n);
    } else if (control && key->byte == 'r') {
        search_back(editor, editor->history_at);
    } else if (key->code == KEY_BACKSPACE) {
        size_t at = editor->query.n;
        while (at > 0 && ((unsigned char)editor->query.bytes[--at] & 0xc0) == 0x80)
            ;
        buffer_splice(&editor->query, at, editor->query.n - at, "", 0);
        search_back(editor, history_n(editor));
    } else if (key->code == KEY_ESCAPE || (control && (key->byte == 'c' || key->byte == 'g'))) {
        editor->searching = false;
        show_entry(editor, history_n(editor));
    } else if (key->code != KEY_RESIZE && key->code != KEY_NONE) {
        editor->searching = false;
        return true;
    }
    return false;
}

/* ---- completion ---- */

void completion_offer(struct completion *completion, size_t start, const char *word)
{
    char **words = realloc(completion->words, (completion->n + 1) * sizeof(*words));
    if (!words) return;
    completion->words = words;
    completion->start = start;
    if ((words[completion->n] = strdup(word))) completion->n++;
}

static size_t common_prefix(const struct completion *completion)
{
    size_t n = strlen(completion->words[0]);
    for (size_t i = 1; i < completion->n; i++) {
        size_t same = 0;
        while (same < n && completion->words[i][same] == completion->words[0][same])
            same++;
        n = same;
    }
    while (n > 0 && ((unsigned char)completion->words[0][n] & 0xc0) == 0x80)
        n--;
    return n;
}

/* The words in columns below the message, which is then drawn anew. */
static void list_words(struct line_editor *editor, const struct completion *completion)
{
    int widest = 0, column = 0;
    const int n_column = terminal_columns(editor->config.out_fd, NULL);
    const size_t cursor = editor->cursor;
    leave_message(editor);
    editor->cursor = cursor;
    for (size_t i = 0; i < completion->n; i++) {
        const int width = text_columns(completion->words[i], strlen(completion->words[i]));
        if (width > widest) widest = width;
    }
    for (size_t i = 0; i < completion->n; i++) {
        char word[1024]; /* a file may be called anything */
        log_printable(completion->words[i], strlen(completion->words[i]), word, sizeof(word));
        const int width = text_columns(word, strlen(word));
        if (column > 0 && column + widest > n_column) {
            write_out(editor, "\r\n", 2);
            column = 0;
        }
        write_out(editor, word, strlen(word));
        for (int pad = width; pad < widest + 2 && column + pad < n_column; pad++)
            write_out(editor, " ", 1);
        column += widest + 2;
    }
    write_out(editor, "\r\n", 2);
}

static void complete(struct line_editor *editor)
{
    struct completion completion = {0};
    if (editor->config.complete)
        editor->config.complete(editor->config.context, editor->text.bytes, editor->cursor,
                                &completion);
    if (completion.n > 0) {
        const size_t n_typed = editor->cursor - completion.start;
        const size_t n_common = common_prefix(&completion);
        if (n_common > n_typed || completion.n == 1) {
            remove_between(editor, completion.start, editor->cursor, false);
            insert(editor, completion.words[0], n_common);
            /* A folder goes on; anything else is finished. */
            if (completion.n == 1 && n_common && completion.words[0][n_common - 1] != '/')
                insert(editor, " ", 1);
            editor->listed = false;
        } else if (editor->listed) {
            list_words(editor, &completion);
        } else {
            write_out(editor, "\a", 1);
            editor->listed = true;
        }
    }
    for (size_t i = 0; i < completion.n; i++)
        free(completion.words[i]);
    free(completion.words);
}

/* ---- external editor, paste, suspend ---- */

static int run_editor(const char *command, const char *path)
{
    char *line = NULL;
    if (asprintf(&line, "%s \"$1\"", command) < 0) return -1;
    int status = -1;
    const pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", line, "sh", path, (char *)NULL);
        _exit(127);
    }
    free(line);
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

/* Ctrl-G. What the editor leaves in the file becomes the message. */
static void edit_externally(struct line_editor *editor)
{
    char path[] = "/tmp/lean-message-XXXXXX";
    if (!editor->config.external_editor) return;
    const int fd = mkstemp(path);
    if (fd < 0) return;
    FILE *file = fdopen(fd, "w");
    if (file) fwrite(editor->text.bytes, 1, editor->text.n, file);
    const bool written = file && !fclose(file);

    leave_message(editor);
    leave_raw(editor);
    char *text;
    size_t n;
    if (written && run_editor(editor->config.external_editor, path) == 0 &&
        read_all_path(path, MAX_MESSAGE_BYTES, &text, &n, NULL) == LM_OK) {
        while (n > 0 && text[n - 1] == '\n')
            n--;
        set_text(editor, text, n);
        free(text);
    }
    unlink(path);
    enter_raw(editor);
}

/* Takes bytes up to the end mark into the text: line breaks as \n, other control characters and
 * malformed bytes left out. */
static void paste(struct line_editor *editor)
{
    static const char end_mark[] = "\x1b[201~";
    struct buffer pasted = {0};
    size_t n_matched = 0; /* bytes of the mark that the input ends in */
    for (int byte; n_matched < 6 && (byte = read_byte(editor)) >= 0;) {
        const char c = (char)byte;
        if (c != end_mark[n_matched]) { /* a mark has only one Esc, so no other match overlaps */
            buffer_add(editor, &pasted, end_mark, n_matched);
            n_matched = 0;
        }
        if (c == end_mark[n_matched])
            n_matched++;
        else if (pasted.n < MAX_MESSAGE_BYTES)
            buffer_add(editor, &pasted, &c, 1);
    }
    size_t n_kept = 0;
    for (size_t i = 0; i < pasted.n;) {
        const size_t length = utf8_decode(pasted.bytes + i, pasted.n - i, NULL);
        const char c = pasted.bytes[i];
        int width;
        text_char(pasted.bytes + i, pasted.n - i, &width);
        if (c == '\r') {
            pasted.bytes[n_kept++] = '\n';
            if (i + 1 < pasted.n && pasted.bytes[i + 1] == '\n') i++;
        } else if (length && (c == '\n' || c == '\t' || width >= 0)) {
            memmove(pasted.bytes + n_kept, pasted.bytes + i, length);
            n_kept += length;
        }
        i += length ? length : 1;
    }
    if (n_kept) insert(editor, pasted.bytes, n_kept);
    free(pasted.bytes);
}

static void suspend(struct line_editor *editor)
{
    if (!editor->is_terminal) return;
    leave_message(editor);
    leave_raw(editor);
    raise(SIGTSTP);
    enter_raw(editor);
}

/* ---- what keys do ---- */

static bool in_block(const struct line_editor *editor)
{
    const char *text = editor->text.bytes;
    return !strncmp(text, "\"\"\"", 3) && !strstr(text + 3, "\"\"\"");
}

/* Enter: true if the message is complete. */
static bool enter(struct line_editor *editor)
{
    const bool continued = editor->text.n && editor->text.bytes[editor->text.n - 1] == '\\';
    if (continued) {
        buffer_splice(&editor->text, editor->text.n - 1, 1, "\n", 1);
        editor->cursor = editor->text.n;
        return false;
    }
    if (in_block(editor)) {
        insert(editor, "\n", 1);
        return false;
    }
    return true;
}

static void apply_control(struct line_editor *editor, char letter)
{
    switch (letter) {
    case 'a':
        editor->cursor = line_start(editor, editor->cursor);
        break;
    case 'e':
        editor->cursor = line_end(editor, editor->cursor);
        break;
    case 'b':
        editor->cursor = previous_char(editor, editor->cursor);
        break;
    case 'f':
        editor->cursor = next_char(editor, editor->cursor);
        break;
    case 'k':
        kill_to_line_end(editor);
        break;
    case 'u':
        remove_between(editor, line_start(editor, editor->cursor), editor->cursor, true);
        break;
    case 'w':
        remove_between(editor, blank_left(editor), editor->cursor, true);
        break;
    case 'y':
        if (editor->killed.n) insert(editor, editor->killed.bytes, editor->killed.n);
        break;
    case 'l':
        write_out(editor, "\x1b[H\x1b[2J", 7);
        editor->cursor_row = 0;
        break;
    case 'p':
        history_move(editor, -1);
        break;
    case 'n':
        history_move(editor, 1);
        break;
    case 'r':
        search_begin(editor);
        break;
    case 'g':
        edit_externally(editor);
        break;
    case 'z':
        suspend(editor);
        break;
    default:
        break;
    }
}

static void apply_key(struct line_editor *editor, const struct key *key)
{
    switch (key->code) {
    case KEY_TEXT:
        insert(editor, key->text, key->n);
        break;
    case KEY_NEWLINE:
        insert(editor, "\n", 1);
        break;
    case KEY_TAB:
        complete(editor);
        break;
    case KEY_BACKSPACE:
        remove_between(editor, previous_char(editor, editor->cursor), editor->cursor, false);
        break;
    case KEY_DELETE: {
        const size_t at = editor->cursor;
        remove_between(editor, at, next_char(editor, at), false);
        break;
    }
    case KEY_LEFT:
        editor->cursor = previous_char(editor, editor->cursor);
        break;
    case KEY_RIGHT:
        editor->cursor = next_char(editor, editor->cursor);
        break;
    case KEY_UP:
        if (!move_line(editor, -1)) history_move(editor, -1);
        break;
    case KEY_DOWN:
        if (!move_line(editor, 1)) history_move(editor, 1);
        break;
    case KEY_HOME:
        editor->cursor = line_start(editor, editor->cursor);
        break;
    case KEY_END:
        editor->cursor = line_end(editor, editor->cursor);
        break;
    case KEY_WORD_LEFT:
        editor->cursor = word_left(editor);
        break;
    case KEY_WORD_RIGHT:
        editor->cursor = word_right(editor);
        break;
    case KEY_DELETE_WORD:
        remove_between(editor, editor->cursor, word_right(editor), true);
        break;
    case KEY_PASTE:
        paste(editor);
        break;
    case KEY_CONTROL:
        apply_control(editor, key->byte);
        break;
    case KEY_RESIZE:
        editor->resized = true;
        break;
    default:
        break;
    }
}

/* Keys that may end the reading; true: *event is set. */
static bool ends_reading(struct line_editor *editor, const struct key *key, enum line_event *event)
{
    const bool empty = editor->text.n == 0;
    const bool control = key->code == KEY_CONTROL;
    if (key->code == KEY_ENTER && enter(editor)) {
        *event = LINE_MESSAGE;
        return true;
    }
    if (key->code == KEY_EOF || (control && key->byte == 'd' && empty)) {
        *event = LINE_END;
        return true;
    }
    if (key->code == KEY_TERMINATED || (control && key->byte == 'c' && empty)) {
        *event = key->code == KEY_TERMINATED ? LINE_TERMINATED : LINE_INTERRUPT;
        return true;
    }
    if (control && key->byte == 'd') apply_key(editor, &(struct key){.code = KEY_DELETE});
    if (control && key->byte == 'c') {
        leave_message(editor);
        set_text(editor, "", 0);
        editor->history_at = history_n(editor);
    }
    return false;
}

enum lm_status line_editor_create(struct line_editor **out, const struct line_editor_config *config,
                                  struct lm_error *err)
{
    struct line_editor *editor = calloc(1, sizeof(*editor));
    if (!editor) return lm_fail(err, LM_E_NO_MEM, "no memory for the line editor");
    editor->config = *config;
    editor->is_terminal = !tcgetattr(config->in_fd, &editor->cooked);
    *out = editor;
    return LM_OK;
}

void line_editor_destroy(struct line_editor *editor)
{
    if (!editor) return;
    free(editor->text.bytes);
    free(editor->killed.bytes);
    free(editor->draft.bytes);
    free(editor->query.bytes);
    free(editor);
}

enum lm_status line_editor_read(struct line_editor *editor, const char *initial,
                                enum line_event *event, char **text, struct lm_error *err)
{
    set_text(editor, initial ? initial : "", initial ? strlen(initial) : 0);
    editor->history_at = history_n(editor);
    editor->searching = editor->listed = false;
    editor->cursor_row = 0;
    enter_raw(editor);
    draw(editor);
    for (bool done = false; !done && !editor->out_of_memory;) {
        const struct key key = read_key(editor);
        if (key.code != KEY_TAB) editor->listed = false;
        if (editor->searching && !search_key(editor, &key)) {
            draw(editor);
            continue;
        }
        done = ends_reading(editor, &key, event);
        if (!done) apply_key(editor, &key);
        /* Keys that are waiting would only be drawn over. */
        if (!done && !wait_for_input(editor, 0)) draw(editor);
    }
    leave_message(editor);
    leave_raw(editor);
    if (!editor->out_of_memory && *event == LINE_MESSAGE) {
        *text = strdup(editor->text.bytes);
        editor->out_of_memory = !*text;
    }
    return editor->out_of_memory ? lm_fail(err, LM_E_NO_MEM, "no memory for the message") : LM_OK;
}

void line_editor_unquote(char *text)
{
    size_t n = strlen(text);
    if (n < 6 || strncmp(text, "\"\"\"", 3)) return;
    char *end = strstr(text + 3, "\"\"\"");
    if (!end || strspn(end + 3, " \n") != strlen(end + 3)) return;
    char *start = text + 3;
    if (*start == '\n') start++;
    if (end > start && end[-1] == '\n') end--;
    n = end > start ? (size_t)(end - start) : 0;
    memmove(text, start, n);
    text[n] = '\0';
}
