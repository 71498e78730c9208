#include "coordinator/server/tool_fields.h"

#include <ctype.h>
#include <json-c/json.h>
#include <string.h>

#include "coordinator/server/server.h"
#include "coordinator/text/tool_schema.h"

enum { TOOLS_MAX = 512, NAME_MAX_BYTES = 128 };

/* ---- tools */

static bool is_name(const char *name, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && (!name[i] || !strchr("_.-", name[i]))) return false;
    return n > 0 && n <= NAME_MAX_BYTES;
}

static bool is_function(const struct field_reader *reader, const char **type)
{
    *type = NULL;
    if (!json_object_is_type(reader->object, json_type_object))
        return field_refuse(reader, API_INVALID_TYPE, NULL, "an object", reader->object);
    if (!field_string(reader, "type", type, NULL)) return false;
    if (!*type) return field_fail(reader, API_MISSING_FIELD, "type", "is required");
    return true;
}

/* The name in the function inside reader's object. */
static bool read_name(const struct field_reader *reader, struct field_reader *function,
                      const char **name, size_t *n)
{
    struct json_object *object = NULL;
    *name = NULL;
    if (!field_object(reader, "function", &object)) return false;
    if (!object) return field_fail(reader, API_MISSING_FIELD, "function", "is required");
    *function = field_reader_inside(reader, object, "function", -1);
    if (!field_string(function, "name", name, n)) return false;
    return *name || field_fail(function, API_MISSING_FIELD, "name", "is required");
}

/* Of tools[i]; those before it are good. */
static bool check_tool(const struct field_reader *reader, struct json_object *tools, size_t i)
{
    struct field_reader function;
    const char *type, *name, *description;
    struct json_object *parameters;
    bool strict;
    size_t n, n_description;
    if (!is_function(reader, &type)) return false;
    if (strcmp(type, "function") != 0)
        return field_refuse(reader, API_INVALID_VALUE, "type", "\"function\"",
                            field_get(reader, "type"));
    if (!read_name(reader, &function, &name, &n) ||
        !field_string(&function, "description", &description, &n_description) ||
        !field_object(&function, "parameters", &parameters) ||
        !field_bool(&function, "strict", &strict))
        return false;
    if (!is_name(name, n))
        return field_refuse(&function, API_INVALID_VALUE, "name",
                            "1 to 128 letters, digits, '_', '.' or '-'",
                            field_get(&function, "name"));
    /* The first of that name is this one, unless there is an earlier. */
    struct json_object *tool = json_object_array_get_idx(tools, i);
    return tool_schema_find(tools, name, n) == json_object_object_get(tool, "function") ||
           field_refuse(&function, API_INVALID_VALUE, "name", "different from other tools' names",
                        field_get(&function, "name"));
}

static bool read_tools(struct tool_fields *fields, const struct field_reader *reader)
{
    struct json_object *tools = NULL;
    if (!field_array(reader, "tools", TOOLS_MAX, &tools)) return false;
    if (!tools || !json_object_array_length(tools)) return true;
    for (size_t i = 0; i < json_object_array_length(tools); i++) {
        const struct field_reader inside =
            field_reader_inside(reader, json_object_array_get_idx(tools, i), "tools", (long long)i);
        if (!check_tool(&inside, tools, i)) return false;
    }
    fields->tools = tools;
    return true;
}

/* ---- tool_choice */

/* The tool that reader's object names joins those that may be called. */
static bool allow_named(struct tool_fields *fields, const struct field_reader *reader)
{
    struct field_reader function;
    const char *type, *name;
    size_t n;
    if (!is_function(reader, &type)) return false;
    if (strcmp(type, "function") != 0)
        return field_refuse(reader, API_INVALID_VALUE, "type", "\"function\"",
                            field_get(reader, "type"));
    if (!read_name(reader, &function, &name, &n)) return false;
    for (size_t i = 0; fields->tools && i < json_object_array_length(fields->tools); i++) {
        struct json_object *tool = json_object_array_get_idx(fields->tools, i), *own;
        json_object_object_get_ex(tool, "function", &own);
        if (own != tool_schema_find(fields->tools, name, n)) continue;
        json_object_array_add(fields->callable, json_object_get(tool));
        return true;
    }
    return field_refuse(&function, API_INVALID_VALUE, "name", "the name of one of the tools",
                        field_get(&function, "name"));
}

static bool read_allowed(struct tool_fields *fields, const struct field_reader *reader)
{
    struct json_object *allowed = NULL, *list = NULL;
    const char *mode = "auto";
    if (!field_object(reader, "allowed_tools", &allowed)) return false;
    if (!allowed) return field_fail(reader, API_MISSING_FIELD, "allowed_tools", "is required");
    const struct field_reader inside = field_reader_inside(reader, allowed, "allowed_tools", -1);
    if (!field_string(&inside, "mode", &mode, NULL) ||
        !field_array(&inside, "tools", TOOLS_MAX, &list))
        return false;
    if (!list || !json_object_array_length(list))
        return field_fail(&inside, list ? API_INVALID_VALUE : API_MISSING_FIELD, "tools",
                          list ? "must not be empty" : "is required");
    fields->required = !strcmp(mode, "required");
    if (!fields->required && strcmp(mode, "auto") != 0)
        return field_refuse(&inside, API_INVALID_VALUE, "mode", "auto or required",
                            field_get(&inside, "mode"));
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        const struct field_reader one =
            field_reader_inside(&inside, json_object_array_get_idx(list, i), "tools", (long long)i);
        if (!allow_named(fields, &one)) return false;
    }
    return true;
}

static bool read_choice_object(struct tool_fields *fields, const struct field_reader *reader)
{
    const char *type;
    fields->callable = json_object_new_array();
    if (!is_function(reader, &type)) return false;
    if (!strcmp(type, "allowed_tools")) return read_allowed(fields, reader);
    fields->required = true;
    return allow_named(fields, reader);
}

static bool read_choice(struct tool_fields *fields, const struct field_reader *reader)
{
    static const char what[] = "none, auto, required or an object that names a tool";
    struct json_object *choice = field_get(reader, "tool_choice");
    if (json_object_is_type(choice, json_type_object)) {
        const struct field_reader inside = field_reader_inside(reader, choice, "tool_choice", -1);
        return read_choice_object(fields, &inside);
    }
    if (choice && !json_object_is_type(choice, json_type_string))
        return field_refuse(reader, API_INVALID_TYPE, "tool_choice", what, choice);
    const char *name = choice ? json_object_get_string(choice) : "auto";
    fields->required = !strcmp(name, "required");
    if (fields->required && !fields->tools)
        return field_fail(reader, API_INVALID_VALUE, "tool_choice", "needs tools");
    if (!strcmp(name, "none")) return true;
    if (!fields->required && strcmp(name, "auto") != 0)
        return field_refuse(reader, API_INVALID_VALUE, "tool_choice", what, choice);
    fields->callable = json_object_get(fields->tools);
    return true;
}

/* ---- the old form */

/* functions: the same definitions without their wrapper. *out: tools of them, the caller's to put;
 * NULL: there are none. */
static bool wrap_functions(struct json_object **out, const struct field_reader *reader)
{
    struct json_object *functions = NULL;
    *out = NULL;
    if (!field_array(reader, "functions", TOOLS_MAX, &functions)) return false;
    if (!functions || !json_object_array_length(functions)) return true;
    *out = json_object_new_array();
    for (size_t i = 0; i < json_object_array_length(functions); i++) {
        struct json_object *function = json_object_array_get_idx(functions, i);
        const struct field_reader inside =
            field_reader_inside(reader, function, "functions", (long long)i);
        if (!json_object_is_type(function, json_type_object))
            return field_refuse(&inside, API_INVALID_TYPE, NULL, "an object", function);
        struct json_object *tool = json_object_new_object();
        json_object_object_add(tool, "type", json_object_new_string("function"));
        json_object_object_add(tool, "function", json_object_get(function));
        json_object_array_add(*out, tool);
    }
    return true;
}

/* function_call: "none", "auto" or {"name": NAME}, as a tool_choice; NULL: it is absent. */
static bool wrap_function_call(struct json_object **out, const struct field_reader *reader)
{
    struct json_object *call = field_get(reader, "function_call");
    const char *const word =
        json_object_is_type(call, json_type_string) ? json_object_get_string(call) : "";
    *out = NULL;
    if (!call) return true;
    if (json_object_is_type(call, json_type_object)) {
        *out = json_object_new_object();
        json_object_object_add(*out, "type", json_object_new_string("function"));
        json_object_object_add(*out, "function", json_object_get(call));
        return true;
    }
    if (strcmp(word, "none") != 0 && strcmp(word, "auto") != 0)
        return field_refuse(reader, API_INVALID_VALUE, "function_call",
                            "none, auto or an object that names a function", call);
    *out = json_object_get(call);
    return true;
}

/* A request without tools that has functions is read as if it had them as tools. */
static bool read_functions(struct tool_fields *fields, const struct field_reader *reader)
{
    struct json_object *choice = NULL;
    struct field_reader wrapped = *reader;
    bool good = wrap_functions(&fields->wrapped, reader) && wrap_function_call(&choice, reader);
    if (good) {
        wrapped.object = json_object_new_object();
        json_object_object_add(wrapped.object, "tools", json_object_get(fields->wrapped));
        json_object_object_add(wrapped.object, "tool_choice", choice);
        good = read_tools(fields, &wrapped) && read_choice(fields, &wrapped);
        json_object_put(wrapped.object);
    } else {
        json_object_put(choice);
    }
    return good;
}

/* ---- all */

/* By the template of the request, where it brings its own, or of the model. */
static void read_template(struct tool_fields *fields, const struct field_reader *reader,
                          const struct server *server)
{
    struct json_object *own = field_get(reader, "chat_template");
    const char *source = server->template_source ? server->template_source : "";
    size_t n = server->n_template_source;
    if (json_object_is_type(own, json_type_string)) {
        source = json_object_get_string(own);
        n = (size_t)json_object_get_string_len(own);
    }
    fields->format = server->settings.tool_format;
    if (fields->format == TOOL_FORMAT_AUTO) fields->format = tool_format_of_template(source, n);
    fields->in_system = !tool_format_template_shows_tools(source, n);
}

bool tool_fields_read(struct tool_fields *fields, const struct field_reader *reader,
                      const struct server *server)
{
    *fields = (struct tool_fields){.parallel = true};
    read_template(fields, reader, server);
    const bool is_old = !field_get(reader, "tools") && !field_get(reader, "tool_choice");
    if (is_old && !read_functions(fields, reader)) return false;
    return (is_old || (read_tools(fields, reader) && read_choice(fields, reader))) &&
           field_bool(reader, "parallel_tool_calls", &fields->parallel);
}

void tool_fields_fini(struct tool_fields *fields)
{
    json_object_put(fields->callable);
    json_object_put(fields->wrapped);
}
