/* Drafts by the layer for multi-token prediction that some models have behind their decoder.
 *
 *   token t[p+1] --embedding, norm--+
 *                                   +--> eh_proj --> attention, FFN --> norm --> head --> t[p+2]?
 *   h[p], normed output of the decoder --norm--+                          |
 *                                                                         +--> in place of h[p+1]
 *
 * The layer has keys and values of its own, for each position of the decoder: it follows each step
 * of its sequences, all rows in one pass. Behind the last position it goes on alone, with its own
 * output in place of the decoder's and the draft in place of the token, as far as drafts are
 * wanted. What it holds of a sequence may lag behind, or be lost, when something of it fails: then
 * there are no drafts, and nothing else changes.
 *
 * It runs where the decoder's last layer does. Its experts are those of layer n_layer: in a bank of
 * their own on a device that has all of its layers', else of the tier and the pager that the last
 * layer asks, which have this layer, too. A pass is one piece of work for a device, of which the
 * host sees the logits alone; where the matrix of embeddings is on the host, it sends their rows
 * before.
 *
 * Ownership: borrows what its configuration names, owns the rest. Threads: the step thread.
 * Source:    Qwen3.5's MTP module; DeepSeek-V3 (arXiv 2412.19437), section 2.2. */
#ifndef LEAN_WORKER_GRAPH_MTP_H
#define LEAN_WORKER_GRAPH_MTP_H

#include "kernels/backend.h"
#include "proto/step.h"

struct expert_store;
struct gguf_file;
struct mtp;
struct span;

struct mtp_config {
    const struct gguf_file *file;
    const struct expert_store *store; /* has the layer's experts, as the span's pager has */
    const struct span *last; /* the decoder's last, of a model with n_layer_mtp > 0; has a graph */
    struct backend *cpu;
    /* Used between steps: [n_logit][n_vocab] in memory of the span's backend, and likewise on the
     * host; on the CPU the same. */
    float *logits, *host_logits;
    uint32_t n_logit;
};

enum lm_status mtp_create(struct mtp **out, const struct mtp_config *config, struct lm_error *err);
void mtp_destroy(struct mtp *mtp); /* NULL is legal */

/* As it was done to the slots of the decoder; a cut needs nothing. */
void mtp_seq(struct mtp *mtp, const struct seq_op *op);

/* Follows a step that has ended well, those of its sequences that are drafted, and drafts what they
 * want. sampled: [n_seq].
 * hidden: [rows of the plan][n_embd], normed, in memory of the span's backend.
 * LM_E_*: what it holds of these sequences is lost. */
enum lm_status mtp_follow(struct mtp *mtp, const struct step_plan *plan,
                          const struct sampled_token *sampled, const float *hidden,
                          struct lm_error *err);

#endif
