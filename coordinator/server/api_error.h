/* What a client is told when its request fails: a status and the error object.
 *
 * One table (api_error.c) maps each code to its HTTP status, its type and to whether trying again
 * can help. Messages are one sentence, name the offending value (cut to 80 characters) and the
 * limit; they hold no prompt text beyond that, no paths. */
#ifndef LEAN_COORDINATOR_SERVER_API_ERROR_H
#define LEAN_COORDINATOR_SERVER_API_ERROR_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/base/byte_buffer.h"
#include "proto/base/error.h"

enum api_code {
    API_OK,
    API_INVALID_JSON,
    API_MISSING_FIELD,
    API_INVALID_TYPE,
    API_INVALID_VALUE,
    API_CONTEXT_LENGTH_EXCEEDED,
    API_INVALID_SCHEMA,
    API_UNSUPPORTED_SCHEMA,
    API_INVALID_GRAMMAR,
    API_UNSUPPORTED_CONTENT,
    API_TEMPLATE_ERROR,
    API_INVALID_API_KEY,
    API_HOST_NOT_ALLOWED,
    API_NOT_FOUND,
    API_MODEL_NOT_FOUND,
    API_REQUEST_NOT_FOUND,
    API_METHOD_NOT_ALLOWED,
    API_BODY_TIMEOUT,
    API_REQUEST_TOO_LARGE,
    API_HEADERS_TOO_LARGE,
    API_QUEUE_FULL,
    API_QUEUE_TIMEOUT,
    API_KEY_CONCURRENCY,
    API_INTERNAL_ERROR,
    API_NOT_SUPPORTED,       /* the whole route */
    API_NOT_SUPPORTED_FIELD, /* a field of a request */
    API_LOADING_MODEL,
    API_SHUTTING_DOWN,
    API_RANK_LOST,
    API_OUT_OF_MEMORY,
    API_REQUEST_TIMEOUT,
    API_N_CODE
};

struct api_error {
    enum api_code code;
    char param[160]; /* path of the field, "messages[2].content"; "" is null */
    char message[640];
    size_t n_prompt_tokens, n_ctx; /* API_CONTEXT_LENGTH_EXCEEDED only */
};

/* As the table has them. */
int api_code_status(enum api_code code);
const char *api_code_name(enum api_code code);
const char *api_code_type(enum api_code code);
bool api_code_retry(enum api_code code);
/* In the Messages dialect. */
int api_code_anthropic_status(enum api_code code);
const char *api_code_anthropic_type(enum api_code code);

/* Fills *error and returns false, so that a check can end in `return api_fail(...)`. param may be
 * NULL. */
bool api_fail(struct api_error *error, enum api_code code, const char *param, const char *format,
              ...) __attribute__((format(printf, 4, 5)));

/* For the failures of the engine's modules: the status decides the code. */
bool api_fail_status(struct api_error *error, const struct lm_error *err, const char *param);

/* Appends the object that clients get, {"error":{...}} or that of the Messages dialect.
 * request_id: NULL leaves it out. */
void api_error_write(struct byte_buffer *out, const struct api_error *error, bool anthropic,
                     const char *request_id);

#endif
