/* Records are appended to growing lists; pointers into them are set when all have been read. */
#include "worker/pager/route_log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/read_all.h"
#include "proto/base/unpack_memory.h"
#include "proto/trace.pb-c.h"

enum { TRACE_BYTES_MAX = 1 << 30, TRACE_LAYER_MAX = 4096, TRACE_EXPERT_MAX = 65536 };

struct list {
    void *data;
    size_t n, room, size; /* of elements; size of one in bytes */
};

struct owned_log {
    struct route_log log; /* first: what the reader of the log sees */
    struct list step, choice, slot, position, expert;
};

struct reading {
    struct owned_log *owned;
    const char *path;
    const uint8_t *at, *end;
    size_t n_record;
    struct lm_error *err;
};

static enum lm_status append(struct reading *reading, struct list *list, const void *items,
                             size_t n)
{
    if (list->room - list->n < n) {
        const size_t room = 2 * (list->n + n) + 64;
        void *grown = realloc(list->data, room * list->size);
        if (!grown)
            return lm_fail(reading->err, LM_E_NO_MEM, "%s: no memory for %zu entries",
                           reading->path, room);
        list->data = grown;
        list->room = room;
    }
    if (n) memcpy((char *)list->data + list->n * list->size, items, n * list->size);
    list->n += n;
    return LM_OK;
}

static enum lm_status malformed(const struct reading *reading, const char *what)
{
    return lm_fail(reading->err, LM_E_FORMAT, "%s: record %zu: %s", reading->path,
                   reading->n_record, what);
}

static enum lm_status take_header(struct reading *reading, const Lean__TraceHeader *header)
{
    struct route_log *log = &reading->owned->log;
    if (log->n_expert) return malformed(reading, "a second header");
    if (header->version != 1)
        return lm_fail(reading->err, LM_E_UNSUPPORTED, "%s: trace of version %u, this is for 1",
                       reading->path, header->version);
    if (!header->n_layer || header->n_layer > TRACE_LAYER_MAX || !header->n_expert ||
        header->n_expert > TRACE_EXPERT_MAX || !header->n_expert_used ||
        header->n_expert_used > header->n_expert)
        return malformed(reading, "a model of that size cannot be");
    log->n_layer = header->n_layer;
    log->n_expert = header->n_expert;
    log->n_expert_used = header->n_expert_used;
    snprintf(log->architecture, sizeof(log->architecture), "%s",
             header->architecture ? header->architecture : "");
    return LM_OK;
}

static int compare_slots(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Sorts. */
static bool has_twice(uint32_t *slot, size_t n)
{
    qsort(slot, n, sizeof(*slot), compare_slots);
    for (size_t i = 1; i < n; i++)
        if (slot[i] == slot[i - 1]) return true;
    return false;
}

static enum lm_status take_step(struct reading *reading, const Lean__TraceStep *message)
{
    struct owned_log *owned = reading->owned;
    struct route_step step = {.n_row = (uint32_t)message->n_slot};
    if (!owned->log.n_expert) return malformed(reading, "a step before the header");
    if (message->n_slot > UINT32_MAX || message->n_position != message->n_slot)
        return malformed(reading, "tokens without a sequence or a position");
    enum lm_status status = append(reading, &owned->slot, message->slot, message->n_slot);
    if (status == LM_OK)
        status = append(reading, &owned->position, message->position, message->n_slot);
    if (status != LM_OK) return status;
    step.prefill = has_twice(message->slot, message->n_slot);
    return append(reading, &owned->step, &step, 1);
}

static enum lm_status take_layer(struct reading *reading, const Lean__TraceLayer *message)
{
    struct owned_log *owned = reading->owned;
    const struct route_log *log = &owned->log;
    if (!owned->step.n) return malformed(reading, "a layer before the first step");
    struct route_step *step = (struct route_step *)owned->step.data + owned->step.n - 1;
    const struct route_choice choice = {
        .layer = message->layer, .n_row = (uint32_t)(message->n_expert / log->n_expert_used)};
    if (message->layer >= log->n_layer) return malformed(reading, "no such layer");
    if (message->n_expert % log->n_expert_used || choice.n_row > step->n_row)
        return malformed(reading, "choices do not match the tokens of the step");
    for (size_t i = 0; i < message->n_expert; i++)
        if (message->expert[i] >= log->n_expert) return malformed(reading, "no such expert");
    enum lm_status status = append(reading, &owned->expert, message->expert, message->n_expert);
    if (status != LM_OK) return status;
    step->n_layer++;
    return append(reading, &owned->choice, &choice, 1);
}

static enum lm_status take_record(struct reading *reading, size_t n_bytes)
{
    struct unpack_memory memory;
    unpack_memory_init(&memory, SIZE_MAX);
    Lean__TraceRecord *record = lean__trace_record__unpack(&memory.allocator, n_bytes, reading->at);
    if (!record && memory.failed)
        return lm_fail(reading->err, LM_E_NO_MEM, "%s: record %zu: no memory for its %zu bytes",
                       reading->path, reading->n_record, n_bytes);
    if (!record) return malformed(reading, "not a trace record");
    enum lm_status status;
    if (record->kind_case == LEAN__TRACE_RECORD__KIND_HEADER)
        status = take_header(reading, record->header);
    else if (record->kind_case == LEAN__TRACE_RECORD__KIND_STEP)
        status = take_step(reading, record->step);
    else if (record->kind_case == LEAN__TRACE_RECORD__KIND_LAYER)
        status = take_layer(reading, record->layer);
    else
        status = malformed(reading, "of no known kind");
    lean__trace_record__free_unpacked(record, NULL);
    return status;
}

/* False: the file ends first. Sizes of more than 2^63 do not end before it does either. */
static bool take_size(struct reading *reading, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 63 && reading->at < reading->end; shift += 7) {
        const uint8_t byte = *reading->at++;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return *out <= (size_t)(reading->end - reading->at);
    }
    return false;
}

static enum lm_status take_records(struct reading *reading)
{
    while (reading->at < reading->end) {
        uint64_t n_bytes;
        if (!take_size(reading, &n_bytes)) {
            reading->owned->log.cut_off = true;
            break;
        }
        const enum lm_status status = take_record(reading, n_bytes);
        if (status != LM_OK) return status;
        reading->at += n_bytes;
        reading->n_record++;
    }
    if (!reading->owned->log.n_expert)
        return lm_fail(reading->err, LM_E_FORMAT, "%s: not a routing trace", reading->path);
    return LM_OK;
}

static void set_pointers(struct owned_log *owned)
{
    struct route_choice *choice = owned->choice.data;
    const uint32_t *slot = owned->slot.data, *position = owned->position.data;
    const uint32_t *expert = owned->expert.data;
    struct route_step *step = owned->step.data;
    owned->log.step = step;
    owned->log.n_step = owned->step.n;
    for (size_t i = 0; i < owned->step.n; i++, step++) {
        step->slot = slot;
        step->position = position;
        step->layer = choice;
        slot += step->n_row;
        position += step->n_row;
        for (uint32_t k = 0; k < step->n_layer; k++, choice++) {
            choice->expert = expert;
            expert += (size_t)choice->n_row * owned->log.n_expert_used;
        }
    }
}

enum lm_status route_log_read(struct route_log **out, const char *path, struct lm_error *err)
{
    char *bytes;
    size_t n_bytes;
    enum lm_status status = read_all_path(path, TRACE_BYTES_MAX, &bytes, &n_bytes, err);
    if (status != LM_OK) return status;
    struct owned_log *owned = calloc(1, sizeof(*owned));
    if (!owned) {
        free(bytes);
        return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    }
    owned->step.size = sizeof(struct route_step);
    owned->choice.size = sizeof(struct route_choice);
    owned->slot.size = owned->position.size = owned->expert.size = sizeof(uint32_t);
    struct reading reading = {.owned = owned,
                              .path = path,
                              .at = (const uint8_t *)bytes,
                              .end = (const uint8_t *)bytes + n_bytes,
                              .err = err};
    status = take_records(&reading);
    free(bytes);
    if (status != LM_OK) {
        route_log_destroy(&owned->log);
        return status;
    }
    set_pointers(owned);
    *out = &owned->log;
    return LM_OK;
}

void route_log_destroy(struct route_log *log)
{
    struct owned_log *owned = (struct owned_log *)log;
    if (!owned) return;
    free(owned->expert.data);
    free(owned->position.data);
    free(owned->slot.data);
    free(owned->choice.data);
    free(owned->step.data);
    free(owned);
}
