/* What the definition of a tool says about its parameters.
 *
 * tools: the array of the chat API, {"type": "function", "function": {"name", "parameters"}}.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_TEXT_TOOL_SCHEMA_H
#define LEAN_COORDINATOR_TEXT_TOOL_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>

struct byte_buffer;
struct json_object; /* json-c */

/* The function of that name, or NULL; borrowed from tools. */
struct json_object *tool_schema_find(struct json_object *tools, const char *name, size_t n);

/* The types that a parameter may have, as bits. */
enum {
    TOOL_TYPE_STRING = 1,
    TOOL_TYPE_NUMBER = 2,
    TOOL_TYPE_INTEGER = 4,
    TOOL_TYPE_BOOLEAN = 8,
    TOOL_TYPE_NULL = 16,
    TOOL_TYPE_OBJECT = 32,
    TOOL_TYPE_ARRAY = 64
};

/* 0: the function does not declare the parameter, or declares no type of it. */
unsigned tool_schema_types(struct json_object *function, const char *parameter);
bool tool_schema_declares(struct json_object *function, const char *parameter);

/* Appends the value that text stands for, as compact JSON: the text itself if it is JSON of one of
 * the types, else a string. Without types a string is read as the raw text. Python's True, False
 * and None count as JSON's where the types name them and no string: templates show the values of
 * earlier calls so. */
void tool_schema_put_value(unsigned types, const char *text, size_t n, struct byte_buffer *out);

#endif
