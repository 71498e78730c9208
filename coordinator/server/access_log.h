/* The access log: one line per request, at its end.
 *
 * Writing never blocks and never fails a request: a line that a full disk or a reader that sleeps
 * does not take is dropped, and how many were is said once there is room again. A file that was
 * moved away is opened anew.
 *
 * Threads: lines from one thread. */
#ifndef LEAN_COORDINATOR_SERVER_ACCESS_LOG_H
#define LEAN_COORDINATOR_SERVER_ACCESS_LOG_H

#include <stdbool.h>

#include "coordinator/server/http.h"
#include "proto/base/error.h"

struct access_log;

/* path: NULL is stderr. LM_E_IO, LM_E_NOT_FOUND: the file cannot be written. */
enum lm_status access_log_open(struct access_log **out, const char *path, bool json,
                               struct lm_error *err);
void access_log_close(struct access_log *log); /* NULL is legal */
void access_log_write(struct access_log *log, const struct http_record *record);

#endif
