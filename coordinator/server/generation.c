#include "coordinator/server/generation.h"

#include <assert.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/sched/dispatcher.h"
#include "coordinator/server/expert_report.h"
#include "coordinator/server/http.h"
#include "coordinator/server/json_parse.h"
#include "coordinator/server/keys.h"
#include "coordinator/server/metrics.h"
#include "coordinator/server/server.h"
#include "coordinator/server/tool_fields.h"
#include "coordinator/text/steering.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tool_parser.h"
#include "proto/base/log.h"

enum { HELD_TOKENS_MAX = 64 };

/* ---- life ---- */

static void destroy_generation(struct generation *generation)
{
    if (generation->sink_context && generation->sink->destroy)
        generation->sink->destroy(generation->sink_context);
    free(generation->sink_context);
    for (size_t i = 0; i < generation->n_choice; i++) {
        answer_stream_destroy(generation->choices[i].stream);
        steering_destroy(generation->choices[i].steering);
        byte_buffer_free(&generation->choices[i].text);
        byte_buffer_free(&generation->choices[i].arguments);
        call_record_fini(&generation->choices[i].record);
    }
    free(generation->choices);
    free(generation->entry.sequence);
    for (size_t i = 0; i < generation->n_prompt; i++) {
        free(generation->prompts[i].ids);
        free(generation->prompts[i].turns);
        json_object_put(generation->prompts[i].source);
    }
    free(generation->prompts);
    grammar_unref(generation->grammar);
    grammar_unref(generation->call_grammar);
    generation_fields_fini(&generation->fields);
    if (generation->n_of_key)
        keys_give_back(generation->server->keys, generation->owner, generation->n_of_key);
    json_object_put(generation->body);
    free(generation);
}

/* A generation with nothing but a body and the zeroed context of its sink. NULL: the error is
 * filled. */
static struct generation *receive(struct server *server, struct http_exchange *exchange,
                                  const char *id_prefix, const struct generation_sink *sink,
                                  size_t n_context, struct api_error *error)
{
    size_t n;
    const char *body = http_body(exchange, &n);
    struct json_object *object;
    if (!json_parse_object(&object, body, n, error)) return NULL;
    struct generation *generation = calloc(1, sizeof(*generation));
    if (generation) generation->sink_context = calloc(1, n_context);
    if (!generation || !generation->sink_context) {
        free(generation);
        json_object_put(object);
        api_fail(error, API_OUT_OF_MEMORY, NULL, "no memory for the request");
        return NULL;
    }
    generation->server = server;
    generation->exchange = exchange;
    generation->owner = http_owner(exchange);
    generation->body = object;
    generation->sink = sink;
    generation->reasoning_budget = -1;
    generation->created = (int64_t)time(NULL);
    random_id_make(generation->id, id_prefix);
    return generation;
}

bool generation_alloc_prompts(struct generation *generation, size_t n_prompt,
                              struct api_error *error)
{
    generation->prompts = calloc(n_prompt, sizeof(*generation->prompts));
    if (!generation->prompts)
        return api_fail(error, API_OUT_OF_MEMORY, NULL, "no memory for %zu prompts", n_prompt);
    generation->n_prompt = n_prompt;
    return true;
}

static size_t n_choice(const struct generation *generation)
{
    return generation->n_prompt * (size_t)generation->fields.n;
}

bool generation_reserve(struct generation *generation, struct api_error *error)
{
    const uint32_t n_of_key = (uint32_t)n_choice(generation);
    const uint32_t n_most = generation->server->settings.key_concurrency;
    if (n_most && generation->owner) {
        if (!keys_take(generation->server->keys, generation->owner, n_of_key, n_most))
            return api_fail(error, API_KEY_CONCURRENCY, NULL,
                            "At most %u sequences of one API key may run or wait at once.", n_most);
        generation->n_of_key = n_of_key;
    }
    const size_t n_more = n_of_key - 1;
    if (n_more && !dispatcher_reserve(generation->server->dispatcher, (uint32_t)n_more))
        return api_fail(error, API_QUEUE_FULL, NULL,
                        "The queue has no room for %zu sequences, try again later.", n_more + 1);
    generation->n_reserved = (uint32_t)n_more;
    return true;
}

/* Gives the places in the queue back. generation may be NULL. */
static void refuse(struct generation *generation, struct server *server,
                   struct http_exchange *exchange, const struct api_error *error)
{
    dispatcher_unreserve(server->dispatcher, 1 + (generation ? generation->n_reserved : 0));
    if (generation) destroy_generation(generation);
    http_reply_error(exchange, error);
}

/* ---- the context ---- */

/* Keeps the last tokens. */
static void truncate_prompt(struct generation_prompt *prompt, size_t n_keep)
{
    if (prompt->n <= n_keep) return;
    const size_t n_cut = prompt->n - n_keep;
    memmove(prompt->ids, prompt->ids + n_cut, n_keep * sizeof(*prompt->ids));
    prompt->n = n_keep;
    prompt->text = NULL;
    prompt->has_added_bos = false;
    size_t n_turn = 0;
    for (size_t i = 0; i < prompt->n_turn; i++)
        if (prompt->turns[i] >= n_cut) prompt->turns[n_turn++] = prompt->turns[i] - n_cut;
    prompt->n_turn = n_turn;
}

bool generation_fit_prompts(struct generation *generation, const char *param,
                            struct api_error *error)
{
    const struct generation_fields *fields = &generation->fields;
    const size_t n_ctx = generation->server->n_ctx;
    const size_t n_most = fields->max_tokens == 0 ? n_ctx : n_ctx - 1;
    for (size_t i = 0; i < generation->n_prompt; i++) {
        struct generation_prompt *prompt = &generation->prompts[i];
        if (fields->truncate > 0 && (size_t)fields->truncate < prompt->n)
            truncate_prompt(prompt, (size_t)fields->truncate);
        if (fields->truncate == FIELDS_TRUNCATE_TO_FIT) truncate_prompt(prompt, n_most);
        if (prompt->n <= n_most) continue;
        char of_many[32];
        snprintf(of_many, sizeof(of_many), "%s[%zu]", param, i);
        api_fail(error, API_CONTEXT_LENGTH_EXCEEDED, generation->n_prompt > 1 ? of_many : param,
                 "This model's maximum context length is %zu tokens, but the request has %zu "
                 "tokens in the prompt: the request (%zu tokens) exceeds the available context "
                 "size (%zu tokens). Shorten the prompt or start the server with a larger context.",
                 n_ctx, prompt->n, prompt->n, n_ctx);
        error->n_prompt_tokens = prompt->n;
        error->n_ctx = n_ctx;
        return false;
    }
    return true;
}

/* ---- events, on the step thread ---- */

/* Tells the sink the text that has come together. */
static void flush_text(struct generation_choice *choice)
{
    const struct generation_sink *sink = choice->generation->sink;
    if (!choice->text.n) return;
    choice->has_text[choice->part] = true;
    if (sink->on_text) sink->on_text(choice, choice->part, choice->text.data, choice->text.n);
    byte_buffer_clear(&choice->text);
}

/* Answers with calls are remembered by the calls' ids. */
static bool is_recorded(const struct generation_choice *choice)
{
    const struct generation *generation = choice->generation;
    return generation->tools && generation->tools->callable && generation->split &&
           !generation->channels; /* their templates leave out what was thought */
}

static void on_text(void *context, enum answer_part part, const char *text, size_t n)
{
    struct generation_choice *choice = context;
    if (part != choice->part) flush_text(choice);
    choice->part = part;
    byte_buffer_put(&choice->text, text, n);
    if (part == ANSWER_CONTENT && is_recorded(choice))
        call_record_content(&choice->record, text, n);
}

static void flush_arguments(struct generation_choice *choice)
{
    const struct generation_sink *sink = choice->generation->sink;
    if (!choice->arguments.n) return;
    sink->on_arguments(choice, choice->arguments.data, choice->arguments.n);
    byte_buffer_clear(&choice->arguments);
}

static void on_call(void *context, const char *name, size_t n)
{
    struct generation_choice *choice = context;
    flush_text(choice);
    choice->n_call_begun++;
    char id[RANDOM_ID_SIZE];
    random_id_make(id, choice->generation->sink->call_prefix);
    if (is_recorded(choice)) call_record_call(&choice->record, id, name, n);
    choice->generation->sink->on_call(choice, id, name, n);
}

static void on_arguments(void *context, const char *bytes, size_t n)
{
    struct generation_choice *choice = context;
    byte_buffer_put(&choice->arguments, bytes, n);
    if (is_recorded(choice)) call_record_arguments(&choice->record, bytes, n);
}

static void on_call_end(void *context)
{
    struct generation_choice *choice = context;
    flush_arguments(choice);
    choice->n_call++;
    choice->generation->sink->on_call_end(choice);
}

static void on_settled(void *context, const struct answer_token *token)
{
    struct generation_choice *choice = context;
    choice->generation->sink->on_token(choice, token);
}

static void observe_token(struct generation_choice *choice)
{
    struct metrics *metrics = choice->generation->server->metrics;
    const double now_s = log_now_s();
    if (!choice->n_token++) {
        choice->first_token_s = now_s;
        atomic_store(&choice->progress->first_token_s, now_s);
        atomic_store(&choice->progress->state, SEQUENCE_DECODE);
        metrics_observe(metrics, METRICS_TIME_TO_FIRST_TOKEN,
                        now_s - choice->generation->entry.accepted_s);
    } else {
        metrics_observe(metrics, METRICS_INTER_TOKEN_LATENCY, now_s - choice->last_token_s);
    }
    choice->last_token_s = now_s;
    atomic_store(&choice->progress->n_decoded, choice->n_token);
    atomic_store(&choice->progress->n_draft, choice->request.n_draft);
    atomic_store(&choice->progress->n_draft_accepted, choice->request.n_draft_accepted);
    atomic_store(&choice->progress->n_past, choice->prompt->n + choice->n_token);
    live_expert_usage_set(&choice->progress->experts, &choice->request.experts);
}

/* The prompt has been read. One of a single token has no log-probabilities to wait for. */
static void begin(struct generation_choice *choice)
{
    const struct generation_sink *sink = choice->generation->sink;
    if (choice->request.on_prompt_token && choice->prompt->n == 1)
        sink->on_prompt_token(choice, 0, NULL);
    if (sink->on_begin) sink->on_begin(choice);
}

/* Says what may come next. */
static void allow_next(struct generation_choice *choice)
{
    struct generation *generation = choice->generation;
    if (!choice->steering) return;
    const double start_s = log_now_s();
    choice->request.sampling.allowed = steering_allowed(choice->steering);
    if (generation->grammar || generation->call_grammar)
        metrics_observe(generation->server->metrics, METRICS_GRAMMAR_MASK, log_now_s() - start_s);
}

/* Follows the token with what steers the answer. */
static void steer(struct generation_choice *choice, int32_t id)
{
    struct tool_parser *calls = answer_stream_tools(choice->stream);
    size_t n;
    if (!choice->steering) return;
    const char *bytes = answer_stream_token_bytes(choice->stream, id, &n);
    if (steering_take(choice->steering, id, bytes, n, NULL) != LM_OK) choice->no_memory = true;
    /* a call that is held to its grammar can be told as it is written */
    if (calls && steering_holds_call(choice->steering) && tool_parser_in_call(calls))
        tool_parser_trust(calls, false);
    /* where end tokens are forbidden, nothing else would be left */
    choice->finished = choice->generation->fields.ignore_eos && steering_finished(choice->steering);
    allow_next(choice);
}

/* What the token brought, or later, with that of others, if the client has enough to read. */
static void tell(struct generation_choice *choice)
{
    const struct generation *generation = choice->generation;
    if (generation->streaming && choice->n_held + 1 < HELD_TOKENS_MAX &&
        http_stream_is_behind(generation->exchange)) {
        choice->n_held++;
        return;
    }
    choice->n_held = 0;
    flush_text(choice);
    flush_arguments(choice);
}

static bool on_token(void *context, const struct sampled_token *token)
{
    struct generation_choice *choice = context;
    observe_token(choice);
    choice->last_id = token->id;
    if (choice->n_token == 1) begin(choice);
    const enum answer_end end = answer_stream_push(choice->stream, token);
    const bool goes_on = end == ANSWER_OPEN;
    if (is_recorded(choice) && end != ANSWER_END_TOKEN && end != ANSWER_STOP_TOKEN)
        call_record_token(&choice->record, token->id);
    if (goes_on) {
        steer(choice, token->id);
        tell(choice);
    }
    choice->no_memory |= choice->text.failed || choice->arguments.failed;
    return goes_on && !choice->no_memory && !choice->finished;
}

static void on_prompt_token(void *context, uint32_t pos, const struct sampled_token *token)
{
    struct generation_choice *choice = context;
    const struct generation_sink *sink = choice->generation->sink;
    if (pos == 1) sink->on_prompt_token(choice, 0, NULL);
    sink->on_prompt_token(choice, pos, token);
}

static void on_prefill(void *context, size_t n_done, size_t n_total)
{
    struct generation_choice *choice = context;
    const struct generation_sink *sink = choice->generation->sink;
    atomic_store(&choice->progress->state, SEQUENCE_PREFILL);
    atomic_store(&choice->progress->n_past, n_done);
    atomic_store(&choice->progress->n_cached, choice->request.n_cached);
    live_expert_usage_set(&choice->progress->experts, &choice->request.experts);
    if (sink->on_prefill) sink->on_prefill(choice, n_done, n_total);
}

/* ---- the end of a choice ---- */

static void observe_end(const struct generation_choice *choice)
{
    struct metrics *metrics = choice->generation->server->metrics;
    const struct request *request = &choice->request;
    const double start_s = request->start_s > 0 ? request->start_s : request->end_s;
    metrics_observe(metrics, METRICS_QUEUE_TIME, start_s - request->submit_s);
    metrics_observe(metrics, METRICS_E2E_LATENCY,
                    request->end_s - choice->generation->entry.accepted_s);
    metrics_observe(metrics, METRICS_REQUEST_PROMPT_TOKENS, (double)request->n_prompt);
    metrics_observe(metrics, METRICS_REQUEST_GENERATION_TOKENS, (double)choice->n_token);
    metrics_observe(metrics, METRICS_REQUEST_MAX_TOKENS, request->n_max);
    metrics_add(metrics, METRICS_GENERATION_TOKENS, choice->n_token);
    metrics_add(metrics, METRICS_REASONING_TOKENS, answer_stream_n_reasoning(choice->stream));
    if (request->prefill_end_s > 0) {
        metrics_observe(metrics, METRICS_PREFILL_TIME, request->prefill_end_s - start_s);
        metrics_observe(metrics, METRICS_DECODE_TIME, request->end_s - request->prefill_end_s);
        metrics_add(metrics, METRICS_PREFIX_QUERIES, request->n_prompt);
        metrics_add(metrics, METRICS_PREFIX_HITS, request->n_cached);
    }
    if (choice->n_token > 1)
        metrics_observe(metrics, METRICS_TIME_PER_OUTPUT_TOKEN,
                        (choice->last_token_s - choice->first_token_s) /
                            (double)(choice->n_token - 1));
}

/* The last call that was begun is not complete. */
static bool is_cut_in_call(const struct generation_choice *choice)
{
    return choice->n_call_begun > choice->n_call;
}

static void name_finish(struct generation_choice *choice)
{
    struct generation *generation = choice->generation;
    struct metrics *metrics = generation->server->metrics;
    const enum answer_end end = answer_stream_end(choice->stream);
    choice->stop_id = -1;
    choice->stop_string = answer_stream_stop_string(choice->stream);
    if (end == ANSWER_STOP_TOKEN) choice->stop_id = choice->last_id;
    if (choice->request.status != LM_OK) {
        choice->finish = "error";
        metrics_add(metrics, METRICS_FINISHED_ERROR, 1);
    } else if (choice->n_call && !is_cut_in_call(choice)) {
        choice->finish = "tool_calls";
        metrics_add(metrics, METRICS_FINISHED_TOOL_CALLS, 1);
    } else if (end != ANSWER_OPEN || choice->finished) {
        choice->finish = "stop";
        metrics_add(metrics, METRICS_FINISHED_STOP, 1);
    } else if (atomic_load(&choice->request.cancelled)) {
        choice->finish = "abort";
        metrics_add(metrics, METRICS_FINISHED_ABORT, 1);
    } else {
        choice->finish = "length";
        metrics_add(metrics, METRICS_FINISHED_LENGTH, 1);
    }
}

/* Before the client knows of the answer's end, and may send it back. */
static void remember_calls(struct generation_choice *choice)
{
    const struct server *server = choice->generation->server;
    if (!is_recorded(choice) || strcmp(choice->finish, "tool_calls") != 0) return;
    call_record_save(&choice->record, server->calls, server->tokenizer,
                     answer_stream_n_reasoning(choice->stream) > 0);
}

static void cancel_all(struct generation *generation)
{
    for (size_t i = 0; i < generation->n_choice; i++)
        dispatcher_cancel(generation->server->dispatcher, &generation->choices[i].request);
}

/* ---- the end of all ---- */

/* Total prompt tokens; each prompt once, whatever n is. */
static size_t n_prompt_token(const struct generation *generation)
{
    size_t n = 0;
    for (size_t i = 0; i < generation->n_prompt; i++)
        n += generation->prompts[i].n;
    return n;
}

struct totals {
    size_t n_prompt, n_cached, n_generated, n_reasoning, n_draft, n_draft_accepted;
    struct expert_usage experts;
    double queue_s, prefill_s, first_s, last_s; /* first_s 0: no token came */
};

/* Choices wait together: of the times the longest counts. */
static void add_experts(struct expert_usage *sum, const struct expert_usage *usage)
{
    const double wait_s = fmax(sum->wait_s, usage->wait_s);
    expert_usage_add(sum, usage);
    sum->wait_s = wait_s;
}

static struct totals count_totals(const struct generation *generation)
{
    struct totals totals = {.n_prompt = n_prompt_token(generation), .queue_s = INFINITY};
    for (size_t i = 0; i < generation->n_choice; i++) {
        const struct generation_choice *choice = &generation->choices[i];
        const struct request *request = &choice->request;
        totals.n_generated += choice->n_token;
        totals.n_draft += request->n_draft;
        totals.n_draft_accepted += request->n_draft_accepted;
        add_experts(&totals.experts, &request->experts);
        totals.n_reasoning += answer_stream_n_reasoning(choice->stream);
        if (choice->first_token_s > 0) {
            if (!(totals.first_s > 0) || choice->first_token_s < totals.first_s)
                totals.first_s = choice->first_token_s;
            if (choice->last_token_s > totals.last_s) totals.last_s = choice->last_token_s;
        }
        if (i % (size_t)generation->fields.n) continue; /* of each prompt the first sample */
        totals.n_cached += request->n_cached;
        if (request->start_s > 0 && request->start_s - request->submit_s < totals.queue_s)
            totals.queue_s = request->start_s - request->submit_s;
        if (request->prefill_end_s > request->start_s)
            totals.prefill_s += request->prefill_end_s - request->start_s;
    }
    if (!isfinite(totals.queue_s)) totals.queue_s = 0;
    return totals;
}

static double tokens_per_s(const struct totals *totals)
{
    const double s = totals->last_s - totals->first_s;
    return totals->n_generated > 1 && s > 0 ? (double)(totals->n_generated - 1) / s : 0;
}

/* The error that the request as a whole ends with; API_OK: none. */
static void find_error(struct generation *generation)
{
    switch (atomic_load(&generation->closed) - 1) {
    case HTTP_TIMEOUT:
        api_fail(&generation->error, API_REQUEST_TIMEOUT, NULL,
                 "The request took longer than the server allows.");
        break;
    case HTTP_SHUTDOWN:
        api_fail(&generation->error, API_SHUTTING_DOWN, NULL, "The server is shutting down.");
        break;
    default:
        break;
    }
}

/* Begins the stream if need be. */
static void send_bytes(struct generation *generation, const char *bytes, size_t n)
{
    if (!generation->streaming) http_stream_begin(generation->exchange);
    generation->streaming = true;
    http_stream_write(generation->exchange, bytes, n); /* on_closed sees to a failure */
}

static void send_error(struct generation *generation)
{
    const struct api_error *error = &generation->error;
    if (http_reply_error(generation->exchange, error)) return;
    if (generation->sink->on_stream_error) {
        generation->sink->on_stream_error(generation, error);
    } else {
        struct byte_buffer event = {0};
        byte_buffer_put_text(&event, "data: ");
        api_error_write(&event, error, false, NULL);
        byte_buffer_put_text(&event, "\n\n");
        send_bytes(generation, event.data, event.n);
        byte_buffer_free(&event);
    }
    http_stream_end(generation->exchange);
}

static bool client_is_gone(const struct generation *generation)
{
    const int closed = atomic_load(&generation->closed) - 1;
    return closed == HTTP_CLIENT_LEFT || closed == HTTP_SLOW_CLIENT;
}

static void end_all(struct generation *generation)
{
    struct server *server = generation->server;
    const struct totals totals = count_totals(generation);
    const struct http_usage usage = {
        .n_prompt = totals.n_prompt,
        .n_cached = totals.n_cached,
        .n_draft = totals.n_draft,
        .n_draft_accepted = totals.n_draft_accepted,
        .n_generated = totals.n_generated,
        .queue_s = totals.queue_s,
        .first_token_s = totals.first_s > 0 ? totals.first_s - generation->entry.accepted_s : 0,
        .tokens_per_s = tokens_per_s(&totals),
        .experts = totals.experts,
        .finish = generation->choices[0].finish,
    };
    metrics_add(server->metrics, METRICS_PROMPT_TOKENS, totals.n_prompt);
    metrics_add(server->metrics, METRICS_PROMPT_TOKENS_CACHED, totals.n_cached);
    metrics_add(server->metrics, METRICS_EXPERTS_SHARED, totals.experts.n_shared);
    inflight_remove(&server->inflight, &generation->entry);
    http_set_usage(generation->exchange, &usage);
    find_error(generation);
    if (!client_is_gone(generation)) {
        if (generation->error.code == API_OK) generation->sink->on_end(generation);
        if (generation->error.code != API_OK) send_error(generation);
    }
    http_release(generation->exchange);
    destroy_generation(generation);
}

static void on_end(void *context)
{
    struct generation_choice *choice = context;
    struct generation *generation = choice->generation;
    const struct generation_sink *sink = generation->sink;
    const struct request *request = &choice->request;
    if (choice->no_memory || answer_stream_end(choice->stream) == ANSWER_NO_MEMORY)
        choice->request.status =
            lm_fail(&choice->request.error, LM_E_NO_MEM, "no memory for an answer");
    if (request->status == LM_OK && !choice->n_token) begin(choice);
    answer_stream_finish(choice->stream);
    flush_text(choice);
    flush_arguments(choice);
    name_finish(choice);
    remember_calls(choice);
    observe_end(choice);
    atomic_store(&choice->progress->state, SEQUENCE_DONE);
    if (request->status == LM_OK) {
        if (sink->on_choice_end) sink->on_choice_end(choice);
    } else if (generation->error.code == API_OK) {
        api_fail_status(&generation->error, &request->error, NULL);
        cancel_all(generation);
    }
    if (++generation->n_ended == generation->n_choice) end_all(generation);
}

/* ---- start ---- */

static void on_closed(void *context, enum http_close reason)
{
    struct generation *generation = context;
    atomic_store(&generation->closed, (int)reason + 1);
    cancel_all(generation);
}

static void on_cancel(void *context)
{
    cancel_all(context);
}

static enum lm_status init_steering(struct generation_choice *choice, struct lm_error *err)
{
    struct generation *generation = choice->generation;
    const struct tool_fields *tools = generation->tools;
    const struct steering_config config = {
        .tokenizer = generation->server->tokenizer,
        .trie = generation->server->trie,
        .allowed = generation->fields.allowed,
        .bad = {generation->fields.bad_ids, generation->fields.bad_ends, generation->fields.n_bad},
        .grammar = generation->grammar,
        .call_grammar = generation->call_grammar,
        .tool_format = tools ? tools->format : TOOL_FORMAT_AUTO,
        .tools = tools ? tools->callable : NULL,
        .single_call = tools && !tools->parallel,
        .split = generation->split,
        .opened = generation->opened,
        .channels = generation->channels,
        .in_answer = generation->in_answer,
        .grammar_is_calls = tools && tools->required,
        .may_think = generation->may_think,
        .reasoning_budget = generation->reasoning_budget,
        .budget_message = generation->server->settings.reasoning_budget_message,
    };
    const enum lm_status status = steering_create(&choice->steering, &config, err);
    if (status != LM_OK) return status;
    if (tools && tools->required && generation->grammar)
        tool_parser_trust(answer_stream_tools(choice->stream), true);
    allow_next(choice);
    return LM_OK;
}

static bool init_choice(struct generation *generation, size_t index, struct api_error *error)
{
    struct generation_choice *choice = &generation->choices[index];
    const struct generation_fields *fields = &generation->fields;
    const struct server *server = generation->server;
    const struct tool_fields *tools = generation->tools;
    struct generation_prompt *prompt = &generation->prompts[index / (size_t)fields->n];
    const size_t n_room = server->n_ctx - prompt->n;
    const bool is_short = fields->max_tokens >= 0 && (size_t)fields->max_tokens < n_room;
    struct lm_error err;
    choice->generation = generation;
    choice->index = index;
    choice->prompt = prompt;
    choice->part = ANSWER_CONTENT;
    choice->progress = &generation->entry.sequence[index];
    choice->request = (struct request){
        .prompt = prompt->ids,
        .n_prompt = prompt->n,
        .n_max = (uint32_t)(is_short ? (size_t)fields->max_tokens : n_room),
        .sampling = fields->sampling,
        .turns = prompt->turns,
        .n_turn = prompt->n_turn,
        .cache_key = fields->cache_key,
        .no_cache = !fields->cache_prompt,
        .priority = server->settings.by_priority ? (int32_t)fields->priority : 0,
        .on_prompt_token = generation->wants_prompt_tokens ? on_prompt_token : NULL,
        .n_prompt_logprob = fields->sampling.n_logprob,
        .on_token = on_token,
        .on_prefill = on_prefill,
        .on_end = on_end,
        .context = choice,
    };
    choice->request.sampling.seed += index % (size_t)fields->n;
    choice->progress->n_prompt = (uint32_t)prompt->n;
    choice->progress->n_max = choice->request.n_max;
    const struct answer_config config = {
        .tokenizer = server->tokenizer,
        .stops = fields->stops,
        .n_stop = fields->n_stop,
        .stop_ids = fields->stop_ids,
        .n_stop_id = fields->n_stop_id,
        .min_tokens = (size_t)fields->min_tokens,
        .include_stop = fields->include_stop,
        .show_special = fields->show_special,
        .show_marks = generation->show_marks,
        .split = generation->split,
        .opened = generation->opened,
        .channels = generation->channels,
        .in_answer = generation->in_answer,
        .tools = tools ? tools->callable : NULL,
        .tool_format = tools ? tools->format : TOOL_FORMAT_AUTO,
        .single_call = tools && !tools->parallel,
    };
    const struct answer_sink sink = {
        .on_text = on_text,
        .on_token = generation->sink->on_token ? on_settled : NULL,
        .on_call = on_call,
        .on_arguments = on_arguments,
        .on_call_end = on_call_end,
        .context = choice,
    };
    return (answer_stream_create(&choice->stream, &config, &sink, &err) == LM_OK &&
            init_steering(choice, &err) == LM_OK) ||
           api_fail_status(error, &err, NULL);
}

static bool alloc_choices(struct generation *generation)
{
    const size_t n = n_choice(generation);
    generation->choices = calloc(n, sizeof(*generation->choices));
    generation->entry.sequence = calloc(n, sizeof(*generation->entry.sequence));
    return generation->choices && generation->entry.sequence;
}

/* Hands everything to the step thread, which may have freed it on return; false: the error is
 * filled and nothing runs. */
static bool start(struct generation *generation, struct api_error *error)
{
    struct server *server = generation->server;
    struct http_exchange *exchange = generation->exchange;
    const size_t n = n_choice(generation);
    if (server->settings.cache_per_key && generation->owner)
        generation->fields.cache_key =
            XXH3_64bits_withSeed(&generation->owner, sizeof(generation->owner),
                                 server->cache_secret ^ generation->fields.cache_key) |
            1;
    struct request **requests = calloc(n, sizeof(*requests));
    if (!requests || !alloc_choices(generation)) {
        free(requests);
        return api_fail(error, API_OUT_OF_MEMORY, NULL, "no memory for %zu answers", n);
    }
    generation->n_choice = n;
    for (size_t i = 0; i < n; i++) {
        requests[i] = &generation->choices[i].request;
        if (init_choice(generation, i, error)) continue;
        free(requests);
        return false;
    }
    generation->entry.id = generation->id;
    generation->entry.request_id = http_request_id(exchange);
    generation->entry.accepted_s = http_accepted_s(exchange);
    generation->entry.n_sequence = n;
    generation->entry.cancel = on_cancel;
    generation->entry.context = generation;
    inflight_add(&server->inflight, &generation->entry);
    http_on_closed(exchange, on_closed, generation);
    if (generation->fields.stream)
        http_stream_ping(exchange, generation->fields.sse_ping_s,
                         generation->sink->ping ? generation->sink->ping : ": ping\n\n");
    /* It may be a hundred times larger than what is left of it, and takes long to free. */
    json_object_put(generation->body);
    generation->body = NULL;
    dispatcher_submit(server->dispatcher, requests, (uint32_t)n);
    free(requests);
    return true;
}

void generation_serve(struct server *server, struct http_exchange *exchange, const char *id_prefix,
                      const struct generation_sink *sink, size_t n_context,
                      bool (*read)(struct generation *generation, struct api_error *error))
{
    struct api_error error = {0};
    struct generation *generation = receive(server, exchange, id_prefix, sink, n_context, &error);
    if (!generation || !read(generation, &error) || !start(generation, &error))
        refuse(generation, server, exchange, &error);
}

/* ---- for sinks ---- */

/* What is missing cannot be sent later: the answer ends with an error. */
static void fail_for_memory(struct generation *generation)
{
    if (generation->error.code != API_OK) return;
    api_fail(&generation->error, API_OUT_OF_MEMORY, NULL,
             "The server has no memory for the answer.");
    cancel_all(generation);
}

void generation_reply(struct generation *generation, const struct json_writer *json)
{
    if (json->text.failed)
        fail_for_memory(generation);
    else
        http_reply_json(generation->exchange, 200, json->text.data, json->text.n);
}

void generation_send(struct generation *generation, const struct byte_buffer *events)
{
    if (events->failed)
        fail_for_memory(generation);
    else
        send_bytes(generation, events->data, events->n);
}

void generation_end_stream(struct generation *generation, const char *last)
{
    if (generation->error.code != API_OK) return;
    send_bytes(generation, last, strlen(last));
    http_stream_end(generation->exchange);
}

void generation_put_usage(const struct generation *generation, struct json_writer *writer)
{
    const struct totals totals = count_totals(generation);
    json_open(writer, '{');
    json_put_key(writer, "prompt_tokens");
    json_put_int(writer, (int64_t)totals.n_prompt);
    json_put_key(writer, "completion_tokens");
    json_put_int(writer, (int64_t)totals.n_generated);
    json_put_key(writer, "total_tokens");
    json_put_int(writer, (int64_t)(totals.n_prompt + totals.n_generated));
    json_put_key(writer, "prompt_tokens_details");
    json_open(writer, '{');
    json_put_key(writer, "cached_tokens");
    json_put_int(writer, (int64_t)totals.n_cached);
    json_close(writer, '}');
    json_put_key(writer, "completion_tokens_details");
    json_open(writer, '{');
    json_put_key(writer, "reasoning_tokens");
    json_put_int(writer, (int64_t)totals.n_reasoning);
    json_close(writer, '}');
    json_close(writer, '}');
}

static void put_ms(struct json_writer *writer, const char *key, double s)
{
    json_put_key(writer, key);
    json_put_real(writer, round(s * 1e6) / 1e3);
}

static void put_rate(struct json_writer *writer, const char *key, double per_s)
{
    json_put_key(writer, key);
    json_put_real(writer, round(per_s * 1e3) / 1e3);
}

void generation_put_timings(const struct generation *generation, struct json_writer *writer)
{
    const struct totals totals = count_totals(generation);
    const size_t n_read = totals.n_prompt - totals.n_cached;
    json_open(writer, '{');
    put_ms(writer, "queue_ms", totals.queue_s);
    json_put_key(writer, "cache_n");
    json_put_int(writer, (int64_t)totals.n_cached);
    json_put_key(writer, "prompt_n");
    json_put_int(writer, (int64_t)n_read);
    put_ms(writer, "prompt_ms", totals.prefill_s);
    put_rate(writer, "prompt_per_second",
             totals.prefill_s > 0 ? (double)n_read / totals.prefill_s : 0);
    json_put_key(writer, "predicted_n");
    json_put_int(writer, (int64_t)totals.n_generated);
    put_ms(writer, "predicted_ms", totals.last_s - totals.first_s);
    put_rate(writer, "predicted_per_second", tokens_per_s(&totals));
    json_put_key(writer, "draft_n");
    json_put_int(writer, (int64_t)totals.n_draft);
    json_put_key(writer, "draft_n_accepted");
    json_put_int(writer, (int64_t)totals.n_draft_accepted);
    if (expert_usage_any(&totals.experts)) {
        json_put_key(writer, "experts");
        expert_usage_put(writer, &totals.experts);
    }
    json_close(writer, '}');
}

void generation_put_stop_reason(const struct generation_choice *choice, struct json_writer *writer)
{
    if (choice->finish && choice->stop_id >= 0) /* before its end it has none */
        json_put_int(writer, choice->stop_id);
    else
        json_put_text(writer, choice->stop_string);
}
