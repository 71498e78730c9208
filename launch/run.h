/* What the two halves of `lean run` share: one-shot (cli_run.c) and interactive (repl.c). */
#ifndef LEAN_LAUNCH_RUN_H
#define LEAN_LAUNCH_RUN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>

#include "launch/chat.h"

struct run {
    struct options *options;
    struct engine *engine;
    struct chat *chat;
    bool raw;     /* no template: texts are continued as they are */
    bool verbose; /* timings after each answer */
    bool interactive;
    atomic_bool is_lost; /* a rank, and with it the job; then why */
    struct lm_error lost;
};

/* The two lines of --verbose. */
void run_print_timings(FILE *out, const struct engine *engine, const struct chat_answer *answer);

/* Whether thinking is shown; by_default: without --show-thinking and --hide-thinking. */
bool run_shows_thinking(const struct run *run, bool by_default);

/* Chats on the terminal until the user leaves. LM_E_INTERRUPTED: a signal ended it. */
enum lm_status repl_run(struct run *run, struct lm_error *err);

#endif
