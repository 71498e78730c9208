#include "coordinator/server/routes_info.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/server/json_write.h"
#include "coordinator/server/metrics.h"
#include "coordinator/server/server.h"
#include "coordinator/server/server_state.h"
#include "coordinator/text/tokenizer.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "proto/model/hparams.h"

/* Answers with what was written. */
static void reply(struct http_exchange *exchange, int status, struct json_writer *writer)
{
    if (writer->text.failed) {
        struct api_error error;
        api_fail(&error, API_OUT_OF_MEMORY, NULL, "The server has no memory for the answer.");
        http_reply_error(exchange, &error);
    } else {
        http_reply_json(exchange, status, writer->text.data, writer->text.n);
    }
    byte_buffer_free(&writer->text);
}

static void put_key_text(struct json_writer *out, const char *name, const char *text)
{
    json_put_key(out, name);
    json_put_text(out, text);
}

static void put_key_int(struct json_writer *out, const char *name, int64_t value)
{
    json_put_key(out, name);
    json_put_int(out, value);
}

static void put_key_real(struct json_writer *out, const char *name, double value)
{
    json_put_key(out, name);
    json_put_real(out, value);
}

static void put_key_bool(struct json_writer *out, const char *name, bool value)
{
    json_put_key(out, name);
    json_put_bool(out, value);
}

/* ---- health ---- */

static void reply_loading(struct server *server, struct http_exchange *exchange)
{
    struct api_error error;
    struct json_writer out = {0};
    double fraction;
    const char *stage = server_progress(server, &fraction);
    api_fail(&error, API_LOADING_MODEL, NULL, "The model is being loaded.");
    api_error_write(&out.text, &error, false, http_request_id(exchange));
    if (!out.text.failed) out.text.n--; /* the object goes on */
    out.comma = true;
    json_put_key(&out, "progress");
    json_open(&out, '{');
    put_key_text(&out, "stage", stage);
    put_key_real(&out, "fraction", fraction);
    put_key_real(&out, "rank_min", fraction);
    json_close(&out, '}');
    json_close(&out, '}');
    http_add_header(exchange, "Retry-After", "1");
    http_add_header(exchange, "x-should-retry", "true");
    reply(exchange, 503, &out);
}

void health_handle(void *context, struct http_exchange *exchange)
{
    static const char ok[] = "{\"status\":\"ok\"}";
    struct server *server = context;
    const enum api_code state = http_state(server->http);
    if (state == API_OK) {
        http_reply_json(exchange, 200, ok, strlen(ok));
    } else if (state == API_LOADING_MODEL) {
        reply_loading(server, exchange);
    } else {
        struct api_error error;
        api_fail(&error, state, NULL, "%s",
                 state == API_RANK_LOST ? "A worker rank was lost."
                                        : "The server is shutting down.");
        http_reply_error(exchange, &error);
    }
}

void ping_handle(void *context, struct http_exchange *exchange)
{
    static const char alive[] = "{\"status\":\"alive\"}";
    (void)context;
    http_reply_json(exchange, 200, alive, strlen(alive));
}

/* ---- models ---- */

static void put_model(struct json_writer *out, const struct server *server)
{
    const struct server_settings *settings = &server->settings;
    const struct server_state *state = server->state;
    json_open(out, '{');
    put_key_text(out, "id", settings->id);
    put_key_text(out, "object", "model");
    put_key_int(out, "created", server->created);
    put_key_text(out, "owned_by", "lean");
    put_key_text(out, "root", settings->repository ? settings->repository : settings->id);
    json_put_key(out, "aliases");
    json_open(out, '[');
    for (size_t i = 0; i < settings->n_alias; i++)
        json_put_text(out, settings->aliases[i]);
    json_close(out, ']');
    if (!atomic_load(&state->loaded)) {
        json_put_key(out, "meta");
        json_put_null(out);
        put_key_text(out, "status", "loading");
        json_close(out, '}');
        return;
    }
    put_key_int(out, "max_model_len", server->n_ctx);
    json_put_key(out, "meta");
    json_open(out, '{');
    put_key_int(out, "n_params", (int64_t)state->census.n_param);
    put_key_int(out, "n_params_active", (int64_t)state->census.n_param_active);
    put_key_int(out, "n_ctx_train", server->hp->n_ctx_train);
    put_key_int(out, "n_vocab", tokenizer_n_vocab(server->tokenizer));
    put_key_int(out, "size_bytes", (int64_t)state->census.n_bytes);
    put_key_text(out, "quantization", state->quantization);
    json_close(out, '}');
    json_put_key(out, "capabilities");
    json_open(out, '[');
    json_put_text(out, "completion");
    if (server->chat_template) json_put_text(out, "chat");
    if (server->chat_template && state->has_tools) json_put_text(out, "tools");
    if (server->chat_template && state->has_reasoning) json_put_text(out, "reasoning");
    json_close(out, ']');
    json_close(out, '}');
}

void models_handle(void *context, struct http_exchange *exchange)
{
    struct json_writer out = {0};
    json_open(&out, '{');
    put_key_text(&out, "object", "list");
    json_put_key(&out, "data");
    json_open(&out, '[');
    put_model(&out, context);
    json_close(&out, ']');
    json_close(&out, '}');
    reply(exchange, 200, &out);
}

void model_handle(void *context, struct http_exchange *exchange)
{
    struct server *server = context;
    const char *name = http_path_rest(exchange);
    if (!server_has_name(server, name)) {
        struct api_error error;
        api_fail(&error, API_MODEL_NOT_FOUND, "model", "The model '%.80s' is not served here.",
                 name);
        http_reply_error(exchange, &error);
        return;
    }
    struct json_writer out = {0};
    put_model(&out, server);
    reply(exchange, 200, &out);
}

/* ---- version ---- */

static void put_build(struct json_writer *out)
{
    json_open(out, '{');
    put_key_text(out, "compiler", __VERSION__);
    json_put_key(out, "mpi");
    json_put_null(out);
    json_put_key(out, "accelerator");
    json_put_null(out);
    json_close(out, '}');
}

void version_handle(void *context, struct http_exchange *exchange)
{
    struct json_writer out = {0};
    (void)context;
    json_open(&out, '{');
    put_key_text(&out, "version", LEAN_VERSION);
    put_key_text(&out, "commit", LEAN_COMMIT);
    json_put_key(&out, "build");
    put_build(&out);
    json_close(&out, '}');
    reply(exchange, 200, &out);
}

/* ---- metrics ---- */

void metrics_handle(void *context, struct http_exchange *exchange)
{
    struct server *server = context;
    const struct server_config *config = &server->state->config;
    struct byte_buffer text = {0};
    struct metrics_state state = server_metrics_state(server);
    struct metrics_rank *const ranks = server_ranks(server);
    state.rank = ranks;
    metrics_write(server->metrics, &state, config->metrics_vllm, config->metrics_llamacpp, &text);
    free(ranks);
    if (text.failed) {
        struct api_error error;
        api_fail(&error, API_OUT_OF_MEMORY, NULL, "The server has no memory for the answer.");
        http_reply_error(exchange, &error);
    } else {
        http_reply(exchange, 200, "text/plain; version=0.0.4; charset=utf-8", text.data, text.n);
    }
    byte_buffer_free(&text);
}

/* ---- what is under way ---- */

void cancel_handle(void *context, struct http_exchange *exchange)
{
    struct server *server = context;
    struct json_writer out = {0};
    struct api_error error;
    char id[128];
    const char *name = http_path_rest(exchange);
    if (!inflight_cancel(&server->inflight, name, id, sizeof(id))) {
        api_fail(&error, API_REQUEST_NOT_FOUND, NULL, "No request '%.80s' is under way.", name);
        http_reply_error(exchange, &error);
        return;
    }
    json_open(&out, '{');
    put_key_text(&out, "id", id);
    put_key_bool(&out, "cancelled", true);
    json_close(&out, '}');
    reply(exchange, 200, &out);
}

static const char *const state_names[] = {[SEQUENCE_QUEUED] = "queued",
                                          [SEQUENCE_PREFILL] = "prefill",
                                          [SEQUENCE_DECODE] = "decode",
                                          [SEQUENCE_DONE] = "idle"};

static void put_idle_slot(struct json_writer *out, const struct server *server, uint32_t id)
{
    static const char *const zeros[] = {"n_past",     "n_cached",          "n_prompt",
                                        "n_decoded",  "draft_n",           "draft_n_accepted",
                                        "max_tokens", "tokens_per_second", "age_ms"};
    json_open(out, '{');
    put_key_int(out, "id", id);
    put_key_text(out, "state", "idle");
    put_key_text(out, "request_id", NULL);
    put_key_int(out, "n_ctx", server->n_ctx);
    for (size_t i = 0; i < sizeof(zeros) / sizeof(zeros[0]); i++)
        put_key_int(out, zeros[i], 0);
    put_key_text(out, "experts", NULL);
    json_close(out, '}');
}

/* position: among those that wait, from 0; -1: it runs, in slot id. */
static void put_sequence(struct json_writer *out, const struct server *server,
                         const struct inflight_entry *entry, const struct inflight_sequence *seq,
                         int64_t id, int64_t position)
{
    const double now_s = log_now_s();
    const struct expert_usage experts = live_expert_usage_get(&seq->experts);
    json_open(out, '{');
    json_put_key(out, "id");
    if (position < 0)
        json_put_int(out, id);
    else
        json_put_null(out);
    put_key_text(out, "state", state_names[atomic_load(&seq->state)]);
    if (position >= 0) put_key_int(out, "position", position);
    put_key_text(out, "request_id", entry->request_id);
    put_key_int(out, "n_ctx", server->n_ctx);
    put_key_int(out, "n_past", (int64_t)atomic_load(&seq->n_past));
    put_key_int(out, "n_cached", (int64_t)atomic_load(&seq->n_cached));
    put_key_int(out, "n_prompt", seq->n_prompt);
    put_key_int(out, "n_decoded", (int64_t)atomic_load(&seq->n_decoded));
    put_key_int(out, "draft_n", (int64_t)atomic_load(&seq->n_draft));
    put_key_int(out, "draft_n_accepted", (int64_t)atomic_load(&seq->n_draft_accepted));
    put_key_int(out, "max_tokens", seq->n_max);
    put_key_real(out, "tokens_per_second", inflight_tokens_per_s(seq, now_s));
    put_key_int(out, "age_ms", (int64_t)((now_s - entry->accepted_s) * 1e3));
    json_put_key(out, "experts");
    expert_usage_put(out, &experts);
    json_close(out, '}');
}

/* Running sequences in slots, then idle slots, then those that wait. *n_idle: how many are. */
static void put_slots(struct json_writer *out, struct server *server, uint32_t *n_idle)
{
    uint32_t n_used = 0;
    int64_t n_waiting = 0;
    json_open(out, '[');
    pthread_mutex_lock(&server->inflight.lock);
    for (int waiting = 0; waiting < 2; waiting++) {
        for (struct inflight_entry *entry = server->inflight.first; entry; entry = entry->next)
            for (size_t i = 0; i < entry->n_sequence; i++) {
                const struct inflight_sequence *seq = &entry->sequence[i];
                const int state = atomic_load(&seq->state);
                if (state == SEQUENCE_DONE || (state == SEQUENCE_QUEUED) != waiting) continue;
                if (waiting)
                    put_sequence(out, server, entry, seq, 0, n_waiting++);
                else
                    put_sequence(out, server, entry, seq, n_used++, -1);
            }
        if (!waiting)
            for (uint32_t id = n_used; id < server->n_slot; id++)
                put_idle_slot(out, server, id);
    }
    pthread_mutex_unlock(&server->inflight.lock);
    json_close(out, ']');
    *n_idle = n_used < server->n_slot ? server->n_slot - n_used : 0;
}

void slots_handle(void *context, struct http_exchange *exchange)
{
    struct server *server = context;
    struct json_writer out = {0};
    struct api_error error;
    uint32_t n_idle;
    if (!server->state->config.slots) {
        unsupported_handle(context, exchange);
        return;
    }
    put_slots(&out, server, &n_idle);
    char wanted[8];
    if (!n_idle && http_query(exchange, "fail_on_no_slot", wanted, sizeof(wanted)) &&
        strcmp(wanted, "0")) {
        json_writer_clear(&out);
        api_fail(&error, API_QUEUE_FULL, NULL, "No slot is free.");
        api_error_write(&out.text, &error, false, http_request_id(exchange));
        reply(exchange, 503, &out);
        return;
    }
    reply(exchange, 200, &out);
}

/* ---- props ---- */

static void put_settings(struct json_writer *out, const struct server *server)
{
    const struct sampling_params *sampling = &server->sampling;
    json_open(out, '{');
    put_key_int(out, "n_ctx", server->n_ctx);
    put_key_int(out, "max_tokens", server->settings.max_tokens);
    json_put_key(out, "temperature");
    json_put_float(out, sampling->temperature);
    json_put_key(out, "top_p");
    json_put_float(out, sampling->top_p);
    put_key_int(out, "top_k", sampling->top_k);
    json_put_key(out, "min_p");
    json_put_float(out, sampling->min_p);
    json_put_key(out, "typical_p");
    json_put_float(out, sampling->typical_p);
    json_put_key(out, "presence_penalty");
    json_put_float(out, sampling->presence_penalty);
    json_put_key(out, "frequency_penalty");
    json_put_float(out, sampling->frequency_penalty);
    json_put_key(out, "repetition_penalty");
    json_put_float(out, sampling->repeat_penalty);
    put_key_int(out, "repeat_last_n", sampling->repeat_last_n);
    json_close(out, '}');
}

void props_handle(void *context, struct http_exchange *exchange)
{
    struct server *server = context;
    struct json_writer out = {0};
    const char *path = gguf_path(server->file), *slash = strrchr(path, '/');
    json_open(&out, '{');
    put_key_int(&out, "total_slots", server->n_slot);
    put_key_int(&out, "n_ctx", server->n_ctx);
    json_put_key(&out, "default_generation_settings");
    put_settings(&out, server);
    json_put_key(&out, "chat_template");
    if (server->template_source)
        json_put_string(&out, server->template_source, server->n_template_source);
    else
        json_put_null(&out);
    json_put_key(&out, "chat_template_caps");
    json_open(&out, '{');
    put_key_bool(&out, "supports_tools", server->state->has_tools);
    put_key_bool(&out, "supports_reasoning", server->state->has_reasoning);
    json_close(&out, '}');
    json_put_key(&out, "modalities");
    json_open(&out, '{');
    put_key_bool(&out, "vision", false);
    put_key_bool(&out, "audio", false);
    json_close(&out, '}');
    put_key_text(&out, "build_info", LEAN_VERSION "-" LEAN_COMMIT);
    put_key_text(&out, "model_path", slash ? slash + 1 : path);
    put_key_int(&out, "ranks", server->n_rank);
    json_close(&out, '}');
    reply(exchange, 200, &out);
}

void unsupported_handle(void *context, struct http_exchange *exchange)
{
    struct api_error error;
    (void)context;
    api_fail(&error, API_NOT_SUPPORTED, NULL, "This server does not have this route.");
    http_reply_error(exchange, &error);
}
