#include "coordinator/sched/pace.h"

/* Fewer prompt tokens say little about what one costs. */
enum { N_TOKEN_MEASURED = 8 };

void pace_init(struct pace *pace, uint32_t longest)
{
    *pace = (struct pace){.longest = longest};
}

uint32_t pace_chunk(const struct pace *pace, uint32_t n_generating)
{
    const uint32_t part = pace->longest / PACE_SHORTEST, shortest = part ? part : 1;
    if (!n_generating) return pace->longest;
    if (pace->decode_s <= 0 || pace->token_s <= 0) return shortest;
    const double n = (PACE_STEP - 1) * pace->decode_s / pace->token_s;
    return n < shortest ? shortest : n < pace->longest ? (uint32_t)n : pace->longest;
}

static void average(double *mean, double value)
{
    *mean = *mean > 0 ? 0.8 * *mean + 0.2 * value : value;
}

void pace_note(struct pace *pace, uint32_t n_generating, uint32_t n_prompt_token, double seconds)
{
    if (!n_prompt_token) {
        average(&pace->decode_s, seconds);
        return;
    }
    const double for_prompts_s = n_generating ? seconds - pace->decode_s : seconds;
    if (n_prompt_token >= N_TOKEN_MEASURED && for_prompts_s > 0)
        average(&pace->token_s, for_prompts_s / n_prompt_token);
}
