/* JSON schemas: what is checked before one is compiled, and what values satisfy one.
 *
 * Private to coordinator/grammar. */
#ifndef LEAN_COORDINATOR_GRAMMAR_SCHEMA_H
#define LEAN_COORDINATOR_GRAMMAR_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct json_object;

enum schema_type {
    SCHEMA_NULL = 1,
    SCHEMA_BOOLEAN = 2,
    SCHEMA_INTEGER = 4,
    SCHEMA_NUMBER = 8, /* whole ones too */
    SCHEMA_STRING = 16,
    SCHEMA_ARRAY = 32,
    SCHEMA_OBJECT = 64,
    SCHEMA_ANY = 127 - SCHEMA_INTEGER
};

/* Every keyword of every part is known and has a value of the right kind, references lead to
 * schemas, and none leads back to itself within one value. LM_E_UNSUPPORTED, LM_E_FORMAT,
 * LM_E_LIMIT: the message begins with the JSON pointer, as in "#/properties/a/not". */
enum lm_status schema_check(struct json_object *schema, struct lm_error *err);

/* What a checked schema says; NULL: nothing, or null. */
struct json_object *schema_get(struct json_object *schema, const char *keyword);
bool schema_has(struct json_object *schema, const char *keyword);
/* The types of `type`; 0: it is absent. */
unsigned schema_types(struct json_object *schema);
/* The types that the other keywords speak of; 0: none. */
unsigned schema_implied_types(struct json_object *schema);
/* Where "$ref" leads, NULL: nowhere. */
struct json_object *schema_resolve(struct json_object *root, const char *reference);
/* Where a part of the document is, "#/properties/a"; at most n bytes. */
void schema_write_pointer(struct json_object *root, const struct json_object *part, char *out,
                          size_t n);

/* What is known while values are held against the schemas of one document. */
struct schema_fitting {
    struct json_object *root;
    uint64_t n_left;           /* work that may still go into it; 0: no answer counts any more */
    struct json_object *owner; /* the schema whose enum `value` is one of; NULL: none */
    struct json_object *value;
    unsigned depth; /* 0 */
};

/* Whether a value satisfies a checked schema. Without memory: no. */
bool schema_fits(struct schema_fitting *fitting, struct json_object *schema,
                 struct json_object *value);

#endif
