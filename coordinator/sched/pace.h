/* How long a chunk of prompts may be beside sequences that generate.
 *
 * A step with such a chunk shall take at most PACE_STEP times as long as one without, so that the
 * gap between two tokens of a stream stays within that. What a step takes and what a prompt token
 * adds to it are measured as the steps go by. The chunk is never shorter than a sixteenth of the
 * longest: what a step costs apart from its tokens (weights that are read, experts that come from
 * the disk) would then be paid for too few.
 *
 * Threads: one owner. */
#ifndef LEAN_COORDINATOR_SCHED_PACE_H
#define LEAN_COORDINATOR_SCHED_PACE_H

#include <stdint.h>

enum { PACE_STEP = 4, PACE_SHORTEST = 16 /* part of the longest chunk */ };

struct pace {
    uint32_t longest;         /* tokens */
    double decode_s, token_s; /* moving averages: a step without prompts, a prompt token; 0: none */
};

void pace_init(struct pace *pace, uint32_t longest);
/* Tokens of prompts that the next step may have. */
uint32_t pace_chunk(const struct pace *pace, uint32_t n_generating);
/* A step of so many sequences that generate and so many tokens of prompts took so long. */
void pace_note(struct pace *pace, uint32_t n_generating, uint32_t n_prompt_token, double seconds);

#endif
