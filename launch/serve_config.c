/* From the options of `lean serve` to what the server is made with. */
#include "launch/serve_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <json-c/json.h>

#include "coordinator/server/server.h"
#include "launch/config.h"
#include "launch/options.h"
#include "proto/lmpack/lmpack.h"

static const char *const default_listen[] = {"127.0.0.1:8080"};

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

/* The file's name without folder, part number and ending; of a pack, whose files all have the same
 * names, the folder's. */
static char *name_of_file(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    if (slash && !strcmp(name, LMPACK_DENSE_NAME)) {
        const char *end = slash;
        for (name = end; name > path && name[-1] != '/';)
            name--;
        if (name < end) return strndup(name, (size_t)(end - name));
        name = slash + 1;
    }
    if (n > 5 && !strcmp(name + n - 5, ".gguf")) n -= 5;
    unsigned part, parts;
    int used = 0;
    if (n > 15 && sscanf(name + n - 15, "-%5u-of-%5u%n", &part, &parts, &used) == 2 && used == 15)
        n -= 15;
    return strndup(name, n);
}

static enum lm_status read_kwargs(struct json_object **out, const struct options *options,
                                  struct lm_error *err)
{
    const char *text = options_string(options, "chat-template-kwargs");
    *out = text ? json_tokener_parse(text) : NULL;
    if (!text || json_object_is_type(*out, json_type_object)) return LM_OK;
    return lm_fail(err, LM_E_USAGE, "--chat-template-kwargs must be a JSON object, got '%.80s'",
                   text);
}

static struct server_settings settings_of(const struct options *options)
{
    const char *max_tokens = options_string(options, "max-tokens");
    return (struct server_settings){
        .strict_model = option_is(options, "model-match", "strict"),
        .max_n = (uint32_t)options_int(options, "max-n"),
        .max_logprobs = (uint32_t)options_int(options, "max-logprobs"),
        .completions_max_tokens = options_int(options, "completions-default-max-tokens"),
        .max_tokens = max_tokens ? options_int(options, "max-tokens") : -1,
        .sse_ping_s = options_float(options, "sse-ping"),
        .timings = options_flag(options, "timings"),
        .processed_logprobs = option_is(options, "logprobs-mode", "processed"),
        .reasoning_field = option_is(options, "reasoning-field", "both") ? REASONING_FIELD_BOTH
                           : option_is(options, "reasoning-field", "reasoning")
                               ? REASONING_FIELD_PLAIN
                               : REASONING_FIELD_CONTENT,
        .split_reasoning = option_is(options, "reasoning-format", "auto"),
        .reasoning_budget = options_int(options, "reasoning-budget"),
        .reasoning_budget_message = options_string(options, "reasoning-budget-message"),
        .tool_constraint = option_is(options, "tool-constraint", "lazy"),
        .by_priority = option_is(options, "scheduling", "priority"),
        .json_pretty = option_is(options, "json-whitespace", "pretty"),
        .trust_message_specials = options_flag(options, "trust-message-specials"),
        .request_template = options_flag(options, "allow-request-template"),
        .key_concurrency = (uint32_t)options_int(options, "key-concurrency"),
        .cache_per_key = options_flag(options, "cache-per-key"),
        .log_prompts = options_string(options, "log-prompts"),
    };
}

static bool lists(const struct options *options, const char *name, const char *value)
{
    for (size_t i = 0; i < options_count(options, name); i++)
        if (!strcmp(options_string_at(options, name, i), value)) return true;
    return false;
}

static enum lm_status read_tool_format(enum tool_format *out, const struct options *options,
                                       struct lm_error *err)
{
    const char *const name = options_string(options, "tool-format");
    char names[200] = "auto";
    *out = TOOL_FORMAT_AUTO;
    if (!name || tool_format_from_name(out, name)) return LM_OK;
    for (int format = TOOL_FORMAT_AUTO + 1; format < TOOL_FORMAT_N; format++) {
        strncat(names, ", ", sizeof(names) - strlen(names) - 1);
        strncat(names, tool_format_name((enum tool_format)format),
                sizeof(names) - strlen(names) - 1);
    }
    return lm_fail(err, LM_E_USAGE, "--tool-format must be one of %s, got '%.80s'", names, name);
}

static enum lm_status check_prefix(const char *prefix, struct lm_error *err)
{
    const size_t n = prefix ? strlen(prefix) : 0;
    if (!n || (*prefix == '/' && n > 1 && prefix[n - 1] != '/')) return LM_OK;
    return lm_fail(err, LM_E_USAGE, "--api-prefix must be like /path, got '%.80s'", prefix);
}

enum lm_status serve_config_init(struct server_config *config, const struct options *options,
                                 const char *path, struct lm_error *err)
{
    struct http_config *http = &config->http;
    struct stat info;
    *config = (struct server_config){
        .settings = settings_of(options),
        .http = {.api_prefix = options_string(options, "api-prefix"),
                 .max_body = (size_t)options_size(options, "max-body"),
                 .max_connections = (uint32_t)options_int(options, "max-connections"),
                 .body_timeout_s = options_float(options, "body-timeout"),
                 .request_timeout_s = options_float(options, "request-timeout")},
        .created = stat(path, &info) ? 0 : info.st_mtime,
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
    const char *name = options_string(options, "name");
    config->settings.id = name ? strdup(name) : name_of_file(path);
    if (!config->settings.id) return lm_fail(err, LM_E_NO_MEM, "no memory for a name");
    enum lm_status status = read_kwargs(&config->settings.template_kwargs, options, err);
    if (status == LM_OK) status = read_tool_format(&config->settings.tool_format, options, err);
    if (status == LM_OK) status = check_prefix(http->api_prefix, err);
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

void serve_config_fini(struct server_config *config)
{
    if (config->http.listen != default_listen) free((void *)config->http.listen);
    free((void *)config->http.cors_origins);
    free((void *)config->http.allow_hosts);
    free((void *)config->api_keys);
    free((void *)config->settings.aliases);
    free((void *)config->settings.id);
    json_object_put(config->settings.template_kwargs);
}
