#include "coordinator/server/server.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/plan/memory_plan.h"
#include "coordinator/server/access_log.h"
#include "coordinator/server/call_memory.h"
#include "coordinator/server/chat.h"
#include "coordinator/server/completions.h"
#include "coordinator/server/expert_map.h"
#include "coordinator/server/grammar_cache.h"
#include "coordinator/server/keys.h"
#include "coordinator/server/messages.h"
#include "coordinator/server/metrics.h"
#include "coordinator/server/page.h"
#include "coordinator/server/responses.h"
#include "coordinator/server/routes_info.h"
#include "coordinator/server/routes_text.h"
#include "coordinator/server/server_state.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/conversation.h"
#include "coordinator/text/template_traits.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/gguf/gguf.h"

enum {
    MAX_PEM_BYTES = 1 << 20,
    GRAMMARS_MAX = 256,
    REMEMBERED_CALLS_MAX = 100000,
    REMEMBERED_BYTES_MAX = 256 << 20
};

/* ---- routes ---- */

static const struct http_route routes[] = {
    {"GET", "/", page_handle, .is_public = true, .while_loading = true},
    {"GET", "/health", health_handle, .is_public = true, .has_alias = true, .while_loading = true},
    {"GET", "/ping", ping_handle, .is_public = true, .while_loading = true},
    {"GET", "/v1/models", models_handle, .has_alias = true, .while_loading = true},
    {"GET", "/v1/models/{id}", model_handle, .has_alias = true, .while_loading = true},
    {"GET", "/version", version_handle, .while_loading = true},
    {"GET", "/metrics", metrics_handle, .while_loading = true},
    {"POST", "/v1/requests/{id}/cancel", cancel_handle, .while_loading = true},
    {"POST", "/v1/completions", completions_handle, .has_alias = true, .generates = true},
    {"POST", "/v1/chat/completions", chat_handle, .has_alias = true, .generates = true},
    {"POST", "/v1/messages", messages_handle, HTTP_ANTHROPIC, .has_alias = true, .generates = true},
    {"POST", "/v1/messages/count_tokens", messages_count_handle, HTTP_ANTHROPIC, .has_alias = true},
    {"POST", "/v1/chat/completions/input_tokens", input_tokens_handle, .has_alias = true},
    {"POST", "/tokenize", tokenize_handle, .has_alias = true},
    {"POST", "/detokenize", detokenize_handle, .has_alias = true},
    {"GET", "/tokenizer_info", tokenizer_info_handle, .has_alias = true},
    {"POST", "/apply-template", apply_template_handle, .has_alias = false},
    {"POST", "/v1/responses", responses_handle, .has_alias = true, .generates = true},
    {"POST", "/v1/responses/input_tokens", responses_count_handle, .has_alias = true},
    {"GET", "/experts", expert_map_handle, .has_alias = false},
    {"GET", "/props", props_handle, .has_alias = false},
    {"GET", "/slots", slots_handle, .has_alias = false},
    {"POST", "/v1/embeddings", unsupported_handle, .has_alias = true},
    {"POST", "/v1/rerank", unsupported_handle, .has_alias = true},
    {"POST", "/v1/moderations", unsupported_handle, .has_alias = true},
    {"POST", "/v1/audio/speech", unsupported_handle, .has_alias = true},
    {"POST", "/v1/audio/transcriptions", unsupported_handle, .has_alias = true},
    {"POST", "/v1/audio/translations", unsupported_handle, .has_alias = true},
    {"POST", "/v1/images/generations", unsupported_handle, .has_alias = true},
    {0},
};

/* The table as the options want it. */
static struct http_route *make_routes(const struct server_config *config)
{
    struct http_route *made = calloc(sizeof(routes) / sizeof(routes[0]), sizeof(*made));
    size_t n = 0;
    for (const struct http_route *route = routes; made && route->method; route++) {
        if (route->handle == page_handle && !config->page) continue;
        made[n] = *route;
        if (route->handle == metrics_handle) made[n].is_public = config->metrics_public;
        n++;
    }
    return made;
}

/* ---- what the HTTP layer asks ---- */

static bool authorize(void *context, const char *key, uint64_t *owner)
{
    const struct server *server = context;
    return keys_match(server->keys, key, owner);
}

static bool admit(void *context)
{
    const struct server *server = context;
    return dispatcher_reserve(server->dispatcher, 1);
}

static void unadmit(void *context)
{
    const struct server *server = context;
    dispatcher_unreserve(server->dispatcher, 1);
}

static uint32_t retry_after_s(void *context)
{
    const struct server *server = context;
    return http_state(server->http) == API_OK ? dispatcher_retry_after_s(server->dispatcher) : 1;
}

/* The cause of lean_requests_rejected_total; METRICS_N_COUNTER: not rejected. */
static enum metrics_counter rejection_of(enum api_code code)
{
    switch (code) {
    case API_QUEUE_FULL:
    case API_KEY_CONCURRENCY:
        return METRICS_REJECTED_QUEUE_FULL;
    case API_QUEUE_TIMEOUT:
        return METRICS_REJECTED_QUEUE_TIMEOUT;
    case API_REQUEST_TOO_LARGE:
    case API_HEADERS_TOO_LARGE:
        return METRICS_REJECTED_TOO_LARGE;
    case API_CONTEXT_LENGTH_EXCEEDED:
        return METRICS_REJECTED_CONTEXT;
    case API_LOADING_MODEL:
        return METRICS_REJECTED_LOADING;
    case API_SHUTTING_DOWN:
        return METRICS_REJECTED_SHUTTING_DOWN;
    case API_INVALID_API_KEY:
    case API_HOST_NOT_ALLOWED:
        return METRICS_REJECTED_AUTH;
    default:
        return api_code_status(code) == 400 ? METRICS_REJECTED_INVALID : METRICS_N_COUNTER;
    }
}

/* --log-prompts: the body of each request in a file of its own, named by time and request. */
static void keep_prompt(void *context, const struct http_exchange *exchange)
{
    const struct server *server = context;
    struct timespec now;
    char *path;
    size_t n;
    const char *body = http_body(exchange, &n);
    clock_gettime(CLOCK_REALTIME, &now);
    if (asprintf(&path, "%s/%lld.%03ld-%s.json", server->settings.log_prompts,
                 (long long)now.tv_sec, now.tv_nsec / 1000000, http_request_id(exchange)) < 0)
        return;
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, body, n) != (ssize_t)n)
        log_warning("%s: a prompt could not be kept: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    free(path);
}

static void on_done(void *context, const struct http_record *record)
{
    struct server *server = context;
    const enum metrics_counter rejection = rejection_of(record->code);
    metrics_count_http(server->metrics, record->route, record->status);
    if (rejection != METRICS_N_COUNTER) metrics_add(server->metrics, rejection, 1);
    access_log_write(server->state->log, record);
}

/* ---- starting ---- */

static enum lm_status load_keys(struct server *server, struct lm_error *err)
{
    const struct server_config *config = &server->state->config;
    return keys_load(server->keys, config->api_keys, config->n_api_key, config->api_key_file,
                     config->api_key_commas, err);
}

/* *cert, *key: malloc'ed, also on an error. */
static enum lm_status read_tls(const struct server_config *config, char **cert, char **key,
                               struct lm_error *err)
{
    size_t n;
    *cert = *key = NULL;
    if (!config->tls_cert_file != !config->tls_key_file)
        return lm_fail(err, LM_E_USAGE, "--tls-cert and --tls-key belong together");
    if (!config->tls_cert_file) return LM_OK;
    const enum lm_status status =
        read_all_path(config->tls_cert_file, MAX_PEM_BYTES, cert, &n, err);
    return status == LM_OK ? read_all_path(config->tls_key_file, MAX_PEM_BYTES, key, &n, err)
                           : status;
}

static enum lm_status create_http(struct server *server, struct lm_error *err)
{
    struct server_state *state = server->state;
    struct http_config config = state->config.http;
    char *cert, *key;
    enum lm_status status = read_tls(&state->config, &cert, &key, err);
    config.routes = state->routes;
    config.context = server;
    config.tls_cert = cert;
    config.tls_key = key;
    config.authorize = authorize;
    config.admit = admit;
    config.unadmit = unadmit;
    config.retry_after_s = retry_after_s;
    config.on_request = state->config.settings.log_prompts ? keep_prompt : NULL;
    config.on_done = on_done;
    if (status == LM_OK) status = http_server_create(&server->http, &config, err);
    free(cert);
    free(key);
    return status;
}

enum lm_status server_create(struct server **out, const struct server_config *config,
                             struct lm_error *err)
{
    struct server *server = calloc(1, sizeof(*server));
    struct server_state *state = calloc(1, sizeof(*state));
    if (!server || !state) {
        free(server);
        free(state);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a server");
    }
    if (getrandom(&server->cache_secret, sizeof(server->cache_secret), 0) < 0) {
        free(server);
        free(state);
        return lm_fail_errno(err, "random numbers");
    }
    server->state = state;
    server->settings = config->settings;
    server->created = config->created;
    server->n_rank = config->n_rank ? config->n_rank : 1;
    state->config = *config;
    state->stage = "starting";
    pthread_mutex_init(&state->lock, NULL);
    inflight_init(&server->inflight);
    server->calls = call_memory_create(REMEMBERED_CALLS_MAX, REMEMBERED_BYTES_MAX);
    state->routes = make_routes(config);
    state->rank = calloc(server->n_rank, sizeof(*state->rank));
    enum lm_status status = state->routes && server->calls && state->rank
                                ? LM_OK
                                : lm_fail(err, LM_E_NO_MEM, "no memory for a server");
    if (status == LM_OK) status = metrics_create(&server->metrics, err);
    for (const struct http_route *route = state->routes; status == LM_OK && route->method; route++)
        metrics_count_http(server->metrics, route->path, 0);
    if (status == LM_OK) status = keys_create(&server->keys, server->cache_secret, err);
    if (status == LM_OK) status = load_keys(server, err);
    if (status == LM_OK)
        status = access_log_open(&state->log, config->log_file, config->log_json, err);
    if (status == LM_OK) status = create_http(server, err);
    if (status != LM_OK) {
        server_destroy(server);
        return status;
    }
    *out = server;
    return LM_OK;
}

void server_set_stage(struct server *server, const char *stage)
{
    pthread_mutex_lock(&server->state->lock);
    server->state->stage = stage;
    pthread_mutex_unlock(&server->state->lock);
}

void server_expect_weights(struct server *server, uint64_t n)
{
    pthread_mutex_lock(&server->state->lock);
    server->state->expected_bytes = n;
    server->state->resident_before = host_memory_resident();
    pthread_mutex_unlock(&server->state->lock);
}

const char *server_progress(struct server *server, double *fraction)
{
    struct server_state *state = server->state;
    const uint64_t resident = host_memory_resident();
    pthread_mutex_lock(&state->lock);
    const char *stage = state->stage;
    *fraction = 0;
    if (state->expected_bytes && resident > state->resident_before)
        *fraction = (double)(resident - state->resident_before) / (double)state->expected_bytes;
    pthread_mutex_unlock(&state->lock);
    *fraction = *fraction < 1 ? floor(*fraction * 1000) / 1000 : 1;
    return stage;
}

static enum lm_status compile_template(struct server *server, const char *source,
                                       struct lm_error *err)
{
    struct gguf_string text = {source, source ? strlen(source) : 0};
    enum lm_status status = LM_OK;
    if (!source) status = model_template_source(server->file, NULL, &text, err);
    if (status == LM_E_NOT_FOUND) return LM_OK;
    if (status != LM_OK) return status;
    server->template_source = strndup(text.data, text.n);
    server->n_template_source = text.n;
    if (!server->template_source) return lm_fail(err, LM_E_NO_MEM, "no memory for a template");
    const struct template_traits traits = template_traits(text.data, text.n);
    server->state->has_tools = traits.tools;
    server->state->has_reasoning = traits.reasoning;
    return chat_template_compile(&server->chat_template, text.data, text.n, err);
}

/* The type that most of the weights' tensors have. */
static void name_quantization(struct server_state *state)
{
    size_t n_of_type[TENSOR_TYPE_COUNT] = {0}, best = 0;
    for (size_t group = 0; group < WEIGHT_GROUP_COUNT; group++)
        for (size_t type = 0; group != WEIGHTS_NORMS && type < TENSOR_TYPE_COUNT; type++)
            n_of_type[type] += state->census.group[group].n_of_type[type];
    for (size_t type = 1; type < TENSOR_TYPE_COUNT; type++)
        if (n_of_type[type] > n_of_type[best]) best = type;
    strncpy(state->quantization, tensor_type_info((enum tensor_type)best)->name,
            sizeof(state->quantization) - 1);
}

enum lm_status server_begin(struct server *server, const char *template_source,
                            struct lm_error *err)
{
    enum lm_status status = compile_template(server, template_source, err);
    if (status == LM_OK) status = token_trie_create(&server->trie, server->tokenizer, err);
    if (status == LM_OK)
        status = grammar_cache_create(&server->grammars, GRAMMARS_MAX, server->cache_secret, err);
    if (status != LM_OK) return status;
    weight_census_take(&server->state->census, server->file, server->hp);
    name_quantization(server->state);
    atomic_store(&server->state->loaded, true);
    http_set_state(server->http, API_OK);
    return LM_OK;
}

/* ---- while it runs ---- */

static void warn_and_keep(const char *what, const struct lm_error *err)
{
    log_warning("%s stay as they are: %s", what, err->message);
}

void server_reload(struct server *server)
{
    struct lm_error err;
    char *cert, *key;
    if (load_keys(server, &err) != LM_OK) warn_and_keep("API keys", &err);
    log_info("read again: %zu API keys", keys_count(server->keys));
    if (!server->state->config.tls_cert_file) return;
    enum lm_status status = read_tls(&server->state->config, &cert, &key, &err);
    if (status == LM_OK) status = http_set_tls(server->http, cert, key, &err);
    if (status != LM_OK) warn_and_keep("TLS files", &err);
    free(cert);
    free(key);
}

void server_log_state(struct server *server)
{
    const struct metrics_state state = server_metrics_state(server);
    log_info("state: %u sequences run, %u wait, %u slots, %llu steps of %llu tokens",
             state.n_running, state.n_waiting, state.n_slot, (unsigned long long)state.n_step,
             (unsigned long long)state.n_step_token);
    pthread_mutex_lock(&server->inflight.lock);
    for (const struct inflight_entry *entry = server->inflight.first; entry; entry = entry->next)
        for (size_t i = 0; i < entry->n_sequence; i++)
            log_info("  %s, request %s: %u of %u prompt tokens and %u generated, %.1f s old",
                     entry->id, entry->request_id,
                     (unsigned)atomic_load(&entry->sequence[i].n_past), entry->sequence[i].n_prompt,
                     (unsigned)atomic_load(&entry->sequence[i].n_decoded),
                     log_now_s() - entry->accepted_s);
    pthread_mutex_unlock(&server->inflight.lock);
}

/* No more layers than there are. */
static void copy_rank(struct metrics_rank *to, const struct metrics_rank *from)
{
    memcpy(to, from,
           offsetof(struct metrics_rank, experts.layer) +
               from->experts.n_layer * sizeof(*from->experts.layer));
}

struct metrics_state server_metrics_state(struct server *server)
{
    struct metrics_state state = {
        .model = server->settings.id, .quantization = "", .n_rank = server->n_rank};
    if (!atomic_load(&server->state->loaded)) return state;
    const struct dispatcher_stats stats = dispatcher_stats(server->dispatcher);
    state.quantization = server->state->quantization;
    state.load_s = server->load_s;
    state.n_slot = server->n_slot;
    state.n_running = stats.n_running;
    state.n_waiting = stats.n_waiting;
    state.n_step = stats.scheduler.n_step;
    state.n_step_token = stats.scheduler.n_token;
    state.kv_tokens = stats.scheduler.kv.n_position;
    if (stats.scheduler.kv.n_position_max)
        state.kv_usage =
            (double)stats.scheduler.kv.n_position / (double)stats.scheduler.kv.n_position_max;
    state.n_checkpoint = stats.scheduler.n_state;
    state.checkpoint_bytes = stats.scheduler.state_bytes;
    state.kv_evictions = stats.scheduler.n_evicted_kv;
    state.spec_drafts = stats.scheduler.n_draft_step;
    state.spec_drafted = stats.scheduler.n_draft;
    state.spec_accepted = stats.scheduler.n_draft_accepted;
    state.checkpoint_evictions = stats.scheduler.n_evicted_state;
    return state;
}

struct metrics_rank *server_ranks(struct server *server)
{
    if (!atomic_load(&server->state->loaded)) return NULL;
    const uint64_t cache_bytes = dispatcher_stats(server->dispatcher).scheduler.state_bytes;
    struct metrics_rank *ranks = malloc(server->n_rank * sizeof(*ranks));
    if (!ranks) return NULL;
    pthread_mutex_lock(&server->state->lock);
    for (uint32_t i = 0; i < server->n_rank; i++)
        copy_rank(&ranks[i], &server->state->rank[i]);
    pthread_mutex_unlock(&server->state->lock);
    ranks[0].cache_bytes = cache_bytes;
    return ranks;
}

void server_set_rank(struct server *server, uint32_t rank, const struct metrics_rank *what)
{
    assert(rank < server->n_rank);
    pthread_mutex_lock(&server->state->lock);
    copy_rank(&server->state->rank[rank], what);
    pthread_mutex_unlock(&server->state->lock);
}

struct server_status server_status(struct server *server)
{
    const enum api_code state = http_state(server->http);
    const struct metrics_state metrics = server_metrics_state(server);
    struct server_status status = {
        .state = state == API_OK              ? "ready"
                 : state == API_LOADING_MODEL ? "loading"
                                              : "draining",
        .n_running = metrics.n_running,
        .n_waiting = metrics.n_waiting,
    };
    const double now_s = log_now_s();
    pthread_mutex_lock(&server->inflight.lock);
    for (const struct inflight_entry *entry = server->inflight.first; entry; entry = entry->next)
        for (size_t i = 0; i < entry->n_sequence; i++)
            if (atomic_load(&entry->sequence[i].state) == SEQUENCE_DECODE)
                status.tokens_per_s += inflight_tokens_per_s(&entry->sequence[i], now_s);
    pthread_mutex_unlock(&server->inflight.lock);
    return status;
}

bool server_has_name(const struct server *server, const char *name)
{
    const struct server_settings *settings = &server->settings;
    if (!strcmp(name, settings->id)) return true;
    for (size_t i = 0; i < settings->n_alias; i++)
        if (!strcmp(name, settings->aliases[i])) return true;
    if (!settings->repository) return false;
    const size_t n = strlen(settings->repository); /* a variant may follow: OWNER/NAME:Q4_K_M */
    return !strncmp(name, settings->repository, n) && (!name[n] || name[n] == ':');
}

bool server_check_model(struct server *server, const char *name, struct api_error *error)
{
    if (!name || server_has_name(server, name)) return true;
    metrics_add(server->metrics, METRICS_MODEL_NAME_UNKNOWN, 1);
    if (!server->settings.strict_model) return true;
    return api_fail(error, API_MODEL_NOT_FOUND, "model", "The model '%.80s' is not served here.",
                    name);
}

/* ---- ending ---- */

void server_drain(struct server *server, double timeout_s)
{
    http_stop_listening(server->http);
    http_set_state(server->http, API_SHUTTING_DOWN);
    if (atomic_load(&server->state->loaded) && !dispatcher_drain(server->dispatcher, timeout_s))
        log_warning("requests that ran for longer than %g s more were cut", timeout_s);
}

void server_lose(struct server *server, const struct lm_error *err, double timeout_s)
{
    http_set_state(server->http, API_RANK_LOST);
    if (atomic_load(&server->state->loaded) && !dispatcher_fail(server->dispatcher, err, timeout_s))
        log_warning("requests that did not end within %g s were cut", timeout_s);
}

void server_destroy(struct server *server)
{
    if (!server) return;
    struct server_state *state = server->state;
    http_server_destroy(server->http);
    access_log_close(state->log);
    keys_destroy(server->keys);
    metrics_destroy(server->metrics);
    inflight_fini(&server->inflight);
    grammar_cache_destroy(server->grammars);
    call_memory_destroy(server->calls);
    token_trie_destroy(server->trie);
    chat_template_destroy(server->chat_template);
    free(server->template_source);
    free(state->routes);
    free(state->rank);
    pthread_mutex_destroy(&state->lock);
    free(state);
    free(server);
}
