/* The layer for multi-token prediction against its formulas, computed plainly in double: what is
 * drafted behind each position, several tokens ahead, however the positions came. */
#include "tests/unit/cmocka_all.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"
#include "worker/graph/mtp.h"
#include "worker/pack/synth.h"
#include "worker/span.h"

/* N_END: where a prompt ends if nothing is sampled there. */
enum { N_POS = 40, N_WANTED = 4, N_MAX = 2048, N_END = 13 };

static char path[] = "/tmp/lean-test-mtp-XXXXXX";
static struct gguf_file *file;
static struct hparams hp;
static struct backend *cpu;

static int open_model(void **state)
{
    (void)state;
    struct synth_config config = {.mtp = true, .seed = 5};
    const struct backend_cpu_config backend = {.n_thread = 1, .kernels = "auto"};
    const int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    if (synth_shape_find("qwen35", &config.shape, NULL) ||
        recipe_find("F32", &config.recipe, NULL) || synth_write(path, &config, NULL, NULL) ||
        gguf_open(&file, path, NULL) || hparams_read(&hp, file, NULL))
        return -1;
    return backend_cpu_create(&cpu, &backend, NULL);
}

static int close_model(void **state)
{
    (void)state;
    cpu->ops->destroy(cpu);
    gguf_close(file);
    return unlink(path);
}

/* ---- the formulas ------------------------------------------------------------------------- */

static const float *tensor(const char *name)
{
    char full[64];
    snprintf(full, sizeof(full), "blk.%u.%s.weight", hp.n_layer, name);
    const struct gguf_tensor *found = gguf_find_tensor(file, *name == '/' ? name + 1 : full);
    return found ? found->data : NULL;
}

static void multiply(const char *name, const double *x, uint32_t n_col, uint32_t n_row, double *y)
{
    const float *w = tensor(name);
    for (uint32_t r = 0; r < n_row; r++) {
        y[r] = 0;
        for (uint32_t c = 0; c < n_col; c++)
            y[r] += (double)w[(size_t)r * n_col + c] * x[c];
    }
}

static void norm(const double *x, const float *w, uint32_t n, double *y)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    const double scale = 1 / sqrt(sum / n + (double)hp.rms_eps);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * scale * (double)w[i];
}

static void rotate(double *x, uint32_t pos)
{
    const uint32_t half = hp.rope.n_rot / 2;
    for (uint32_t i = 0; i < half; i++) {
        const double angle = pos * pow((double)hp.rope.freq_base, -2.0 * i / hp.rope.n_rot);
        const double a = x[i], b = x[i + half];
        x[i] = a * cos(angle) - b * sin(angle);
        x[i + half] = b * cos(angle) + a * sin(angle);
    }
}

struct plain {
    double k[N_POS + N_WANTED][N_MAX], v[N_POS + N_WANTED][N_MAX];
};

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* x += attention of its norm over what is there, gated by head. */
static void attend(struct plain *plain, uint32_t pos, double *x)
{
    const struct layer_hparams *layer = &hp.layer[hp.n_layer];
    const uint32_t d = hp.n_embd, dim = hp.head_dim, n_kv = layer->n_head_kv * dim;
    static double a[N_MAX], q[2 * N_MAX], out[N_MAX], y[N_MAX], weight[N_POS + N_WANTED];
    norm(x, tensor("attn_norm"), d, a);
    multiply("attn_q", a, d, 2 * layer->n_head * dim, q);
    multiply("attn_k", a, d, n_kv, plain->k[pos]);
    multiply("attn_v", a, d, n_kv, plain->v[pos]);
    for (uint32_t ih = 0; ih < layer->n_head_kv; ih++) {
        double *k = plain->k[pos] + ih * dim;
        norm(k, tensor("attn_k_norm"), dim, k);
        rotate(k, pos);
    }
    for (uint32_t ih = 0; ih < layer->n_head; ih++) {
        const uint32_t kv = ih / (layer->n_head / layer->n_head_kv) * dim;
        double *head = q + (size_t)2 * ih * dim, *o = out + ih * dim, sum = 0;
        norm(head, tensor("attn_q_norm"), dim, head);
        rotate(head, pos);
        memset(o, 0, dim * sizeof(*o));
        for (uint32_t p = 0; p <= pos; p++) {
            double score = 0;
            for (uint32_t i = 0; i < dim; i++)
                score += head[i] * plain->k[p][kv + i];
            sum += weight[p] = exp(score / sqrt(dim));
        }
        for (uint32_t p = 0; p <= pos; p++)
            for (uint32_t i = 0; i < dim; i++)
                o[i] += weight[p] / sum * plain->v[p][kv + i];
        for (uint32_t i = 0; i < dim; i++)
            o[i] *= sigmoid(head[dim + i]);
    }
    multiply("attn_output", out, layer->n_head * dim, d, y);
    for (uint32_t i = 0; i < d; i++)
        x[i] += y[i];
}

static void feed_forward(double *x)
{
    static double b[N_MAX], gate[N_MAX], up[N_MAX], y[N_MAX];
    const uint32_t d = hp.n_embd, n_ff = hp.layer[hp.n_layer].n_ff;
    norm(x, tensor("post_attention_norm"), d, b);
    multiply("ffn_gate", b, d, n_ff, gate);
    multiply("ffn_up", b, d, n_ff, up);
    for (uint32_t i = 0; i < n_ff; i++)
        gate[i] *= sigmoid(gate[i]) * up[i];
    multiply("ffn_down", gate, n_ff, d, y);
    for (uint32_t i = 0; i < d; i++)
        x[i] += y[i];
}

/* One position: h becomes the layer's own output; returns the likeliest token. */
static int32_t run_plain(struct plain *plain, uint32_t pos, int32_t id, double *h)
{
    static double joined[2 * N_MAX], embedding[N_MAX], x[N_MAX], logits[4 * N_MAX];
    const uint32_t d = hp.n_embd;
    int32_t best = 0;
    assert_true(2 * d <= N_MAX && hp.n_vocab <= 4 * N_MAX);
    for (uint32_t i = 0; i < d; i++)
        embedding[i] = (double)tensor("/token_embd.weight")[(size_t)id * d + i];
    norm(embedding, tensor("nextn.enorm"), d, joined);
    norm(h, tensor("nextn.hnorm"), d, joined + d);
    multiply("nextn.eh_proj", joined, 2 * d, d, x);
    attend(plain, pos, x);
    feed_forward(x);
    const float *head_norm = tensor("nextn.shared_head_norm");
    norm(x, head_norm ? head_norm : tensor("/output_norm.weight"), d, h);
    multiply(hp.tied ? "/token_embd.weight" : "/output.weight", h, d, hp.n_vocab, logits);
    for (uint32_t i = 1; i < hp.n_vocab; i++)
        if (logits[i] > logits[best]) best = (int32_t)i;
    return best;
}

/* ---- the layer ---------------------------------------------------------------------------- */

/* The decoder's last layer, of which it uses head and workspace. */
static struct span last;
static float *logits;

static struct mtp *create(void)
{
    struct mtp *mtp = NULL;
    struct lm_error err;
    const struct span_config span = {.file = file,
                                     .hp = &hp,
                                     .backend = cpu,
                                     .state = {.layer_begin = hp.n_layer - 1,
                                               .layer_end = hp.n_layer,
                                               .n_slot = 2,
                                               .n_ctx = 256,
                                               .n_position = 512,
                                               .n_position_ready = KV_BLOCK,
                                               .n_batch = 64,
                                               .kv_type = TENSOR_F32}};
    const struct graph_experts none = {.bank = NULL};
    if (span_init(&last, &span, &err) != LM_OK ||
        span_create_graph(&last, &none, NULL, 0, NULL, &err) != LM_OK)
        fail_msg("%s", err.message);
    logits = cpu->ops->alloc(cpu, hp.n_vocab * sizeof(float), &err);
    const struct mtp_config config = {.file = file,
                                      .last = &last,
                                      .cpu = cpu,
                                      .logits = logits,
                                      .host_logits = logits,
                                      .n_logit = 1};
    if (mtp_create(&mtp, &config, &err) != LM_OK) fail_msg("%s", err.message);
    return mtp;
}

static void destroy(struct mtp *mtp)
{
    mtp_destroy(mtp);
    cpu->ops->free(cpu, logits);
    span_fini(&last);
}

/* A sequence of which everything is given. */
static float hidden[N_POS][N_MAX];
static int32_t ids[N_POS + 1];

static void make_sequence(void)
{
    uint32_t random = 7;
    for (uint32_t p = 0; p <= N_POS; p++) {
        random = random * 1664525 + 1013904223;
        ids[p] = (int32_t)((random >> 8) % hp.n_vocab);
        for (uint32_t i = 0; p < N_POS && i < hp.n_embd; i++) {
            random = random * 1664525 + 1013904223;
            hidden[p][i] = (float)(int32_t)random * 0x1p-31f;
        }
    }
}

/* Positions [begin, begin + n) with n_draft wrong drafts behind them; returns what is drafted. */
static uint32_t follow(struct mtp *mtp, uint32_t slot, uint32_t begin, uint32_t n, uint32_t n_draft,
                       enum step_output output, int32_t *drafts)
{
    static float rows[N_POS + STEP_DRAFT_MAX][N_MAX];
    int32_t step_ids[N_POS + STEP_DRAFT_MAX];
    float packed[(N_POS + STEP_DRAFT_MAX) * N_MAX / 4];
    uint32_t n_accepted = 0, n_drafted = 0;
    struct lm_error error = {.status = LM_OK}, err;
    const bool samples = output == STEP_OUTPUT_SAMPLE;
    /* inside a prompt whose logits are wanted what is sampled is not what follows */
    const struct sampled_token sampled = {.id = samples ? ids[begin + n] : 3};
    for (uint32_t i = 0; i < n + n_draft; i++) {
        step_ids[i] = i < n ? ids[begin + i] : 3;
        memcpy(rows[i], i < n ? hidden[begin + i] : hidden[0], sizeof(rows[i]));
        memcpy(packed + i * hp.n_embd, rows[i], hp.n_embd * sizeof(float));
    }
    const struct step_seq seq = {.slot = slot,
                                 .ids = step_ids,
                                 .n_token = n + n_draft,
                                 .n_draft = n_draft,
                                 .n_accepted = &n_accepted,
                                 .output = output,
                                 .n_history = begin + n + n_draft,
                                 .is_drafted = true,
                                 .n_wanted = samples ? N_WANTED : 0,
                                 .drafts = drafts,
                                 .n_drafted = &n_drafted,
                                 .next = samples || begin + n == N_END ? -1 : ids[begin + n],
                                 .error = &error};
    const struct step_plan plan = {.seq = &seq, .n_seq = 1};
    if (mtp_follow(mtp, &plan, &sampled, packed, &err) != LM_OK) fail_msg("%s", err.message);
    return n_drafted;
}

static void check_drafts(const struct plain *prefix, uint32_t n, const int32_t *drafts)
{
    static struct plain plain;
    static double h[N_MAX];
    plain = *prefix;
    for (uint32_t i = 0; i < hp.n_embd; i++)
        h[i] = (double)hidden[n - 1][i];
    int32_t id = ids[n];
    for (uint32_t k = 0; k < N_WANTED; k++) {
        id = run_plain(&plain, n - 1 + k, id, h);
        assert_int_equal(drafts[k], id);
    }
}

static void test_the_formulas(void **state)
{
    (void)state;
    static struct plain plain;
    static double h[N_MAX];
    struct mtp *mtp = create();
    int32_t drafts[N_WANTED];
    make_sequence();
    assert_true(hp.n_embd <= N_MAX / 4);
    /* a prompt in three chunks, then token by token, drafts of the step before among them */
    assert_int_equal(follow(mtp, 0, 0, 5, 0, STEP_OUTPUT_NONE, drafts), 0);
    assert_int_equal(follow(mtp, 0, 5, 4, 0, STEP_OUTPUT_LOGITS, drafts), 0);
    uint32_t n = 0;
    for (uint32_t end = 20; end <= N_POS; end++) {
        const uint32_t begin = end == 20 ? 9 : end - 1;
        assert_int_equal(
            follow(mtp, 0, begin, end - begin, end > 20 ? end % 3 : 0, STEP_OUTPUT_SAMPLE, drafts),
            N_WANTED);
        for (; n + 1 < end; n++) {
            for (uint32_t i = 0; i < hp.n_embd; i++)
                h[i] = (double)hidden[n][i];
            run_plain(&plain, n, ids[n + 1], h);
        }
        check_drafts(&plain, end, drafts);
    }
    destroy(mtp);
}

/* A copy goes on like the original; what misses positions drafts nothing, until it is cleared. */
static void test_slots(void **state)
{
    (void)state;
    struct mtp *mtp = create();
    int32_t drafts[2][N_WANTED];
    make_sequence();
    /* a prompt that was only read can be gone on from */
    follow(mtp, 1, 0, N_END, 0, STEP_OUTPUT_NONE, drafts[1]);
    mtp_seq(mtp, &(struct seq_op){.kind = SEQ_FORK, .slot = 1, .to = 0, .n = N_END});
    assert_int_equal(follow(mtp, 0, N_END, 1, 0, STEP_OUTPUT_SAMPLE, drafts[0]), N_WANTED);
    mtp_seq(mtp, &(struct seq_op){.kind = SEQ_CLEAR, .slot = 0});
    follow(mtp, 0, 0, 20, 0, STEP_OUTPUT_SAMPLE, drafts[0]);
    mtp_seq(mtp, &(struct seq_op){.kind = SEQ_FORK, .slot = 0, .to = 1, .n = 15});
    assert_int_equal(follow(mtp, 1, 15, 5, 0, STEP_OUTPUT_SAMPLE, drafts[1]), N_WANTED);
    assert_memory_equal(drafts[0], drafts[1], sizeof(drafts[0]));
    assert_int_equal(follow(mtp, 1, 25, 5, 0, STEP_OUTPUT_SAMPLE, drafts[1]), 0);
    assert_int_equal(follow(mtp, 1, 30, 5, 0, STEP_OUTPUT_SAMPLE, drafts[1]), 0);
    mtp_seq(mtp, &(struct seq_op){.kind = SEQ_FORK, .slot = 1, .to = 0, .n = 35});
    assert_int_equal(follow(mtp, 0, 35, 1, 0, STEP_OUTPUT_SAMPLE, drafts[1]), 0);
    mtp_seq(mtp, &(struct seq_op){.kind = SEQ_CLEAR, .slot = 0});
    assert_int_equal(follow(mtp, 0, 0, 20, 0, STEP_OUTPUT_SAMPLE, drafts[1]), N_WANTED);
    assert_memory_equal(drafts[0], drafts[1], sizeof(drafts[0]));
    destroy(mtp);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_formulas),
        cmocka_unit_test(test_slots),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
