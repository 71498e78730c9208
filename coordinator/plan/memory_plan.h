/* Memory plan: how many bytes a model takes on this host and for what, before anything loads.
 *
 *   weights        mapped from the file; the decoder's, and those of the layer for multi-token
 *                  prediction if it is to draft. If they do not fit: all but the routed experts in
 *                  memory, and of these as many as there is room for
 *   KV cache       whole blocks of 128 positions for every sequence; a layer with a window keeps
 *                  the window and one step
 *   recurrent      records of the gated delta net layers, one for each sequence and snapshot, and
 *                  rows that such layers keep of drafts
 *   angles         sine and cosine of the rotary angles of every position
 *   scratch        activations of one step, logits
 *   log-probs      of prompts whose states are kept, as many bytes as was said
 *   program        code, vocabulary, threads: a bound, the same for every model
 *
 * Scratch and program together are the overhead, which MEMORY_PLAN_OVERHEAD_MAX bounds: where a
 * model is so wide that it would be more, prompts are read in shorter chunks. Where experts are
 * paged chunks are longer again, as far as a sixteenth of the slots' memory holds their scratch. On
 * a device they are longer also where they are not, if that leaves room for a usual context.
 *
 * Threads: pure functions but for host_memory_*, which read /proc and cgroup files. */
#ifndef LEAN_COORDINATOR_PLAN_MEMORY_PLAN_H
#define LEAN_COORDINATOR_PLAN_MEMORY_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"
#include "proto/base/tensor_type.h"

struct gguf_file;
struct hparams;

#define MEMORY_PLAN_OVERHEAD_MAX 300000000u
#define MEMORY_PLAN_RESERVE_MAX (UINT64_C(512) << 20)

struct memory_request {
    /* The layers of a stage; layer_end 0: all. The first stage has the embedding, the last one the
     * output and the logits. One that drafts has the layer behind the decoder's last, too. */
    uint32_t layer_begin, layer_end;
    uint32_t n_ctx;  /* tokens of one sequence; 0: as many as fit, at most the trained context */
    uint32_t n_slot; /* sequences held at once */
    uint32_t n_snapshot;       /* states of sequences kept besides */
    uint32_t n_draft;          /* of a sequence in one step at most: recurrent layers keep rows */
    uint64_t n_cache_position; /* tokens of them whose keys and values are no running sequence's */
    uint64_t logprob_bytes;    /* log-probabilities of kept prompts */
    uint32_t prefill_chunk;    /* tokens of a prompt in one step; 0: chosen */
    enum tensor_type kv_type;
    uint32_t n_edge_buffer; /* of a stage, for what it receives, computes and sends; 0: 3 */
    /* What may be used; 0: what is available but an eighth, at most MEMORY_PLAN_RESERVE_MAX, which
     * stays free: one byte too many costs far more than the reserve could have gained. */
    uint64_t budget_bytes;
    /* What experts take when they are paged: the least, 0: they cannot be; and what it shall be,
     * 0: what the rest leaves of the budget. */
    uint64_t slot_bytes_min, slot_bytes;
    /* Routed experts of layers that a device computes and cannot hold: kept with these layers'. */
    uint64_t lacking_bytes;
    bool on_device; /* a plan of a device's memory, which holds no program but what runs there */
    bool fast;      /* the device multiplies many rows at once in the FAST mode */
};

struct memory_plan {
    uint32_t n_ctx, n_slot;
    /* As asked, or 512, less where the overhead demands it, at least 64; more if paged. */
    uint32_t prefill_chunk;
    uint32_t n_ctx_fit; /* the longest context that fits, at most the trained one; 0: none does */
    uint64_t budget_bytes;

    bool paged;            /* experts come and go */
    uint64_t expert_bytes; /* routed experts */
    uint64_t slot_bytes;   /* of them in memory: all, or what is left of the budget */
    uint64_t weight_bytes; /* all weights in memory, slot_bytes included */
    uint64_t kv_bytes, recurrent_bytes, angle_bytes, scratch_bytes, program_bytes;
    uint64_t logprob_bytes;
    uint64_t
        mtp_bytes; /* of all these for the layer that drafts, but its experts if they are paged */
    uint64_t total_bytes;
    /* Of kv_bytes on a device, what experts have until contexts grow; 0 unless paged. */
    uint64_t kv_lent_bytes;
};

/* Pages the experts if all of them do not fit beside the context asked for, or beside a context of
 * MEMORY_PLAN_CTX if none was: then that is the context. With n_ctx 0 and nothing that fits, plans
 * the smallest context, of one block. */
enum { MEMORY_PLAN_CTX = 8192 };
void memory_plan_make(struct memory_plan *plan, const struct gguf_file *file,
                      const struct hparams *hp, const struct memory_request *request);

/* Of a host all of whose layers are on a device: the request's sizes, the program, and the experts
 * that the device lacks. */
void memory_plan_make_empty(struct memory_plan *plan, const struct hparams *hp,
                            const struct memory_request *request);

/* Of a context what a device's keys and values have at first where experts exchange memory with
 * them. */
static inline uint32_t memory_plan_ready_ctx(uint32_t n_ctx)
{
    enum { READY_CTX = 1024 };
    return n_ctx < READY_CTX ? n_ctx : READY_CTX;
}

enum { MEMORY_PLAN_BLOCK = 128 }; /* positions of keys and values that are taken together */
/* What a kept state takes beside the keys and values of the layers that see everything: its
 * recurrent records, windows, tables, and the block that it does not share. n_ctx, prefill_chunk
 * (0: the most) and kv_type of the request count. */
uint64_t memory_plan_state_bytes(const struct memory_request *request, const struct hparams *hp);
/* Keys and values of one position in those layers. */
uint64_t memory_plan_position_bytes(const struct memory_request *request, const struct hparams *hp);

/* LM_E_NO_MEM if the plan exceeds its budget, with the numbers and what would fit. */
enum lm_status memory_plan_check(const struct memory_plan *plan, struct lm_error *err);

/* Bytes that this process can take without swapping: free memory and page cache that can be
 * dropped, or what the memory cgroup leaves if that is less. */
uint64_t host_memory_available(void);
/* Bytes that this process has taken: memory of its own, no mapped files. */
uint64_t host_memory_taken(void);
/* Bytes of both kinds, own and mapped, that are in memory now. */
uint64_t host_memory_resident(void);

/* When a model is open: a warning if the plan no longer fits into what the process has and can
 * still take, since others took theirs after the plan was made. Returns whether it fits. */
bool memory_plan_recheck(const struct memory_plan *plan, uint64_t taken_bytes,
                         uint64_t available_bytes);

#endif
