#include "coordinator/server/call_record.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/server/call_memory.h"
#include "coordinator/text/tokenizer.h"

void call_record_token(struct call_record *record, int32_t id)
{
    byte_buffer_put(&record->ids, (const char *)&id, sizeof(id));
}

void call_record_content(struct call_record *record, const char *text, size_t n)
{
    byte_buffer_put(&record->content, text, n);
}

void call_record_call(struct call_record *record, const char *id, const char *name, size_t n)
{
    if (record->n_call++) byte_buffer_put(&record->calls, "", 1);
    byte_buffer_put(&record->calls, id, strlen(id) + 1);
    byte_buffer_put(&record->calls, name, n);
    byte_buffer_put(&record->calls, "", 1);
}

void call_record_arguments(struct call_record *record, const char *text, size_t n)
{
    byte_buffer_put(&record->calls, text, n);
}

/* The tokens before the content: up to </think> and the line breaks behind it. False: a token goes
 * over that place. */
static bool find_lead(const int32_t *ids, size_t n_id, const struct tokenizer *tokenizer,
                      size_t *n_lead)
{
    static const char close[] = "</think>";
    struct byte_buffer text = {0};
    size_t n, end = 0, at = 0;
    for (size_t i = 0; i < n_id; i++) {
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], true, &n);
        byte_buffer_put(&text, bytes, n);
    }
    const char *mark = text.n ? memmem(text.data, text.n, close, sizeof(close) - 1) : NULL;
    if (mark) end = (size_t)(mark - text.data) + sizeof(close) - 1;
    while (mark && end < text.n && text.data[end] == '\n')
        end++;
    const bool good = mark && !text.failed;
    byte_buffer_free(&text);
    for (*n_lead = 0; good && at < end; ++*n_lead) {
        tokenizer_token_bytes(tokenizer, ids[*n_lead], true, &n);
        at += n;
    }
    return good && at == end;
}

void call_record_save(struct call_record *record, struct call_memory *memory,
                      const struct tokenizer *tokenizer, bool has_reasoning)
{
    const size_t n_id = record->ids.n / sizeof(int32_t);
    size_t n_lead = 0;
    byte_buffer_put(&record->calls, "", 1);
    if (!n_id || record->ids.failed || record->content.failed || record->calls.failed) return;
    struct call_memory_call *calls = calloc(record->n_call, sizeof(*calls));
    int32_t *ids = malloc(n_id * sizeof(*ids)); /* aligned */
    if (ids) memcpy(ids, record->ids.data, n_id * sizeof(*ids));
    const char *at = record->calls.data;
    for (size_t i = 0; calls && i < record->n_call; i++) {
        calls[i].id = at;
        calls[i].name = at = strchr(at, '\0') + 1;
        calls[i].arguments = at = strchr(at, '\0') + 1;
        at = strchr(at, '\0') + 1;
    }
    if (calls && ids && (!has_reasoning || find_lead(ids, n_id, tokenizer, &n_lead)))
        call_memory_put(memory, calls, record->n_call,
                        record->content.data ? record->content.data : "", ids, n_id, n_lead);
    free(calls);
    free(ids);
}

void call_record_fini(struct call_record *record)
{
    byte_buffer_free(&record->ids);
    byte_buffer_free(&record->content);
    byte_buffer_free(&record->calls);
}
