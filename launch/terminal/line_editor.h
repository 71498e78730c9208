/* Line editor of the interactive chat: one message, of one line or several, from a terminal.
 *
 *   Enter                         send, unless the text ends in a backslash (which becomes a line
 *                                 break) or a """ block is open
 *   Alt-Enter, Ctrl-J             line break
 *   Ctrl-A E B F K U W Y L, Alt-B F D, Home, End, Delete, arrows, Ctrl- and Alt-arrows
 *   Up Down, Ctrl-P N             between lines, then through the history; Ctrl-R searches it
 *   Ctrl-G                        edit in an external editor
 *   Tab                           complete
 *   Ctrl-C, Ctrl-D, Ctrl-Z        clear, leave, suspend
 *   pasted text                   one piece, line breaks kept (bracketed paste)
 *
 * The message is shown below the cursor's line, in as many rows as it takes; of one taller than
 * the screen the rows around the cursor. Widths: text_width.h. On a descriptor that is no terminal
 * the same keys work, without raw mode.
 *
 * Threads: the calling thread only, between interrupt_begin and interrupt_end (interrupt.h). */
#ifndef LEAN_LAUNCH_TERMINAL_LINE_EDITOR_H
#define LEAN_LAUNCH_TERMINAL_LINE_EDITOR_H

#include <stddef.h>

#include "proto/base/error.h"

struct history;
struct line_editor;
struct completion;

struct line_editor_config {
    int in_fd, out_fd;
    const char *prompt;          /* ">>> " */
    const char *continuation;    /* "... ", before the other lines */
    const char *external_editor; /* shell command for Ctrl-G, or NULL */
    struct history *history;     /* borrowed; read here, added to by the caller */
    /* Offers what the text up to cursor could become, through completion_offer; may be NULL. */
    void (*complete)(void *context, const char *text, size_t cursor, struct completion *completion);
    void *context;
};

/* text[start..cursor) could be replaced by word; all offers of one call share start. */
void completion_offer(struct completion *completion, size_t start, const char *word);

enum line_event {
    LINE_MESSAGE,   /* a message was sent */
    LINE_INTERRUPT, /* Ctrl-C on an empty line */
    LINE_END,       /* Ctrl-D on an empty line, or the end of the input */
    LINE_TERMINATED /* SIGTERM or SIGHUP came */
};

/* config: copied, what it points to is borrowed. */
enum lm_status line_editor_create(struct line_editor **out, const struct line_editor_config *config,
                                  struct lm_error *err);
void line_editor_destroy(struct line_editor *editor);

/* Edits from `initial` (NULL: empty) until an event. On LINE_MESSAGE *text is the message as
 * entered, malloc'ed; line_editor_unquote takes the """ marks off. LM_E_IO: the terminal failed. */
enum lm_status line_editor_read(struct line_editor *editor, const char *initial,
                                enum line_event *event, char **text, struct lm_error *err);

/* Removes the """ around a block, in place. */
void line_editor_unquote(char *text);

#endif
