/* One downloader for each file, across processes and hosts: a lock file that is created
 * exclusively.
 *
 * It names host, process and the time of the last heartbeat; advisory locks are not relied on,
 * because network file systems forget them. A lock is taken over when its heartbeat is older than
 * 60 s, by the clock or by having been watched for so long, and at once when its process was of
 * this host and is gone. Two that take over at the same time find out: the lock carries a random
 * number, and whoever moved away another than the one that was stale puts it back. A holder that
 * was stopped for so long that others took over learns it at its next heartbeat.
 *
 * Threads: one owner. */
#ifndef LEAN_COORDINATOR_HUB_HUB_LOCK_H
#define LEAN_COORDINATOR_HUB_HUB_LOCK_H

#include "proto/base/error.h"

enum { HUB_LOCK_STALE_S = 60, HUB_LOCK_BEAT_S = 5 };

struct hub_lock;

/* Called twice a second while another holds the lock; holder: "process 123 on host a". Not LM_OK:
 * waiting ends with that. */
typedef enum lm_status (*hub_lock_wait_fn)(void *context, const char *path, const char *holder,
                                           struct lm_error *err);

enum lm_status hub_lock_acquire(struct hub_lock **out, const char *path, hub_lock_wait_fn wait,
                                void *context, struct lm_error *err);
/* To be called at least every few seconds; writes at most every HUB_LOCK_BEAT_S. LM_E_BUSY: another
 * has taken it over. */
enum lm_status hub_lock_beat(struct hub_lock *lock, struct lm_error *err);
void hub_lock_release(struct hub_lock *lock); /* NULL is legal */

#endif
