/* Records are packed into one buffer, grown as needed, and written with their size before them. */
#include "worker/pager/trace.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/model/hparams.h"
#include "proto/trace.pb-c.h"

struct route_trace {
    FILE *file; /* that of kept if there is no path */
    char *kept; /* [n_kept] in memory */
    size_t n_kept;
    char *path;
    int failed_errno; /* of the first failure; 0: none */
    uint32_t n_expert_used;
    uint32_t *slot, *position; /* [n_batch] */
    uint32_t *expert;          /* [n_batch][n_expert_used] */
    uint8_t *packed;
    size_t packed_bytes;
};

static void write_record(struct route_trace *trace, const Lean__TraceRecord *record)
{
    uint8_t size_text[10];
    size_t n_size = 0;
    const size_t n = lean__trace_record__get_packed_size(record);
    if (trace->failed_errno) return;
    if (n > trace->packed_bytes) {
        uint8_t *grown = realloc(trace->packed, n);
        if (!grown) {
            trace->failed_errno = ENOMEM;
            return;
        }
        trace->packed = grown;
        trace->packed_bytes = n;
    }
    for (size_t left = n; n_size == 0 || left; left >>= 7)
        size_text[n_size++] = (uint8_t)((left & 0x7f) | (left > 0x7f ? 0x80 : 0));
    lean__trace_record__pack(record, trace->packed);
    if (fwrite(size_text, 1, n_size, trace->file) != n_size ||
        fwrite(trace->packed, 1, n, trace->file) != n)
        trace->failed_errno = errno ? errno : EIO;
}

static void write_header(struct route_trace *trace, const struct hparams *hp)
{
    Lean__TraceHeader header = LEAN__TRACE_HEADER__INIT;
    Lean__TraceRecord record = LEAN__TRACE_RECORD__INIT;
    header.has_version = header.has_n_layer = header.has_n_expert = header.has_n_expert_used = 1;
    header.version = 1;
    header.architecture = (char *)hp->arch->name; /* packing only reads it */
    header.n_layer = hp->n_layer;
    header.n_expert = hp->n_expert;
    header.n_expert_used = hp->n_expert_used;
    record.kind_case = LEAN__TRACE_RECORD__KIND_HEADER;
    record.header = &header;
    write_record(trace, &record);
}

enum lm_status route_trace_create(struct route_trace **out, const char *path,
                                  const struct hparams *hp, uint32_t n_batch, struct lm_error *err)
{
    const bool named = path;
    if (!hp->n_expert)
        return lm_fail(err, LM_E_UNSUPPORTED, "%s has no routed experts to trace", hp->arch->name);
    enum lm_status status = LM_E_NO_MEM;
    struct route_trace *trace = calloc(1, sizeof(*trace));
    if (!trace) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    trace->n_expert_used = hp->n_expert_used;
    if (!path) path = "trace";
    trace->path = strdup(path);
    trace->slot = calloc(n_batch, sizeof(*trace->slot));
    trace->position = calloc(n_batch, sizeof(*trace->position));
    trace->expert = calloc((size_t)n_batch * hp->n_expert_used, sizeof(*trace->expert));
    if (!trace->path || !trace->slot || !trace->position || !trace->expert) {
        lm_fail(err, LM_E_NO_MEM, "%s: no memory for steps of %u tokens", path, n_batch);
        goto close_trace;
    }
    trace->file = named ? fopen(path, "wbe") : open_memstream(&trace->kept, &trace->n_kept);
    if (!trace->file) {
        status = lm_fail_errno(err, "%s: open", path);
        goto close_trace;
    }
    if (named) write_header(trace, hp);
    *out = trace;
    return LM_OK;

close_trace:
    route_trace_close(trace, NULL);
    return status;
}

enum lm_status route_trace_close(struct route_trace *trace, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    if (!trace) return LM_OK;
    if (trace->file && fclose(trace->file) != 0 && !trace->failed_errno)
        trace->failed_errno = errno;
    if (trace->failed_errno) {
        errno = trace->failed_errno;
        status = lm_fail_errno(err, "%s: write", trace->path);
    }
    free(trace->kept);
    free(trace->packed);
    free(trace->expert);
    free(trace->position);
    free(trace->slot);
    free(trace->path);
    free(trace);
    return status;
}

void route_trace_take(struct route_trace *trace, const uint8_t **records, size_t *n_bytes)
{
    fflush(trace->file);
    *records = (const uint8_t *)trace->kept;
    *n_bytes = (size_t)ftello(trace->file);
    rewind(trace->file);
}

void route_trace_append(struct route_trace *trace, const uint8_t *records, size_t n_bytes)
{
    if (trace->failed_errno || fwrite(records, 1, n_bytes, trace->file) == n_bytes) return;
    trace->failed_errno = errno ? errno : EIO;
}

void route_trace_step(struct route_trace *trace, const struct token_ref *token, const int32_t *ids,
                      uint32_t n_token)
{
    Lean__TraceStep step = LEAN__TRACE_STEP__INIT;
    Lean__TraceRecord record = LEAN__TRACE_RECORD__INIT;
    for (uint32_t it = 0; it < n_token; it++) {
        trace->slot[it] = token[it].slot;
        trace->position[it] = token[it].pos;
    }
    step.n_slot = step.n_position = step.n_token = n_token;
    step.slot = trace->slot;
    step.position = trace->position;
    step.token = (int32_t *)ids;
    record.kind_case = LEAN__TRACE_RECORD__KIND_STEP;
    record.step = &step;
    write_record(trace, &record);
}

void route_trace_layer(struct route_trace *trace, uint32_t layer, const int32_t *expert,
                       const float *weight, uint32_t n_token)
{
    Lean__TraceLayer message = LEAN__TRACE_LAYER__INIT;
    Lean__TraceRecord record = LEAN__TRACE_RECORD__INIT;
    const size_t n = (size_t)n_token * trace->n_expert_used;
    for (size_t i = 0; i < n; i++)
        trace->expert[i] = (uint32_t)expert[i];
    message.has_layer = 1;
    message.layer = layer;
    message.n_expert = message.n_weight = n;
    message.expert = trace->expert;
    message.weight = (float *)weight;
    record.kind_case = LEAN__TRACE_RECORD__KIND_LAYER;
    record.layer = &message;
    write_record(trace, &record);
}
