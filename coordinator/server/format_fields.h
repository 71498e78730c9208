/* The fields of a request about the form of its answer: JSON, a schema, a grammar.
 *
 * Threads: read on one thread. */
#ifndef LEAN_COORDINATOR_SERVER_FORMAT_FIELDS_H
#define LEAN_COORDINATOR_SERVER_FORMAT_FIELDS_H

#include <stdbool.h>

#include "coordinator/server/json_field.h"

struct grammar;
struct server;

/* response_format, json_schema, grammar, structured_outputs, of which one may be given. *out: what
 * the content is held to, the caller's to unref; NULL: it is free. API_INVALID_SCHEMA,
 * API_UNSUPPORTED_SCHEMA, API_INVALID_GRAMMAR. */
bool format_fields_read(struct grammar **out, const struct field_reader *reader,
                        const struct server *server);

/* The error for a grammar that could not be made, from the status: a schema, or else what has a
 * syntax of its own. Always false. */
bool format_fail(const struct field_reader *reader, const char *name, const struct lm_error *err,
                 bool is_schema);

#endif
