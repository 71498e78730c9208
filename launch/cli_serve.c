/* lean serve: a model behind an HTTP API.
 *
 * The socket opens first; the model is loaded on a thread of its own, so that health and progress
 * can be asked for meanwhile. The main thread waits for signals. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>
#include <xxhash.h>

#include "coordinator/sched/dispatcher.h"
#include "coordinator/server/server.h"
#include "coordinator/text/tool_format.h"
#include "launch/command.h"
#include "launch/config.h"
#include "launch/engine.h"
#include "launch/expert_picture.h"
#include "launch/model_ref.h"
#include "launch/sampling_options.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/model/hparams.h"

enum { MAX_TEMPLATE_BYTES = 1 << 20 };

struct serve {
    struct options *options;
    char *path; /* of the model */
    char *id;
    struct server *server;
    struct engine *engine;
    struct dispatcher *dispatcher;
    struct expert_picture *picture; /* NULL: the model has no routed experts */
    struct sampling_request sampling;
    bool has_sampling;
    struct json_object *template_kwargs;

    pthread_t loader;
    int loaded_fd; /* readable once loading has ended */
    enum lm_status load_status;
    struct lm_error load_error;
};

static const struct option_spec *const serve_tables[] = {options_serve, options_sampling,
                                                         options_engine, NULL};

/* ---- settings ---- */

/* The i-th values of a repeated option. *out: malloc'ed, of borrowed strings; NULL: none. */
static enum lm_status take_list(const struct options *options, const char *name,
                                const char *const **out, size_t *n, struct lm_error *err)
{
    const char **list = NULL;
    *n = options_count(options, name);
    if (*n && !(list = calloc(*n, sizeof(*list))))
        return lm_fail(err, LM_E_NO_MEM, "no memory for options");
    for (size_t i = 0; i < *n; i++)
        list[i] = options_string_at(options, name, i);
    *out = list;
    return LM_OK;
}

static bool option_is(const struct options *options, const char *name, const char *value)
{
    const char *text = options_string(options, name);
    return text && !strcmp(text, value);
}

/* The file's name without folder, part number and ending. */
static char *name_of_file(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    if (n > 5 && !strcmp(name + n - 5, ".gguf")) n -= 5;
    unsigned part, parts;
    int used = 0;
    if (n > 15 && sscanf(name + n - 15, "-%5u-of-%5u%n", &part, &parts, &used) == 2 && used == 15)
        n -= 15;
    return strndup(name, n);
}

static enum lm_status read_kwargs(struct serve *serve, struct lm_error *err)
{
    const char *text = options_string(serve->options, "chat-template-kwargs");
    if (!text) return LM_OK;
    serve->template_kwargs = json_tokener_parse(text);
    if (json_object_is_type(serve->template_kwargs, json_type_object)) return LM_OK;
    return lm_fail(err, LM_E_USAGE, "--chat-template-kwargs must be a JSON object, got '%.80s'",
                   text);
}

static struct server_settings settings_of(const struct serve *serve)
{
    const struct options *options = serve->options;
    const char *max_tokens = options_string(options, "max-tokens");
    return (struct server_settings){
        .id = serve->id,
        .strict_model = option_is(options, "model-match", "strict"),
        .max_n = (uint32_t)options_int(options, "max-n"),
        .max_logprobs = (uint32_t)options_int(options, "max-logprobs"),
        .completions_max_tokens = options_int(options, "completions-default-max-tokens"),
        .max_tokens = max_tokens ? options_int(options, "max-tokens") : -1,
        .sse_ping_s = options_float(options, "sse-ping"),
        .timings = options_flag(options, "timings"),
        .reasoning_field = option_is(options, "reasoning-field", "both") ? REASONING_FIELD_BOTH
                           : option_is(options, "reasoning-field", "reasoning")
                               ? REASONING_FIELD_PLAIN
                               : REASONING_FIELD_CONTENT,
        .split_reasoning = option_is(options, "reasoning-format", "auto"),
        .reasoning_budget = options_int(options, "reasoning-budget"),
        .reasoning_budget_message = options_string(options, "reasoning-budget-message"),
        .template_kwargs = serve->template_kwargs,
        .tool_format = options_string(options, "tool-format"),
        .tool_constraint = option_is(options, "tool-constraint", "lazy"),
        .json_pretty = option_is(options, "json-whitespace", "pretty"),
        .log_prompts = options_string(options, "log-prompts"),
    };
}

static bool lists(const struct options *options, const char *name, const char *value)
{
    for (size_t i = 0; i < options_count(options, name); i++)
        if (!strcmp(options_string_at(options, name, i), value)) return true;
    return false;
}

static enum lm_status check_prefix(const char *prefix, struct lm_error *err)
{
    const size_t n = prefix ? strlen(prefix) : 0;
    if (!n || (*prefix == '/' && n > 1 && prefix[n - 1] != '/')) return LM_OK;
    return lm_fail(err, LM_E_USAGE, "--api-prefix must be like /path, got '%.80s'", prefix);
}

/* Lists in config are malloc'ed; free_config releases them. */
static enum lm_status fill_config(struct server_config *config, const struct serve *serve,
                                  struct lm_error *err)
{
    static const char *const default_listen[] = {"127.0.0.1:8080"};
    const struct options *options = serve->options;
    struct http_config *http = &config->http;
    struct stat info;
    *config = (struct server_config){
        .settings = settings_of(serve),
        .http = {.api_prefix = options_string(options, "api-prefix"),
                 .max_body = (size_t)options_size(options, "max-body"),
                 .max_connections = (uint32_t)options_int(options, "max-connections"),
                 .body_timeout_s = options_float(options, "body-timeout"),
                 .request_timeout_s = options_float(options, "request-timeout")},
        .created = stat(serve->path, &info) ? 0 : info.st_mtime,
        .api_key_file = options_string(options, "api-key-file"),
        .api_key_commas = config_environment("LEAN_API_KEY"),
        .metrics_public = options_flag(options, "metrics-public"),
        .metrics_vllm = lists(options, "metrics-compat", "vllm"),
        .metrics_llamacpp = lists(options, "metrics-compat", "llamacpp"),
        .tls_cert_file = options_string(options, "tls-cert"),
        .tls_key_file = options_string(options, "tls-key"),
        .page = options_flag(options, "ui"),
        .slots = options_flag(options, "slots"),
        .log_file = options_string(options, "log-file"),
        .log_json = option_is(options, "log-format", "json"),
    };
    enum lm_status status = check_prefix(http->api_prefix, err);
    if (status == LM_OK) status = take_list(options, "listen", &http->listen, &http->n_listen, err);
    if (status == LM_OK)
        status = take_list(options, "cors-origin", &http->cors_origins, &http->n_cors_origin, err);
    if (status == LM_OK)
        status = take_list(options, "allow-host", &http->allow_hosts, &http->n_allow_host, err);
    if (status == LM_OK)
        status = take_list(options, "api-key", &config->api_keys, &config->n_api_key, err);
    if (status == LM_OK)
        status =
            take_list(options, "alias", &config->settings.aliases, &config->settings.n_alias, err);
    if (!http->n_listen) {
        http->listen = default_listen;
        http->n_listen = 1;
    }
    return status;
}

static void free_config(struct server_config *config)
{
    if (config->http.listen && strcmp(config->http.listen[0], "127.0.0.1:8080"))
        free((void *)config->http.listen);
    free((void *)config->http.cors_origins);
    free((void *)config->http.allow_hosts);
    free((void *)config->api_keys);
    free((void *)config->settings.aliases);
}

/* ---- loading ---- */

/* "lean-0.1.0-9f2c11aa": over what decides the tokens of an answer. */
static enum lm_status make_fingerprint(const struct serve *serve, char *out, size_t size,
                                       struct lm_error *err)
{
    uint64_t model;
    const struct options *options = serve->options;
    const struct sampling_params *sampling = &serve->sampling.params;
    const enum lm_status status = gguf_fingerprint(engine_file(serve->engine), &model, err);
    if (status != LM_OK) return status;
    char text[512];
    const int n = snprintf(text, sizeof(text), "%016llx %s %g %g %d %g %g %g %g %g %d %g %g %d %d",
                           (unsigned long long)model, options_string(options, "kv-type"),
                           (double)sampling->temperature, (double)sampling->top_p, sampling->top_k,
                           (double)sampling->min_p, (double)sampling->typical_p,
                           (double)sampling->presence_penalty, (double)sampling->frequency_penalty,
                           (double)sampling->repeat_penalty, sampling->repeat_last_n,
                           (double)sampling->dry_multiplier, (double)sampling->dry_base,
                           sampling->dry_allowed_length, sampling->dry_penalty_last_n);
    snprintf(out, size, "lean-" LEAN_VERSION "-%08x", (unsigned)XXH3_64bits(text, (size_t)n));
    return LM_OK;
}

static enum lm_status read_template(const struct serve *serve, char **text, struct lm_error *err)
{
    const char *path = options_string(serve->options, "chat-template");
    size_t n;
    *text = NULL;
    return path ? read_all_path(path, MAX_TEMPLATE_BYTES, text, &n, err) : LM_OK;
}

static enum lm_status start_picture(struct serve *serve, struct lm_error *err)
{
    const struct hparams *hp = engine_hparams(serve->engine);
    if (!hp->n_expert) return LM_OK;
    const enum lm_status status = expert_picture_start(&serve->picture, engine_pager(serve->engine),
                                                       hp->n_expert, hp->n_expert_used, err);
    if (status == LM_OK) serve->server->expert_map = expert_picture_map(serve->picture);
    return status;
}

static enum lm_status load(struct serve *serve, struct lm_error *err)
{
    struct server *server = serve->server;
    struct engine_config config;
    char *template_text = NULL;
    const double begin_s = log_now_s();
    enum lm_status status = engine_config_from_options(&config, serve->options, err);
    if (status != LM_OK) return status;
    config.model_path = serve->path;
    config.serving = true;
    config.cache_bytes = options_given(serve->options, "cache-ram")
                             ? options_size(serve->options, "cache-ram")
                             : UINT64_MAX;
    config.checkpoint_every = (uint32_t)options_int(serve->options, "checkpoint-every");
    server_set_progress(server, "reading weights", 0);
    status = engine_open(&serve->engine, &config, err);
    if (status != LM_OK) return status;
    server_set_progress(server, "preparing", 0.95);
    status = sampling_request_init(&serve->sampling, serve->options, engine_file(serve->engine),
                                   engine_tokenizer(serve->engine), err);
    serve->has_sampling = status == LM_OK;
    const struct dispatcher_config dispatcher = {
        .scheduler = engine_scheduler(serve->engine),
        .max_queue = (uint32_t)options_int(serve->options, "max-queue"),
        .queue_timeout_s = options_float(serve->options, "queue-timeout"),
    };
    if (status == LM_OK) status = start_picture(serve, err);
    if (status == LM_OK) status = dispatcher_create(&serve->dispatcher, &dispatcher, err);
    if (status == LM_OK)
        status = make_fingerprint(serve, server->system_fingerprint,
                                  sizeof(server->system_fingerprint), err);
    if (status == LM_OK) status = read_template(serve, &template_text, err);
    if (status != LM_OK) return status;
    server->file = engine_file(serve->engine);
    server->hp = engine_hparams(serve->engine);
    server->tokenizer = engine_tokenizer(serve->engine);
    server->dispatcher = serve->dispatcher;
    server->n_ctx = engine_n_ctx(serve->engine);
    server->n_slot = engine_n_slot(serve->engine);
    server->sampling = serve->sampling.params;
    server->load_s = log_now_s() - begin_s;
    status = server_begin(server, template_text, err);
    free(template_text);
    return status;
}

static void *run_loader(void *context)
{
    struct serve *serve = context;
    const uint64_t one = 1;
    serve->load_status = load(serve, &serve->load_error);
    if (write(serve->loaded_fd, &one, sizeof(one)) < 0) abort(); /* it has room for one */
    return NULL;
}

/* ---- telling that it is ready ---- */

static void write_ready(const struct serve *serve, int fd, const char *line)
{
    (void)serve;
    const size_t n = strlen(line);
    if (write(fd, line, n) != (ssize_t)n) log_warning("--ready-fd %d: %s", fd, strerror(errno));
}

static void tell_ready(const struct serve *serve)
{
    const struct server *server = serve->server;
    const struct options *options = serve->options;
    const char *url = http_url(server->http, 0);
    char line[512];
    snprintf(line, sizeof(line), "ready %s\n", url);
    log_info("%s: %u slot%s of %u tokens, loaded in %.1f s", serve->id, server->n_slot,
             server->n_slot == 1 ? "" : "s", server->n_ctx, server->load_s);
    for (size_t i = 1; http_url(server->http, i); i++)
        log_info("also at %s", http_url(server->http, i));
    if (options_flag(options, "json")) {
        struct json_object *event = json_object_new_object();
        json_object_object_add(event, "event", json_object_new_string("ready"));
        json_object_object_add(event, "time", json_object_new_int64(time(NULL)));
        json_object_object_add(event, "url", json_object_new_string(url));
        json_object_object_add(event, "model", json_object_new_string(serve->id));
        json_object_object_add(event, "slots", json_object_new_int64(server->n_slot));
        json_object_object_add(event, "n_ctx", json_object_new_int64(server->n_ctx));
        json_object_object_add(event, "load_seconds", json_object_new_double(server->load_s));
        puts(json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN));
        json_object_put(event);
    } else {
        fputs(line, stdout);
    }
    fflush(stdout);
    if (options_given(options, "ready-fd"))
        write_ready(serve, (int)options_int(options, "ready-fd"), line);
}

/* ---- signals ---- */

static const int watched_signals[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGHUP};

/* All threads inherit this, so signals come to the descriptor only. */
static enum lm_status open_signals(int *fd, struct lm_error *err)
{
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(watched_signals) / sizeof(watched_signals[0]); i++)
        sigaddset(&set, watched_signals[i]);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    *fd = signalfd(-1, &set, SFD_CLOEXEC);
    return *fd < 0 ? lm_fail_errno(err, "signalfd") : LM_OK;
}

/* A second signal ends the process as it would end any. */
static _Noreturn void end_at_once(int signal_number)
{
    _exit(128 + signal_number);
}

static void *run_drain(void *context)
{
    struct serve *serve = context;
    const uint64_t one = 1;
    server_drain(serve->server, options_float(serve->options, "drain-timeout"));
    if (write(serve->loaded_fd, &one, sizeof(one)) < 0) abort();
    return NULL;
}

/* One signal; true: it asks for the end. */
static bool take_signal(struct serve *serve, int fd, int *number)
{
    struct signalfd_siginfo info;
    if (read(fd, &info, sizeof(info)) != sizeof(info)) return false;
    *number = (int)info.ssi_signo;
    if (*number == SIGHUP) server_reload(serve->server);
    if (*number == SIGUSR2) server_log_state(serve->server);
    return *number == SIGTERM || *number == SIGINT || *number == SIGUSR1;
}

/* Until the event descriptor is written; true: a signal asked for the end before. */
static bool wait_for(struct serve *serve, int signal_fd, bool draining)
{
    struct pollfd fds[] = {{.fd = signal_fd, .events = POLLIN},
                           {.fd = serve->loaded_fd, .events = POLLIN}};
    uint64_t count;
    int number;
    for (;;) {
        if (poll(fds, 2, -1) < 0) continue;
        if (fds[0].revents && take_signal(serve, signal_fd, &number)) {
            if (!draining) return true;
            if (number != SIGUSR1) end_at_once(number);
        }
        if (fds[1].revents && read(serve->loaded_fd, &count, sizeof(count)) > 0) return false;
    }
}

/* Loads, serves, drains. */
static enum lm_status run_until_signal(struct serve *serve, int signal_fd, struct lm_error *err)
{
    pthread_t drain;
    if (pthread_create(&serve->loader, NULL, run_loader, serve))
        return lm_fail(err, LM_E_NO_MEM, "no thread for loading");
    if (wait_for(serve, signal_fd, false)) _exit(0); /* nothing runs yet that could end well */
    pthread_join(serve->loader, NULL);
    if (serve->load_status != LM_OK) {
        *err = serve->load_error;
        return serve->load_status;
    }
    tell_ready(serve);
    wait_for(serve, signal_fd, false);
    log_info("ending: running requests have %s", options_string(serve->options, "drain-timeout"));
    if (pthread_create(&drain, NULL, run_drain, serve)) {
        server_drain(serve->server, 0);
        return LM_OK;
    }
    wait_for(serve, signal_fd, true);
    pthread_join(drain, NULL);
    return LM_OK;
}

/* ---- the command ---- */

static enum lm_status resolve_model(struct serve *serve, struct lm_error *err)
{
    bool is_demo;
    const char *ref = options_n_arg(serve->options) ? options_arg(serve->options, 0) : NULL;
    enum lm_status status = model_ref_resolve(serve->options, ref, &serve->path, &is_demo, err);
    if (status != LM_OK) return status;
    const char *name = options_string(serve->options, "name");
    serve->id = name ? strdup(name) : name_of_file(serve->path);
    return serve->id ? LM_OK : lm_fail(err, LM_E_NO_MEM, "no memory for a name");
}

static void warn_of_exposure(const struct serve *serve, const struct server_config *config)
{
    if (http_is_exposed(serve->server->http) && !config->n_api_key && !config->api_key_file &&
        !config->api_key_commas)
        log_warning("other machines can reach this server, and no API key is set (--api-key)");
}

static enum lm_status run_serve(struct options *options, struct lm_error *err)
{
    struct serve serve = {.options = options, .loaded_fd = -1};
    struct server_config config = {0};
    int signal_fd = -1;
    enum lm_status status = resolve_model(&serve, err);
    if (status == LM_OK) status = read_kwargs(&serve, err);
    if (status == LM_OK) status = fill_config(&config, &serve, err);
    if (status == LM_OK) status = open_signals(&signal_fd, err);
    if (status == LM_OK && (serve.loaded_fd = eventfd(0, EFD_CLOEXEC)) < 0)
        status = lm_fail_errno(err, "eventfd");
    if (status == LM_OK) status = server_create(&serve.server, &config, err);
    if (status == LM_OK) {
        warn_of_exposure(&serve, &config);
        status = run_until_signal(&serve, signal_fd, err);
    }
    server_destroy(serve.server);
    dispatcher_destroy(serve.dispatcher);
    expert_picture_stop(serve.picture);
    const enum lm_status closed = engine_close(serve.engine, status == LM_OK ? err : NULL);
    if (serve.has_sampling) sampling_request_fini(&serve.sampling);
    json_object_put(serve.template_kwargs);
    free_config(&config);
    if (signal_fd >= 0) close(signal_fd);
    if (serve.loaded_fd >= 0) close(serve.loaded_fd);
    free(serve.id);
    free(serve.path);
    return status == LM_OK ? closed : status;
}

const struct command command_serve = {
    .name = "serve",
    .usage = "[MODEL]",
    .n_arg_max = 1,
    .summary = "answer requests over HTTP",
    .details =
        "Serves MODEL (a GGUF file, a name from the configuration, or `demo`) by the APIs that\n"
        "clients know: /v1/chat/completions, /v1/completions, /v1/messages, /v1/responses.\n\n"
        "`ready URL` goes to stdout once it answers; everything else goes to stderr. SIGTERM or\n"
        "SIGINT ends it when what runs has ended, a second one at once. SIGHUP reads keys and\n"
        "TLS files again, SIGUSR2 logs what is going on.",
    .options = serve_tables,
    .reads_config = true,
    .run = run_serve,
};
