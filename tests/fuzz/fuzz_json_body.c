/* Any bytes as the body of a request: a fault is named inside them, or what was read is written and
 * read again as the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/server/api_error.h"
#include "coordinator/server/json_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *why = NULL, *text = (const char *)data;
    const size_t fault = json_find_fault(text, size, &why);
    if (fault != SIZE_MAX && (fault > size || !why)) abort();

    struct api_error error = {0};
    struct json_object *body = NULL, *again = NULL;
    if (!json_parse_object(&body, text, size, &error)) {
        if (error.code != API_INVALID_JSON || !error.message[0]) abort();
        return 0;
    }
    if (fault != SIZE_MAX) abort();
    size_t n;
    const char *written = json_object_to_json_string_length(body, JSON_C_TO_STRING_PLAIN, &n);
    if (!json_parse_object(&again, written, n, &error)) abort();
    /* Their texts, since numbers compare as they are written. */
    if (strcmp(written, json_object_to_json_string_ext(again, JSON_C_TO_STRING_PLAIN)) != 0)
        abort();
    json_object_put(again);
    json_object_put(body);
    return 0;
}
