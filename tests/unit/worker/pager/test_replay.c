/* Hand-made traces whose hits are known, and random ones on which no policy beats the bound. */
#include "tests/unit/cmocka_all.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/trace.pb-c.h"
#include "worker/pager/policy.h"
#include "worker/pager/replay.h"

/* ---- writing a trace ---------------------------------------------------------------------- */

static void put_record(FILE *file, const Lean__TraceRecord *record)
{
    uint8_t bytes[8192];
    const size_t n = lean__trace_record__pack(record, bytes);
    assert_true(n <= sizeof(bytes));
    for (size_t left = n; left > 0x7f; left >>= 7)
        fputc((int)(left & 0x7f) | 0x80, file);
    fputc((int)(n > 0x7f ? n >> 7 : n), file);
    assert_true(n < 1 << 14);
    fwrite(bytes, 1, n, file);
}

static void put_header(FILE *file, uint32_t n_layer, uint32_t n_expert, uint32_t n_used)
{
    Lean__TraceHeader header = LEAN__TRACE_HEADER__INIT;
    Lean__TraceRecord record = LEAN__TRACE_RECORD__INIT;
    header.has_version = header.has_n_layer = header.has_n_expert = header.has_n_expert_used = 1;
    header.version = 1;
    header.n_layer = n_layer;
    header.n_expert = n_expert;
    header.n_expert_used = n_used;
    record.kind_case = LEAN__TRACE_RECORD__KIND_HEADER;
    record.header = &header;
    put_record(file, &record);
}

/* Rows of one sequence from a position on, or one row each of several. */
static void put_step(FILE *file, uint32_t n_row, uint32_t position, bool one_sequence)
{
    uint32_t slot[64], positions[64];
    Lean__TraceStep step = LEAN__TRACE_STEP__INIT;
    Lean__TraceRecord record = LEAN__TRACE_RECORD__INIT;
    for (uint32_t i = 0; i < n_row; i++) {
        slot[i] = one_sequence ? 0 : i;
        positions[i] = position + (one_sequence ? i : 0);
    }
    step.n_slot = step.n_position = n_row;
    step.slot = slot;
    step.position = positions;
    record.kind_case = LEAN__TRACE_RECORD__KIND_STEP;
    record.step = &step;
    put_record(file, &record);
}

static void put_layer(FILE *file, uint32_t layer, const uint32_t *expert, size_t n)
{
    Lean__TraceLayer message = LEAN__TRACE_LAYER__INIT;
    Lean__TraceRecord record = LEAN__TRACE_RECORD__INIT;
    message.has_layer = 1;
    message.layer = layer;
    message.n_expert = n;
    message.expert = (uint32_t *)expert;
    record.kind_case = LEAN__TRACE_RECORD__KIND_LAYER;
    record.layer = &message;
    put_record(file, &record);
}

struct temp {
    char path[64];
    FILE *file;
};

static void open_temp(struct temp *temp)
{
    snprintf(temp->path, sizeof(temp->path), "/tmp/test_replay_XXXXXX");
    const int fd = mkstemp(temp->path);
    assert_true(fd >= 0);
    temp->file = fdopen(fd, "wb");
    assert_non_null(temp->file);
}

static struct route_log *close_and_read(struct temp *temp)
{
    struct lm_error err;
    struct route_log *log;
    assert_int_equal(fclose(temp->file), 0);
    if (route_log_read(&log, temp->path, &err) != LM_OK) fail_msg("%s", err.message);
    unlink(temp->path);
    return log;
}

/* One layer, one expert a token: the tokens of one sequence, each a step. */
static struct route_log *single_layer(const char *experts)
{
    struct temp temp;
    open_temp(&temp);
    put_header(temp.file, 1, 26, 1);
    for (uint32_t i = 0; experts[i]; i++) {
        const uint32_t expert = (uint32_t)(experts[i] - 'a');
        put_step(temp.file, 1, i, true);
        put_layer(temp.file, 0, &expert, 1);
    }
    return close_and_read(&temp);
}

static const uint32_t one_class[64] = {0};

static struct replay_config config_of(const struct route_log *const *log, const uint32_t *n_slot)
{
    return (struct replay_config){.log = log,
                                  .n_log = 1,
                                  .class_of = one_class,
                                  .slot_of_class = n_slot,
                                  .n_class = 1,
                                  .floor = log[0]->n_expert_used};
}

enum method { BOUND, PLAIN_LRU, LRU, LFRU, STATIC, METHOD_COUNT };

static struct replay_result replay(const struct replay_config *config, enum method method)
{
    static const struct cache_policy *const policies[METHOD_COUNT] = {
        [LRU] = &policy_lru, [LFRU] = &policy_lfru, [STATIC] = &policy_static};
    struct replay_result result;
    struct lm_error err;
    enum lm_status status;
    if (method == BOUND)
        status = replay_bound(config, &result, &err);
    else if (method == PLAIN_LRU)
        status = replay_plain_lru(config, &result, &err);
    else
        status = replay_policy(config, policies[method], &result, &err);
    assert_int_equal(status, LM_OK);
    return result;
}

/* ---- tests -------------------------------------------------------------------------------- */

static void known_hits(void **state)
{
    static const struct {
        const char *experts;
        uint32_t n_slot;
        uint64_t bound, lru;
    } cases[] = {
        {"abcabcabc", 2, 4, 0}, /* the bound keeps a and b, and c goes past */
        {"abcabcabc", 3, 6, 6}, {"aaaa", 1, 3, 3},
        {"abab", 1, 1, 0}, /* keeps one of them, past the other */
        {"abacadae", 2, 3, 3},  {"abcdabcd", 3, 3, 0},
        {"abcd", 4, 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct route_log *log = single_layer(cases[i].experts);
        const struct route_log *const logs[] = {log};
        const struct replay_config config = config_of(logs, &cases[i].n_slot);
        assert_int_equal(replay(&config, BOUND).decode.n_hit, cases[i].bound);
        assert_int_equal(replay(&config, LRU).decode.n_hit, cases[i].lru);
        assert_int_equal(replay(&config, PLAIN_LRU).decode.n_hit, cases[i].lru);
        assert_int_equal(replay(&config, LRU).decode.n_lookup, strlen(cases[i].experts));
        assert_int_equal(replay(&config, LRU).n_token, strlen(cases[i].experts));
        route_log_destroy(log);
    }
}

static void frequency_outlasts_recency(void **state)
{
    (void)state;
    struct route_log *log = single_layer("aabbaabbaabbcdefgab");
    const struct route_log *const logs[] = {log};
    const uint32_t n_slot = 3;
    struct replay_config config = config_of(logs, &n_slot);
    assert_int_equal(replay(&config, LFRU).decode.n_hit, 12); /* all but the first of each */
    assert_int_equal(replay(&config, LRU).decode.n_hit, 10);
    config.n_warm_up = 12;
    assert_int_equal(replay(&config, LFRU).decode.n_hit, 2);
    assert_int_equal(replay(&config, LFRU).decode.n_lookup, 7);
    route_log_destroy(log);
}

static void a_profile_fills_the_cache(void **state)
{
    float rate[26] = {['b' - 'a'] = 5, ['c' - 'a'] = 4, ['a' - 'a'] = 1};
    (void)state;
    struct route_log *log = single_layer("bcbxcb");
    const struct route_log *const logs[] = {log};
    const uint32_t n_slot = 3;
    struct replay_config config = config_of(logs, &n_slot);
    config.rate = rate;
    assert_int_equal(replay(&config, STATIC).decode.n_hit, 5);
    config.rate = NULL;
    assert_int_equal(replay(&config, STATIC).decode.n_hit, 3);
    route_log_destroy(log);
}

/* A prompt of three tokens, then two that are generated, then two sequences at once. */
static void prefill_is_counted_apart(void **state)
{
    static const uint32_t prompt[] = {0, 1, 1, 2, 0, 1}, first[] = {0, 1}, second[] = {3, 1};
    static const uint32_t both[] = {0, 1, 1, 2};
    struct temp temp;
    struct replay_recall recall;
    struct lm_error err;
    (void)state;
    open_temp(&temp);
    put_header(temp.file, 1, 4, 2);
    put_step(temp.file, 3, 0, true);
    put_layer(temp.file, 0, prompt, 6);
    put_step(temp.file, 1, 3, true);
    put_layer(temp.file, 0, first, 2);
    put_step(temp.file, 1, 4, true);
    put_layer(temp.file, 0, second, 2);
    put_step(temp.file, 2, 5, false);
    put_layer(temp.file, 0, both, 4);
    struct route_log *log = close_and_read(&temp);
    const struct route_log *const logs[] = {log};
    const uint32_t n_slot = 4;
    struct replay_config config = config_of(logs, &n_slot);
    struct replay_result result = replay(&config, LRU);
    assert_true(log->step[0].prefill);
    assert_false(log->step[3].prefill);
    assert_int_equal(result.prefill.n_lookup, 3);
    assert_int_equal(result.prefill.n_hit, 0);
    assert_int_equal(result.decode.n_lookup, 2 + 2 + 3); /* of the two sequences: 0, 1, 2 */
    assert_int_equal(result.decode.n_hit, 2 + 1 + 3);
    assert_int_equal(result.n_token, 4);
    result = replay(&config, BOUND); /* what prefill read it may keep */
    assert_int_equal(result.decode.n_hit, 2 + 1 + 3);
    config.by_token = true;
    result = replay(&config, LRU);
    assert_int_equal(result.prefill.n_lookup, 0);
    assert_int_equal(result.decode.n_lookup, 7 * 2);
    assert_int_equal(result.decode.n_hit, 14 - 4);
    /* Recall: 12 01 01 31 and (0 1) follow a token of their sequence; 1 is in all five pairs, and
     * 0 in the second. The last row begins a sequence. */
    assert_int_equal(replay_recall(&config, &recall, &err), LM_OK);
    assert_int_equal(recall.n_choice, 10);
    assert_int_equal(recall.n_previous, 1 + 1 + 2 + 1 + 1);
    /* Of the first three rows 1 is the most chosen, then 0 by its number. */
    assert_int_equal(recall.n_hot_choice, 8);
    assert_int_equal(recall.n_hot, 2 + 1 + 2 + 1);
    route_log_destroy(log);
}

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static struct route_log *random_log(uint32_t n_layer, uint32_t n_expert, uint32_t n_used)
{
    struct temp temp;
    uint32_t position = 0;
    open_temp(&temp);
    put_header(temp.file, n_layer, n_expert, n_used);
    for (uint32_t step = 0; step < 80; step++) {
        const uint32_t n_row = random_below(8) ? 1 : 1 + random_below(30);
        put_step(temp.file, n_row, position, true);
        position += n_row;
        for (uint32_t il = 0; il < n_layer; il++) {
            uint32_t expert[30 * 4];
            for (uint32_t i = 0; i < n_row * n_used; i++) {
                bool again;
                do { /* distinct in a row, low numbers more often */
                    expert[i] = random_below(1 + random_below(n_expert));
                    again = false;
                    for (uint32_t k = i / n_used * n_used; k < i; k++)
                        again |= expert[k] == expert[i];
                } while (again);
            }
            put_layer(temp.file, il, expert, n_row * n_used);
        }
    }
    return close_and_read(&temp);
}

static void nothing_beats_the_bound(void **state)
{
    static const uint32_t class_of[4] = {0, 1, 0, 1};
    (void)state;
    for (uint32_t i = 0; i < 30; i++) {
        const uint32_t n_layer = 1 + random_below(4), n_expert = 5 + random_below(30);
        struct route_log *log = random_log(n_layer, n_expert, 1 + random_below(4));
        const struct route_log *const logs[] = {log};
        const uint32_t n_slot[2] = {1 + random_below(2 * n_expert), 1 + random_below(2 * n_expert)};
        struct replay_config config = config_of(logs, n_slot);
        config.class_of = class_of;
        config.n_class = 2;
        config.by_token = random_below(2);
        const struct replay_result bound = replay(&config, BOUND);
        for (enum method method = PLAIN_LRU; method < METHOD_COUNT; method++) {
            const struct replay_result result = replay(&config, method);
            assert_int_equal(result.decode.n_lookup, bound.decode.n_lookup);
            assert_int_equal(result.prefill.n_lookup, bound.prefill.n_lookup);
            assert_true(result.decode.n_hit <= bound.decode.n_hit);
        }
        route_log_destroy(log);
    }
}

/* The best of all choices, found by trying them all: on one layer with one expert a token, keep or
 * replace at every access. */
static uint64_t best_by_search(const char *experts, uint32_t n_slot, uint32_t kept)
{
    if (!*experts) return 0;
    const uint32_t bit = 1u << (*experts - 'a');
    if (kept & bit) { /* it may leave too, but never needs to at once */
        return 1 + best_by_search(experts + 1, n_slot, kept);
    }
    uint64_t best = best_by_search(experts + 1, n_slot, kept);
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < 26; i++)
        n_kept += kept >> i & 1;
    if (n_kept < n_slot) return best_by_search(experts + 1, n_slot, kept | bit);
    for (uint32_t i = 0; i < 26; i++) {
        if (!(kept >> i & 1)) continue;
        const uint64_t with = best_by_search(experts + 1, n_slot, (kept & ~(1u << i)) | bit);
        if (with > best) best = with;
    }
    return best;
}

static void the_bound_is_the_best_of_all(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 60; i++) {
        char experts[14] = {0};
        const uint32_t n_slot = 1 + random_below(3);
        for (uint32_t k = 0; k < 13; k++)
            experts[k] = (char)('a' + random_below(5));
        struct route_log *log = single_layer(experts);
        const struct route_log *const logs[] = {log};
        const struct replay_config config = config_of(logs, &n_slot);
        assert_int_equal(replay(&config, BOUND).decode.n_hit, best_by_search(experts, n_slot, 0));
        route_log_destroy(log);
    }
}

/* Cut anywhere, a trace is read up to its last whole record; changed anywhere, it is refused or
 * read, and never more than that. */
static void hostile_traces(void **state)
{
    struct temp temp;
    struct lm_error err;
    struct route_log *log;
    uint8_t bytes[4096];
    (void)state;
    open_temp(&temp);
    put_header(temp.file, 2, 8, 2);
    for (uint32_t step = 0; step < 10; step++) {
        const uint32_t expert[] = {step % 8, (step + 1) % 8, 2, 3};
        put_step(temp.file, 2, step * 2, true);
        put_layer(temp.file, 0, expert, 4);
        put_layer(temp.file, 1, expert, 4);
    }
    fclose(temp.file);
    FILE *file = fopen(temp.path, "rb");
    const size_t n = fread(bytes, 1, sizeof(bytes), file);
    fclose(file);
    for (uint32_t i = 0; i < 2 * n; i++) {
        const size_t n_kept = i < n ? i : n;
        uint8_t changed[4096];
        memcpy(changed, bytes, n);
        if (i >= n) changed[i - n] ^= (uint8_t)(1 + random_below(255));
        file = fopen(temp.path, "wb");
        assert_int_equal(fwrite(changed, 1, n_kept, file), n_kept);
        fclose(file);
        const enum lm_status status = route_log_read(&log, temp.path, &err);
        if (status == LM_OK) {
            assert_true(log->n_step <= 10 || i >= n);
            route_log_destroy(log);
        } else {
            assert_true(status == LM_E_FORMAT || status == LM_E_UNSUPPORTED);
        }
    }
    unlink(temp.path);
    assert_int_equal(route_log_read(&log, temp.path, &err), LM_E_NOT_FOUND);
    route_log_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_hits),
        cmocka_unit_test(frequency_outlasts_recency),
        cmocka_unit_test(a_profile_fills_the_cache),
        cmocka_unit_test(prefill_is_counted_apart),
        cmocka_unit_test(nothing_beats_the_bound),
        cmocka_unit_test(the_bound_is_the_best_of_all),
        cmocka_unit_test(hostile_traces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
