/* Stop strings by trying each at each undecided byte: a few short strings over a few bytes. */
#include "coordinator/text/stop_strings.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STRINGS = 64, MAX_STRING_BYTES = 1024 };

struct stop_strings {
    char *strings[MAX_STRINGS];
    size_t n_string;
    const char *found;
    char *pending; /* [n_pending] bytes; the first n_passed went out with the last push */
    size_t n_pending, n_passed, room;
};

enum lm_status stop_strings_create(struct stop_strings **out, const char *const *strings, size_t n,
                                   struct lm_error *err)
{
    struct stop_strings *stops = calloc(1, sizeof(*stops));
    enum lm_status status = LM_OK;
    if (!stops) return lm_fail(err, LM_E_NO_MEM, "no memory for stop strings");
    for (size_t i = 0; i < n && status == LM_OK; i++) {
        if (!*strings[i]) continue;
        if (stops->n_string == MAX_STRINGS)
            status = lm_fail(err, LM_E_USAGE, "more than %d stop strings", MAX_STRINGS);
        else if (strlen(strings[i]) > MAX_STRING_BYTES)
            status = lm_fail(err, LM_E_USAGE, "a stop string of %zu bytes, at most %d are allowed",
                             strlen(strings[i]), MAX_STRING_BYTES);
        else if (!(stops->strings[stops->n_string++] = strdup(strings[i])))
            status = lm_fail(err, LM_E_NO_MEM, "no memory for stop strings");
    }
    if (status != LM_OK) {
        stop_strings_destroy(stops);
        return status;
    }
    *out = stops;
    return LM_OK;
}

void stop_strings_destroy(struct stop_strings *stops)
{
    if (!stops) return;
    for (size_t i = 0; i < stops->n_string; i++)
        free(stops->strings[i]);
    free(stops->pending);
    free(stops);
}

/* The longest string at the beginning of text; *undecided: the text ends inside a longer one. */
static const char *match_at(const struct stop_strings *stops, const char *text, size_t n,
                            bool *undecided)
{
    const char *longest = NULL;
    *undecided = false;
    for (size_t i = 0; i < stops->n_string; i++) {
        const char *string = stops->strings[i];
        const size_t length = strlen(string);
        if (memcmp(text, string, n < length ? n : length)) continue;
        if (n < length)
            *undecided = true;
        else if (!longest || length > strlen(longest))
            longest = string;
    }
    return longest;
}

bool stop_strings_push(struct stop_strings *stops, const char *bytes, size_t n, bool last,
                       const char **text, size_t *n_text)
{
    assert(!stops->found);
    stops->n_pending -= stops->n_passed;
    if (stops->n_pending)
        memmove(stops->pending, stops->pending + stops->n_passed, stops->n_pending);
    stops->n_passed = 0;
    *text = NULL;
    *n_text = 0;
    if (stops->n_pending + n > stops->room) {
        const size_t room = 2 * (stops->n_pending + n);
        char *grown = realloc(stops->pending, room);
        if (!grown) return true; /* nothing sensible can follow */
        stops->pending = grown;
        stops->room = room;
    }
    if (n) memcpy(stops->pending + stops->n_pending, bytes, n);
    stops->n_pending += n;

    size_t at = 0;
    for (; at < stops->n_pending; at++) {
        bool undecided;
        const char *match = match_at(stops, stops->pending + at, stops->n_pending - at, &undecided);
        if (undecided && !last) break;
        stops->found = match;
        if (match) break;
    }
    stops->n_passed = at;
    *text = stops->pending;
    *n_text = at;
    return stops->found != NULL;
}

size_t stop_strings_held(const struct stop_strings *stops)
{
    return stops->n_pending - stops->n_passed;
}

const char *stop_strings_find(const struct stop_strings *stops, const char *text, size_t n)
{
    for (size_t i = 0; i < stops->n_string; i++)
        if (strlen(stops->strings[i]) == n && !memcmp(stops->strings[i], text, n))
            return stops->strings[i];
    return NULL;
}

const char *stop_strings_found(const struct stop_strings *stops)
{
    return stops->found;
}
