/* Requests from a text or a file, and when they are sent. */
#include "launch/bench/load_plan.h"

#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launch/bench/random.h"

/* Where a server tells no tokens, English text has about so many bytes in one. */
enum { USUAL_BYTES_PER_TOKEN = 4 };

enum lm_status span_parse(struct span *out, const char *option, const char *text,
                          struct lm_error *err)
{
    char rest;
    const int n = sscanf(text, "%u-%u%c", &out->first, &out->last, &rest);
    if (n == 1 && sscanf(text, "%u%c", &out->first, &rest) == 1) {
        out->last = out->first;
        return LM_OK;
    }
    if (n == 2 && out->first <= out->last && out->last < 1 << 24) return LM_OK;
    return lm_fail(err, LM_E_USAGE, "%s must be a number or a range such as 64-256, got '%.80s'",
                   option, text);
}

static uint32_t draw(const struct span *span, uint64_t *state)
{
    return span->first + (uint32_t)(random_next(state) % (span->last - span->first + 1));
}

static enum lm_status reserve(struct load_plan *plan, size_t n, struct lm_error *err)
{
    *plan = (struct load_plan){.request = calloc(n ? n : 1, sizeof(*plan->request))};
    return plan->request ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for %zu requests", n);
}

void load_plan_fini(struct load_plan *plan)
{
    for (size_t i = 0; i < plan->n; i++) {
        free(plan->request[i].ids);
        free(plan->request[i].text);
    }
    free(plan->request);
    *plan = (struct load_plan){0};
}

/* ---- random stretches --------------------------------------------------------------------- */

/* n_prefix tokens from the beginning of the text, and n from a place in it, going round. */
static int32_t *cut_ids(const struct load_text *text, uint32_t n_prefix, uint32_t n, size_t place)
{
    int32_t *const ids = malloc(((size_t)n_prefix + n + 1) * sizeof(*ids));
    for (uint32_t i = 0; ids && i < n_prefix; i++)
        ids[i] = text->ids[i % text->n_id];
    for (uint32_t i = 0; ids && i < n; i++)
        ids[n_prefix + i] = text->ids[(place + i) % text->n_id];
    return ids;
}

/* The same in bytes. */
static char *cut_text(const struct load_text *text, size_t n_prefix, size_t n, size_t place)
{
    char *const out = malloc(n_prefix + n + 1);
    for (size_t i = 0; out && i < n_prefix; i++)
        out[i] = text->text[i % text->n_text];
    for (size_t i = 0; out && i < n; i++)
        out[n_prefix + i] = text->text[(place + i) % text->n_text];
    if (out) out[n_prefix + n] = 0;
    return out;
}

enum lm_status load_plan_random(struct load_plan *out, size_t n, const struct load_text *text,
                                const struct load_lengths *lengths, uint64_t seed,
                                struct lm_error *err)
{
    uint64_t state = seed;
    const double n_byte =
        text->ids ? (double)text->n_text / (double)text->n_id : USUAL_BYTES_PER_TOKEN;
    enum lm_status status = reserve(out, n, err);
    for (size_t i = 0; i < n && status == LM_OK; i++) {
        struct load_request *const request = &out->request[out->n++];
        const uint32_t n_own = draw(&lengths->input, &state), n_prefix = lengths->n_prefix;
        const uint64_t place = random_next(&state);
        request->n_input = n_prefix + n_own;
        request->n_output = draw(&lengths->output, &state);
        if (text->ids && !lengths->as_text)
            request->ids = cut_ids(text, n_prefix, n_own, place % text->n_id);
        else
            request->text = cut_text(text, (size_t)(n_prefix * n_byte + 0.5),
                                     (size_t)(n_own * n_byte + 0.5), place % text->n_text);
        if (!request->ids && !request->text) status = lm_fail(err, LM_E_NO_MEM, "no memory");
    }
    if (status != LM_OK) load_plan_fini(out);
    return status;
}

/* ---- files -------------------------------------------------------------------------------- */

static enum lm_status read_line(struct load_request *request, const char *line, const char *path,
                                size_t number, struct lm_error *err)
{
    struct json_object *json = json_tokener_parse(line), *prompt = NULL, *n_output = NULL;
    enum lm_status status = LM_OK;
    if (!json || !json_object_object_get_ex(json, "prompt", &prompt) ||
        !json_object_is_type(prompt, json_type_string) || !json_object_get_string_len(prompt))
        status = lm_fail(err, LM_E_FORMAT, "%s: line %zu has no \"prompt\" that is a text", path,
                         number);
    else if (json_object_object_get_ex(json, "output_len", &n_output) &&
             (!json_object_is_type(n_output, json_type_int) ||
              json_object_get_int64(n_output) < 1 || json_object_get_int64(n_output) > 1 << 24))
        status = lm_fail(err, LM_E_FORMAT, "%s: line %zu: \"output_len\" is no number of tokens",
                         path, number);
    if (status == LM_OK) {
        request->text = strdup(json_object_get_string(prompt));
        if (n_output) request->n_output = (uint32_t)json_object_get_int64(n_output);
        if (!request->text) status = lm_fail(err, LM_E_NO_MEM, "no memory for prompts");
    }
    json_object_put(json);
    return status;
}

static enum lm_status read_lines(struct load_plan *plan, size_t n, FILE *file, const char *path,
                                 struct lm_error *err)
{
    char *line = NULL;
    size_t size = 0;
    enum lm_status status = LM_OK;
    for (size_t number = 1; plan->n < n && status == LM_OK; number++) {
        if (getline(&line, &size, file) < 0) break;
        if (line[strspn(line, " \t\r\n")] == 0) continue;
        status = read_line(&plan->request[plan->n++], line, path, number, err);
    }
    if (status == LM_OK && ferror(file)) status = lm_fail_errno(err, "%s: read", path);
    if (status == LM_OK && !plan->n)
        status = lm_fail(err, LM_E_FORMAT, "%s: there are no prompts", path);
    free(line);
    return status;
}

enum lm_status load_plan_read(struct load_plan *out, size_t n, const char *path,
                              const struct span *n_output, uint64_t seed, struct lm_error *err)
{
    uint64_t state = seed;
    FILE *file = fopen(path, "re");
    if (!file) return lm_fail_errno(err, "%s: open", path);
    enum lm_status status = reserve(out, n, err);
    if (status == LM_OK) status = read_lines(out, n, file, path, err);
    fclose(file);
    for (size_t i = 0; status == LM_OK && out->n < n; i++) {
        struct load_request *const again = &out->request[out->n++];
        again->n_output = out->request[i].n_output;
        again->text = strdup(out->request[i].text);
        if (!again->text) status = lm_fail(err, LM_E_NO_MEM, "no memory for prompts");
    }
    for (size_t i = 0; status == LM_OK && i < n; i++)
        if (!out->request[i].n_output) out->request[i].n_output = draw(n_output, &state);
    if (status != LM_OK) load_plan_fini(out);
    return status;
}

/* ---- times -------------------------------------------------------------------------------- */

/* When `count` requests are expected to have come. With a ramp of T seconds that is rate * t^2 / 2T
 * until T, and rate * (t - T / 2) behind it. */
static double time_of(double count, const struct load_times *times)
{
    const double of_ramp = times->rate * times->ramp_s / 2;
    if (count < of_ramp) return sqrt(2 * times->ramp_s * count / times->rate);
    return count / times->rate + times->ramp_s / 2;
}

void load_plan_set_times(struct load_plan *plan, const struct load_times *times, uint64_t seed)
{
    uint64_t state = seed ^ 0x5851f42d4c957f2du;
    double count = 0;
    for (size_t i = 0; i < plan->n; i++) {
        plan->request[i].start_s = isinf(times->rate) ? 0 : time_of(count, times);
        count += random_gamma(&state, times->burstiness);
    }
}
