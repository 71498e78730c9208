/* What a request took of paged experts (struct expert_usage), as answers, logs and lists tell it:
 *
 *   {"lookups":96,"hits":90,"joined":2,"misses":4,"shared":0,"miss_bytes":1212416,"wait_ms":3.1}
 *
 * Threads: a live usage is written by one thread and read by any, each number for itself. */
#ifndef LEAN_COORDINATOR_SERVER_EXPERT_REPORT_H
#define LEAN_COORDINATOR_SERVER_EXPERT_REPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/step.h"

struct json_writer;

struct live_expert_usage {
    atomic_uint_fast64_t n_lookup, n_hit, n_joined, n_miss, n_shared, miss_bytes;
    _Atomic double wait_s;
};

void live_expert_usage_set(struct live_expert_usage *live, const struct expert_usage *usage);
struct expert_usage live_expert_usage_get(const struct live_expert_usage *live);

/* False: nothing was looked up; the experts are mapped, there are none, or no step has run. */
bool expert_usage_any(const struct expert_usage *usage);
/* The object; null if there is nothing. */
void expert_usage_put(struct json_writer *writer, const struct expert_usage *usage);

#endif
