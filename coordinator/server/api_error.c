#include "coordinator/server/api_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/base/utf8.h"

struct code {
    int status, anthropic_status;
    const char *name, *type, *anthropic_type;
    bool retry;
};

#define INVALID "invalid_request_error"

static const struct code codes[API_N_CODE] = {
    [API_OK] = {200, 200, "", "", "", false},
    [API_INVALID_JSON] = {400, 400, "invalid_json", INVALID, INVALID, false},
    [API_MISSING_FIELD] = {400, 400, "missing_field", INVALID, INVALID, false},
    [API_INVALID_TYPE] = {400, 400, "invalid_type", INVALID, INVALID, false},
    [API_INVALID_VALUE] = {400, 400, "invalid_value", INVALID, INVALID, false},
    [API_CONTEXT_LENGTH_EXCEEDED] = {400, 400, "context_length_exceeded", INVALID, INVALID, false},
    [API_INVALID_SCHEMA] = {400, 400, "invalid_schema", INVALID, INVALID, false},
    [API_UNSUPPORTED_SCHEMA] = {400, 400, "unsupported_schema", INVALID, INVALID, false},
    [API_INVALID_GRAMMAR] = {400, 400, "invalid_grammar", INVALID, INVALID, false},
    [API_UNSUPPORTED_CONTENT] = {400, 400, "unsupported_content", INVALID, INVALID, false},
    [API_TEMPLATE_ERROR] = {400, 400, "template_error", INVALID, INVALID, false},
    [API_INVALID_API_KEY] = {401, 401, "invalid_api_key", "authentication_error",
                             "authentication_error", false},
    [API_HOST_NOT_ALLOWED] = {403, 403, "host_not_allowed", "permission_error", "permission_error",
                              false},
    [API_NOT_FOUND] = {404, 404, "not_found", "not_found_error", "not_found_error", false},
    [API_MODEL_NOT_FOUND] = {404, 404, "model_not_found", "not_found_error", "not_found_error",
                             false},
    [API_REQUEST_NOT_FOUND] = {404, 404, "request_not_found", "not_found_error", "not_found_error",
                               false},
    [API_METHOD_NOT_ALLOWED] = {405, 405, "method_not_allowed", INVALID, INVALID, false},
    [API_BODY_TIMEOUT] = {408, 408, "body_timeout", "timeout_error", INVALID, true},
    [API_REQUEST_TOO_LARGE] = {413, 413, "request_too_large", INVALID, "request_too_large", false},
    [API_HEADERS_TOO_LARGE] = {431, 431, "headers_too_large", INVALID, INVALID, false},
    [API_QUEUE_FULL] = {429, 529, "queue_full", "rate_limit_error", "overloaded_error", true},
    [API_QUEUE_TIMEOUT] = {429, 529, "queue_timeout", "rate_limit_error", "overloaded_error", true},
    [API_KEY_CONCURRENCY] = {429, 429, "key_concurrency", "rate_limit_error", "rate_limit_error",
                             true},
    [API_INTERNAL_ERROR] = {500, 500, "internal_error", "server_error", "api_error", true},
    [API_NOT_SUPPORTED] = {501, 501, "not_supported", "not_supported_error", INVALID, false},
    [API_NOT_SUPPORTED_FIELD] = {400, 400, "not_supported", INVALID, INVALID, false},
    [API_LOADING_MODEL] = {503, 529, "loading_model", "unavailable_error", "overloaded_error",
                           true},
    [API_SHUTTING_DOWN] = {503, 529, "shutting_down", "unavailable_error", "overloaded_error",
                           true},
    [API_RANK_LOST] = {503, 529, "rank_lost", "unavailable_error", "overloaded_error", true},
    [API_OUT_OF_MEMORY] = {503, 529, "out_of_memory", "unavailable_error", "overloaded_error",
                           true},
    [API_REQUEST_TIMEOUT] = {504, 504, "request_timeout", "timeout_error", "api_error", true},
};

int api_code_status(enum api_code code)
{
    return codes[code].status;
}

const char *api_code_name(enum api_code code)
{
    return codes[code].name;
}

const char *api_code_type(enum api_code code)
{
    return codes[code].type;
}

int api_code_anthropic_status(enum api_code code)
{
    return codes[code].anthropic_status;
}

const char *api_code_anthropic_type(enum api_code code)
{
    return codes[code].anthropic_type;
}

bool api_code_retry(enum api_code code)
{
    return codes[code].retry;
}

/* Cuts may have gone through characters, and what is quoted may be anything. */
static void drop_broken_characters(char *text)
{
    const size_t n = strlen(text);
    char *out = text;
    for (size_t i = 0, length; i < n; i += length ? length : 1) {
        length = utf8_decode(text + i, n - i, NULL);
        memmove(out, text + i, length);
        out += length;
    }
    *out = '\0';
}

bool api_fail(struct api_error *error, enum api_code code, const char *param, const char *format,
              ...)
{
    *error = (struct api_error){.code = code};
    snprintf(error->param, sizeof(error->param), "%s", param ? param : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof(error->message), format, arguments);
    va_end(arguments);
    drop_broken_characters(error->message);
    drop_broken_characters(error->param);
    return false;
}

static enum api_code code_of_status(enum lm_status status)
{
    switch (status) {
    case LM_E_USAGE:
    case LM_E_FORMAT:
    case LM_E_LIMIT:
        return API_INVALID_VALUE;
    case LM_E_UNSUPPORTED:
        return API_UNSUPPORTED_CONTENT;
    case LM_E_BUSY:
        return API_QUEUE_TIMEOUT;
    case LM_E_NO_MEM:
        return API_OUT_OF_MEMORY;
    case LM_E_RANK_LOST:
        return API_RANK_LOST;
    case LM_E_INTERRUPTED:
        return API_SHUTTING_DOWN;
    default:
        return API_INTERNAL_ERROR;
    }
}

bool api_fail_status(struct api_error *error, const struct lm_error *err, const char *param)
{
    const enum api_code code = code_of_status(err->status);
    /* what broke inside is nobody's business outside, and may name files */
    if (code == API_INTERNAL_ERROR || code == API_OUT_OF_MEMORY) {
        log_warning("a request failed: %s", err->message);
        return api_fail(error, code, param, "%s",
                        code == API_INTERNAL_ERROR ? "The request failed inside the server."
                                                   : "The server has no memory for the request.");
    }
    return api_fail(error, code, param, "%s", err->message);
}

void api_error_write(struct byte_buffer *out, const struct api_error *error, bool anthropic,
                     const char *request_id)
{
    if (anthropic) {
        byte_buffer_printf(out, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":\"",
                           api_code_anthropic_type(error->code));
        if (error->code == API_CONTEXT_LENGTH_EXCEEDED)
            byte_buffer_printf(out, "prompt is too long: %zu tokens > %zu maximum. ",
                               error->n_prompt_tokens, error->n_ctx);
        byte_buffer_put_json(out, error->message, strlen(error->message));
        byte_buffer_put_text(out, "\"}");
    } else {
        byte_buffer_put_text(out, "{\"error\":{\"message\":\"");
        byte_buffer_put_json(out, error->message, strlen(error->message));
        byte_buffer_printf(out, "\",\"type\":\"%s\",\"param\":", api_code_type(error->code));
        if (*error->param) {
            byte_buffer_put_text(out, "\"");
            byte_buffer_put_json(out, error->param, strlen(error->param));
            byte_buffer_put_text(out, "\"");
        } else {
            byte_buffer_put_text(out, "null");
        }
        byte_buffer_printf(out, ",\"code\":\"%s\"", api_code_name(error->code));
        if (error->code == API_CONTEXT_LENGTH_EXCEEDED)
            byte_buffer_printf(out, ",\"n_prompt_tokens\":%zu,\"n_ctx\":%zu",
                               error->n_prompt_tokens, error->n_ctx);
        byte_buffer_put_text(out, "}");
    }
    if (request_id) byte_buffer_printf(out, ",\"request_id\":\"%s\"", request_id);
    byte_buffer_put_text(out, "}");
}
