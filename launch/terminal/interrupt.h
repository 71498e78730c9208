/* Signals of an interactive command, turned into flags and a descriptor that poll can watch.
 *
 * Between begin and end SIGINT, SIGTERM, SIGHUP and SIGWINCH set a flag and make interrupt_fd
 * readable, whichever thread they reach. A process has one set of signal handlers, so the state is
 * the process's too. */
#ifndef LEAN_LAUNCH_TERMINAL_INTERRUPT_H
#define LEAN_LAUNCH_TERMINAL_INTERRUPT_H

#include <stdbool.h>

#include "proto/base/error.h"

enum interrupt_kind {
    INTERRUPT_STOP /* SIGINT */,
    INTERRUPT_END /* SIGTERM, SIGHUP */,
    INTERRUPT_RESIZE,
    INTERRUPT_KIND_COUNT
};

/* on_stop: called inside the handler of SIGINT, SIGTERM and SIGHUP, so only what is safe there;
 * may be NULL. */
enum lm_status interrupt_begin(void (*on_stop)(void *context), void *context, struct lm_error *err);
void interrupt_end(void);

int interrupt_fd(void);
/* Whether the signal came since the last take; empties the descriptor. */
bool interrupt_take(enum interrupt_kind kind);
/* The same without taking it. */
bool interrupt_pending(enum interrupt_kind kind);
/* The number of the signal that INTERRUPT_END stands for, once it came. */
int interrupt_end_signal(void);

#endif
