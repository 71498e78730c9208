#include "coordinator/server/inflight.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

void inflight_init(struct inflight *inflight)
{
    *inflight = (struct inflight){0};
    pthread_mutex_init(&inflight->lock, NULL);
}

void inflight_fini(struct inflight *inflight)
{
    assert(!inflight->first);
    pthread_mutex_destroy(&inflight->lock);
}

void inflight_add(struct inflight *inflight, struct inflight_entry *entry)
{
    pthread_mutex_lock(&inflight->lock);
    entry->next = NULL;
    entry->previous = inflight->last;
    if (inflight->last)
        inflight->last->next = entry;
    else
        inflight->first = entry;
    inflight->last = entry;
    pthread_mutex_unlock(&inflight->lock);
}

void inflight_remove(struct inflight *inflight, struct inflight_entry *entry)
{
    pthread_mutex_lock(&inflight->lock);
    if (entry->previous)
        entry->previous->next = entry->next;
    else
        inflight->first = entry->next;
    if (entry->next)
        entry->next->previous = entry->previous;
    else
        inflight->last = entry->previous;
    pthread_mutex_unlock(&inflight->lock);
}

bool inflight_cancel(struct inflight *inflight, const char *name, char *id, size_t size)
{
    bool found = false;
    pthread_mutex_lock(&inflight->lock);
    for (struct inflight_entry *entry = inflight->first; entry; entry = entry->next) {
        if (strcmp(entry->id, name) && strcmp(entry->request_id, name)) continue;
        snprintf(id, size, "%s", entry->id);
        if (!entry->cancelled) entry->cancel(entry->context);
        entry->cancelled = found = true;
        break;
    }
    pthread_mutex_unlock(&inflight->lock);
    return found;
}

double inflight_tokens_per_s(const struct inflight_sequence *sequence, double now_s)
{
    const double first_s = atomic_load(&sequence->first_token_s);
    const double n = (double)atomic_load(&sequence->n_decoded);
    return first_s > 0 && n > 1 && now_s > first_s ? (n - 1) / (now_s - first_s) : 0;
}
