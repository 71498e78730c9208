/* A model to plan for: a file with the weights of a tiny one, and hyperparameters that may say
 * otherwise. */
#ifndef LEAN_TESTS_UNIT_COORDINATOR_PLAN_PLAN_MODEL_H
#define LEAN_TESTS_UNIT_COORDINATOR_PLAN_PLAN_MODEL_H

#include <stdlib.h>
#include <unistd.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "tests/unit/cmocka_all.h"
#include "worker/pack/synth_shape.h"

static char path[] = "/tmp/lean-test-plan-XXXXXX";
static struct gguf_file *file;
static struct hparams tiny;

static inline int open_model(void **state)
{
    (void)state;
    struct synth_config config = {.mtp = true};
    const int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    if (synth_shape_find("qwen35moe", &config.shape, NULL) ||
        recipe_find("Q4_K_M", &config.recipe, NULL) || synth_write(path, &config, NULL, NULL) ||
        gguf_open(&file, path, NULL))
        return -1;
    return hparams_read(&tiny, file, NULL);
}

static inline int close_model(void **state)
{
    (void)state;
    gguf_close(file);
    return unlink(path);
}

/* Sizes of Qwen3.5-35B-A3B, the weights of the tiny model: 62.8 MiB a state, 20 KiB a token. */
static inline struct hparams shape_35b(void)
{
    struct hparams hp = tiny;
    hp.n_layer = 40;
    hp.n_ctx_train = 262144;
    hp.head_dim = 256;
    hp.n_head_k = 16;
    hp.n_head_v = 32;
    hp.dim_k = hp.dim_v = 128;
    for (uint32_t il = 0; il < 40; il++) {
        hp.layer[il] = tiny.layer[0];
        hp.layer[il].recurrent = (il + 1) % 4 != 0;
        hp.layer[il].n_head = 16;
        hp.layer[il].n_head_kv = 2;
    }
    return hp;
}

#endif
