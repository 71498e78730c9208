/* Defaults of the sampling parameters. */
#include "proto/model/sampling.h"

struct sampling_params sampling_params_default(void)
{
    return (struct sampling_params){
        .repeat_penalty = 1,
        .repeat_last_n = 64,
        .dry_base = 1.75f,
        .dry_allowed_length = 2,
        .dry_penalty_last_n = -1,
        .typical_p = 1,
        .top_p = 1,
        .n_logprob = -1,
    };
}
