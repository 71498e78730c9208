#include "coordinator/server/call_memory.h"

#include <json-c/json.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { N_BUCKET = 1 << 14 };

struct answer;

/* A call in its bucket. */
struct entry {
    char *id, *name, *arguments;
    struct answer *answer;
    struct entry *next;
};

struct answer {
    struct entry *entries; /* [n_entry] */
    size_t n_entry;
    char *content;
    int32_t *ids; /* [n_id] */
    size_t n_id, n_lead, n_bytes;
    struct answer *newer, *older; /* by use */
};

struct call_memory {
    size_t n_call_max, n_bytes_max;
    pthread_mutex_t lock;
    struct entry *buckets[N_BUCKET]; /* guarded by lock, like the rest */
    struct answer *newest, *oldest;
    size_t n_call, n_bytes;
};

static size_t bucket_of(const char *id)
{
    return XXH3_64bits(id, strlen(id)) % N_BUCKET;
}

static void free_answer(struct answer *answer)
{
    if (!answer) return;
    for (size_t i = 0; i < answer->n_entry; i++) {
        free(answer->entries[i].id);
        free(answer->entries[i].name);
        free(answer->entries[i].arguments);
    }
    free(answer->entries);
    free(answer->content);
    free(answer->ids);
    free(answer);
}

struct call_memory *call_memory_create(size_t n_call_max, size_t n_bytes_max)
{
    struct call_memory *memory = calloc(1, sizeof(*memory));
    if (!memory) return NULL;
    memory->n_call_max = n_call_max;
    memory->n_bytes_max = n_bytes_max;
    pthread_mutex_init(&memory->lock, NULL);
    return memory;
}

/* ---- order of use, lock held ---- */

static void unlink_locked(struct call_memory *memory, struct answer *answer)
{
    *(answer->newer ? &answer->newer->older : &memory->newest) = answer->older;
    *(answer->older ? &answer->older->newer : &memory->oldest) = answer->newer;
}

static void link_newest_locked(struct call_memory *memory, struct answer *answer)
{
    answer->newer = NULL;
    answer->older = memory->newest;
    *(answer->older ? &answer->older->newer : &memory->oldest) = answer;
    memory->newest = answer;
}

static void forget_locked(struct call_memory *memory, struct answer *answer)
{
    for (size_t i = 0; i < answer->n_entry; i++) {
        struct entry **at = &memory->buckets[bucket_of(answer->entries[i].id)];
        while (*at != &answer->entries[i])
            at = &(*at)->next;
        *at = answer->entries[i].next;
    }
    unlink_locked(memory, answer);
    memory->n_call -= answer->n_entry;
    memory->n_bytes -= answer->n_bytes;
    free_answer(answer);
}

void call_memory_destroy(struct call_memory *memory)
{
    if (!memory) return;
    while (memory->newest)
        forget_locked(memory, memory->newest);
    pthread_mutex_destroy(&memory->lock);
    free(memory);
}

/* ---- putting ---- */

/* A copy of text, counted. */
static char *keep(struct answer *answer, const char *text)
{
    answer->n_bytes += strlen(text) + 1;
    return strdup(text);
}

static struct answer *make_answer(const struct call_memory_call *calls, size_t n_call,
                                  const char *content, const int32_t *ids, size_t n_id,
                                  size_t n_lead)
{
    struct answer *answer = calloc(1, sizeof(*answer));
    if (!answer) return NULL;
    answer->n_bytes = sizeof(*answer) + n_call * sizeof(*answer->entries) + n_id * sizeof(*ids);
    answer->entries = calloc(n_call, sizeof(*answer->entries));
    answer->ids = malloc(n_id * sizeof(*ids));
    answer->content = keep(answer, content);
    bool good = answer->entries && answer->ids && answer->content;
    if (answer->entries) answer->n_entry = n_call;
    for (size_t i = 0; good && i < n_call; i++) {
        struct entry *entry = &answer->entries[i];
        entry->answer = answer;
        entry->id = keep(answer, calls[i].id);
        entry->name = keep(answer, calls[i].name);
        entry->arguments = keep(answer, calls[i].arguments);
        good = entry->id && entry->name && entry->arguments;
    }
    if (!good) {
        free_answer(answer);
        return NULL;
    }
    memcpy(answer->ids, ids, n_id * sizeof(*ids));
    answer->n_id = n_id;
    answer->n_lead = n_lead;
    return answer;
}

void call_memory_put(struct call_memory *memory, const struct call_memory_call *calls,
                     size_t n_call, const char *content, const int32_t *ids, size_t n_id,
                     size_t n_lead)
{
    if (!n_call || !n_id) return;
    struct answer *answer = make_answer(calls, n_call, content, ids, n_id, n_lead);
    if (!answer) return;
    pthread_mutex_lock(&memory->lock);
    for (size_t i = 0; i < n_call; i++) {
        struct entry **bucket = &memory->buckets[bucket_of(answer->entries[i].id)];
        answer->entries[i].next = *bucket;
        *bucket = &answer->entries[i];
    }
    link_newest_locked(memory, answer);
    memory->n_call += n_call;
    memory->n_bytes += answer->n_bytes;
    while (memory->oldest &&
           (memory->n_call > memory->n_call_max || memory->n_bytes > memory->n_bytes_max))
        forget_locked(memory, memory->oldest);
    pthread_mutex_unlock(&memory->lock);
}

/* ---- finding ---- */

static const char *string_of(struct json_object *object, const char *name)
{
    struct json_object *value = NULL;
    if (!json_object_is_type(object, json_type_object) ||
        !json_object_object_get_ex(object, name, &value) ||
        !json_object_is_type(value, json_type_string))
        return NULL;
    return json_object_get_string(value);
}

static struct json_object *member(struct json_object *object, const char *name)
{
    struct json_object *value = NULL;
    if (json_object_is_type(object, json_type_object))
        json_object_object_get_ex(object, name, &value);
    return value;
}

/* given: an object, or JSON text. */
static bool same_arguments(const char *own, struct json_object *given)
{
    if (json_object_is_type(given, json_type_string) && !strcmp(own, json_object_get_string(given)))
        return true;
    struct json_object *a = json_tokener_parse(own);
    struct json_object *b = json_object_is_type(given, json_type_string)
                                ? json_tokener_parse(json_object_get_string(given))
                                : json_object_get(given);
    const bool same = a && b && json_object_equal(a, b);
    json_object_put(a);
    json_object_put(b);
    return same;
}

static bool is_same(const struct answer *answer, struct json_object *message,
                    struct json_object *calls)
{
    struct json_object *content = member(message, "content");
    const char *text = content ? string_of(message, "content") : "";
    if (!text || strcmp(text, answer->content) != 0) return false;
    if (json_object_array_length(calls) != answer->n_entry) return false;
    for (size_t i = 0; i < answer->n_entry; i++) {
        const struct entry *entry = &answer->entries[i];
        struct json_object *call = json_object_array_get_idx(calls, i);
        struct json_object *function = member(call, "function");
        const char *id = string_of(call, "id"), *name = string_of(function, "name");
        if (!id || !name || strcmp(id, entry->id) != 0 || strcmp(name, entry->name) != 0 ||
            !same_arguments(entry->arguments, member(function, "arguments")))
            return false;
    }
    return true;
}

static struct answer *find_locked(struct call_memory *memory, const char *id)
{
    struct entry *entry = memory->buckets[bucket_of(id)];
    while (entry && strcmp(entry->id, id) != 0)
        entry = entry->next;
    return entry ? entry->answer : NULL;
}

bool call_memory_find(struct call_memory *memory, struct json_object *message, int32_t **ids,
                      size_t *n_id, size_t *n_lead)
{
    struct json_object *calls = member(message, "tool_calls");
    if (!json_object_is_type(calls, json_type_array) || !json_object_array_length(calls))
        return false;
    const char *id = string_of(json_object_array_get_idx(calls, 0), "id");
    if (!id) return false;
    int32_t *copy = NULL;
    pthread_mutex_lock(&memory->lock);
    struct answer *answer = find_locked(memory, id);
    if (answer && is_same(answer, message, calls)) {
        unlink_locked(memory, answer);
        link_newest_locked(memory, answer);
        copy = malloc(answer->n_id * sizeof(*copy));
        if (copy) memcpy(copy, answer->ids, answer->n_id * sizeof(*copy));
        *n_id = answer->n_id;
        *n_lead = answer->n_lead;
    }
    pthread_mutex_unlock(&memory->lock);
    *ids = copy;
    return copy != NULL;
}
