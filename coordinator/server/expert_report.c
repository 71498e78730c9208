#include "coordinator/server/expert_report.h"

#include <math.h>

#include "coordinator/server/json_write.h"

void live_expert_usage_set(struct live_expert_usage *live, const struct expert_usage *usage)
{
    atomic_store(&live->n_lookup, usage->n_lookup);
    atomic_store(&live->n_hit, usage->n_hit);
    atomic_store(&live->n_joined, usage->n_joined);
    atomic_store(&live->n_miss, usage->n_miss);
    atomic_store(&live->n_shared, usage->n_shared);
    atomic_store(&live->miss_bytes, usage->miss_bytes);
    atomic_store(&live->wait_s, usage->wait_s);
}

struct expert_usage live_expert_usage_get(const struct live_expert_usage *live)
{
    return (struct expert_usage){.n_lookup = atomic_load(&live->n_lookup),
                                 .n_hit = atomic_load(&live->n_hit),
                                 .n_joined = atomic_load(&live->n_joined),
                                 .n_miss = atomic_load(&live->n_miss),
                                 .n_shared = atomic_load(&live->n_shared),
                                 .miss_bytes = atomic_load(&live->miss_bytes),
                                 .wait_s = atomic_load(&live->wait_s)};
}

bool expert_usage_any(const struct expert_usage *usage)
{
    return usage->n_lookup + usage->n_shared > 0;
}

void expert_usage_put(struct json_writer *writer, const struct expert_usage *usage)
{
    const struct {
        const char *name;
        uint64_t n;
    } counts[] = {{"lookups", usage->n_lookup}, {"hits", usage->n_hit},
                  {"joined", usage->n_joined},  {"misses", usage->n_miss},
                  {"shared", usage->n_shared},  {"miss_bytes", usage->miss_bytes}};
    if (!expert_usage_any(usage)) {
        json_put_null(writer);
        return;
    }
    json_open(writer, '{');
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        json_put_key(writer, counts[i].name);
        json_put_int(writer, (int64_t)counts[i].n);
    }
    json_put_key(writer, "wait_ms");
    json_put_real(writer, round(usage->wait_s * 1e6) / 1e3);
    json_close(writer, '}');
}
