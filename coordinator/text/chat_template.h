/* Runs a model's own chat template: a Jinja subset, sandboxed.
 *
 * The template sees the variables of a JSON object, as transformers' apply_chat_template shows
 * them to it: messages, tools, documents, add_generation_prompt, bos_token, eos_token and whatever
 * the caller adds. The output is byte for byte jinja2's (trim_blocks, lstrip_blocks, no
 * autoescape, loop controls, tojson = json.dumps without ASCII escapes).
 *
 * Of Jinja this has everything but what loads or escapes: no block, extends, include, import,
 * autoescape, no Markup strings, and without the filters that jinja_builtin.h names. Integers have
 * 64 bits; a result beyond them is an error.
 *
 * Sandbox: bounded steps, output, memory and recursion; no access to anything but the variables.
 * Threads:  a compiled template is immutable; several renders may run at once. */
#ifndef LEAN_COORDINATOR_TEXT_CHAT_TEMPLATE_H
#define LEAN_COORDINATOR_TEXT_CHAT_TEMPLATE_H

#include <stddef.h>
#include <time.h>

#include "proto/base/error.h"

struct chat_template;
struct json_object; /* json-c */

/* source: n bytes of Jinja. LM_E_FORMAT: a syntax error, with the line. */
enum lm_status chat_template_compile(struct chat_template **out, const char *source, size_t n,
                                     struct lm_error *err);
void chat_template_destroy(struct chat_template *tmpl); /* NULL is legal */

/* Reads the variables of a template from n bytes of JSON. *out: the caller's to put.
 * LM_E_FORMAT: not one JSON object, nested deeper than 256, or with an integer beyond 64 bits
 * (json-c would silently take the nearest that fits). */
enum lm_status chat_template_read_variables(struct json_object **out, const char *json, size_t n,
                                            struct lm_error *err);

/* variables: a JSON object, borrowed, not changed. now: the clock that strftime_now shows, broken
 * down. *text: malloc'ed, NUL-terminated, *n without the NUL. LM_E_USAGE: the template called
 * raise_exception, the message is its; LM_E_FORMAT: it failed at run time; LM_E_LIMIT: a bound. */
enum lm_status chat_template_render(const struct chat_template *tmpl, struct json_object *variables,
                                    const struct tm *now, char **text, size_t *n,
                                    struct lm_error *err);

#endif
