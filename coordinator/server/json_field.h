/* Reading the fields of a request, with the errors that clients know.
 *
 * A reader stands on one object of the body and knows its path, so that errors name the field:
 * "messages[2].content". null counts as absent, and what is absent leaves *out as it is, so that
 * defaults are set before. An integer may be written 5.0; numbers in strings and other words for
 * true and false are refused. Each function returns false after having filled the error, so that
 * reading many fields is one chain of &&.
 *
 * Ownership: everything that is read is borrowed from the body.
 * Threads:   a reader belongs to one thread. */
#ifndef LEAN_COORDINATOR_SERVER_JSON_FIELD_H
#define LEAN_COORDINATOR_SERVER_JSON_FIELD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/server/api_error.h"

struct json_object; /* json-c */

struct field_reader {
    struct json_object *object;
    struct api_error *error;
    char path[128]; /* of the object: "" is the body, "messages[2]" */
};

struct field_reader field_reader_body(struct json_object *body, struct api_error *error);
/* For the object inside `reader` at its field `name`, or with index >= 0 at name[index]. */
struct field_reader field_reader_inside(const struct field_reader *reader,
                                        struct json_object *object, const char *name,
                                        long long index);

/* names: NULL ends them. */
bool field_is_one_of(const char *text, const char *const *names);

/* NULL: absent, or null. */
struct json_object *field_get(const struct field_reader *reader, const char *name);

bool field_bool(const struct field_reader *reader, const char *name, bool *out);
/* min and max belong to the range. */
bool field_int(const struct field_reader *reader, const char *name, int64_t min, int64_t max,
               int64_t *out);
bool field_real(const struct field_reader *reader, const char *name, double min, double max,
                double *out);
/* n NULL: the string holds no NUL. */
bool field_string(const struct field_reader *reader, const char *name, const char **out, size_t *n);
/* A string that has to be there. */
bool field_need_string(const struct field_reader *reader, const char *name,
                       struct json_object **out);
bool field_object(const struct field_reader *reader, const char *name, struct json_object **out);
/* At most n_max elements. */
bool field_array(const struct field_reader *reader, const char *name, size_t n_max,
                 struct json_object **out);
/* Integers from min to max; *out: malloc'ed, left as it is when the field is absent. */
bool field_ints(const struct field_reader *reader, const char *name, int64_t min, int64_t max,
                size_t n_max, int32_t **out, size_t *n);

/* Fills the error for the field `name` ("" or NULL: the object itself) and returns false. The
 * message begins with the field's path. */
bool field_fail(const struct field_reader *reader, enum api_code code, const char *name,
                const char *format, ...) __attribute__((format(printf, 4, 5)));
/* "NAME must be WHAT, got VALUE": API_INVALID_TYPE or API_INVALID_VALUE. */
bool field_refuse(const struct field_reader *reader, enum api_code code, const char *name,
                  const char *what, struct json_object *value);

/* Whether a value is an integer, 5.0 too; beyond 64 bits it is the nearest that fits. */
bool json_to_int(struct json_object *value, int64_t *out);

#endif
