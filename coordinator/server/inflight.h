/* The answers being generated: to be listed (/slots), cancelled by name, counted.
 *
 * Whoever generates adds an entry, keeps its sequences' numbers current and removes it.
 *
 * Ownership: entries belong to whoever added them, until removed.
 * Threads:   all functions from any thread; the numbers of a sequence are written by one thread
 *            and read by any. Lock order: the table's lock is taken before anything else is. */
#ifndef LEAN_COORDINATOR_SERVER_INFLIGHT_H
#define LEAN_COORDINATOR_SERVER_INFLIGHT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/server/expert_report.h"

enum sequence_state { SEQUENCE_QUEUED, SEQUENCE_PREFILL, SEQUENCE_DECODE, SEQUENCE_DONE };

struct inflight_sequence {
    atomic_int state;              /* enum sequence_state */
    atomic_uint_fast32_t n_past;   /* prompt tokens read and tokens generated */
    atomic_uint_fast32_t n_cached; /* of the prompt */
    atomic_uint_fast32_t n_decoded;
    atomic_uint_fast32_t n_draft, n_draft_accepted;
    uint32_t n_prompt, n_max;     /* set before the entry is added */
    _Atomic double first_token_s; /* by log_now_s; 0: none yet */
    struct live_expert_usage experts;
};

struct inflight_entry {
    const char *id;         /* of the answer, "chatcmpl-..." */
    const char *request_id; /* the X-Request-Id */
    double accepted_s;
    struct inflight_sequence *sequence; /* [n_sequence] */
    size_t n_sequence;
    /* Makes the answer end with what it has, finish reason "abort". Called with the table locked,
     * at most once; must not add or remove. */
    void (*cancel)(void *context);
    void *context;
    bool cancelled;
    struct inflight_entry *next, *previous; /* private */
};

struct inflight {
    pthread_mutex_t lock;
    struct inflight_entry *first, *last; /* guarded by lock, in order of arrival */
};

void inflight_init(struct inflight *inflight);
void inflight_fini(struct inflight *inflight); /* nothing may be under way */

void inflight_add(struct inflight *inflight, struct inflight_entry *entry);
/* Afterwards cancel is not called any more. */
void inflight_remove(struct inflight *inflight, struct inflight_entry *entry);
/* By either name. The entry's own id goes to *id (size bytes). False: there is none. */
bool inflight_cancel(struct inflight *inflight, const char *name, char *id, size_t size);

/* Of a sequence that generates, since its first token. */
double inflight_tokens_per_s(const struct inflight_sequence *sequence, double now_s);

#endif
