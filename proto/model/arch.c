/* The table of architectures. */
#include "proto/model/arch.h"

#include <string.h>

static const struct arch_info arch_table[ARCH_COUNT] = {
    [ARCH_LLAMA] = {.id = ARCH_LLAMA,
                    .name = "llama",
                    .rope_full = true,
                    .rope_freqs = true,
                    .attn_bias = true},
    [ARCH_QWEN2] = {.id = ARCH_QWEN2, .name = "qwen2", .attn_bias = true},
    [ARCH_QWEN3] = {.id = ARCH_QWEN3, .name = "qwen3", .qk_norm = true},
    [ARCH_QWEN3MOE] = {.id = ARCH_QWEN3MOE,
                       .name = "qwen3moe",
                       .rope_full = true,
                       .experts = true,
                       .qk_norm = true},
    [ARCH_QWEN35] = {.id = ARCH_QWEN35,
                     .name = "qwen35",
                     .delta_net = true,
                     .rope_sections = true,
                     .q_gate = true,
                     .qk_norm = true},
    [ARCH_QWEN35MOE] = {.id = ARCH_QWEN35MOE,
                        .name = "qwen35moe",
                        .delta_net = true,
                        .rope_sections = true,
                        .experts = true,
                        .shared_expert = true,
                        .shared_gate = true,
                        .q_gate = true,
                        .qk_norm = true},
    [ARCH_QWEN3NEXT] = {.id = ARCH_QWEN3NEXT,
                        .name = "qwen3next",
                        .delta_net = true,
                        .ssm_ba = true,
                        .experts = true,
                        .shared_expert = true,
                        .shared_gate = true,
                        .q_gate = true,
                        .qk_norm = true},
    [ARCH_AFMOE] = {.id = ARCH_AFMOE,
                    .name = "afmoe",
                    .experts = true,
                    .shared_expert = true,
                    .sigmoid_router = true,
                    .attn_gate = true,
                    .qk_norm = true,
                    .sandwich = true,
                    .window = true},
};

const struct arch_info *arch_info(enum arch id)
{
    return &arch_table[id];
}

const struct arch_info *arch_find(const char *name, size_t n)
{
    for (int id = 0; id < ARCH_COUNT; id++)
        if (strlen(arch_table[id].name) == n && !memcmp(arch_table[id].name, name, n))
            return &arch_table[id];
    return NULL;
}
