/* How much, and when; the pool and the tier do it. */
#include "worker/exchange.h"

#include "proto/base/log.h"

enum { SLACK_SHARE = 8 };

void exchange_init(struct exchange *exchange, struct seq_state *state, struct device_tier *tier)
{
    *exchange =
        (struct exchange){.state = state, .tier = tier, .n_least = seq_state_pool(state).n_ready};
}

/* Groups to have ready for n in use. */
static uint32_t with_slack(const struct exchange *exchange, uint32_t n)
{
    const uint32_t n_group = seq_state_pool(exchange->state).n_group;
    const uint32_t n_ready = n + n / SLACK_SHARE;
    if (n_ready < exchange->n_least) return exchange->n_least;
    return n_ready < n_group ? n_ready : n_group;
}

static void report(const struct exchange *exchange, uint32_t n_slot)
{
    const struct device_tier_stats stats = device_tier_stats(exchange->tier);
    char kv[24];
    log_verbose("keys and values have %s now: slots for %u experts, before %u",
                log_format_bytes(stats.kv_bytes, kv), stats.n_slot, n_slot);
}

static enum lm_status resize_tier(const struct exchange *exchange, uint32_t n_ready,
                                  struct lm_error *err)
{
    const size_t group_bytes = seq_state_pool(exchange->state).group_bytes;
    const uint32_t n_slot = device_tier_stats(exchange->tier).n_slot;
    const enum lm_status status = device_tier_resize(exchange->tier, n_ready * group_bytes, err);
    report(exchange, n_slot);
    return status;
}

/* The most that the last epochs needed. */
static uint32_t note_peak(struct exchange *exchange)
{
    const uint32_t n_used = seq_state_pool(exchange->state).n_used;
    uint32_t *const now = &exchange->peak[exchange->n_epoch % EXCHANGE_EPOCHS];
    uint32_t most = 0;
    if (n_used > *now) *now = n_used;
    for (uint32_t i = 0; i < EXCHANGE_EPOCHS; i++)
        if (exchange->peak[i] > most) most = exchange->peak[i];
    return most;
}

void exchange_end_sequence(struct exchange *exchange)
{
    if (!exchange->tier) return;
    note_peak(exchange);
    exchange->peak[++exchange->n_epoch % EXCHANGE_EPOCHS] = 0;
    exchange->n_step = 0;
    exchange->is_due = true;
}

enum lm_status exchange_settle(struct exchange *exchange, struct lm_error *err)
{
    if (!exchange->is_due) return LM_OK;
    const uint32_t n_ready = with_slack(exchange, note_peak(exchange));
    const uint32_t old = seq_state_pool(exchange->state).n_ready;
    exchange->is_due = false;
    if (n_ready >= old - old / SLACK_SHARE) return LM_OK;
    seq_state_resize_pool(exchange->state, n_ready);
    return resize_tier(exchange, n_ready, err);
}

enum lm_status exchange_begin_step(struct exchange *exchange, struct lm_error *err)
{
    if (!exchange->tier) return LM_OK;
    note_peak(exchange);
    if (++exchange->n_step > EXCHANGE_EPOCH_STEPS) exchange_end_sequence(exchange);
    return exchange_settle(exchange, err);
}

enum lm_status exchange_make_room(struct exchange *exchange, uint32_t slot, uint32_t n,
                                  struct lm_error *err)
{
    if (!exchange->tier) return LM_OK;
    const struct kv_pool pool = seq_state_pool(exchange->state);
    const uint32_t n_lacking = seq_state_n_lacking(exchange->state, slot, n);
    if (!n_lacking || pool.n_ready == pool.n_group) return LM_OK;
    const uint32_t n_ready = with_slack(exchange, pool.n_ready + n_lacking);
    const enum lm_status status = resize_tier(exchange, n_ready, err);
    seq_state_resize_pool(exchange->state, n_ready);
    return status;
}
