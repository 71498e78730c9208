/* What a synthetic model consists of: its metadata, its tokenizer section, its tensors. */
#ifndef LEAN_WORKER_PACK_SYNTH_SHAPE_H
#define LEAN_WORKER_PACK_SYNTH_SHAPE_H

#include "proto/gguf/gguf_write.h"
#include "worker/pack/synth.h"

struct hparams;

enum synth_fill {
    SYNTH_NORMAL, /* mean + std * n */
    SYNTH_DECAY,  /* -0.05 - |std * n|: the delta net's ssm_a */
    SYNTH_ROUTER, /* std * n, with skew and similarity */
};

struct synth_tensor {
    struct recipe_tensor info; /* type F32 until a recipe is applied */
    enum synth_fill fill;
    float mean, std;
};

/* The hyperparameters that a file of the shape gives, as far as its tensors and its memory follow
 * from them. */
void synth_hparams(struct hparams *hp, const struct synth_shape *shape, bool mtp);

/* The tensors of a model in the order of the file. The caller frees *out. LM_E_NO_MEM. */
enum lm_status synth_tensors(const struct synth_shape *shape, bool mtp, struct synth_tensor **out,
                             size_t *n, struct lm_error *err);

/* LM_E_USAGE if no model can have this shape. */
enum lm_status synth_check(const struct synth_shape *shape, bool mtp, struct lm_error *err);

/* general.* and the architecture's keys. */
void synth_put_hparams(struct gguf_writer *writer, const struct synth_shape *shape, bool mtp,
                       const struct recipe *recipe);

/* tokenizer.*. The vocabulary has shape->n_vocab entries. LM_E_NO_MEM. */
enum lm_status synth_put_tokenizer(struct gguf_writer *writer, const struct synth_shape *shape,
                                   struct lm_error *err);
enum { SYNTH_VOCAB_MIN = 256 + 9 };

#endif
