#include "coordinator/server/chat_request.h"

#include <json-c/json.h>
#include <string.h>

#include "coordinator/server/format_fields.h"
#include "coordinator/server/generation.h"
#include "coordinator/server/grammar_cache.h"
#include "coordinator/server/http.h"
#include "coordinator/server/json_parse.h"
#include "coordinator/server/json_write.h"
#include "coordinator/server/server.h"
#include "coordinator/text/tool_grammar.h"

static bool read_logprobs(struct generation *generation, struct chat_fields *fields,
                          const struct field_reader *reader)
{
    int64_t n = 0;
    if (!field_bool(reader, "logprobs", &fields->logprobs) ||
        !field_int(reader, "top_logprobs", 0, generation->server->settings.max_logprobs, &n))
        return false;
    if (n && !fields->logprobs)
        return field_fail(reader, API_INVALID_VALUE, "top_logprobs", "needs logprobs: true");
    generation->fields.sampling.n_logprob = fields->logprobs ? (int32_t)n : -1;
    return true;
}

enum { TOOL_GRAMMARS = 1 << 16 /* of all kinds of sources of grammars, those of tools */ };

/* What the answer is held to: the format that is asked for, and the syntax of tool calls. */
static bool read_constraints(struct generation *generation, const struct chat_fields *fields,
                             const struct field_reader *reader)
{
    const struct tool_fields *tool = &fields->tool;
    struct lm_error err;
    if (!format_fields_read(&generation->grammar, reader, generation->server)) return false;
    if (!tool->callable || !(tool->required || generation->server->settings.tool_constraint))
        return true;
    if (tool->required && generation->grammar)
        return field_fail(reader, API_INVALID_VALUE, "tool_choice",
                          "must be auto or none where the answer has a format");
    const enum tool_grammar_scope scope = tool->required ? TOOL_GRAMMAR_ANSWER : TOOL_GRAMMAR_CALL;
    struct grammar **out = tool->required ? &generation->grammar : &generation->call_grammar;
    struct grammar_cache *cache = generation->server->grammars;
    const char *text = json_object_to_json_string_ext(tool->callable, JSON_C_TO_STRING_PLAIN);
    const uint64_t kind = TOOL_GRAMMARS | (uint64_t)tool->format << 2 |
                          (uint64_t)(scope == TOOL_GRAMMAR_ANSWER) << 1 | tool->parallel;
    const struct grammar_key key = grammar_cache_key(cache, kind, text, strlen(text));
    *out = grammar_cache_find(cache, key);
    if (*out) return true;
    if (tool_grammar_build(out, tool->format, tool->callable, scope, tool->parallel, &err) != LM_OK)
        return format_fail(reader, "tools", &err, true);
    grammar_cache_add(cache, key, *out);
    return true;
}

/* The prompt's parts move into the generation. */
static bool build_prompt(struct generation *generation, const struct chat_fields *fields,
                         struct api_error *error)
{
    struct chat_prompt prompt;
    const bool good = chat_prompt_build(&prompt, fields, generation->server,
                                        generation->fields.add_special_tokens, error);
    if (good) {
        generation->prompts[0] = (struct generation_prompt){
            .ids = prompt.ids,
            .n = prompt.n,
            .has_added_bos = prompt.has_added_bos,
            .turns = prompt.turns,
            .n_turn = prompt.n_turn,
        };
        prompt.ids = NULL;
        prompt.turns = NULL;
        generation->split = fields->split_reasoning;
        generation->opened = prompt.opens_reasoning;
        generation->channels = fields->tool.format == TOOL_FORMAT_HARMONY;
        generation->in_answer = fields->continues;
        generation->may_think = !prompt.opens_reasoning && !prompt.closes_reasoning;
        generation->show_marks = true;
        generation->tools = &fields->tool;
        generation->reasoning_budget = fields->reasoning_budget;
    }
    chat_prompt_fini(&prompt);
    return good;
}

bool chat_request_read(struct generation *generation, struct chat_fields *fields,
                       struct api_error *error)
{
    struct server *server = generation->server;
    const struct field_reader reader = field_reader_body(generation->body, error);
    const char *model = NULL;
    return field_string(&reader, "model", &model, NULL) &&
           server_check_model(server, model, error) &&
           generation_fields_read(&generation->fields, &reader, server, false) &&
           chat_fields_read(fields, &reader, server) &&
           read_logprobs(generation, fields, &reader) &&
           generation_alloc_prompts(generation, 1, error) &&
           generation_reserve(generation, error) && read_constraints(generation, fields, &reader) &&
           build_prompt(generation, fields, error) &&
           generation_fit_prompts(generation, "messages", error);
}

static bool count_tokens(struct server *server, struct json_object *body, size_t *n,
                         struct api_error *error)
{
    const struct field_reader reader = field_reader_body(body, error);
    struct chat_fields fields = {0};
    struct chat_prompt prompt = {0};
    const char *model = NULL;
    bool adds = false;
    int64_t truncate = 0;
    const bool good =
        field_string(&reader, "model", &model, NULL) && server_check_model(server, model, error) &&
        field_bool(&reader, "add_special_tokens", &adds) &&
        fields_read_truncate(&truncate, &reader) && chat_fields_read(&fields, &reader, server) &&
        chat_prompt_build(&prompt, &fields, server, adds, error);
    const size_t n_kept = truncate == FIELDS_TRUNCATE_TO_FIT ? server->n_ctx - 1 : (size_t)truncate;
    *n = truncate && n_kept < prompt.n ? n_kept : prompt.n;
    chat_prompt_fini(&prompt);
    chat_fields_fini(&fields);
    return good;
}

void chat_request_answer_count(struct server *server, struct http_exchange *exchange,
                               bool (*translate)(struct json_object **chat,
                                                 struct json_object *body, struct api_error *error),
                               const char *object)
{
    struct api_error error = {0};
    struct json_object *body = NULL, *chat = NULL;
    struct json_writer out = {0};
    size_t n;
    const char *text = http_body(exchange, &n);
    bool good = json_parse_object(&body, text, n, &error);
    if (good && translate) good = translate(&chat, body, &error);
    if (good) good = count_tokens(server, translate ? chat : body, &n, &error);
    json_open(&out, '{');
    if (object) {
        json_put_key(&out, "object");
        json_put_text(&out, object);
    }
    json_put_key(&out, "input_tokens");
    json_put_int(&out, (int64_t)n);
    json_close(&out, '}');
    if (good && out.text.failed)
        good = api_fail(&error, API_OUT_OF_MEMORY, NULL, "no memory for the answer");
    if (good)
        http_reply_json(exchange, 200, out.text.data, out.text.n);
    else
        http_reply_error(exchange, &error);
    byte_buffer_free(&out.text);
    json_object_put(chat);
    json_object_put(body);
}
