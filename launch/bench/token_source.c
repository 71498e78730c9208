/* Token traces from a text or at random. */
#include "launch/bench/token_source.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/text/tokenizer.h"
#include "launch/bench/random.h"
#include "launch/bench/sample.h"
#include "proto/base/read_all.h"

enum { MAX_TEXT_BYTES = 1 << 28 };

struct token_source {
    int32_t *ids; /* [n_id] the text; or the ordinary tokens of the vocabulary */
    size_t n_id;
    bool random;
    uint64_t seed;
};

static enum lm_status list_vocabulary(struct token_source *source,
                                      const struct tokenizer *tokenizer, struct lm_error *err)
{
    const uint32_t n_vocab = tokenizer_n_vocab(tokenizer);
    source->ids = malloc((n_vocab + 1) * sizeof(*source->ids));
    if (!source->ids) return lm_fail(err, LM_E_NO_MEM, "no memory for %u tokens", n_vocab);
    for (uint32_t id = 0; id < n_vocab; id++)
        if (tokenizer_token_kind(tokenizer, (int32_t)id) == TOKEN_NORMAL)
            source->ids[source->n_id++] = (int32_t)id;
    return LM_OK;
}

static enum lm_status read_text(struct token_source *source, const struct tokenizer *tokenizer,
                                const char *path, struct lm_error *err)
{
    char *bytes = NULL;
    size_t n = 0;
    const char *const sample = sample_text(&n);
    enum lm_status status = path ? read_all_path(path, MAX_TEXT_BYTES, &bytes, &n, err) : LM_OK;
    if (status == LM_OK)
        status = tokenizer_encode(tokenizer, path ? bytes : sample, n, false, false, &source->ids,
                                  &source->n_id, err);
    free(bytes);
    return status;
}

enum lm_status token_source_create(struct token_source **out, const struct tokenizer *tokenizer,
                                   const char *what, uint64_t seed, struct lm_error *err)
{
    enum lm_status status;
    struct token_source *source = calloc(1, sizeof(*source));
    if (!source) return lm_fail(err, LM_E_NO_MEM, "no memory for prompts");
    source->seed = seed;
    source->random = !strcmp(what, "random");
    if (source->random)
        status = list_vocabulary(source, tokenizer, err);
    else if (what[0] == '@' && what[1])
        status = read_text(source, tokenizer, what + 1, err);
    else if (!strcmp(what, "text"))
        status = read_text(source, tokenizer, NULL, err);
    else
        status =
            lm_fail(err, LM_E_USAGE, "--prompts must be random, text or @FILE, got '%.80s'", what);
    if (status == LM_OK && !source->n_id)
        status = lm_fail(err, LM_E_USAGE, "--prompts %.200s: there are no tokens", what);
    if (status != LM_OK) {
        token_source_destroy(source);
        return status;
    }
    *out = source;
    return LM_OK;
}

void token_source_destroy(struct token_source *source)
{
    if (!source) return;
    free(source->ids);
    free(source);
}

void token_source_trace(const struct token_source *source, uint64_t number, int32_t *out, size_t n)
{
    uint64_t state = source->seed ^ (number + 1) * 0xd1342543de82ef95u;
    const size_t first = random_next(&state) % source->n_id;
    for (size_t i = 0; i < n; i++)
        out[i] = source->ids[source->random ? random_next(&state) % source->n_id
                                            : (first + i) % source->n_id];
}
