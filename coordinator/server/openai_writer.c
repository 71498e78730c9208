#include "coordinator/server/openai_writer.h"

#include "coordinator/server/server.h"
#include "proto/base/log.h"

#define PROGRESS_INTERVAL_S 0.25

void openai_begin(struct json_writer *out, const struct generation *generation, const char *object)
{
    json_open(out, '{');
    json_put_key(out, "id");
    json_put_text(out, generation->id);
    json_put_key(out, "object");
    json_put_text(out, object);
    json_put_key(out, "created");
    json_put_int(out, generation->created);
    json_put_key(out, "model");
    json_put_text(out, generation->server->settings.id);
    json_put_key(out, "system_fingerprint");
    json_put_text(out, generation->server->system_fingerprint);
    json_put_key(out, "choices");
    json_open(out, '[');
}

static void put_usage(struct json_writer *out, const struct generation *generation)
{
    json_put_key(out, "usage");
    generation_put_usage(generation, out);
}

static void put_timings(struct json_writer *out, const struct generation *generation)
{
    if (!generation->server->settings.timings) return;
    json_put_key(out, "timings");
    generation_put_timings(generation, out);
}

void openai_reply(struct json_writer *out, struct generation *generation)
{
    json_close(out, ']');
    put_usage(out, generation);
    put_timings(out, generation);
    json_close(out, '}');
    generation_reply(generation, out);
}

void openai_begin_event(struct json_writer *out, const struct generation *generation,
                        const char *object)
{
    json_writer_clear(out);
    byte_buffer_put_text(&out->text, "data: ");
    openai_begin(out, generation, object);
}

static void send(struct json_writer *out, struct generation *generation)
{
    json_close(out, '}');
    byte_buffer_put(&out->text, "\n\n", 2);
    generation_send(generation, &out->text);
}

/* The last event of a stream has the usage, where the request wants it; the others have null, or
 * what there is so far. */
static void put_event_usage(struct json_writer *out, const struct generation *generation,
                            bool always)
{
    const struct generation_fields *fields = &generation->fields;
    if (fields->include_usage && fields->continuous_usage) {
        put_usage(out, generation);
    } else if (fields->include_usage || always) {
        json_put_key(out, "usage");
        json_put_null(out);
    }
}

void openai_send_event(struct json_writer *out, struct generation *generation, bool usage_always,
                       bool last)
{
    const struct generation_fields *fields = &generation->fields;
    json_close(out, ']');
    put_event_usage(out, generation, usage_always);
    if (fields->timings_per_token || (last && !fields->include_usage)) put_timings(out, generation);
    send(out, generation);
}

void openai_send_progress(struct json_writer *out, struct generation_choice *choice,
                          const char *object, size_t n_done, size_t n_total)
{
    struct generation *generation = choice->generation;
    const double now_s = log_now_s();
    if (!generation->fields.return_progress || !generation->fields.stream) return;
    if (generation->progress_s > 0 && now_s < generation->progress_s + PROGRESS_INTERVAL_S) return;
    generation->progress_s = now_s;
    openai_begin_event(out, generation, object);
    json_close(out, ']');
    json_put_key(out, "prompt_progress");
    json_open(out, '{');
    json_put_key(out, "total");
    json_put_int(out, (int64_t)n_total);
    json_put_key(out, "cache");
    json_put_int(out, (int64_t)choice->request.n_cached);
    json_put_key(out, "processed");
    json_put_int(out, (int64_t)n_done);
    json_put_key(out, "time_ms");
    json_put_int(out, (int64_t)((now_s - choice->request.start_s) * 1e3));
    json_close(out, '}');
    put_event_usage(out, generation, false);
    send(out, generation);
}

void openai_end_stream(struct json_writer *out, struct generation *generation, const char *object)
{
    if (generation->fields.include_usage) {
        openai_begin_event(out, generation, object);
        json_close(out, ']');
        put_usage(out, generation);
        put_timings(out, generation);
        send(out, generation);
    }
    generation_end_stream(generation, "data: [DONE]\n\n");
}

void openai_put_token_ids(struct json_writer *out, const struct generation_choice *choice,
                          bool with_prompt, const struct json_writer *ids)
{
    if (!choice->generation->fields.return_token_ids) return;
    if (with_prompt) {
        json_put_key(out, "prompt_token_ids");
        json_open(out, '[');
        for (size_t i = 0; i < choice->prompt->n; i++)
            json_put_int(out, choice->prompt->ids[i]);
        json_close(out, ']');
    }
    json_put_key_list(out, "token_ids", ids);
}
