/* Conversations: prompt building, the way of a token to text, messages kept. */
#include "launch/chat.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <json-c/json.h>

#include "coordinator/text/chat_template.h"
#include "coordinator/text/conversation.h"
#include "coordinator/text/reasoning.h"
#include "coordinator/text/stop_strings.h"
#include "coordinator/text/tokenizer.h"
#include "launch/json_constraint.h"
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
    {"format", 0, OPTION_ENUM, "json|off", .help = "json: the answer is one JSON object"},
    {"chat-template", 0, OPTION_PATH, "FILE", .help = "use this Jinja template, not the model's"},
    {0},
};

struct chat {
    struct engine *engine;
    const struct options *options;
    struct chat_template *template; /* NULL: the model has none */
    struct json_object *messages;   /* array */
};

bool chat_wants_json(const struct options *options)
{
    const char *format = options_string(options, "format");
    return format && !strcmp(format, "json");
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
    struct conversation conversation = {.messages = chat->messages, .add_generation_prompt = true};
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
struct generation {
    const struct chat_sink *sink;
    const struct tokenizer *tokenizer;
    struct chat_answer *answer;
    struct stop_strings *stops;
    struct token_decoder decoder;
    struct reasoning_splitter splitter;
    struct json_constraint *constraint; /* of --format json, or NULL */
    FILE *parts[2];                     /* by enum reasoning_part, into the answer's strings */
    size_t n_token, min_tokens;
    int32_t think_begin, think_end; /* tokens, or -1 */
    double first_token_s;
    bool splits;         /* reasoning is told from content: not in raw text */
    bool answering;      /* content has come */
    bool ended, stopped; /* by an end token, by a stop string */
    bool refused;        /* the sink wants no more */
    bool no_memory;      /* some of the text is lost */
    bool broken; /* content came with the end of the reasoning, and does not fit the format */
};

/* Whether what comes next is content already. While the reasoning may still begin, its mark is as
 * good as content. */
static bool in_content(const struct generation *generation)
{
    return !generation->splits || generation->splitter.state != REASONING_INSIDE;
}

/* Lets the next token be only what the format allows, if it is one of the content. */
static void constrain(struct generation *generation)
{
    const bool may_think = generation->splits && generation->splitter.state == REASONING_START;
    if (!generation->constraint) return;
    if (in_content(generation))
        json_constraint_narrow(generation->constraint, may_think ? generation->think_begin : -1);
    else
        json_constraint_widen(generation->constraint);
}

/* After a token that was content, or that ended the reasoning and had content behind its end. */
static void advance(struct generation *generation, bool content, const char *bytes, size_t n)
{
    struct json_constraint *constraint = generation->constraint;
    if (!constraint) return;
    if (!content && generation->answering && in_content(generation)) {
        content = !fflush(generation->parts[PART_CONTENT]);
        bytes = generation->answer->content;
        n = content ? strlen(bytes) : 0;
    }
    if (content && !json_constraint_take(constraint, bytes, n)) generation->broken = true;
    generation->ended = json_constraint_complete(constraint);
    constrain(generation);
}

static void emit(void *context, enum reasoning_part part, const char *text, size_t n)
{
    struct generation *generation = context;
    if (part == PART_CONTENT) generation->answering = true;
    if (fwrite(text, 1, n, generation->parts[part]) != n) generation->no_memory = true;
    if (generation->refused) return;
    const enum chat_part shown = part == PART_REASONING ? CHAT_REASONING : CHAT_CONTENT;
    if (!generation->sink->on_text(generation->sink->context, shown, text, n))
        generation->refused = true;
}

/* Bytes of the answer, on their way to whole characters. */
static void take_bytes(struct generation *generation, const char *bytes, size_t n, bool last)
{
    char small[1024], *text = small;
    if (3 * (n + 4) > sizeof(small) && !(text = malloc(3 * (n + 4)))) {
        generation->no_memory = true;
        return;
    }
    const size_t n_text = token_decoder_push(&generation->decoder, bytes, n, last, text);
    if (!generation->splits) {
        if (n_text) emit(generation, PART_CONTENT, text, n_text);
    } else {
        reasoning_push(&generation->splitter, text, n_text);
        if (last) reasoning_finish(&generation->splitter);
    }
    if (text != small) free(text);
}

/* Passes on what the stop strings let through. */
static void take_token(struct generation *generation, const char *bytes, size_t n, bool last)
{
    const char *text;
    size_t n_text;
    generation->stopped = stop_strings_push(generation->stops, bytes, n, last, &text, &n_text);
    if (generation->stopped && !text) generation->no_memory = true;
    take_bytes(generation, text ? text : "", n_text, last || generation->stopped);
}

static bool on_token(void *context, const struct sampled_token *token)
{
    struct generation *generation = context;
    const bool may_end = generation->n_token++ >= generation->min_tokens;
    if (tokenizer_is_end(generation->tokenizer, token->id)) {
        generation->ended = may_end;
        return !may_end;
    }
    /* In some vocabularies the marks of reasoning are control tokens; the splitter wants them. */
    const bool mark = token->id == generation->think_begin || token->id == generation->think_end;
    const bool opens = generation->splits && generation->splitter.state == REASONING_START &&
                       token->id == generation->think_begin;
    const bool content = in_content(generation) && !opens;
    size_t n;
    const char *bytes = tokenizer_token_bytes(generation->tokenizer, token->id, mark, &n);
    if (may_end)
        take_token(generation, bytes, n, false);
    else
        take_bytes(generation, bytes, n, false);
    advance(generation, content, bytes, n);
    if (generation->splitter.state == REASONING_INSIDE || !generation->answering) {
        if (generation->n_token == 1) generation->first_token_s = log_now_s();
        generation->answer->reasoning_s = log_now_s() - generation->first_token_s;
        generation->answer->n_reasoning = generation->n_token;
    }
    return !generation->stopped && !generation->refused && !generation->ended &&
           !generation->broken && !generation->no_memory;
}

static void on_prefill(void *context, size_t n_done, size_t n_total)
{
    const struct generation *generation = context;
    generation->sink->on_prefill(generation->sink->context, n_done, n_total);
}

static enum chat_finish finish_of(const struct generation *generation,
                                  const struct generate_result *result)
{
    if (generation->ended) return CHAT_END_OF_TURN;
    if (generation->stopped) return CHAT_STOP_STRING;
    if (generation->broken) return CHAT_LENGTH;
    return generation->refused || result->finish == FINISH_CANCELLED ? CHAT_INTERRUPTED
                                                                     : CHAT_LENGTH;
}

static enum lm_status create_stops(struct stop_strings **out, const struct options *options,
                                   struct lm_error *err)
{
    const size_t n = options_count(options, "stop");
    const char **strings = calloc(n + 1, sizeof(*strings));
    if (!strings) return lm_fail(err, LM_E_NO_MEM, "no memory for stop strings");
    for (size_t i = 0; i < n; i++)
        strings[i] = options_string_at(options, "stop", i);
    const enum lm_status status = stop_strings_create(out, strings, n, err);
    free(strings);
    return status;
}

void chat_answer_fini(struct chat_answer *answer)
{
    free(answer->content);
    free(answer->reasoning);
}

/* Generates behind ids; the parts of the answer are complete strings afterwards. begun: what the
 * answer goes on with, or NULL. */
static enum lm_status generate_ids(struct chat *chat, const int32_t *ids, size_t n_ids,
                                   const char *begun, struct generation *generation,
                                   struct lm_error *err)
{
    const struct options *options = chat->options;
    struct sampling_request sampling;
    enum lm_status status = sampling_request_init(&sampling, options, engine_file(chat->engine),
                                                  generation->tokenizer, err);
    if (status != LM_OK) return status;
    if (chat_wants_json(options)) {
        status = json_constraint_create(&generation->constraint, generation->tokenizer,
                                        &sampling.params, err);
        if (status != LM_OK) goto fini_sampling;
        if (begun && (!json_constraint_take(generation->constraint, begun, strlen(begun)) ||
                      json_constraint_complete(generation->constraint))) {
            status = lm_fail(err, LM_E_USAGE, "the answer is not the beginning of a JSON object");
            goto destroy_constraint;
        }
        constrain(generation);
    }
    const int64_t n_max = options_int(options, "max-tokens");
    const struct generate_request request = {
        .prompt = ids,
        .n_prompt = n_ids,
        .sampling = sampling.params,
        .n_max = n_max > 0 ? (uint32_t)n_max : 0,
        .ignore_end = true, /* on_token decides */
        .on_token = on_token,
        .on_prefill = generation->sink->on_prefill ? on_prefill : NULL,
        .context = generation,
    };
    if (request.on_prefill) request.on_prefill(generation, 0, n_ids);
    status = engine_generate(chat->engine, &request, &generation->answer->counts, err);
    if (status == LM_OK && !generation->stopped) take_token(generation, "", 0, true);
    if (status == LM_OK && generation->no_memory)
        status = lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    generation->answer->finish = finish_of(generation, &generation->answer->counts);
    generation->answer->complete =
        !generation->constraint || json_constraint_complete(generation->constraint);
destroy_constraint:
    json_constraint_destroy(generation->constraint);
fini_sampling:
    sampling_request_fini(&sampling);
    return status;
}

/* Generates behind n bytes of text. templated: control tokens in it are that.
 * begun: its last part, which is an answer to go on with, or NULL. */
static enum lm_status generate(struct chat *chat, const char *text, size_t n, bool templated,
                               const char *begun, const struct chat_sink *sink,
                               struct chat_answer *answer, struct lm_error *err)
{
    const struct tokenizer *tokenizer = engine_tokenizer(chat->engine);
    struct generation generation = {.sink = sink, .tokenizer = tokenizer, .answer = answer};
    size_t n_bytes[2], n_ids;
    int32_t *ids;
    const char *n_max = options_string(chat->options, "max-tokens");
    if (n_max && !options_int(chat->options, "max-tokens"))
        return lm_fail(err, LM_E_USAGE, "--max-tokens must be at least 1, or -1 for no limit");
    generation.min_tokens = (size_t)options_int(chat->options, "min-tokens");
    generation.think_begin = tokenizer_find(tokenizer, "<think>", 7);
    generation.think_end = tokenizer_find(tokenizer, "</think>", 8);
    generation.splits = templated;
    reasoning_init(&generation.splitter, templated && reasoning_prompt_opens(text, n), emit,
                   &generation);
    *answer = (struct chat_answer){0};

    enum lm_status status =
        tokenizer_encode(tokenizer, text, n, templated, true, &ids, &n_ids, err);
    if (status != LM_OK) return status;
    /* many templates write the begin token themselves: one is enough */
    const int32_t bos = tokenizer_bos(tokenizer);
    if (templated && n_ids > 1 && ids[0] == bos && ids[1] == bos)
        memmove(ids, ids + 1, --n_ids * sizeof(*ids));
    status = create_stops(&generation.stops, chat->options, err);
    if (status != LM_OK) goto free_ids;
    generation.parts[PART_REASONING] = open_memstream(&answer->reasoning, &n_bytes[0]);
    generation.parts[PART_CONTENT] = open_memstream(&answer->content, &n_bytes[1]);
    if (generation.parts[0] && generation.parts[1])
        status = generate_ids(chat, ids, n_ids, begun, &generation, err);
    else
        status = lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    for (int part = PART_REASONING; part <= PART_CONTENT; part++)
        if (generation.parts[part] && fclose(generation.parts[part]) && status == LM_OK)
            status = lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    /* fclose succeeds without the memory to cut the text to its length */
    if (status == LM_OK && (!answer->reasoning || !answer->content))
        status = lm_fail(err, LM_E_NO_MEM, "no memory for an answer");
    stop_strings_destroy(generation.stops);
    if (status == LM_OK && !*answer->reasoning) {
        answer->n_reasoning = 0; /* what came first turned out to be the answer */
        answer->reasoning_s = 0;
    }
    if (status != LM_OK) chat_answer_fini(answer);
free_ids:
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
