/* lean serve: a model behind an HTTP API.
 *
 * The socket opens first; the model is loaded on a thread of its own, so that health and progress
 * can be asked for meanwhile. The main thread waits for signals. */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>
#include <xxhash.h>

#include "coordinator/plan/memory_plan.h"
#include "coordinator/sched/dispatcher.h"
#include "coordinator/server/metrics.h"
#include "coordinator/server/server.h"
#include "kernels/backend_cuda.h"
#include "launch/command.h"
#include "launch/engine.h"
#include "launch/expert_picture.h"
#include "launch/job.h"
#include "launch/model_ref.h"
#include "launch/pager_report.h"
#include "launch/registry.h"
#include "launch/sampling_options.h"
#include "launch/serve_config.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/gguf/gguf.h"
#include "proto/gguf/gguf_write.h"
#include "proto/model/hparams.h"
#include "proto/model/weights_sample.h"
#include "proto/transport/world.h"
#include "worker/pager/pager_snapshot.h"

enum { MAX_TEMPLATE_BYTES = 1 << 20 };

struct serve {
    struct options *options;
    char *path; /* of the model */
    struct server *server;
    struct registry *registry; /* NULL: it could not be made */
    int64_t started;           /* Unix seconds */
    struct engine *engine;
    struct dispatcher *dispatcher;
    struct expert_picture *picture; /* NULL: the model has no routed experts */
    struct sampling_request sampling;
    bool has_sampling;

    pthread_t loader;
    int loaded_fd; /* readable once loading has ended */
    enum lm_status load_status;
    struct lm_error load_error;

    pthread_mutex_t telling; /* held while the server is told of experts */
    bool ended;              /* guarded by it: there is no server any more */

    int lost_fd; /* readable once a rank was lost; then why */
    struct lm_error lost;
    double lost_at_s;
    bool device_lost; /* which was said */
};

/* What a server may take to tell its clients that a rank was lost; mpirun ends this one 2 s after.
 */
static const double telling_s = 1, lost_s_max = 2.5;

static const struct option_spec *const serve_tables[] = {options_serve, options_sampling,
                                                         options_engine, options_cluster, NULL};

/* ---- loading ---- */

/* "lean-0.1.0-9f2c11aa": over what decides the tokens of an answer. */
static enum lm_status make_fingerprint(const struct serve *serve, char *out, size_t size,
                                       struct lm_error *err)
{
    uint64_t model, weights;
    const struct options *options = serve->options;
    const struct sampling_params *sampling = &serve->sampling.params;
    enum lm_status status = gguf_fingerprint(engine_file(serve->engine), &model, err);
    if (status == LM_OK) status = weights_sample(engine_file(serve->engine), &weights, err);
    if (status != LM_OK) return status;
    char text[512];
    const int n = snprintf(
        text, sizeof(text), "%016llx %016llx %s%s %g %g %d %g %g %g %g %g %d %g %g %d %d",
        (unsigned long long)model, (unsigned long long)weights, options_string(options, "kv-type"),
        engine_is_fast(serve->engine) ? " fast" : "", (double)sampling->temperature,
        (double)sampling->top_p, sampling->top_k, (double)sampling->min_p,
        (double)sampling->typical_p, (double)sampling->presence_penalty,
        (double)sampling->frequency_penalty, (double)sampling->repeat_penalty,
        sampling->repeat_last_n, (double)sampling->dry_multiplier, (double)sampling->dry_base,
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
    struct expert_picture *picture;
    const enum lm_status status = expert_picture_start(&picture, serve->engine, err);
    if (status != LM_OK) return status;
    pthread_mutex_lock(&serve->telling);
    serve->picture = picture;
    pthread_mutex_unlock(&serve->telling);
    serve->server->expert_map = expert_picture_map(picture);
    return LM_OK;
}

static void tell_rank(struct serve *serve, uint32_t i)
{
    struct pager_snapshot snapshot;
    struct edges_stats edges;
    const struct engine_rank rank = engine_rank(serve->engine, i);
    engine_rank_told(serve->engine, i, &snapshot, &edges);
    struct metrics_rank what = {.weight_bytes = rank.weight_bytes,
                                .kv_bytes = rank.kv_bytes,
                                .scratch_bytes = rank.scratch_bytes,
                                .sent_bytes = edges.sent_bytes,
                                .received_bytes = edges.received_bytes,
                                .send_wait_s = edges.send_wait_s,
                                .receive_wait_s = edges.receive_wait_s};
    pager_report_metrics(&what.experts, &snapshot);
    server_set_rank(serve->server, i, &what);
}

/* On the step thread, or of several ranks on one of the pipeline. */
static void on_experts(void *context)
{
    struct serve *serve = context;
    pthread_mutex_lock(&serve->telling);
    for (uint32_t i = 0; !serve->ended && i < serve->server->n_rank; i++)
        tell_rank(serve, i);
    if (!serve->ended && serve->picture && serve->server->n_rank > 1)
        expert_picture_draw(serve->picture);
    pthread_mutex_unlock(&serve->telling);
}

/* On the step thread. */
static void on_lost(void *context, const struct lm_error *err);

/* A device that is lost does not come back: no request can be answered any more. */
static void notice_lost_device(struct serve *serve)
{
    struct lm_error err;
    const struct backend_cuda_counters *device = engine_stats(serve->engine).device;
    if (serve->device_lost || !device || !device->lost) return;
    serve->device_lost = true;
    lm_fail(&err, LM_E_RANK_LOST, "%s was lost", engine_rank(serve->engine, 0).device);
    on_lost(serve, &err);
}

static void on_step(void *context, const struct step_record *step)
{
    static const enum metrics_histogram of_phase[] = {[STEP_PREFILL] = METRICS_STEP_PREFILL,
                                                      [STEP_DECODE] = METRICS_STEP_DECODE,
                                                      [STEP_MIXED] = METRICS_STEP_MIXED};
    struct serve *serve = context;
    notice_lost_device(serve);
    metrics_observe(serve->server->metrics, of_phase[step->phase], step->seconds);
    metrics_observe(serve->server->metrics, METRICS_STEP_TOKENS, step->n_token);
    engine_ask_experts(serve->engine);
}

static void on_idle(void *context)
{
    const struct serve *serve = context;
    engine_ask_experts(serve->engine);
}

static bool take_token(void *context, const struct sampled_token *token)
{
    (void)context;
    (void)token;
    return true;
}

/* A few tokens, so that the first request finds pages and threads that were used before. It leaves
 * nothing behind. */
static void warm_up(struct serve *serve)
{
    static const int32_t prompt[] = {0};
    if (!options_flag(serve->options, "warmup")) return;
    struct request request = {
        .prompt = prompt,
        .n_prompt = 1,
        .n_max = 4,
        .sampling = sampling_params_default(),
        .no_cache = true,
        .on_token = take_token,
    };
    if (scheduler_submit(engine_scheduler(serve->engine), &request, NULL) != LM_OK) return;
    while (scheduler_step(engine_scheduler(serve->engine)))
        ;
    if (request.status != LM_OK) log_warning("warming up: %s", request.error.message);
}

/* On any thread. */
static void on_lost(void *context, const struct lm_error *err)
{
    struct serve *serve = context;
    const uint64_t one = 1;
    serve->lost = *err;
    serve->lost_at_s = log_now_s();
    if (write(serve->lost_fd, &one, sizeof(one)) < 0) abort(); /* it has room for one */
}

static void on_plan(void *context, const struct memory_plan *plan)
{
    const struct serve *serve = context;
    struct server *server = serve->server;
    server_expect_weights(server, plan->weight_bytes);
}

static enum lm_status load(struct serve *serve, struct lm_error *err)
{
    struct server *server = serve->server;
    struct engine_config config;
    char *template_text = NULL;
    const double begin_s = log_now_s();
    enum lm_status status = engine_config_from_options(&config, serve->options, err);
    if (status != LM_OK) return status;
    config.cluster = cluster_config_from_options(serve->options);
    config.model_path = serve->path;
    config.serving = true;
    config.on_lost = on_lost;
    config.lost_context = serve;
    config.on_experts = on_experts;
    config.experts_context = serve;
    config.experts_map = true;
    config.cache_bytes = options_given(serve->options, "cache-ram")
                             ? options_size(serve->options, "cache-ram")
                             : UINT64_MAX;
    config.checkpoint_every = (uint32_t)options_int(serve->options, "checkpoint-every");
    config.on_plan = on_plan;
    config.plan_context = serve;
    server_set_stage(server, "reading weights");
    status = engine_open(&serve->engine, &config, err);
    if (status != LM_OK) return status;
    status = sampling_request_init(&serve->sampling, serve->options, engine_file(serve->engine),
                                   engine_tokenizer(serve->engine), err);
    serve->has_sampling = status == LM_OK;
    const struct dispatcher_config dispatcher = {
        .on_step = on_step,
        .on_idle = on_idle,
        .context = serve,
        .scheduler = engine_scheduler(serve->engine),
        .max_queue = (uint32_t)options_int(serve->options, "max-queue"),
        .queue_timeout_s = options_float(serve->options, "queue-timeout"),
    };
    if (status == LM_OK) status = start_picture(serve, err);
    server_set_stage(server, "warming up");
    if (status == LM_OK) warm_up(serve);
    server_set_stage(server, "preparing");
    if (status == LM_OK) engine_ask_experts(serve->engine);
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

/* ---- telling others ---- */

static void add_text(struct json_object *object, const char *name, const char *text)
{
    json_object_object_add(object, name, json_object_new_string(text));
}

static void add_number(struct json_object *object, const char *name, int64_t number)
{
    json_object_object_add(object, name, json_object_new_int64(number));
}

/* What `lean ps` shows and does not change; the sizes are not known while loading. */
static void tell_registry(struct serve *serve)
{
    const struct server *server = serve->server;
    const char *slash = strrchr(serve->path, '/');
    struct lm_error err;
    char real[PATH_MAX];
    struct json_object *facts = json_object_new_object();
    add_text(facts, "name", server->settings.id);
    add_text(facts, "model", slash ? slash + 1 : serve->path);
    if (realpath(serve->path, real))
        add_text(facts, "path", real); /* that `lean rm` leaves alone */
    add_text(facts, "url", http_url(server->http, 0));
    add_number(facts, "ranks", server->n_rank);
    add_number(facts, "started", serve->started);
    if (server->n_slot) add_number(facts, "slots", server->n_slot);
    if (server->n_slot) add_number(facts, "ctx", server->n_ctx);
    const enum lm_status status = serve->registry ? registry_update(serve->registry, facts, &err)
                                                  : registry_enter(&serve->registry, facts, &err);
    if (status != LM_OK) log_warning("lean ps will not show this server: %s", err.message);
    json_object_put(facts);
}

/* Somebody asks for what does. */
static void answer_registry(struct serve *serve)
{
    const struct server_status status = server_status(serve->server);
    struct json_object *now = json_object_new_object();
    add_text(now, "state", status.state);
    add_number(now, "running", status.n_running);
    add_number(now, "queue", status.n_waiting);
    json_object_object_add(now, "tokens_per_second", json_object_new_double(status.tokens_per_s));
    registry_answer(serve->registry, now);
    json_object_put(now);
}

static enum lm_status write_pid_file(const struct options *options, struct lm_error *err)
{
    const char *path = options_string(options, "pid-file");
    if (!path) return LM_OK;
    FILE *file = fopen(path, "we");
    if (!file) return lm_fail_errno(err, "--pid-file %s", path);
    fprintf(file, "%d\n", (int)getpid());
    return fclose(file) ? lm_fail_errno(err, "--pid-file %s", path) : LM_OK;
}

/* What others find of this server. */
static void leave(struct serve *serve)
{
    const char *path = options_string(serve->options, "pid-file");
    if (path && serve->server) unlink(path);
    registry_leave(serve->registry);
    serve->registry = NULL;
}

static void write_ready(int fd, const char *line)
{
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
    log_info("%s: %u slot%s of %u tokens, loaded in %.1f s", serve->server->settings.id,
             server->n_slot, server->n_slot == 1 ? "" : "s", server->n_ctx, server->load_s);
    for (size_t i = 1; http_url(server->http, i); i++)
        log_info("also at %s", http_url(server->http, i));
    if (options_flag(options, "json")) {
        struct json_object *event = json_object_new_object();
        json_object_object_add(event, "event", json_object_new_string("ready"));
        json_object_object_add(event, "time", json_object_new_int64(time(NULL)));
        json_object_object_add(event, "url", json_object_new_string(url));
        json_object_object_add(event, "model", json_object_new_string(server->settings.id));
        json_object_object_add(event, "slots", json_object_new_int64(server->n_slot));
        json_object_object_add(event, "n_ctx", json_object_new_int64(server->n_ctx));
        json_object_object_add(event, "load_seconds", json_object_new_double(server->load_s));
        puts(json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN |
                                                       JSON_C_TO_STRING_NOSLASHESCAPE));
        json_object_put(event);
    } else {
        fputs(line, stdout);
    }
    fflush(stdout);
    if (options_given(options, "ready-fd"))
        write_ready((int)options_int(options, "ready-fd"), line);
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

/* Without waiting for threads that are busy. */
static _Noreturn void end_at_once(struct serve *serve, int status)
{
    leave(serve);
    fflush(stdout);
    job_leave(status);
    _exit(status);
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

enum event { EVENT_DONE, EVENT_SIGNAL, EVENT_LOST };

/* Until a thread says that it is done, a rank was lost, or, unless draining, a signal asks for the
 * end.
 */
static enum event wait_for(struct serve *serve, int signal_fd, bool draining)
{
    struct pollfd fds[] = {
        {.fd = signal_fd, .events = POLLIN},
        {.fd = serve->loaded_fd, .events = POLLIN},
        {.fd = serve->registry ? registry_fd(serve->registry) : -1, .events = POLLIN},
        {.fd = serve->lost_fd, .events = POLLIN},
    };
    uint64_t count;
    int number;
    for (;;) {
        if (poll(fds, 4, -1) < 0) continue;
        if (fds[2].revents) answer_registry(serve);
        if (fds[3].revents) return EVENT_LOST;
        if (fds[0].revents && take_signal(serve, signal_fd, &number)) {
            if (!draining) return EVENT_SIGNAL;
            if (number != SIGUSR1) end_at_once(serve, 128 + number);
        }
        if (fds[1].revents && read(serve->loaded_fd, &count, sizeof(count)) > 0) return EVENT_DONE;
    }
}

/* Nothing that a lost rank leaves waiting may keep this process. */
static void *end_in_any_case(void *context)
{
    struct serve *serve = context;
    const struct timespec time = {.tv_sec = (time_t)lost_s_max,
                                  .tv_nsec = (long)(1e9 * fmod(lost_s_max, 1))};
    nanosleep(&time, NULL);
    log_line(LOG_ERROR, "%s", serve->lost.message);
    end_at_once(serve, lm_exit_code(LM_E_RANK_LOST));
}

/* Tells the clients; the caller ends. */
static enum lm_status lose(struct serve *serve, struct lm_error *err)
{
    pthread_t guard;
    if (pthread_create(&guard, NULL, end_in_any_case, serve))
        end_at_once(serve, lm_exit_code(LM_E_RANK_LOST));
    pthread_detach(guard);
    server_lose(serve->server, &serve->lost, telling_s);
    char seconds[24];
    log_info("the clients were told within %s",
             log_format_seconds(log_now_s() - serve->lost_at_s, seconds));
    *err = serve->lost;
    return LM_E_RANK_LOST;
}

static enum lm_status drain(struct serve *serve, int signal_fd, struct lm_error *err)
{
    pthread_t thread;
    log_info("ending: running requests have %s", options_string(serve->options, "drain-timeout"));
    if (pthread_create(&thread, NULL, run_drain, serve)) {
        server_drain(serve->server, 0);
        return LM_OK;
    }
    if (wait_for(serve, signal_fd, true) == EVENT_DONE) {
        pthread_join(thread, NULL);
        return LM_OK;
    }
    const enum lm_status status = lose(serve, err); /* which ends what is drained */
    pthread_join(thread, NULL);
    return status;
}

/* Loads, serves, drains. */
static enum lm_status run_until_signal(struct serve *serve, int signal_fd, struct lm_error *err)
{
    if (pthread_create(&serve->loader, NULL, run_loader, serve))
        return lm_fail(err, LM_E_NO_MEM, "no thread for loading");
    switch (wait_for(serve, signal_fd, false)) { /* loading cannot be stopped */
    case EVENT_SIGNAL:
        end_at_once(serve, 0);
    case EVENT_LOST:
        log_line(LOG_ERROR, "%s", serve->lost.message);
        end_at_once(serve, lm_exit_code(LM_E_RANK_LOST));
    case EVENT_DONE:
        break;
    }
    pthread_join(serve->loader, NULL);
    if (serve->load_status != LM_OK) {
        *err = serve->load_error;
        return serve->load_status;
    }
    tell_registry(serve);
    tell_ready(serve);
    return wait_for(serve, signal_fd, false) == EVENT_LOST ? lose(serve, err)
                                                           : drain(serve, signal_fd, err);
}

/* ---- the command ---- */

static enum lm_status resolve_model(struct serve *serve, struct lm_error *err)
{
    bool is_demo;
    const char *ref = options_n_arg(serve->options) ? options_arg(serve->options, 0) : NULL;
    enum lm_status status = model_ref_resolve(serve->options, ref, &serve->path, &is_demo, err);
    if (status != LM_OK) return status;
    if (is_demo) log_info("serving the demonstration model %s", serve->path);
    return LM_OK;
}

static void warn_of_exposure(const struct serve *serve, const struct server_config *config)
{
    if (http_is_exposed(serve->server->http) && !config->n_api_key && !config->api_key_file &&
        !config->api_key_commas)
        log_warning("other machines can reach this server, and no API key is set (--api-key)");
}

static enum lm_status run_serve(struct options *options, struct lm_error *err)
{
    struct serve serve = {.options = options,
                          .loaded_fd = -1,
                          .lost_fd = -1,
                          .started = time(NULL),
                          .telling = PTHREAD_MUTEX_INITIALIZER};
    struct server_config config = {0};
    int signal_fd = -1;
    uint32_t rank;
    enum lm_status status = resolve_model(&serve, err);
    if (status == LM_OK) status = serve_config_init(&config, options, serve.path, err);
    if (!world_mpi_launched(&rank, &config.n_rank)) config.n_rank = 1;
    if (status == LM_OK) status = open_signals(&signal_fd, err);
    if (status == LM_OK && ((serve.loaded_fd = eventfd(0, EFD_CLOEXEC)) < 0 ||
                            (serve.lost_fd = eventfd(0, EFD_CLOEXEC)) < 0))
        status = lm_fail_errno(err, "eventfd");
    if (status == LM_OK) status = server_create(&serve.server, &config, err);
    if (status == LM_OK) {
        warn_of_exposure(&serve, &config);
        tell_registry(&serve);
        status = write_pid_file(options, err);
        if (status == LM_OK) status = run_until_signal(&serve, signal_fd, err);
    }
    pthread_mutex_lock(&serve.telling);
    serve.ended = true;
    pthread_mutex_unlock(&serve.telling);
    server_destroy(serve.server);
    dispatcher_destroy(serve.dispatcher);
    expert_picture_stop(serve.picture);
    const enum lm_status closed = engine_close(serve.engine, status == LM_OK ? err : NULL);
    leave(&serve); /* `lean stop` waits until now */
    if (serve.has_sampling) sampling_request_fini(&serve.sampling);
    serve_config_fini(&config);
    if (signal_fd >= 0) close(signal_fd);
    if (serve.loaded_fd >= 0) close(serve.loaded_fd);
    if (serve.lost_fd >= 0) close(serve.lost_fd);
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
    .takes_ranks = true,
    .drains = true,
    .run = run_serve,
};
