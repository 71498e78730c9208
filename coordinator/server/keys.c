#include "coordinator/server/keys.h"

#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

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

struct keys {
    pthread_rwlock_t lock;
    struct key_list list; /* guarded by lock */
};

enum lm_status keys_create(struct keys **out, struct lm_error *err)
{
    struct keys *keys = calloc(1, sizeof(*keys));
    if (!keys) return lm_fail(err, LM_E_NO_MEM, "no memory for API keys");
    pthread_rwlock_init(&keys->lock, NULL);
    *out = keys;
    return LM_OK;
}

void keys_destroy(struct keys *keys)
{
    if (!keys) return;
    pthread_rwlock_destroy(&keys->lock);
    free(keys->list.keys);
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

bool keys_match(struct keys *keys, const char *key)
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
    return open || (found && plausible);
}

size_t keys_count(struct keys *keys)
{
    pthread_rwlock_rdlock(&keys->lock);
    const size_t n = keys->list.n;
    pthread_rwlock_unlock(&keys->lock);
    return n;
}
