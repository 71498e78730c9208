/* The forms that are a few lines of builder each. */
#include "coordinator/grammar/grammar.h"

#include <stdlib.h>

#include <json-c/json.h>

#include "coordinator/grammar/grammar_builder.h"

enum lm_status grammar_from_choice(struct grammar **out, struct json_object *choices,
                                   struct lm_error *err)
{
    const bool is_array = json_object_is_type(choices, json_type_array);
    const size_t n = is_array ? json_object_array_length(choices) : 0;
    if (!n) return lm_fail(err, LM_E_FORMAT, "choice is not an array with at least one string");
    struct grammar_builder *builder;
    enum lm_status status = grammar_builder_create(&builder, err);
    if (status != LM_OK) return status;
    const char **texts = malloc(n * sizeof(*texts));
    size_t *lengths = malloc(n * sizeof(*lengths));
    if (!texts || !lengths) status = lm_fail(err, LM_E_NO_MEM, "no memory for %zu choices", n);
    for (size_t i = 0; i < n && status == LM_OK; i++) {
        struct json_object *choice = json_object_array_get_idx(choices, i);
        if (!json_object_is_type(choice, json_type_string))
            status = lm_fail(err, LM_E_FORMAT, "choice %zu is not a string", i);
        else {
            texts[i] = json_object_get_string(choice);
            lengths[i] = (size_t)json_object_get_string_len(choice);
        }
    }
    if (status == LM_OK)
        status = grammar_builder_finish(out, builder,
                                        grammar_build_one_of(builder, texts, lengths, n), err);
    free(lengths);
    free(texts);
    grammar_builder_destroy(builder);
    return status;
}

enum lm_status grammar_from_schema(struct grammar **out, struct json_object *schema, bool pretty,
                                   struct lm_error *err)
{
    struct grammar_builder *builder;
    enum lm_status status = grammar_builder_create(&builder, err);
    if (status != LM_OK) return status;
    if (pretty) grammar_build_pretty(builder);
    const bool any_object = !schema || (json_object_is_type(schema, json_type_boolean) &&
                                        json_object_get_boolean(schema));
    grammar_expr document = GRAMMAR_NOTHING;
    if (any_object)
        document = grammar_build_json_object(builder);
    else
        status = grammar_build_schema(builder, schema, &document, err);
    if (status == LM_OK) status = grammar_builder_finish(out, builder, document, err);
    grammar_builder_destroy(builder);
    return status;
}
