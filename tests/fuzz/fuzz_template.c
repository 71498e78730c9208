/* Any bytes as a chat template, rendered with a small conversation: whatever they are, the engine
 * compiles or refuses them, renders or says why not, within its bounds. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "coordinator/text/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char conversation[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"},"
    " {\"role\": \"user\", \"content\": \"caf\\u00e9 \\ud83d\\ude00\"},"
    " {\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"function\":"
    " {\"name\": \"f\", \"arguments\": {\"x\": [1, 2.5, true, null], \"y\": \"<&>\"}}}]}],"
    " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\"}}],"
    " \"add_generation_prompt\": true, \"bos_token\": \"<s>\", \"n\": -7, \"x\": 1e300}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat_template *tmpl;
    struct lm_error err = {0};
    if (chat_template_compile(&tmpl, (const char *)data, size, &err) != LM_OK) {
        if (!err.message[0]) abort(); /* an error without a message */
        return 0;
    }
    struct json_object *variables;
    if (chat_template_read_variables(&variables, conversation, strlen(conversation), &err) != LM_OK)
        abort();
    const struct tm now = {.tm_year = 126, .tm_mday = 2, .tm_wday = 5, .tm_yday = 1};
    char *text;
    size_t n;
    if (chat_template_render(tmpl, variables, &now, &text, &n, &err) == LM_OK) {
        if (text[n] != '\0') abort();
        free(text);
    } else if (!err.message[0])
        abort();
    json_object_put(variables);
    chat_template_destroy(tmpl);
    return 0;
}
