#include "coordinator/server/replay.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server/call_memory.h"
#include "coordinator/server/random_id.h"
#include "coordinator/text/tokenizer.h"
#include "proto/base/byte_buffer.h"

struct replay_answer {
    int32_t *ids; /* [n_id] */
    size_t n_id, n_lead;
    char content[RANDOM_ID_SIZE], reasoning[RANDOM_ID_SIZE]; /* the marks: nobody can guess them */
    size_t begin, end;                                       /* of what it replaces in the text */
    bool whole;                                              /* with the reasoning */
};

static struct json_object *marked_message(const struct replay_answer *answer)
{
    struct json_object *message = json_object_new_object();
    json_object_object_add(message, "role", json_object_new_string("assistant"));
    json_object_object_add(message, "content", json_object_new_string(answer->content));
    if (answer->n_lead)
        json_object_object_add(message, "reasoning_content",
                               json_object_new_string(answer->reasoning));
    return message;
}

static bool has_calls(struct json_object *message)
{
    return json_object_is_type(message, json_type_object) &&
           json_object_object_get_ex(message, "tool_calls", NULL);
}

bool replay_init(struct replay *replay, struct call_memory *memory, struct json_object *messages)
{
    const size_t n = json_object_array_length(messages);
    *replay = (struct replay){0};
    size_t n_most = 0;
    for (size_t i = 0; memory && i < n; i++)
        n_most += has_calls(json_object_array_get_idx(messages, i));
    if (!n_most) return true;
    replay->answers = calloc(n_most, sizeof(*replay->answers));
    replay->messages = json_object_new_array();
    if (!replay->answers || !replay->messages) return false;
    for (size_t i = 0; i < n; i++) {
        struct json_object *message = json_object_array_get_idx(messages, i);
        struct replay_answer *answer = &replay->answers[replay->n_answer];
        if (!has_calls(message) ||
            !call_memory_find(memory, message, &answer->ids, &answer->n_id, &answer->n_lead)) {
            json_object_array_add(replay->messages, json_object_get(message));
            continue;
        }
        random_id_make(answer->content, "content");
        random_id_make(answer->reasoning, "reasoning");
        json_object_array_add(replay->messages, marked_message(answer));
        replay->n_answer++;
    }
    return true;
}

void replay_fini(struct replay *replay)
{
    for (size_t i = 0; i < replay->n_answer; i++)
        free(replay->answers[i].ids);
    free(replay->answers);
    json_object_put(replay->messages);
}

bool replay_locate(struct replay *replay, const char *text, size_t n)
{
    size_t at = 0;
    for (size_t i = 0; i < replay->n_answer; i++) {
        struct replay_answer *answer = &replay->answers[i];
        const size_t n_content = strlen(answer->content);
        const char *content = memmem(text + at, n - at, answer->content, n_content);
        if (!content) return false;
        const char *reasoning = memmem(text + at, (size_t)(content - (text + at)),
                                       answer->reasoning, strlen(answer->reasoning));
        answer->whole = reasoning != NULL;
        answer->begin = (size_t)((reasoning ? reasoning : content) - text);
        answer->end = at = (size_t)(content - text) + n_content;
    }
    return true;
}

/* Those of an answer that stand in the prompt. */
static const int32_t *ids_of(const struct replay_answer *answer, size_t *n)
{
    const size_t n_left_out = answer->whole ? 0 : answer->n_lead;
    *n = answer->n_id - n_left_out;
    return answer->ids + n_left_out;
}

static bool append(int32_t **ids, size_t *n_id, const int32_t *more, size_t n_more)
{
    int32_t *grown = realloc(*ids, (*n_id + n_more + 1) * sizeof(*grown));
    if (!grown) return false;
    if (n_more) memcpy(grown + *n_id, more, n_more * sizeof(*grown));
    *ids = grown;
    *n_id += n_more;
    return true;
}

/* Text between answers: bytes [begin, end), with the fences inside of it. */
static enum lm_status encode_piece(const struct tokenizer *tokenizer, const char *text,
                                   size_t begin, size_t end, const size_t *fences, size_t n_fence,
                                   int32_t **ids, size_t *n_id, struct lm_error *err)
{
    int32_t *piece = NULL;
    size_t n_piece = 0, n_inside = 0;
    if (begin == end) return LM_OK;
    size_t *inside = malloc((n_fence + 1) * sizeof(*inside));
    if (!inside) return lm_fail(err, LM_E_NO_MEM, "no memory for a prompt");
    for (size_t i = 0; i < n_fence; i++)
        if (fences[i] > begin && fences[i] < end) inside[n_inside++] = fences[i] - begin;
    enum lm_status status = tokenizer_encode_fenced(tokenizer, text + begin, end - begin, inside,
                                                    n_inside, &piece, &n_piece, err);
    free(inside);
    if (status != LM_OK) return status;
    if (!append(ids, n_id, piece, n_piece))
        status = lm_fail(err, LM_E_NO_MEM, "no memory for a prompt");
    free(piece);
    return status;
}

enum lm_status replay_encode(const struct replay *replay, const struct tokenizer *tokenizer,
                             const char *text, size_t n, const size_t *fences, size_t n_fence,
                             int32_t **ids, size_t *n_id, struct lm_error *err)
{
    int32_t *all = NULL;
    size_t n_all = 0, at = 0;
    enum lm_status status = LM_OK;
    for (size_t i = 0; i <= replay->n_answer && status == LM_OK; i++) {
        const struct replay_answer *answer = i < replay->n_answer ? &replay->answers[i] : NULL;
        const size_t end = answer ? answer->begin : n;
        size_t n_own = 0;
        status = encode_piece(tokenizer, text, at, end, fences, n_fence, &all, &n_all, err);
        if (status != LM_OK || !answer) break;
        const int32_t *own = ids_of(answer, &n_own);
        if (!append(&all, &n_all, own, n_own))
            status = lm_fail(err, LM_E_NO_MEM, "no memory for a prompt");
        at = answer->end;
    }
    if (status != LM_OK) {
        free(all);
        return status;
    }
    *ids = all;
    *n_id = n_all;
    return LM_OK;
}

char *replay_text(const struct replay *replay, const struct tokenizer *tokenizer, const char *text,
                  size_t n, size_t *n_out)
{
    struct byte_buffer all = {0};
    size_t at = 0;
    for (size_t i = 0; i < replay->n_answer; i++) {
        const struct replay_answer *answer = &replay->answers[i];
        size_t n_own, n_bytes;
        const int32_t *own = ids_of(answer, &n_own);
        byte_buffer_put(&all, text + at, answer->begin - at);
        for (size_t t = 0; t < n_own; t++) {
            const char *bytes = tokenizer_token_bytes(tokenizer, own[t], true, &n_bytes);
            byte_buffer_put(&all, bytes, n_bytes);
        }
        at = answer->end;
    }
    byte_buffer_put(&all, text + at, n - at);
    if (all.failed) byte_buffer_free(&all);
    *n_out = all.n;
    return all.data;
}
