#include "coordinator/server/keys.h"

#include <assert.h>
#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "proto/base/read_all.h"

enum { MAX_FILE_BYTES = 1 << 20 };

/* Padded with zeros, so that every comparison looks at as many bytes as any other. */
struct key {
    char text[KEYS_MAX_LENGTH];
};

struct key_list {
    struct key *keys; /* [n] */
    size_t n, n_room;
};

/* Of an owner for whom something runs. */
struct key_use {
    uint64_t owner;
    uint32_t n; /* 0: the entry is free */
};

struct keys {
    uint64_t secret;
    pthread_rwlock_t lock;
    struct key_list list; /* guarded by lock */
    pthread_mutex_t use_lock;
    struct key_use *uses; /* [n_use], guarded by use_lock like the next */
    size_t n_use;
};

enum lm_status keys_create(struct keys **out, uint64_t secret, struct lm_error *err)
{
    struct keys *keys = calloc(1, sizeof(*keys));
    if (!keys) return lm_fail(err, LM_E_NO_MEM, "no memory for API keys");
    keys->secret = secret;
    pthread_rwlock_init(&keys->lock, NULL);
    pthread_mutex_init(&keys->use_lock, NULL);
    *out = keys;
    return LM_OK;
}

void keys_destroy(struct keys *keys)
{
    if (!keys) return;
    pthread_rwlock_destroy(&keys->lock);
    pthread_mutex_destroy(&keys->use_lock);
    free(keys->list.keys);
    free(keys->uses);
    free(keys);
}

/* A key without the white space around it; an empty one is none. */
static enum lm_status add(struct key_list *list, const char *text, size_t n, struct lm_error *err)
{
    while (n && isspace((unsigned char)*text)) {
        text++;
        n--;
    }
    while (n && isspace((unsigned char)text[n - 1]))
        n--;
    if (!n) return LM_OK;
    if (n > KEYS_MAX_LENGTH)
        return lm_fail(err, LM_E_USAGE, "an API key has at most %d bytes, got one of %zu",
                       KEYS_MAX_LENGTH, n);
    if (list->n == list->n_room) {
        const size_t n_room = list->n_room ? 2 * list->n_room : 8;
        struct key *grown = realloc(list->keys, n_room * sizeof(*grown));
        if (!grown) return lm_fail(err, LM_E_NO_MEM, "no memory for API keys");
        list->keys = grown;
        list->n_room = n_room;
    }
    struct key *key = &list->keys[list->n++];
    memset(key, 0, sizeof(*key));
    memcpy(key->text, text, n);
    return LM_OK;
}

/* The parts of text between separators, each without what follows comment. */
static enum lm_status add_parts(struct key_list *list, const char *text, char separator,
                                char comment, struct lm_error *err)
{
    enum lm_status status = LM_OK;
    while (status == LM_OK && *text) {
        const char *end = strchrnul(text, separator);
        const char *hash = comment ? memchr(text, comment, (size_t)(end - text)) : NULL;
        status = add(list, text, (size_t)((hash ? hash : end) - text), err);
        text = *end ? end + 1 : end;
    }
    return status;
}

enum lm_status keys_load(struct keys *keys, const char *const *list, size_t n, const char *path,
                         const char *commas, struct lm_error *err)
{
    struct key_list loaded = {0};
    enum lm_status status = LM_OK;
    char *text = NULL;
    size_t n_text;
    for (size_t i = 0; i < n && status == LM_OK; i++)
        status = add(&loaded, list[i], strlen(list[i]), err);
    if (status == LM_OK && commas) status = add_parts(&loaded, commas, ',', 0, err);
    if (status == LM_OK && path) status = read_all_path(path, MAX_FILE_BYTES, &text, &n_text, err);
    if (status == LM_OK && text) status = add_parts(&loaded, text, '\n', '#', err);
    free(text);
    if (status == LM_OK && !loaded.n && (n || path || (commas && *commas)))
        status = lm_fail(err, LM_E_USAGE, "API keys are asked for, but all that is given is empty");
    if (status != LM_OK) {
        free(loaded.keys);
        return status;
    }
    pthread_rwlock_wrlock(&keys->lock);
    const struct key_list before = keys->list;
    keys->list = loaded;
    pthread_rwlock_unlock(&keys->lock);
    free(before.keys);
    return LM_OK;
}

/* 0: equal. Looks at all bytes, whatever they are. */
static unsigned difference(const struct key *a, const struct key *b)
{
    volatile unsigned all = 0;
    for (size_t i = 0; i < KEYS_MAX_LENGTH; i++)
        all |= (unsigned char)(a->text[i] ^ b->text[i]);
    return all;
}

bool keys_match(struct keys *keys, const char *key, uint64_t *owner)
{
    struct key given = {{0}};
    const size_t n = key ? strlen(key) : 0;
    const bool plausible = n > 0 && n <= KEYS_MAX_LENGTH;
    if (plausible) memcpy(given.text, key, n);
    bool found = false;
    pthread_rwlock_rdlock(&keys->lock);
    for (size_t i = 0; i < keys->list.n; i++)
        found |= !difference(&keys->list.keys[i], &given);
    const bool open = keys->list.n == 0;
    pthread_rwlock_unlock(&keys->lock);
    *owner = open ? 0 : XXH3_64bits_withSeed(&given, sizeof(given), keys->secret) | 1;
    return open || (found && plausible);
}

size_t keys_count(struct keys *keys)
{
    pthread_rwlock_rdlock(&keys->lock);
    const size_t n = keys->list.n;
    pthread_rwlock_unlock(&keys->lock);
    return n;
}

/* The owner's entry, else a free one, else a new one. NULL: no memory. */
static struct key_use *use_of_locked(struct keys *keys, uint64_t owner)
{
    struct key_use *unused = NULL;
    for (size_t i = 0; i < keys->n_use; i++) {
        struct key_use *use = &keys->uses[i];
        if (use->n && use->owner == owner) return use;
        if (!use->n) unused = use;
    }
    if (!unused) {
        struct key_use *grown = realloc(keys->uses, (keys->n_use + 1) * sizeof(*grown));
        if (!grown) return NULL;
        keys->uses = grown;
        unused = &grown[keys->n_use++];
    }
    *unused = (struct key_use){.owner = owner};
    return unused;
}

bool keys_take(struct keys *keys, uint64_t owner, uint32_t n, uint32_t n_most)
{
    pthread_mutex_lock(&keys->use_lock);
    struct key_use *use = use_of_locked(keys, owner);
    const bool taken = use && n <= n_most && use->n <= n_most - n;
    if (taken) use->n += n;
    pthread_mutex_unlock(&keys->use_lock);
    return taken;
}

void keys_give_back(struct keys *keys, uint64_t owner, uint32_t n)
{
    pthread_mutex_lock(&keys->use_lock);
    struct key_use *use = use_of_locked(keys, owner);
    assert(use && use->n >= n);
    use->n -= n;
    pthread_mutex_unlock(&keys->use_lock);
}
