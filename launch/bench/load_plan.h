/* What a load is made of: requests, each with its prompt, its length and its time.
 *
 * Times are a renewal process: gaps are gamma distributed with mean 1/rate and shape `burstiness`
 * (1: exponential, so arrivals are Poisson; below: bursts; above: more even). While a ramp lasts
 * the rate grows in a straight line from nothing. One seed gives one load. */
#ifndef LEAN_LAUNCH_BENCH_LOAD_PLAN_H
#define LEAN_LAUNCH_BENCH_LOAD_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct span {
    uint32_t first, last; /* uniformly between them */
};
/* "128" or "64-256". option: what messages call it. LM_E_USAGE. */
enum lm_status span_parse(struct span *out, const char *option, const char *text,
                          struct lm_error *err);

struct load_request {
    int32_t *ids;     /* [n_input]: tokens of the server; NULL: text */
    char *text;       /* NULL: ids */
    uint32_t n_input; /* tokens that were asked for; 0: what the text has */
    uint32_t n_output;
    double start_s; /* after the beginning */
};

struct load_plan {
    struct load_request *request; /* [n] in order of time */
    size_t n;
};

struct load_times {
    double rate;       /* requests per second; infinite: all at once */
    double burstiness; /* > 0 */
    double ramp_s;     /* of the rate; 0: none */
};

/* What random prompts are cut from. */
struct load_text {
    const char *text;
    size_t n_text;
    int32_t *ids; /* [n_id] the server's tokens of it; NULL: the server tells none */
    size_t n_id;
};
struct load_lengths {
    struct span input, output;
    uint32_t n_prefix; /* tokens that all prompts begin with, besides */
    bool as_text;      /* prompts as text, also where ids are known */
};

/* n requests of random stretches of the text. LM_E_NO_MEM. */
enum lm_status load_plan_random(struct load_plan *out, size_t n, const struct load_text *text,
                                const struct load_lengths *lengths, uint64_t seed,
                                struct lm_error *err);
/* n requests of a file of JSON lines {"prompt": TEXT, "output_len": N}, again from its beginning
 * when it has fewer. n_output: where a line has no length of its own, random. LM_E_FORMAT: with the
 * line's number. */
enum lm_status load_plan_read(struct load_plan *out, size_t n, const char *path,
                              const struct span *n_output, uint64_t seed, struct lm_error *err);
void load_plan_set_times(struct load_plan *plan, const struct load_times *times, uint64_t seed);
void load_plan_fini(struct load_plan *plan);

#endif
