/* The servers of this user on this machine: each says where it is, others find and end it.
 *
 * A server has two files in $XDG_RUNTIME_DIR/lean (or lean-UID in the temporary directory, mode
 * 0700): PID.json tells what does not change, PID.sock answers every connection with one line of
 * JSON about now. The first is locked as long as its server lives, so what a killed one leaves
 * behind is known and removed.
 *
 * Threads: one owner. */
#ifndef LEAN_LAUNCH_REGISTRY_H
#define LEAN_LAUNCH_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "proto/base/error.h"

struct json_object; /* json-c */
struct registry;

/* ---- for a server ---- */

/* facts: an object; "pid" is added. LM_E_IO and others: the files cannot be made. */
enum lm_status registry_enter(struct registry **out, struct json_object *facts,
                              struct lm_error *err);
/* Replaces what is told of the server. */
enum lm_status registry_update(struct registry *registry, struct json_object *facts,
                               struct lm_error *err);
int registry_fd(const struct registry *registry); /* readable: somebody asks */
/* Answers whoever asks; never blocks. */
void registry_answer(struct registry *registry, struct json_object *now);
void registry_leave(struct registry *registry); /* NULL is legal */

/* ---- for those who ask ---- */

struct registry_entry {
    pid_t pid;
    struct json_object *facts; /* of PID.json, and those of PID.sock under the same names */
};
/* All servers that live, by pid; *out: malloc'ed, for registry_free_list. */
enum lm_status registry_list(struct registry_entry **out, size_t *n, struct lm_error *err);
void registry_free_list(struct registry_entry *entries, size_t n);
/* Whether the server still lives. */
bool registry_lives(pid_t pid);

#endif
