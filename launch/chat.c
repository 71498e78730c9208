/* Conversations: prompt building, the way of a token to text, messages kept. */
#include "launch/chat.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <json-c/json.h>

#include "coordinator/grammar/grammar.h"
#include "coordinator/text/answer_stream.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/conversation.h"
#include "coordinator/text/reasoning.h"
#include "coordinator/text/steering.h"
#include "coordinator/text/tokenizer.h"
#include "launch/options.h"
#include "launch/sampling_options.h"
#include "proto/base/log.h"
#include "proto/base/read_all.h"
#include "proto/base/utf8.h"
#include "proto/gguf/gguf.h"

enum { MAX_TEMPLATE_BYTES = 1 << 20 };

const struct option_spec chat_options[] = {
    {"system", 0, OPTION_STRING, "TEXT|@FILE", .help = "the system message"},
    {"think", 0, OPTION_ENUM, "on|off|none|minimal|low|medium|high|xhigh|max",
     .help = "whether, or how much, the model reasons first, where its template can tell it"},
    {"format", 0, OPTION_STRING, "json|@SCHEMA.json|off",
     .help = "json: the answer is one JSON object; @SCHEMA.json: a document of that schema"},
    {"chat-template", 0, OPTION_PATH, "FILE", .help = "use this Jinja template, not the model's"},
    {0},
};

struct chat {
    struct engine *engine;
    const struct options *options;
    struct chat_template *template; /* NULL: the model has none */
    enum tool_format tool_format;   /* of the template */
    struct json_object *messages;   /* array */
    struct token_trie *trie;        /* made when a format is first asked for */
};

bool chat_has_format(const struct options *options)
{
    const char *format = options_string(options, "format");
    return format && *format && strcmp(format, "off");
}

/* ---- messages ---- */

struct json_object *chat_messages(const struct chat *chat)
{
    return chat->messages;
}

static const char *field(struct json_object *message, const char *name)
{
    struct json_object *value;
    return json_object_object_get_ex(message, name, &value) &&
                   json_object_is_type(value, json_type_string)
               ? json_object_get_string(value)
               : NULL;
}

static struct json_object *last_message(const struct chat *chat)
{
    const size_t n = json_object_array_length(chat->messages);
    return n ? json_object_array_get_idx(chat->messages, n - 1) : NULL;
}

/* Templates work on characters. */
static enum lm_status check_utf8(const char *what, const char *text, struct lm_error *err)
{
    const size_t n = strlen(text);
    for (size_t i = 0, length; i < n; i += length) {
        length = utf8_decode(text + i, n - i, NULL);
        if (!length)
            return lm_fail(err, LM_E_FORMAT, "the %s message is not UTF-8: byte %zu is 0x%02x",
                           what, i, (unsigned char)text[i]);
    }
    return LM_OK;
}

static enum lm_status add_message(struct chat *chat, const char *role, const char *content,
                                  const char *reasoning, struct lm_error *err)
{
    const enum lm_status status = check_utf8(role, content, err);
    if (status != LM_OK) return status;
    struct json_object *message = json_object_new_object();
    if (!message) return lm_fail(err, LM_E_NO_MEM, "no memory for a message");
    json_object_object_add(message, "role", json_object_new_string(role));
    json_object_object_add(message, "content", json_object_new_string(content));
    if (reasoning && *reasoning)
        json_object_object_add(message, "reasoning_content", json_object_new_string(reasoning));
    json_object_array_add(chat->messages, message);
    return LM_OK;
}

enum lm_status chat_add_user(struct chat *chat, const char *content, struct lm_error *err)
{
    return add_message(chat, "user", content, NULL, err);
}

char *chat_last_content(const struct chat *chat, const char *role)
{
    struct json_object *message = last_message(chat);
    const char *found = message ? field(message, "role") : NULL;
    if (!found || strcmp(found, role)) return NULL;
    const char *content = field(message, "content");
    return strdup(content ? content : "");
}

void chat_remove_last(struct chat *chat)
{
    const size_t n = json_object_array_length(chat->messages);
    if (n) json_object_array_del_idx(chat->messages, n - 1, 1);
}

enum lm_status chat_set_messages(struct chat *chat, struct json_object *messages,
                                 struct lm_error *err)
{
    bool good = json_object_is_type(messages, json_type_array);
    for (size_t i = 0; good && i < json_object_array_length(messages); i++) {
        struct json_object *message = json_object_array_get_idx(messages, i);
        good = json_object_is_type(message, json_type_object) && field(message, "role") &&
               field(message, "content");
    }
    if (!good) return lm_fail(err, LM_E_FORMAT, "not a list of messages with role and content");
    struct json_object *copy = NULL;
    if (json_object_deep_copy(messages, &copy, NULL))
        return lm_fail(err, LM_E_NO_MEM, "no memory for messages");
    json_object_put(chat->messages);
    chat->messages = copy;
    return LM_OK;
}

static bool has_system(const struct chat *chat)
{
    struct json_object *first = json_object_array_get_idx(chat->messages, 0);
    const char *role = first ? field(first, "role") : NULL;
    return role && !strcmp(role, "system");
}

const char *chat_system(const struct chat *chat)
{
    return has_system(chat) ? field(json_object_array_get_idx(chat->messages, 0), "content") : NULL;
}

enum lm_status chat_set_system(struct chat *chat, const char *text, struct lm_error *err)
{
    if (has_system(chat)) json_object_array_del_idx(chat->messages, 0, 1);
    if (!text || !*text) return LM_OK;
    /* json-c cannot insert, so the others move behind the new first message. */
    struct json_object *others = chat->messages;
    chat->messages = json_object_new_array();
    const enum lm_status status = add_message(chat, "system", text, NULL, err);
    for (size_t i = 0; i < json_object_array_length(others); i++)
        json_object_array_add(chat->messages,
                              json_object_get(json_object_array_get_idx(others, i)));
    json_object_put(others);
    return status;
}

/* ---- set-up ---- */

static enum lm_status compile_template(struct chat *chat, struct lm_error *err)
{
    const char *path = options_string(chat->options, "chat-template");
    struct gguf_string source = {0};
    char *text = NULL;
    enum lm_status status =
        path ? read_all_path(path, MAX_TEMPLATE_BYTES, &text, &source.n, err)
             : model_template_source(engine_file(chat->engine), NULL, &source, err);
    if (!path && status == LM_E_NOT_FOUND) return LM_OK;
    if (status != LM_OK) return status;
    status = chat_template_compile(&chat->template, path ? text : source.data, source.n, err);
    chat->tool_format = tool_format_of_template(path ? text : source.data, source.n);
    free(text);
    return status;
}

/* TEXT or @FILE. */
static enum lm_status set_system_option(struct chat *chat, struct lm_error *err)
{
    const char *value = options_string(chat->options, "system");
    if (!value || *value != '@') return chat_set_system(chat, value, err);
    char *text;
    size_t n;
    if (!value[1]) return lm_fail(err, LM_E_USAGE, "--system: no file is named behind the @");
    enum lm_status status = read_all_path(value + 1, MAX_TEMPLATE_BYTES, &text, &n, err);
    if (status != LM_OK) return status;
    status = chat_set_system(chat, text, err);
    free(text);
    return status;
}

enum lm_status chat_create(struct chat **out, struct engine *engine, const struct options *options,
                           struct lm_error *err)
{
    struct chat *chat = calloc(1, sizeof(*chat));
    if (!chat || !(chat->messages = json_object_new_array())) {
        free(chat);
        return lm_fail(err, LM_E_NO_MEM, "no memory for a conversation");
    }
    chat->engine = engine;
    chat->options = options;
    enum lm_status status = compile_template(chat, err);
    if (status == LM_OK) status = set_system_option(chat, err);
    if (status == LM_OK) status = chat_check_format(options, err);
    if (status != LM_OK) {
        chat_destroy(chat);
        return status;
    }
    *out = chat;
    return LM_OK;
}

void chat_destroy(struct chat *chat)
{
    if (!chat) return;
    chat_template_destroy(chat->template);
    token_trie_destroy(chat->trie);
    json_object_put(chat->messages);
    free(chat);
}

/* ---- prompts ---- */

/* The messages as the template writes them, ready for an answer. *text: malloc'ed. */
static enum lm_status render(const struct chat *chat, char **text, size_t *n, struct lm_error *err)
{
    const char *think = options_string(chat->options, "think");
    const struct gguf_file *file = engine_file(chat->engine);
    struct json_object *extra = NULL, *variables = NULL;
    if (!chat->template) {
        lm_fail(err, LM_E_UNSUPPORTED, "%s has no chat template", gguf_path(file));
        return lm_hint(err, "--raw continues a text as it is; --chat-template FILE gives one");
    }
    struct conversation conversation = {.messages = chat->messages,
                                        .tool_format = chat->tool_format,
                                        .add_generation_prompt = true};
    if (think && *think) {
        const bool off = !strcmp(think, "off") || !strcmp(think, "none");
        conversation.thinking = off ? THINKING_OFF : THINKING_ON;
        if (!off && strcmp(think, "on")) {
            extra = json_object_new_object();
            json_object_object_add(extra, "reasoning_effort", json_object_new_string(think));
            conversation.extra = extra;
        }
    }
    enum lm_status status = conversation_variables(&variables, &conversation, file, err);
    if (status == LM_OK) {
        const time_t now = time(NULL);
        struct tm clock;
        localtime_r(&now, &clock);
        status = chat_template_render(chat->template, variables, &clock, text, n, err);
        json_object_put(variables);
    }
    json_object_put(extra);
    return status;
}

/* ---- answers ---- */

/* An answer being generated. */
struct reply {
    const struct chat_sink *sink;
    struct chat_answer *answer;
    struct answer_stream *stream;
    struct steering *steering; /* of --format, or NULL */
    uint32_t *allowed;         /* [n_word] the mask that the engine reads, or NULL */
    size_t n_word;
    FILE *parts[2]; /* by enum answer_part, into the answer's strings */
    double first_token_s;
    bool finished;  /* the format leaves nothing more to say */
    bool refused;   /* the sink wants no more */
    bool no_memory; /* some of the text is lost */
};

static void on_text(void *context, enum answer_part part, const char *text, size_t n)
{
    struct reply *reply = context;
    if (fwrite(text, 1, n, reply->parts[part]) != n) reply->no_memory = true;
    if (reply->refused) return;
    const enum chat_part shown = part == ANSWER_REASONING ? CHAT_REASONING : CHAT_CONTENT;
    if (!reply->sink->on_text(reply->sink->context, shown, text, n)) reply->refused = true;
}

/* The engine keeps the address of the mask, so what changes is its content. */
static void allow_next(struct reply *reply)
{
    const uint32_t *mask = steering_allowed(reply->steering);
    if (mask)
        memcpy(reply->allowed, mask, reply->n_word * sizeof(*mask));
    else
        memset(reply->allowed, 0xFF, reply->n_word * sizeof(*mask));
}

/* Holds the next token to the format. */
static void steer(struct reply *reply, int32_t id)
{
    size_t n;
    if (!reply->steering) return;
    const char *bytes = answer_stream_token_bytes(reply->stream, id, &n);
    if (steering_take(reply->steering, id, bytes, n, NULL) != LM_OK) reply->no_memory = true;
    reply->finished = steering_finished(reply->steering);
    allow_next(reply);
}

static void count_reasoning(struct reply *reply)
{
    const size_t n = answer_stream_n_reasoning(reply->stream);
    if (reply->first_token_s == 0) reply->first_token_s = log_now_s();
    if (n > reply->answer->n_reasoning) {
        reply->answer->n_reasoning = n;
        reply->answer->reasoning_s = log_now_s() - reply->first_token_s;
    }
}

static bool on_token(void *context, const struct sampled_token *token)
{
    struct reply *reply = context;
    const bool goes_on = answer_stream_push(reply->stream, token) == ANSWER_OPEN;
    count_reasoning(reply);
    if (goes_on) steer(reply, token->id);
    return goes_on && !reply->refused && !reply->finished && !reply->no_memory;
}

static void on_prefill(void *context, size_t n_done, size_t n_total)
{
    const struct reply *reply = context;
    reply->sink->on_prefill(reply->sink->context, n_done, n_total);
}

static enum chat_finish finish_of(const struct reply *reply, const struct generate_result *result)
{
    const enum answer_end end = answer_stream_end(reply->stream);
    if (end == ANSWER_END_TOKEN || reply->finished) return CHAT_END_OF_TURN;
    if (end == ANSWER_STOP_STRING) return CHAT_STOP_STRING;
    return reply->refused || result->finish == FINISH_CANCELLED ? CHAT_INTERRUPTED : CHAT_LENGTH;
}

static enum lm_status create_stream(struct reply *reply, const struct options *options,
                                    struct answer_config *config, struct lm_error *err)
{
    const struct answer_sink sink = {.on_text = on_text, .context = reply};
    const size_t n = options_count(options, "stop");
    const char **strings = calloc(n + 1, sizeof(*strings));
    if (!strings) return lm_fail(err, LM_E_NO_MEM, "no memory for stop strings");
    for (size_t i = 0; i < n; i++)
        strings[i] = options_string_at(options, "stop", i);
    config->stops = strings;
    config->n_stop = n;
    config->min_tokens = (size_t)options_int(options, "min-tokens");
    const enum lm_status status = answer_stream_create(&reply->stream, config, &sink, err);
    free(strings);
    return status;
}

void chat_answer_fini(struct chat_answer *answer)
{
    free(answer->content);
    free(answer->reasoning);
}

/* What --format asks for; *out is NULL without it. */
static enum lm_status make_format(struct grammar **out, const struct options *options,
                                  struct lm_error *err)
{
    const char *format = options_string(options, "format");
    char *text;
    size_t n;
    *out = NULL;
    if (!chat_has_format(options)) return LM_OK;
    if (!strcmp(format, "json")) return grammar_from_schema(out, NULL, false, err);
    if (*format != '@' || !format[1])
        return lm_fail(err, LM_E_USAGE, "--format must be json, off or @SCHEMA.json, got '%.80s'",
                       format);
    enum lm_status status = read_all_path(format + 1, MAX_TEMPLATE_BYTES, &text, &n, err);
    if (status != LM_OK) return status;
    struct json_object *schema = json_tokener_parse(text);
    free(text);
    if (!schema) return lm_fail(err, LM_E_FORMAT, "%s: not a JSON schema", format + 1);
    status = grammar_from_schema(out, schema, false, err);
    json_object_put(schema);
    return status;
}

enum lm_status chat_check_format(const struct options *options, struct lm_error *err)
{
    struct grammar *grammar;
    const enum lm_status status = make_format(&grammar, options, err);
    if (status == LM_OK) grammar_unref(grammar);
    return status;
}

/* begun: what the answer goes on with, or NULL. */
static enum lm_status create_steering(struct reply *reply, struct chat *chat,
                                      const struct answer_config *config, const char *begun,
                                      bool may_think, struct lm_error *err)
{
    struct steering_config steering = {
        .tokenizer = config->tokenizer,
        .split = config->split,
        .opened = config->opened,
        .channels = config->channels,
        .in_answer = config->in_answer,
        .may_think = may_think && !begun,
        .reasoning_budget = -1,
    };
    enum lm_status status = make_format(&steering.grammar, chat->options, err);
    if (status != LM_OK || !steering.grammar) return status;
    if (!chat->trie) status = token_trie_create(&chat->trie, config->tokenizer, err);
    steering.trie = chat->trie;
    if (status == LM_OK) status = steering_create(&reply->steering, &steering, err);
    grammar_unref(steering.grammar);
    if (status != LM_OK) return status;
    if (begun && (!steering_resume(reply->steering, begun, strlen(begun)) ||
                  steering_finished(reply->steering)))
        return lm_fail(err, LM_E_USAGE,
                       "the answer is not the beginning of a document of --format");
    reply->n_word = (tokenizer_n_vocab(config->tokenizer) + 31) / 32;
    reply->allowed = malloc(reply->n_word * sizeof(*reply->allowed));
    if (!reply->allowed) return lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    allow_next(reply);
    return LM_OK;
}

/* Generates behind ids. */
static enum lm_status generate_ids(struct chat *chat, const int32_t *ids, size_t n_ids,
                                   struct reply *reply, struct lm_error *err)
{
    const struct options *options = chat->options;
    const int64_t n_max = options_int(options, "max-tokens");
    struct sampling_request sampling;
    enum lm_status status = sampling_request_init(&sampling, options, engine_file(chat->engine),
                                                  engine_tokenizer(chat->engine), err);
    if (status != LM_OK) return status;
    sampling.params.allowed = reply->allowed;
    const struct generate_request request = {
        .prompt = ids,
        .n_prompt = n_ids,
        .sampling = sampling.params,
        .n_max = n_max > 0 ? (uint32_t)n_max : 0,
        .ignore_end = true, /* on_token decides */
        .on_token = on_token,
        .on_prefill = reply->sink->on_prefill ? on_prefill : NULL,
        .context = reply,
    };
    status = engine_generate(chat->engine, &request, &reply->answer->counts, err);
    sampling_request_fini(&sampling);
    if (status != LM_OK) return status;
    answer_stream_finish(reply->stream);
    if (reply->no_memory || answer_stream_end(reply->stream) == ANSWER_NO_MEMORY)
        return lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    reply->answer->finish = finish_of(reply, &reply->answer->counts);
    reply->answer->complete = !reply->steering || steering_complete(reply->steering);
    return LM_OK;
}

/* The parts of the answer are complete strings afterwards. */
static enum lm_status collect_reply(struct chat *chat, const int32_t *ids, size_t n_ids,
                                    struct reply *reply, struct lm_error *err)
{
    struct chat_answer *answer = reply->answer;
    size_t n_bytes[2];
    enum lm_status status;
    reply->parts[ANSWER_REASONING] = open_memstream(&answer->reasoning, &n_bytes[0]);
    reply->parts[ANSWER_CONTENT] = open_memstream(&answer->content, &n_bytes[1]);
    if (reply->parts[0] && reply->parts[1])
        status = generate_ids(chat, ids, n_ids, reply, err);
    else
        status = lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    for (int part = ANSWER_REASONING; part <= ANSWER_CONTENT; part++)
        if (reply->parts[part] && fclose(reply->parts[part]) && status == LM_OK)
            status = lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    /* fclose succeeds without the memory to cut the text to its length */
    if (status == LM_OK && (!answer->reasoning || !answer->content))
        status = lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    if (status != LM_OK) chat_answer_fini(answer);
    return status;
}

/* Generates behind n bytes of text. templated: control tokens in it are that, and reasoning is
 * told from content. begun: its last part, which is an answer to go on with, or NULL. */
static enum lm_status generate(struct chat *chat, const char *text, size_t n, bool templated,
                               const char *begun, const struct chat_sink *sink,
                               struct chat_answer *answer, struct lm_error *err)
{
    const struct tokenizer *tokenizer = engine_tokenizer(chat->engine);
    const char *n_max = options_string(chat->options, "max-tokens");
    struct reply reply = {.sink = sink, .answer = answer};
    struct answer_config config = {
        .tokenizer = tokenizer,
        .show_marks = true,
        .split = templated,
        .opened = templated && reasoning_prompt_opens(text, n),
        .channels = templated && chat->tool_format == TOOL_FORMAT_HARMONY,
        .in_answer = begun != NULL,
    };
    size_t n_ids;
    int32_t *ids;
    if (n_max && !options_int(chat->options, "max-tokens"))
        return lm_fail(err, LM_E_USAGE, "--max-tokens must be at least 1, or -1 for no limit");
    *answer = (struct chat_answer){0};
    enum lm_status status =
        tokenizer_encode(tokenizer, text, n, templated, true, &ids, &n_ids, err);
    if (status != LM_OK) return status;
    /* many templates write the begin token themselves: one is enough */
    const int32_t bos = tokenizer_bos(tokenizer);
    if (templated && n_ids > 1 && ids[0] == bos && ids[1] == bos)
        memmove(ids, ids + 1, --n_ids * sizeof(*ids));
    status = create_stream(&reply, chat->options, &config, err);
    if (status == LM_OK)
        status = create_steering(&reply, chat, &config, begun,
                                 templated && !reasoning_prompt_closes(text, n), err);
    if (status == LM_OK) status = collect_reply(chat, ids, n_ids, &reply, err);
    steering_destroy(reply.steering);
    answer_stream_destroy(reply.stream);
    free(reply.allowed);
    free(ids);
    return status;
}

enum lm_status chat_complete(struct chat *chat, const char *text, size_t n,
                             const struct chat_sink *sink, struct chat_answer *answer,
                             struct lm_error *err)
{
    return generate(chat, text, n, false, NULL, sink, answer, err);
}

enum lm_status chat_reply(struct chat *chat, const struct chat_sink *sink,
                          struct chat_answer *answer, struct lm_error *err)
{
    char *prompt;
    size_t n;
    enum lm_status status = render(chat, &prompt, &n, err);
    if (status != LM_OK) return status;
    status = generate(chat, prompt, n, true, NULL, sink, answer, err);
    free(prompt);
    if (status == LM_OK)
        status = add_message(chat, "assistant", answer->content, answer->reasoning, err);
    return status;
}

/* The answer's beginning goes behind the prompt that it was given to, so that the model sees the
 * text it had written. */
enum lm_status chat_continue(struct chat *chat, const struct chat_sink *sink,
                             struct chat_answer *answer, struct lm_error *err)
{
    char *begun = chat_last_content(chat, "assistant"), *prompt = NULL, *joined = NULL;
    size_t n;
    if (!begun) return lm_fail(err, LM_E_USAGE, "there is no answer to go on with");
    struct json_object *message = json_object_get(last_message(chat));
    chat_remove_last(chat);
    enum lm_status status = render(chat, &prompt, &n, err);
    if (status == LM_OK && asprintf(&joined, "%.*s%s", (int)n, prompt, begun) < 0)
        status = lm_fail(err, LM_E_NO_MEM, "no memory for a prompt");
    if (status == LM_OK)
        status = generate(chat, joined, strlen(joined), true, begun, sink, answer, err);
    if (status == LM_OK) {
        free(joined);
        joined = NULL;
        if (asprintf(&joined, "%s%s", begun, answer->content) >= 0)
            json_object_object_add(message, "content", json_object_new_string(joined));
    }
    json_object_array_add(chat->messages, message);
    free(prompt);
    free(begun);
    free(joined);
    return status;
}
