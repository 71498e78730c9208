#include "coordinator/text/steering.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/grammar/grammar_builder.h"
#include "coordinator/text/reasoning.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tool_grammar.h"
#include "coordinator/text/tool_parser.h"

struct steering {
    struct steering_config config;
    size_t n_word;  /* of a mask */
    uint32_t *mask; /* scratch */
    uint32_t *end;  /* the end tokens */
    struct reasoning_splitter splitter;
    int32_t think_begin; /* token, or -1 */

    struct grammar *headers;         /* channels with a grammar for the content; else NULL */
    struct grammar_matcher *header;  /* of the header being written, or NULL */
    struct grammar_matcher *content; /* NULL: free */
    bool has_content;                /* a byte of it has come */
    struct tool_parser *calls;       /* finds where calls begin; NULL: they are free */
    struct grammar_matcher *call;    /* of the call being written, or NULL */
    size_t n_call;                   /* complete ones */
    bool call_ended;                 /* with the bytes that were taken last */

    int32_t *recent; /* [n_recent] of [n_recent_max] the last tokens, as many as bad words need */
    size_t n_recent, n_recent_max;

    int32_t *closing;           /* [n_closing] tokens that end the reasoning */
    size_t n_closing, n_closed; /* n_closed of them have come; n_closing: none is forced */
    int64_t n_reasoning;
    enum lm_status status;
    struct lm_error error;
};

static void set_bit(uint32_t *mask, int32_t id)
{
    mask[id / 32] |= 1u << id % 32;
}

/* ---- content and calls ---- */

static void drop_matcher(struct grammar_matcher **matcher)
{
    grammar_matcher_destroy(*matcher);
    *matcher = NULL;
}

static void on_text(void *context, const char *bytes, size_t n)
{
    (void)context;
    (void)bytes;
    (void)n;
}

static void on_call(void *context, const char *name, size_t n)
{
    on_text(context, name, n);
}

static void on_call_end(void *context)
{
    struct steering *steering = context;
    steering->n_call++;
    steering->call_ended = true;
}

/* A call that has just begun is held to its grammar if it can be; one that follows another in their
 * section, to that of the section. */
static void enter_call(struct steering *steering)
{
    size_t n;
    const char *begun = tool_parser_untrusted(steering->calls, &n);
    if (!begun) return;
    if (steering->call) {
        tool_parser_trust(steering->calls, false);
        return;
    }
    if (steering->status == LM_OK)
        steering->status = grammar_matcher_create(&steering->call, steering->config.call_grammar,
                                                  steering->config.trie, &steering->error);
    if (steering->status != LM_OK) return;
    if (grammar_matcher_take(steering->call, begun, n))
        tool_parser_trust(steering->calls, false);
    else
        drop_matcher(&steering->call);
}

static void take_content(struct steering *steering, const char *bytes, size_t n)
{
    steering->has_content = true;
    /* where both may come, what does not fit the one is the other */
    if (steering->content && !grammar_matcher_take(steering->content, bytes, n))
        drop_matcher(&steering->content);
    if (steering->call && !grammar_matcher_take(steering->call, bytes, n))
        drop_matcher(&steering->call);
    if (!steering->calls) return;
    steering->call_ended = false;
    tool_parser_push(steering->calls, bytes, n);
    if (steering->call_ended && !tool_parser_in_call(steering->calls) &&
        !tool_parser_held(steering->calls))
        drop_matcher(&steering->call);
    enter_call(steering);
    steering->splitter.eager = steering->content || steering->call;
    if (tool_parser_failed(steering->calls) && steering->status == LM_OK)
        steering->status = lm_fail(&steering->error, LM_E_NO_MEM, "no memory for a tool call");
}

static void on_part(void *context, enum reasoning_part part, const char *bytes, size_t n)
{
    if (part == PART_CONTENT) take_content(context, bytes, n);
}

/* ---- life ---- */

static enum lm_status make_closing(struct steering *steering, struct lm_error *err)
{
    const struct steering_config *config = &steering->config;
    const char *message = config->budget_message ? config->budget_message : "";
    char *text = NULL;
    if (config->reasoning_budget < 0 || !config->split) return LM_OK;
    const char *const end = config->channels ? "<|end|><|start|>assistant" : "</think>";
    if (asprintf(&text, "%s%s", message, end) < 0)
        return lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    const enum lm_status status =
        tokenizer_encode(config->tokenizer, text, strlen(text), true, false, &steering->closing,
                         &steering->n_closing, err);
    free(text);
    steering->n_closed = steering->n_closing;
    return status;
}

/* ---- headers */

static enum lm_status make_headers(struct steering *steering, struct lm_error *err)
{
    const struct steering_config *config = &steering->config;
    struct grammar_builder *builder;
    enum lm_status status = grammar_builder_create(&builder, err);
    if (status != LM_OK) return status;
    grammar_expr kinds[3];
    size_t n = 0;
    if (config->may_think)
        kinds[n++] = tool_grammar_markup(builder, "<|channel|>analysis<|message|>");
    if (!config->grammar_is_calls)
        kinds[n++] = tool_grammar_markup(builder, "<|channel|>final<|message|>");
    if (config->grammar_is_calls || config->call_grammar)
        kinds[n++] = tool_grammar_markup(builder, "<|channel|>commentary to=");
    const grammar_expr start =
        grammar_build_optional(builder, tool_grammar_markup(builder, "<|start|>assistant"));
    status = grammar_builder_finish(
        &steering->headers, builder,
        grammar_build_sequence(builder,
                               (grammar_expr[]){start, grammar_build_choice(builder, kinds, n)}, 2),
        err);
    grammar_builder_destroy(builder);
    return status;
}

/* Follows the header, if one is being written, with bytes that have come or none. */
static void take_header(struct steering *steering, const char *bytes, size_t n)
{
    const bool in_header = steering->splitter.state == REASONING_START;
    if (!steering->headers) return;
    if (!in_header) {
        drop_matcher(&steering->header);
        return;
    }
    if (!steering->header && steering->status == LM_OK)
        steering->status = grammar_matcher_create(&steering->header, steering->headers,
                                                  steering->config.trie, &steering->error);
    else if (steering->header && !grammar_matcher_take(steering->header, bytes, n))
        drop_matcher(&steering->header);
}

static size_t bad_begin(const struct bad_words *bad, size_t i)
{
    return i ? bad->ends[i - 1] : 0;
}

static enum lm_status init_recent(struct steering *steering, struct lm_error *err)
{
    const struct bad_words *bad = &steering->config.bad;
    for (size_t i = 0; i < bad->n; i++) {
        const size_t n = bad->ends[i] - bad_begin(bad, i) - 1;
        if (n > steering->n_recent_max) steering->n_recent_max = n;
    }
    steering->recent = malloc((steering->n_recent_max + 1) * sizeof(*steering->recent));
    return steering->recent ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
}

static void note_recent(struct steering *steering, int32_t id)
{
    if (!steering->n_recent_max) return;
    if (steering->n_recent == steering->n_recent_max)
        memmove(steering->recent, steering->recent + 1,
                --steering->n_recent * sizeof(*steering->recent));
    steering->recent[steering->n_recent++] = id;
}

static enum lm_status init(struct steering *steering, struct lm_error *err)
{
    const struct steering_config *config = &steering->config;
    const struct tool_sink sink = {on_text, on_call, on_text, on_call_end, steering};
    enum lm_status status = make_closing(steering, err);
    if (status == LM_OK) status = init_recent(steering, err);
    steering->n_word = (tokenizer_n_vocab(config->tokenizer) + 31) / 32;
    steering->mask = calloc(steering->n_word, sizeof(*steering->mask));
    steering->end = calloc(steering->n_word, sizeof(*steering->end));
    if (status == LM_OK && (!steering->mask || !steering->end))
        status = lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    for (uint32_t id = 0; status == LM_OK && id < tokenizer_n_vocab(config->tokenizer); id++)
        if (tokenizer_is_end(config->tokenizer, (int32_t)id)) set_bit(steering->end, (int32_t)id);
    if (status == LM_OK && config->grammar)
        status = grammar_matcher_create(&steering->content, config->grammar, config->trie, err);
    if (status == LM_OK && config->grammar && config->channels && config->split)
        status = make_headers(steering, err);
    if (status == LM_OK && config->call_grammar)
        status = tool_parser_create(&steering->calls, config->tool_format, config->tools,
                                    config->single_call, &sink, err);
    return status;
}

static void force_closing(struct steering *steering)
{
    if (steering->n_closing && steering->splitter.state == REASONING_INSIDE &&
        steering->n_reasoning >= steering->config.reasoning_budget)
        steering->n_closed = 0;
}

enum lm_status steering_create(struct steering **out, const struct steering_config *config,
                               struct lm_error *err)
{
    *out = NULL;
    if (!config->allowed && !config->bad.n && !config->grammar && !config->call_grammar &&
        config->reasoning_budget < 0)
        return LM_OK;
    struct steering *steering = calloc(1, sizeof(*steering));
    if (!steering) return lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    steering->config = *config;
    const enum lm_status status = init(steering, err);
    if (status != LM_OK) {
        steering_destroy(steering);
        return status;
    }
    steering->think_begin = tokenizer_find(config->tokenizer, "<think>", 7);
    if (config->channels)
        reasoning_init_channels(&steering->splitter, config->opened, config->in_answer, on_part,
                                steering);
    else
        reasoning_init(&steering->splitter, config->opened, on_part, steering);
    if (!config->split) steering->splitter.state = REASONING_PLAIN;
    steering->splitter.eager = config->grammar != NULL;
    take_header(steering, "", 0);
    force_closing(steering);
    *out = steering;
    return LM_OK;
}

void steering_destroy(struct steering *steering)
{
    if (!steering) return;
    grammar_matcher_destroy(steering->header);
    grammar_unref(steering->headers);
    grammar_matcher_destroy(steering->content);
    grammar_matcher_destroy(steering->call);
    tool_parser_destroy(steering->calls);
    free(steering->recent);
    free(steering->closing);
    free(steering->end);
    free(steering->mask);
    free(steering);
}

/* ---- the mask ---- */

/* All but the end tokens. */
static const uint32_t *no_end(struct steering *steering)
{
    for (size_t i = 0; i < steering->n_word; i++)
        steering->mask[i] = ~steering->end[i];
    return steering->mask;
}

/* Of the grammars, for content; NULL: all. */
static const uint32_t *content_mask(struct steering *steering)
{
    const struct steering_config *config = &steering->config;
    if (steering->call) return grammar_matcher_mask(steering->call);
    if (steering->header) return grammar_matcher_mask(steering->header);
    if (config->single_call && steering->n_call) return steering->end;
    if (!steering->content || steering->n_call) return NULL;
    const uint32_t *mask = grammar_matcher_mask(steering->content);
    const bool may_think = config->may_think && steering->splitter.state == REASONING_START &&
                           steering->think_begin >= 0;
    const bool may_call = config->call_grammar && !steering->has_content;
    if (!may_think && !may_call) return mask;
    memcpy(steering->mask, mask, steering->n_word * sizeof(*mask));
    if (may_think) set_bit(steering->mask, steering->think_begin);
    struct grammar_matcher *call = NULL;
    if (may_call &&
        grammar_matcher_create(&call, config->call_grammar, config->trie, NULL) == LM_OK) {
        const uint32_t *others = grammar_matcher_mask(call);
        for (size_t i = 0; i < steering->n_word; i++)
            steering->mask[i] |= others[i];
        grammar_matcher_destroy(call);
    }
    return steering->mask;
}

/* Both: what is left is never nothing, the request's own rule being the weaker one. */
static const uint32_t *intersect(struct steering *steering, const uint32_t *mask)
{
    const uint32_t *allowed = steering->config.allowed;
    uint32_t any = 0;
    if (!mask || !allowed) return mask ? mask : allowed;
    for (size_t i = 0; i < steering->n_word && !any; i++)
        any |= mask[i] & allowed[i];
    if (!any) return mask;
    for (size_t i = 0; i < steering->n_word; i++)
        steering->mask[i] = mask[i] & allowed[i];
    return steering->mask;
}

/* Without the tokens that would complete a bad word. */
static const uint32_t *forbid_bad(struct steering *steering, const uint32_t *mask)
{
    const struct bad_words *bad = &steering->config.bad;
    uint32_t any = 0;
    for (size_t i = 0; i < bad->n; i++) {
        const size_t begin = bad_begin(bad, i), n = bad->ends[i] - begin - 1;
        const int32_t last = bad->ids[begin + n];
        if (n > steering->n_recent || memcmp(steering->recent + steering->n_recent - n,
                                             bad->ids + begin, n * sizeof(*bad->ids)) != 0)
            continue;
        if (mask && !(mask[last / 32] >> last % 32 & 1)) continue;
        if (!mask)
            memset(steering->mask, 0xff, steering->n_word * sizeof(*mask));
        else if (mask != steering->mask)
            memcpy(steering->mask, mask, steering->n_word * sizeof(*mask));
        mask = steering->mask;
        steering->mask[last / 32] &= ~(1u << last % 32);
        any = 0;
        for (size_t word = 0; word < steering->n_word && !any; word++)
            any = mask[word];
        if (!any) set_bit(steering->mask, last);
    }
    return mask;
}

const uint32_t *steering_allowed(struct steering *steering)
{
    if (steering->n_closed < steering->n_closing) {
        memset(steering->mask, 0, steering->n_word * sizeof(*steering->mask));
        set_bit(steering->mask, steering->closing[steering->n_closed]);
        return steering->mask;
    }
    if (steering->splitter.state != REASONING_INSIDE)
        return forbid_bad(steering, intersect(steering, content_mask(steering)));
    return forbid_bad(steering, intersect(steering, steering->content ? no_end(steering) : NULL));
}

/* ---- tokens ---- */

enum lm_status steering_take(struct steering *steering, int32_t id, const char *bytes, size_t n,
                             struct lm_error *err)
{
    const bool was_inside = steering->splitter.state == REASONING_INSIDE;
    note_recent(steering, id);
    if (steering->n_closed < steering->n_closing) steering->n_closed++;
    reasoning_push(&steering->splitter, bytes, n);
    take_header(steering, bytes, n);
    /* where content is held to a grammar, only the marker's own token begins the reasoning */
    if (steering->content && !steering->config.channels &&
        steering->splitter.state == REASONING_START && id != steering->think_begin)
        reasoning_finish(&steering->splitter);
    if (steering->splitter.state == REASONING_INSIDE) {
        steering->n_reasoning += was_inside;
        if (steering->n_closed == steering->n_closing) force_closing(steering);
    }
    if (steering->status != LM_OK && err) *err = steering->error;
    return steering->status;
}

bool steering_holds_call(const struct steering *steering)
{
    return steering->call != NULL;
}

bool steering_complete(const struct steering *steering)
{
    return !steering->content || steering->n_call || grammar_matcher_complete(steering->content);
}

bool steering_finished(const struct steering *steering)
{
    return steering->content && !steering->call && !steering->n_call &&
           grammar_matcher_finished(steering->content);
}

bool steering_resume(struct steering *steering, const char *text, size_t n)
{
    steering->has_content = true;
    return !steering->content || grammar_matcher_take(steering->content, text, n);
}
