#include "coordinator/grammar/grammar_builder.h"

enum lm_status grammar_build_schema(struct grammar_builder *builder, struct json_object *schema,
                                    grammar_expr *out, struct lm_error *err)
{
    (void)builder, (void)schema, (void)out;
    return lm_fail(err, LM_E_UNSUPPORTED, "#: schemas are not supported");
}
