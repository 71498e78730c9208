/* Packing into and reading from the generated structures. */
#include "worker/pipeline/wire.h"

#include <stdio.h>
#include <stdlib.h>

#include "proto/transport/frame_queue.h"

static enum lm_status no_memory(struct lm_error *err)
{
    return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory for a message");
}

enum lm_status wire_pack(struct frame **out, Lean__FrameType type, const ProtobufCMessage *message,
                         struct lm_error *err)
{
    struct frame *frame =
        frame_create(0, (uint16_t)type, protobuf_c_message_get_packed_size(message));
    if (!frame) return no_memory(err);
    protobuf_c_message_pack(message, frame->payload);
    *out = frame;
    return LM_OK;
}

enum lm_status wire_unpack(ProtobufCMessage **out, const ProtobufCMessageDescriptor *descriptor,
                           const struct frame *frame, struct lm_error *err)
{
    *out = protobuf_c_message_unpack(descriptor, NULL, frame->n_bytes, frame->payload);
    if (*out) return LM_OK;
    return lm_fail(err, LM_E_FORMAT, "rank %u sent a malformed message %s of %zu bytes",
                   frame->from, descriptor->short_name, frame->n_bytes);
}

/* ---- plans -------------------------------------------------------------------------------- */

/* What has its default is not sent. */
#define SET(message, field, value)                                                                 \
    do {                                                                                           \
        (message)->has_##field = (value) != (message)->field;                                      \
        (message)->field = (value);                                                                \
    } while (0)

static size_t mask_bytes(uint32_t n_vocab)
{
    return ((size_t)n_vocab + 31) / 32 * sizeof(uint32_t);
}

/* The messages of one plan: pointers into them are what protobuf-c packs from. */
struct plan_messages {
    struct {
        Lean__PlanSeq seq;
        Lean__SamplingParams sampling;
    } * part; /* [n_seq] */
    Lean__PlanSeq **seq;
    Lean__SlotOp **op;
    Lean__LogitBias *bias; /* of all sequences */
    Lean__LogitBias **bias_ptr;
};

static void free_plan_messages(struct plan_messages *messages)
{
    free(messages->part);
    free(messages->seq);
    free(messages->op);
    free(messages->bias);
    free(messages->bias_ptr);
}

static bool wants_sample(const struct step_seq *seq)
{
    return seq->output != STEP_OUTPUT_NONE;
}

static enum lm_status create_plan_messages(struct plan_messages *messages,
                                           const struct step_plan *plan, size_t n_op,
                                           struct lm_error *err)
{
    size_t n_bias = 0;
    for (uint32_t i = 0; i < plan->n_seq; i++)
        if (wants_sample(&plan->seq[i])) n_bias += plan->seq[i].sampling->n_bias;
    messages->part = calloc(plan->n_seq, sizeof(*messages->part));
    messages->seq = calloc(plan->n_seq, sizeof(Lean__PlanSeq *));
    messages->op = calloc(n_op + 1, sizeof(Lean__SlotOp *));
    messages->bias = calloc(n_bias + 1, sizeof(*messages->bias));
    messages->bias_ptr = calloc(n_bias + 1, sizeof(Lean__LogitBias *));
    if (messages->part && messages->seq && messages->op && messages->bias && messages->bias_ptr)
        return LM_OK;
    free_plan_messages(messages);
    return no_memory(err);
}

/* bias: [n_bias], those of this sequence. */
static void fill_sampling(Lean__SamplingParams *out, const struct sampling_params *params,
                          Lean__LogitBias *bias, Lean__LogitBias **bias_ptr, uint32_t n_vocab)
{
    lean__sampling_params__init(out);
    for (size_t i = 0; i < params->n_bias; i++) {
        lean__logit_bias__init(&bias[i]);
        bias[i].token = params->bias[i].token;
        bias[i].bias = params->bias[i].bias;
        bias_ptr[i] = &bias[i];
    }
    out->n_bias = params->n_bias;
    out->bias = bias_ptr;
    if (params->allowed) {
        out->has_allowed = true;
        out->allowed = (ProtobufCBinaryData){mask_bytes(n_vocab), (uint8_t *)params->allowed};
    }
    SET(out, repeat_penalty, params->repeat_penalty);
    SET(out, repeat_last_n, params->repeat_last_n);
    SET(out, presence_penalty, params->presence_penalty);
    SET(out, frequency_penalty, params->frequency_penalty);
    SET(out, dry_multiplier, params->dry_multiplier);
    SET(out, dry_base, params->dry_base);
    SET(out, dry_allowed_length, params->dry_allowed_length);
    SET(out, dry_penalty_last_n, params->dry_penalty_last_n);
    if (params->dry_multiplier != 0) {
        out->n_dry_breaker = params->n_dry_breaker;
        out->dry_breaker = (int32_t *)params->dry_breakers;
    }
    SET(out, top_k, params->top_k);
    SET(out, typical_p, params->typical_p);
    SET(out, top_p, params->top_p);
    SET(out, min_p, params->min_p);
    SET(out, temperature, params->temperature);
    SET(out, seed, params->seed);
    SET(out, n_logprob, params->n_logprob);
    if (params->is_forced) SET(out, forced_id, params->forced_id);
    SET(out, of_processed, params->of_processed);
}

static void fill_seq(Lean__PlanSeq *out, const struct step_seq *seq, uint32_t position)
{
    static const Lean__PlanSeq__Output outputs[] = {
        [STEP_OUTPUT_NONE] = LEAN__PLAN_SEQ__OUTPUT__NONE,
        [STEP_OUTPUT_SAMPLE] = LEAN__PLAN_SEQ__OUTPUT__SAMPLE,
        [STEP_OUTPUT_LOGITS] = LEAN__PLAN_SEQ__OUTPUT__LOGITS};
    lean__plan_seq__init(out);
    out->slot = seq->slot;
    out->position = position;
    out->n_id = seq->n_token;
    out->id = (int32_t *)seq->ids;
    SET(out, output, outputs[seq->output]);
    SET(out, n_prompt, (uint32_t)seq->n_prompt);
    out->n_target = seq->n_target;
    out->target = (int32_t *)seq->targets;
    SET(out, n_target_top, seq->n_target_top);
    SET(out, n_draft, seq->n_draft);
    SET(out, n_wanted, seq->n_wanted);
    SET(out, next, seq->next);
    SET(out, is_drafted, seq->is_drafted);
}

enum lm_status wire_pack_plan(struct frame **out, uint64_t number, const struct step_plan *plan,
                              const uint32_t *position, const Lean__SlotOp *op, size_t n_op,
                              uint32_t n_vocab, struct lm_error *err)
{
    struct plan_messages messages;
    Lean__Plan message = LEAN__PLAN__INIT;
    enum lm_status status = create_plan_messages(&messages, plan, n_op, err);
    if (status != LM_OK) return status;
    size_t n_bias = 0;
    for (uint32_t i = 0; i < plan->n_seq; i++) {
        const struct step_seq *seq = &plan->seq[i];
        Lean__PlanSeq *const part = messages.seq[i] = &messages.part[i].seq;
        fill_seq(part, seq, position[i]);
        if (!wants_sample(seq)) continue;
        part->sampling = &messages.part[i].sampling;
        fill_sampling(part->sampling, seq->sampling, messages.bias + n_bias,
                      messages.bias_ptr + n_bias, n_vocab);
        n_bias += seq->sampling->n_bias;
    }
    for (size_t i = 0; i < n_op; i++)
        messages.op[i] = (Lean__SlotOp *)&op[i];
    message.step = number;
    message.n_op = n_op;
    message.op = messages.op;
    message.n_seq = plan->n_seq;
    message.seq = messages.seq;
    status = wire_pack(out, LEAN__FRAME_TYPE__PLAN, &message.base, err);
    free_plan_messages(&messages);
    return status;
}

/* What is wrong with a plan, or NULL. */
static const char *find_fault(const Lean__Plan *message, const struct wire_limits *limits)
{
    uint64_t n_token = 0;
    for (size_t i = 0; i < message->n_op; i++) {
        const Lean__SlotOp *op = message->op[i];
        if (op->slot >= limits->n_slot) return "an operation on a slot that there is not";
        if (op->kind == LEAN__SLOT_OP__KIND__FORK &&
            (op->to >= limits->n_slot || op->to == op->slot))
            return "a fork to a slot that there is not";
    }
    if (!message->n_seq || message->n_seq > limits->n_slot) return "the number of sequences";
    for (size_t i = 0; i < message->n_seq; i++) {
        const Lean__PlanSeq *seq = message->seq[i];
        n_token += seq->n_id;
        if (seq->slot >= limits->n_slot) return "a slot that there is not";
        for (size_t j = 0; j < i; j++)
            if (message->seq[j]->slot == seq->slot) return "a slot that occurs twice";
        if (!seq->n_id || n_token > limits->n_batch) return "the number of tokens";
        if (seq->position > limits->n_ctx || seq->n_id > limits->n_ctx - seq->position)
            return "a position behind the context";
        for (size_t j = 0; j < seq->n_id; j++)
            if (seq->id[j] < 0 || (uint32_t)seq->id[j] >= limits->n_vocab)
                return "a token that there is not";
        for (size_t j = 0; j < seq->n_target; j++)
            if (seq->target[j] < 0 || (uint32_t)seq->target[j] >= limits->n_vocab)
                return "a target that there is not";
        if (seq->n_draft > limits->n_draft || seq->n_draft >= seq->n_id ||
            (seq->n_draft && seq->output != LEAN__PLAN_SEQ__OUTPUT__SAMPLE))
            return "the number of drafts";
        if (seq->n_wanted > limits->n_draft) return "the number of drafts that are wanted";
        if (seq->next < -1 || seq->next >= (int64_t)limits->n_vocab)
            return "a next token that there is not";
        if (seq->n_target > seq->n_id || seq->n_target_top > SAMPLING_MAX_LOGPROB)
            return "the number of targets";
        if (seq->n_prompt > seq->position + seq->n_id) return "the length of a prompt";
        if (seq->output == LEAN__PLAN_SEQ__OUTPUT__NONE) continue;
        if (!seq->sampling) return "a token is wanted and not said how";
        if (seq->sampling->has_allowed && seq->sampling->allowed.len != mask_bytes(limits->n_vocab))
            return "the size of a mask";
        if (seq->sampling->n_logprob > SAMPLING_MAX_LOGPROB)
            return "the number of log-probabilities";
        if (seq->sampling->has_forced_id &&
            (seq->sampling->forced_id < 0 || (uint32_t)seq->sampling->forced_id >= limits->n_vocab))
            return "a forced token that there is not";
    }
    return NULL;
}

static struct sampling_params read_sampling(const Lean__SamplingParams *message,
                                            struct logit_bias *bias)
{
    for (size_t i = 0; i < message->n_bias; i++)
        bias[i] = (struct logit_bias){message->bias[i]->token, message->bias[i]->bias};
    return (struct sampling_params){
        .bias = bias,
        .n_bias = message->n_bias,
        .allowed =
            message->has_allowed ? (const uint32_t *)(const void *)message->allowed.data : NULL,
        .repeat_penalty = message->repeat_penalty,
        .repeat_last_n = message->repeat_last_n,
        .presence_penalty = message->presence_penalty,
        .frequency_penalty = message->frequency_penalty,
        .dry_multiplier = message->dry_multiplier,
        .dry_base = message->dry_base,
        .dry_allowed_length = message->dry_allowed_length,
        .dry_penalty_last_n = message->dry_penalty_last_n,
        .dry_breakers = message->dry_breaker,
        .n_dry_breaker = message->n_dry_breaker,
        .top_k = message->top_k,
        .typical_p = message->typical_p,
        .top_p = message->top_p,
        .min_p = message->min_p,
        .temperature = message->temperature,
        .seed = message->seed,
        .n_logprob = message->n_logprob,
        .is_forced = message->has_forced_id,
        .forced_id = message->forced_id,
        .of_processed = message->of_processed,
    };
}

static struct step_seq read_seq(const Lean__PlanSeq *message,
                                const struct sampling_params *sampling)
{
    static const enum step_output outputs[] = {
        [LEAN__PLAN_SEQ__OUTPUT__NONE] = STEP_OUTPUT_NONE,
        [LEAN__PLAN_SEQ__OUTPUT__SAMPLE] = STEP_OUTPUT_SAMPLE,
        [LEAN__PLAN_SEQ__OUTPUT__LOGITS] = STEP_OUTPUT_LOGITS};
    return (struct step_seq){.slot = message->slot,
                             .ids = message->id,
                             .n_token = (uint32_t)message->n_id,
                             .n_draft = message->n_draft,
                             .n_wanted = message->n_wanted,
                             .next = message->next,
                             .is_drafted = message->is_drafted,
                             .output = outputs[message->output],
                             .n_history = (size_t)message->position + message->n_id,
                             .n_prompt = message->n_prompt,
                             .sampling = sampling,
                             .targets = message->target,
                             .n_target = (uint32_t)message->n_target,
                             .n_target_top = message->n_target_top};
}

/* Room for the biases of all sequences. */
static enum lm_status create_received(struct wire_plan **out, const Lean__Plan *message,
                                      struct lm_error *err)
{
    size_t n_bias = 0;
    for (size_t i = 0; i < message->n_seq; i++)
        if (message->seq[i]->sampling) n_bias += message->seq[i]->sampling->n_bias;
    struct wire_plan *plan = calloc(1, sizeof(*plan) + message->n_seq * sizeof(plan->seq[0]));
    if (!plan) return no_memory(err);
    plan->sampling = calloc(message->n_seq, sizeof(*plan->sampling));
    plan->bias = calloc(n_bias + 1, sizeof(*plan->bias));
    if (plan->sampling && plan->bias) {
        *out = plan;
        return LM_OK;
    }
    wire_plan_destroy(plan);
    return no_memory(err);
}

enum lm_status wire_unpack_plan(struct wire_plan **out, const struct frame *frame,
                                const struct wire_limits *limits, struct lm_error *err)
{
    ProtobufCMessage *base;
    struct wire_plan *plan = NULL;
    enum lm_status status = wire_unpack(&base, &lean__plan__descriptor, frame, err);
    if (status != LM_OK) return status;
    Lean__Plan *const message = (Lean__Plan *)base;
    const char *fault = find_fault(message, limits);
    if (fault)
        status = lm_fail(err, LM_E_FORMAT, "plan of step %llu: %s",
                         (unsigned long long)message->step, fault);
    if (status == LM_OK) status = create_received(&plan, message, err);
    if (status != LM_OK) {
        lean__plan__free_unpacked(message, NULL);
        return status;
    }
    plan->message = message;
    plan->plan = (struct step_plan){.seq = plan->seq, .n_seq = (uint32_t)message->n_seq};
    struct logit_bias *bias = plan->bias;
    for (size_t i = 0; i < message->n_seq; i++) {
        const Lean__PlanSeq *seq = message->seq[i];
        plan->seq[i] = read_seq(seq, &plan->sampling[i]);
        if (!seq->sampling) continue;
        plan->sampling[i] = read_sampling(seq->sampling, bias);
        bias += seq->sampling->n_bias;
    }
    *out = plan;
    return LM_OK;
}

void wire_plan_destroy(struct wire_plan *plan)
{
    if (!plan) return;
    if (plan->message) lean__plan__free_unpacked(plan->message, NULL);
    free(plan->sampling);
    free(plan->bias);
    free(plan);
}

/* ---- results ------------------------------------------------------------------------------ */

void wire_pack_failure(Lean__Failure *out, const struct lm_error *failed)
{
    lean__failure__init(out);
    out->status = (int32_t)failed->status;
    out->message = (char *)failed->message;
    if (*failed->hint) out->hint = (char *)failed->hint;
}

void wire_unpack_failure(struct lm_error *out, const Lean__Failure *failure)
{
    const bool known = failure->status > LM_OK && failure->status < LM_STATUS_COUNT;
    lm_fail(out, known ? (enum lm_status)failure->status : LM_E_FAIL, "%s", failure->message);
    if (failure->hint) snprintf(out->hint, sizeof(out->hint), "%s", failure->hint);
}

static void fill_token(Lean__Token *out, const struct sampled_token *token)
{
    lean__token__init(out);
    out->id = token->id;
    out->logprob = token->logprob;
    out->n_top_id = out->n_top_logprob = (size_t)token->n_top;
    out->top_id = (int32_t *)token->top_id;
    out->top_logprob = (float *)token->top_logprob;
}

enum lm_status wire_unpack_token(struct sampled_token *out, const Lean__Token *token,
                                 struct lm_error *err)
{
    if (token->n_top_id > SAMPLING_MAX_LOGPROB || token->n_top_id != token->n_top_logprob)
        return lm_fail(err, LM_E_FORMAT, "a token with %zu alternatives", token->n_top_id);
    *out = (struct sampled_token){
        .id = token->id, .logprob = token->logprob, .n_top = (int32_t)token->n_top_id};
    for (size_t i = 0; i < token->n_top_id; i++) {
        out->top_id[i] = token->top_id[i];
        out->top_logprob[i] = token->top_logprob[i];
    }
    return LM_OK;
}

static void fill_usage(Lean__ExpertUsage *out, const struct expert_usage *usage)
{
    lean__expert_usage__init(out);
    SET(out, n_lookup, usage->n_lookup);
    SET(out, n_hit, usage->n_hit);
    SET(out, n_joined, usage->n_joined);
    SET(out, n_miss, usage->n_miss);
    SET(out, n_shared, usage->n_shared);
    SET(out, miss_bytes, usage->miss_bytes);
    SET(out, wait_s, usage->wait_s);
}

struct expert_usage wire_unpack_usage(const Lean__ExpertUsage *usage)
{
    return (struct expert_usage){.n_lookup = usage->n_lookup,
                                 .n_hit = usage->n_hit,
                                 .n_joined = usage->n_joined,
                                 .n_miss = usage->n_miss,
                                 .n_shared = usage->n_shared,
                                 .miss_bytes = usage->miss_bytes,
                                 .wait_s = usage->wait_s};
}

struct result_messages {
    Lean__Token *accepted; /* [n_seq][STEP_DRAFT_MAX] */
    Lean__Token **accepted_ptr;
    struct {
        Lean__SeqResult result;
        Lean__Token token;
        Lean__Failure failure;
        Lean__ExpertUsage experts;
    } * part; /* [n_seq] */
    Lean__SeqResult **result;
    struct {
        Lean__Target target;
        Lean__Token token;
    } * target; /* [n_target] */
    Lean__Target **target_ptr;
};

static void free_result_messages(struct result_messages *messages)
{
    free(messages->accepted);
    free(messages->accepted_ptr);
    free(messages->part);
    free(messages->result);
    free(messages->target);
    free(messages->target_ptr);
}

static void fill_result(struct result_messages *messages, const struct wire_result *result,
                        uint32_t i, size_t *n_target)
{
    Lean__SeqResult *const out = messages->result[i] = &messages->part[i].result;
    const struct step_seq *seq = &result->seq[i];
    lean__seq_result__init(out);
    fill_usage(out->experts = &messages->part[i].experts, seq->experts);
    if (result->failed->status != LM_OK) return;
    out->target = messages->target_ptr + *n_target;
    for (; *n_target < result->n_target && result->target[*n_target].seq == i; ++*n_target) {
        Lean__Target *const target = &messages->target[*n_target].target;
        lean__target__init(target);
        target->position = result->target[*n_target].position;
        target->token = &messages->target[*n_target].token;
        fill_token(target->token, &result->target[*n_target].token);
        messages->target_ptr[*n_target] = target;
        out->n_target++;
    }
    out->n_accepted = seq->n_draft ? *seq->n_accepted : 0;
    out->accepted = messages->accepted_ptr + (size_t)i * STEP_DRAFT_MAX;
    for (size_t k = 0; k < out->n_accepted; k++) {
        out->accepted[k] = &messages->accepted[(size_t)i * STEP_DRAFT_MAX + k];
        fill_token(out->accepted[k], &seq->accepted[k]);
    }
    out->n_draft = seq->n_wanted ? *seq->n_drafted : 0;
    out->draft = seq->drafts;
    if (seq->error->status != LM_OK)
        wire_pack_failure(out->failure = &messages->part[i].failure, seq->error);
    else if (wants_sample(seq))
        fill_token(out->token = &messages->part[i].token, &result->sampled[i]);
}

enum lm_status wire_pack_result(struct frame **out, const struct wire_result *result,
                                struct lm_error *err)
{
    Lean__Tokens message = LEAN__TOKENS__INIT;
    Lean__Failure failure;
    const size_t n_draft = (size_t)result->n_seq * STEP_DRAFT_MAX;
    struct result_messages messages = {
        .accepted = calloc(n_draft, sizeof(*messages.accepted)),
        .accepted_ptr = calloc(n_draft, sizeof(Lean__Token *)),
        .part = calloc(result->n_seq, sizeof(*messages.part)),
        .result = calloc(result->n_seq, sizeof(Lean__SeqResult *)),
        .target = calloc(result->n_target + 1, sizeof(*messages.target)),
        .target_ptr = calloc(result->n_target + 1, sizeof(Lean__Target *)),
    };
    if (!messages.accepted || !messages.accepted_ptr || !messages.part || !messages.result ||
        !messages.target || !messages.target_ptr) {
        free_result_messages(&messages);
        return no_memory(err);
    }
    message.step = result->number;
    if (result->failed->status != LM_OK)
        wire_pack_failure(message.failure = &failure, result->failed);
    size_t n_target = 0;
    for (uint32_t i = 0; i < result->n_seq; i++)
        fill_result(&messages, result, i, &n_target);
    message.n_seq = result->n_seq;
    message.seq = messages.result;
    const enum lm_status status = wire_pack(out, LEAN__FRAME_TYPE__TOKENS, &message.base, err);
    free_result_messages(&messages);
    return status;
}
