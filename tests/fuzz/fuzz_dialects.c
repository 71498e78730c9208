/* Any JSON object as a body of the Messages and Responses APIs: it becomes a body of the chat API
 * with messages, or an error that says why not. */
#include <stdint.h>
#include <stdlib.h>

#include <json-c/json.h>

#include "coordinator/server/api_error.h"
#include "coordinator/server/json_parse.h"
#include "coordinator/server/messages_request.h"
#include "coordinator/server/responses_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool good, struct json_object *chat, const struct api_error *error)
{
    if (!good) {
        if (error->code == API_OK || !error->message[0]) abort();
        return;
    }
    struct json_object *messages = json_object_object_get(chat, "messages");
    if (!json_object_is_type(messages, json_type_array)) abort();
    json_object_put(chat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct json_object *body, *chat = NULL;
    struct api_error error = {0};
    if (!json_parse_object(&body, (const char *)data, size, &error)) return 0;
    for (int counting = 0; counting < 2; counting++) {
        error = (struct api_error){0};
        const bool good = messages_request_translate(&chat, body, counting, &error);
        check(good, chat, &error);
    }
    error = (struct api_error){0};
    const bool good = responses_request_translate(&chat, body, &error);
    check(good, chat, &error);
    json_object_put(body);
    return 0;
}
