/* Text format by descriptor reflection: storage, lexer, parser, writer, access by path.
 *
 * protobuf-c generates plain structs; a field's descriptor gives the offset of its member and of
 * its quantifier: has_x of an optional number, n_x of a repeated field, the case of a oneof. */
#include "proto/text/textproto.h"

#include <assert.h>
#include <ctype.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/log.h"
#include "proto/base/nearest.h"
#include "proto/base/units.h"
#include "proto/base/utf8.h"

typedef ProtobufCMessage message_t;
typedef ProtobufCFieldDescriptor field_t;

enum { MAX_DEPTH = 64, MAX_PATH_BYTES = 512 };

/* ---- storage ---- */

static void *member(const message_t *message, const field_t *field)
{
    return (char *)message + field->offset;
}

static void *quantifier(const message_t *message, const field_t *field)
{
    return (char *)message + field->quantifier_offset;
}

static size_t type_size(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return sizeof(uint64_t);
    case PROTOBUF_C_TYPE_DOUBLE:
        return sizeof(double);
    case PROTOBUF_C_TYPE_FLOAT:
        return sizeof(float);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    default: /* 32-bit integers and enums */
        return sizeof(uint32_t);
    }
}

static bool is_repeated(const field_t *field)
{
    return field->label == PROTOBUF_C_LABEL_REPEATED;
}

static bool is_oneof(const field_t *field)
{
    return field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF;
}

static bool is_pointer(const field_t *field)
{
    return field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_MESSAGE;
}

/* Number of values a field holds: 0 or 1 for a singular one. */
static size_t n_value(const message_t *message, const field_t *field)
{
    if (is_repeated(field)) return *(size_t *)quantifier(message, field);
    if (is_oneof(field)) return *(uint32_t *)quantifier(message, field) == field->id;
    if (is_pointer(field)) {
        const void *pointer = *(void **)member(message, field);
        return pointer && pointer != field->default_value;
    }
    if (field->label == PROTOBUF_C_LABEL_OPTIONAL)
        return *(protobuf_c_boolean *)quantifier(message, field) != 0;
    return 1;
}

static void *value_at(const message_t *message, const field_t *field, size_t i)
{
    if (!is_repeated(field)) return member(message, field);
    return *(char **)member(message, field) + i * type_size(field->type);
}

static void free_value(const field_t *field, void *value)
{
    if (field->type == PROTOBUF_C_TYPE_STRING) free(*(char **)value);
    if (field->type == PROTOBUF_C_TYPE_BYTES) free(((ProtobufCBinaryData *)value)->data);
    if (field->type == PROTOBUF_C_TYPE_MESSAGE)
        protobuf_c_message_free_unpacked(*(message_t **)value, NULL);
}

static void clear_field(message_t *message, const field_t *field)
{
    const size_t n = n_value(message, field);
    for (size_t i = 0; i < n; i++)
        free_value(field, value_at(message, field, i));
    if (is_repeated(field)) {
        free(*(void **)member(message, field));
        *(void **)member(message, field) = NULL;
        *(size_t *)quantifier(message, field) = 0;
        return;
    }
    if (!n) return;
    if (field->default_value && !is_pointer(field))
        memcpy(member(message, field), field->default_value, type_size(field->type));
    else
        memset(member(message, field), 0, type_size(field->type));
    if (is_oneof(field))
        *(uint32_t *)quantifier(message, field) = 0;
    else if (is_pointer(field))
        *(const void **)member(message, field) = field->default_value;
    else if (field->label == PROTOBUF_C_LABEL_OPTIONAL)
        *(protobuf_c_boolean *)quantifier(message, field) = 0;
}

/* The oneof member that is set beside field, NULL if there is none. */
static const field_t *oneof_rival(const message_t *message, const field_t *field)
{
    if (!is_oneof(field)) return NULL;
    const uint32_t set = *(uint32_t *)quantifier(message, field);
    return set && set != field->id
               ? protobuf_c_message_descriptor_get_field(message->descriptor, set)
               : NULL;
}

/* Puts a value that is ready (its bytes at `value`, ownership included) into the field: replaces a
 * singular one, appends to a repeated one. False: no memory, and the value is still the caller's.
 */
static bool put_value(message_t *message, const field_t *field, const void *value)
{
    const size_t size = type_size(field->type);
    if (is_repeated(field)) {
        size_t *n = quantifier(message, field);
        void **array = member(message, field);
        if ((*n & (*n - 1)) == 0) { /* full at 0, 1, 2, 4, 8, ...: double it */
            void *grown = realloc(*array, (*n ? 2 * *n : 1) * size);
            if (!grown) return false;
            *array = grown;
        }
        memcpy((char *)*array + *n * size, value, size);
        (*n)++;
        return true;
    }
    const field_t *rival = oneof_rival(message, field);
    clear_field(message, rival ? rival : field);
    memcpy(member(message, field), value, size);
    if (is_oneof(field))
        *(uint32_t *)quantifier(message, field) = field->id;
    else if (!is_pointer(field) && field->label == PROTOBUF_C_LABEL_OPTIONAL)
        *(protobuf_c_boolean *)quantifier(message, field) = 1;
    return true;
}

message_t *textproto_create(const ProtobufCMessageDescriptor *descriptor)
{
    message_t *message = malloc(descriptor->sizeof_message);
    if (message) protobuf_c_message_init(descriptor, message);
    return message;
}

/* ---- scalars ---- */

/* A scalar as it stands in a text. */
struct literal {
    enum { LITERAL_NAME, LITERAL_NUMBER, LITERAL_STRING } kind;
    bool negative;    /* a minus sign stood before it */
    const char *text; /* NUL-terminated */
    size_t n;         /* a string may hold NULs */
};

static bool read_magnitude(const char *text, uint64_t *out)
{
    const int base = text[0] != '0' ? 10 : text[1] == 'x' || text[1] == 'X' ? 16 : 8;
    const char *digits = base == 16 ? text + 2 : text;
    uint64_t value = 0;
    if (!*digits) return false;
    for (; *digits; digits++) {
        const int c = tolower((unsigned char)*digits);
        const int digit = isdigit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
        if (digit >= base || value > (UINT64_MAX - (uint64_t)digit) / (uint64_t)base) return false;
        value = value * (uint64_t)base + (uint64_t)digit;
    }
    *out = value;
    return true;
}

/* Real numbers; one that overflows the field's type is none. */
static bool read_real(const struct literal *literal, bool is_float, double *out)
{
    double value;
    if (literal->kind == LITERAL_NAME) {
        char name[16] = "";
        for (size_t i = 0; i < literal->n && i < sizeof(name) - 1; i++)
            name[i] = (char)tolower((unsigned char)literal->text[i]);
        if (!strcmp(name, "nan"))
            value = NAN;
        else if (!strcmp(name, "inf") || !strcmp(name, "infinity"))
            value = INFINITY;
        else
            return false;
    } else {
        /* Decimal only: hexadecimal and octal are spellings of integers. */
        const bool hexadecimal =
            literal->text[0] == '0' && (literal->text[1] == 'x' || literal->text[1] == 'X');
        const bool other_base =
            hexadecimal || (literal->text[0] == '0' && isalnum((unsigned char)literal->text[1]) &&
                            !strchr("eEfF", literal->text[1]) && !strpbrk(literal->text, ".eE"));
        char *end;
        value = strtod(literal->text, &end);
        if (*end == 'f' || *end == 'F') end++;
        if (other_base || *end || isinf(is_float ? (float)value : value)) return false;
    }
    *out = literal->negative ? -value : value;
    return true;
}

static bool has_suffix(const char *name, const char *suffix)
{
    const size_t n = strlen(name), m = strlen(suffix);
    return n >= m && !strcmp(name + n - m, suffix);
}

static bool is_size(const field_t *field)
{
    return !strcmp(field->name, "size") || has_suffix(field->name, "_size") ||
           has_suffix(field->name, "_body") || has_suffix(field->name, "_ram");
}

static bool is_time(const field_t *field)
{
    return has_suffix(field->name, "_time") || has_suffix(field->name, "_timeout") ||
           has_suffix(field->name, "_ping");
}

/* An amount with a unit, as a number: false if the field or the text does not allow it. */
static bool read_amount(const field_t *field, const struct literal *literal, uint64_t *whole,
                        double *real)
{
    if (strlen(literal->text) != literal->n) return false;
    if (is_size(field)) {
        if (!units_parse_bytes(literal->text, whole)) return false;
        *real = (double)*whole;
        return true;
    }
    if (!is_time(field) || !units_parse_seconds(literal->text, real)) return false;
    *whole = *real < 0x1p63 ? (uint64_t)*real : UINT64_MAX;
    return *real == (double)*whole || field->type == PROTOBUF_C_TYPE_DOUBLE ||
           field->type == PROTOBUF_C_TYPE_FLOAT;
}

/* Whether a C string can hold it: UTF-8 without a NUL. */
static bool is_utf8_text(const char *text, size_t n)
{
    for (size_t i = 0; i < n;) {
        const size_t length = utf8_decode(text + i, n - i, NULL);
        if (!length || !text[i]) return false;
        i += length;
    }
    return true;
}

/* What a field takes, for messages. */
static const char *type_name(const field_t *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_BOOL:
        return "true or false";
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
        return "a string";
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_DOUBLE:
        return is_time(field) ? "a number or a time such as \"30s\"" : "a number";
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return is_size(field) ? "a size such as 4096 or \"1.5GiB\"" : "a non-negative integer";
    default:
        return "an integer";
    }
}

/* The bits of every scalar type. */
union scalar {
    int32_t i32;
    uint32_t u32;
    int64_t i64;
    uint64_t u64;
    float f32;
    double f64;
    protobuf_c_boolean boolean;
    char *string;
    ProtobufCBinaryData bytes;
};

/* The value at `at`, which is aligned for its own type only. */
static union scalar load_scalar(const field_t *field, const void *at)
{
    union scalar value = {0};
    memcpy(&value, at, type_size(field->type));
    return value;
}

static bool fits_signed(uint64_t magnitude, bool negative, int64_t max)
{
    return magnitude <= (uint64_t)max + (negative ? 1 : 0);
}

static bool read_integer(const field_t *field, const struct literal *literal, union scalar *out)
{
    uint64_t magnitude;
    double real;
    const bool read = literal->kind == LITERAL_NUMBER ? read_magnitude(literal->text, &magnitude)
                      : literal->kind == LITERAL_STRING
                          ? read_amount(field, literal, &magnitude, &real)
                          : false;
    const int64_t value = (int64_t)(literal->negative ? 0 - magnitude : magnitude);
    if (!read) return false;
    switch (field->type) {
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        out->u32 = (uint32_t)magnitude;
        return !literal->negative && magnitude <= UINT32_MAX;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        out->u64 = magnitude;
        return !literal->negative;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        out->i64 = value;
        return fits_signed(magnitude, literal->negative, INT64_MAX);
    default:
        out->i32 = (int32_t)value;
        return fits_signed(magnitude, literal->negative, INT32_MAX);
    }
}

static bool read_bool(const struct literal *literal, union scalar *out)
{
    static const char *const words[] = {"false", "False", "f", "0", "true", "True", "t", "1"};
    if (literal->kind == LITERAL_STRING || literal->negative) return false;
    for (size_t i = 0; i < 8; i++) {
        if (strcmp(literal->text, words[i])) continue;
        out->boolean = i >= 4;
        return true;
    }
    return false;
}

static bool read_enum(const field_t *field, const struct literal *literal, union scalar *out)
{
    const ProtobufCEnumDescriptor *descriptor = field->descriptor;
    const ProtobufCEnumValue *value = NULL;
    if (literal->kind == LITERAL_NAME && !literal->negative)
        value = protobuf_c_enum_descriptor_get_value_by_name(descriptor, literal->text);
    if (literal->kind == LITERAL_NUMBER && read_integer(field, literal, out))
        value = protobuf_c_enum_descriptor_get_value(descriptor, out->i32);
    if (!value) return false;
    out->i32 = value->value;
    return true;
}

static enum lm_status fail_enum(const field_t *field, const struct literal *literal,
                                struct lm_error *err)
{
    const ProtobufCEnumDescriptor *descriptor = field->descriptor;
    struct nearest nearest = {.word = literal->text};
    for (unsigned i = 0; i < descriptor->n_values; i++)
        nearest_offer(&nearest, descriptor->values[i].name);
    const char *near = nearest_name(&nearest);
    return lm_fail(err, LM_E_USAGE, "%s has no value %s%.80s%s%s%s", field->name,
                   literal->negative ? "-" : "", literal->text, near ? ", did you mean " : "",
                   near ? near : "", near ? "?" : "");
}

static bool copy_string(const field_t *field, const struct literal *literal, union scalar *out)
{
    char *copy = malloc(literal->n + 1);
    if (!copy) return false;
    memcpy(copy, literal->text, literal->n);
    copy[literal->n] = '\0';
    if (field->type == PROTOBUF_C_TYPE_STRING)
        out->string = copy;
    else
        out->bytes = (ProtobufCBinaryData){.len = literal->n, .data = (uint8_t *)copy};
    return true;
}

/* Reads literal as a value of the field's type and puts it there. */
static enum lm_status put_scalar(message_t *message, const field_t *field,
                                 const struct literal *literal, struct lm_error *err)
{
    union scalar scalar = {0};
    uint64_t whole;
    double real = 0;
    bool read;
    switch (field->type) {
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
        read = literal->kind == LITERAL_STRING;
        if (!read) break;
        if (field->type == PROTOBUF_C_TYPE_STRING && !is_utf8_text(literal->text, literal->n))
            return lm_fail(err, LM_E_USAGE, "%s is not UTF-8 text", field->name);
        if (!copy_string(field, literal, &scalar)) goto no_memory;
        break;
    case PROTOBUF_C_TYPE_BOOL:
        read = read_bool(literal, &scalar);
        break;
    case PROTOBUF_C_TYPE_ENUM:
        read = read_enum(field, literal, &scalar);
        if (!read && literal->kind != LITERAL_STRING) return fail_enum(field, literal, err);
        break;
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_DOUBLE:
        read = literal->kind == LITERAL_STRING
                   ? read_amount(field, literal, &whole, &real)
                   : read_real(literal, field->type == PROTOBUF_C_TYPE_FLOAT, &real);
        if (field->type == PROTOBUF_C_TYPE_FLOAT)
            scalar.f32 = (float)real;
        else
            scalar.f64 = real;
        break;
    default:
        read = read_integer(field, literal, &scalar);
    }
    if (!read)
        return lm_fail(err, LM_E_USAGE, "%s must be %s, got %s%.80s", field->name,
                       field->type == PROTOBUF_C_TYPE_ENUM ? "a name" : type_name(field),
                       literal->negative ? "-" : "", literal->text);
    if (put_value(message, field, &scalar)) return LM_OK;
    free_value(field, &scalar);
no_memory:
    return lm_fail(err, LM_E_NO_MEM, "%s: no memory", field->name);
}

/* ---- lexer ---- */

enum lexeme_kind { LEXEME_END, LEXEME_NAME, LEXEME_NUMBER, LEXEME_STRING, LEXEME_SYMBOL };

struct lexeme {
    enum lexeme_kind kind;
    const char *text; /* into the input; a string with its quotes */
    size_t n;
    const char *line_start;
    unsigned line;
};

struct parser {
    const char *name;       /* of the input, for messages */
    const char *at, *end;   /* what the lexer has not seen */
    const char *line_start; /* of the line that `at` is in */
    unsigned line;
    struct lexeme next; /* the lexeme to be parsed */
    int depth;
    char path[MAX_PATH_BYTES];
    size_t path_length;
    textproto_on_set_fn on_set;
    void *context;
    struct lm_error *err;
};

static enum lm_status fail_at(struct parser *parser, const struct lexeme *where, const char *format,
                              ...) LM_PRINTF(3, 4);

static void format_position(const struct parser *parser, const struct lexeme *where, char *text,
                            size_t size)
{
    unsigned column = 1;
    for (const char *c = where->line_start; c < where->text; c++)
        column += ((unsigned char)*c & 0xc0) != 0x80;
    snprintf(text, size, "%s:%u:%u", parser->name, where->line, column);
}

static enum lm_status fail_at(struct parser *parser, const struct lexeme *where, const char *format,
                              ...)
{
    char position[400], message[500];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    format_position(parser, where, position, sizeof(position));
    return lm_fail(parser->err, LM_E_USAGE, "%s: %s", position, message);
}

/* "'x'" or "end of text", for messages. */
static const char *describe(const struct lexeme *lexeme, char text[64])
{
    if (lexeme->kind == LEXEME_END)
        snprintf(text, 64, "the end");
    else
        snprintf(text, 64, "'%.*s'", (int)(lexeme->n < 40 ? lexeme->n : 40), lexeme->text);
    return text;
}

static void skip_space(struct parser *parser)
{
    for (; parser->at < parser->end; parser->at++) {
        if (*parser->at == '#')
            while (parser->at + 1 < parser->end && parser->at[1] != '\n')
                parser->at++;
        else if (*parser->at == '\n') {
            parser->line++;
            parser->line_start = parser->at + 1;
        } else if (!*parser->at || !strchr(" \t\r\v\f", *parser->at))
            return;
    }
}

static bool is_name_char(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* End of a number: digits, letters and dots, and the sign of an exponent. Whether it is one of
 * its field's type is decided there. */
static const char *number_end(const struct parser *parser)
{
    const char *at = parser->at;
    const bool hex = parser->end - at > 1 && at[0] == '0' && (at[1] == 'x' || at[1] == 'X');
    while (at < parser->end) {
        const bool exponent_sign =
            (*at == '+' || *at == '-') && !hex && (at[-1] == 'e' || at[-1] == 'E');
        if (!is_name_char(*at) && *at != '.' && !exponent_sign) break;
        at++;
    }
    return at;
}

static enum lm_status scan_string(struct parser *parser)
{
    const char quote = *parser->at;
    const char *at = parser->at + 1;
    while (at < parser->end && *at != quote && *at != '\n')
        at += *at == '\\' && at + 1 < parser->end && at[1] != '\n' ? 2 : 1;
    if (at >= parser->end || *at != quote)
        return fail_at(parser, &parser->next, "string without its closing %c", quote);
    parser->next.n = (size_t)(at + 1 - parser->at);
    return LM_OK;
}

/* Moves the next lexeme into parser->next. */
static enum lm_status advance(struct parser *parser)
{
    enum lm_status status = LM_OK;
    skip_space(parser);
    const char *at = parser->at;
    struct lexeme *next = &parser->next;
    *next = (struct lexeme){LEXEME_END, at, 0, parser->line_start, parser->line};
    if (at == parser->end) return LM_OK;

    const bool dot_number = *at == '.' && at + 1 < parser->end && isdigit((unsigned char)at[1]);
    if (isdigit((unsigned char)*at) || dot_number) {
        next->kind = LEXEME_NUMBER;
        next->n = (size_t)(number_end(parser) - at);
    } else if (is_name_char(*at)) {
        next->kind = LEXEME_NAME;
        while (at + next->n < parser->end && is_name_char(at[next->n]))
            next->n++;
    } else if (*at == '"' || *at == '\'') {
        next->kind = LEXEME_STRING;
        status = scan_string(parser);
    } else {
        next->kind = LEXEME_SYMBOL;
        next->n = 1;
        if (!*at || !strchr("{}<>[]:,;-/.", *at))
            return fail_at(parser, next, "unexpected byte 0x%02x", (unsigned char)*at);
    }
    parser->at += next->n;
    return status;
}

static bool at_symbol(const struct parser *parser, char symbol)
{
    return parser->next.kind == LEXEME_SYMBOL && *parser->next.text == symbol;
}

/* Consumes the symbol if it is next. */
static enum lm_status accept(struct parser *parser, char symbol, bool *accepted)
{
    *accepted = at_symbol(parser, symbol);
    return *accepted ? advance(parser) : LM_OK;
}

/* ---- string escapes ---- */

/* Reads up to n_max digits of the base at *at; false if there is none. */
static bool read_digits(const char **at, int base, int n_max, unsigned *out)
{
    int n = 0;
    *out = 0;
    for (; n < n_max; n++, (*at)++) {
        const int c = tolower((unsigned char)**at);
        const int digit = isdigit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
        if (digit >= base) break;
        *out = *out * (unsigned)base + (unsigned)digit;
    }
    return n > 0;
}

/* Decodes the escape after the backslash at *at, appends to out. NULL, or what is wrong with it.
 * The closing quote ends every run of digits. */
static const char *unescape(const char **at, char *out, size_t *n_out)
{
    static const char letters[] = "ntrabfv\\'\"?", meanings[] = "\n\t\r\a\b\f\v\\'\"?";
    const char c = *(*at)++;
    const char *letter = c ? strchr(letters, c) : NULL;
    unsigned code;
    if (letter) {
        out[(*n_out)++] = meanings[letter - letters];
    } else if (c >= '0' && c <= '7') {
        (*at)--;
        read_digits(at, 8, 3, &code);
        if (code > 255) return "octal escape over 377";
        out[(*n_out)++] = (char)code;
    } else if (c == 'x' || c == 'X') {
        if (!read_digits(at, 16, 2, &code)) return "\\x without digits";
        out[(*n_out)++] = (char)code;
    } else if (c == 'u' || c == 'U') {
        const int n_digit = c == 'u' ? 4 : 8;
        const char *start = *at;
        read_digits(at, 16, n_digit, &code);
        if (*at - start != n_digit) return c == 'u' ? "\\u needs 4 digits" : "\\U needs 8 digits";
        if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
            return "escape is not a Unicode character";
        *n_out += utf8_encode(code, out + *n_out);
    } else {
        return "unknown escape in string";
    }
    return NULL;
}

/* Joins adjacent string lexemes. *text: malloc'ed, NUL-terminated. */
static enum lm_status parse_string(struct parser *parser, char **text, size_t *n)
{
    enum lm_status status = LM_OK;
    char *joined = NULL;
    size_t n_joined = 0;
    while (status == LM_OK && parser->next.kind == LEXEME_STRING) {
        /* No escape is longer than its spelling. */
        char *grown = realloc(joined, n_joined + parser->next.n);
        if (!grown) {
            status = lm_fail(parser->err, LM_E_NO_MEM, "%s: no memory for a string", parser->name);
            break;
        }
        joined = grown;
        const char *at = parser->next.text + 1, *end = parser->next.text + parser->next.n - 1;
        while (at < end && status == LM_OK) {
            if (*at != '\\') {
                joined[n_joined++] = *at++;
                continue;
            }
            at++;
            const char *wrong = unescape(&at, joined, &n_joined);
            if (wrong) status = fail_at(parser, &parser->next, "%s", wrong);
        }
        joined[n_joined] = '\0';
        if (status == LM_OK) status = advance(parser);
    }
    if (status != LM_OK) {
        free(joined);
        return status;
    }
    *text = joined;
    *n = n_joined;
    return LM_OK;
}

/* ---- parser ---- */

static enum lm_status parse_fields(struct parser *parser, message_t *message, char closing);

static enum lm_status parse_scalar(struct parser *parser, message_t *message, const field_t *field)
{
    const struct lexeme start = parser->next;
    struct literal literal = {0};
    char text[256], shown[64], *string = NULL;
    enum lm_status status = accept(parser, '-', &literal.negative);
    if (status != LM_OK) return status;

    switch (parser->next.kind) {
    case LEXEME_STRING:
        if (literal.negative) return fail_at(parser, &start, "'-' before a string");
        literal.kind = LITERAL_STRING;
        status = parse_string(parser, &string, &literal.n);
        literal.text = string;
        break;
    case LEXEME_NAME:
    case LEXEME_NUMBER:
        literal.kind = parser->next.kind == LEXEME_NAME ? LITERAL_NAME : LITERAL_NUMBER;
        literal.n = parser->next.n;
        if (literal.n >= sizeof(text))
            return fail_at(parser, &start, "value of %zu bytes", literal.n);
        memcpy(text, parser->next.text, literal.n);
        text[literal.n] = '\0';
        literal.text = text;
        status = advance(parser);
        break;
    default:
        return fail_at(parser, &parser->next, "expected a value of %s, got %s", field->name,
                       describe(&parser->next, shown));
    }
    if (status != LM_OK) return status;
    struct lm_error reason = {0};
    status = put_scalar(message, field, &literal, &reason);
    if (status == LM_E_USAGE)
        fail_at(parser, &start, "%s", reason.message);
    else if (status != LM_OK)
        lm_fail(parser->err, status, "%s", reason.message);
    free(string);
    return status;
}

/* The message that a block sets: a new one for a repeated field, else the one that is there. */
static message_t *block_message(message_t *message, const field_t *field)
{
    if (!is_repeated(field) && n_value(message, field))
        return *(message_t **)member(message, field);
    message_t *block = textproto_create(field->descriptor);
    if (block && put_value(message, field, &block)) return block;
    free(block);
    return NULL;
}

static enum lm_status parse_block(struct parser *parser, message_t *message, const field_t *field)
{
    char shown[64];
    const struct lexeme start = parser->next;
    const char closing = at_symbol(parser, '{') ? '}' : '>';
    if (!at_symbol(parser, '{') && !at_symbol(parser, '<'))
        return fail_at(parser, &start, "expected '{' after %s, got %s", field->name,
                       describe(&start, shown));
    if (parser->depth >= MAX_DEPTH)
        return fail_at(parser, &start, "blocks nested deeper than %d", MAX_DEPTH);
    enum lm_status status = advance(parser);
    if (status != LM_OK) return status;
    message_t *block = block_message(message, field);
    if (!block) return lm_fail(parser->err, LM_E_NO_MEM, "%s: no memory", parser->name);
    parser->depth++;
    status = parse_fields(parser, block, closing);
    parser->depth--;
    return status == LM_OK ? advance(parser) : status;
}

static enum lm_status parse_value(struct parser *parser, message_t *message, const field_t *field)
{
    return field->type == PROTOBUF_C_TYPE_MESSAGE ? parse_block(parser, message, field)
                                                  : parse_scalar(parser, message, field);
}

/* [a, b, c], the opening bracket being next. */
static enum lm_status parse_list(struct parser *parser, message_t *message, const field_t *field)
{
    char shown[64];
    bool more;
    if (!is_repeated(field))
        return fail_at(parser, &parser->next, "a list for %s, which takes one value", field->name);
    enum lm_status status = advance(parser);
    if (status != LM_OK) return status;
    if (at_symbol(parser, ']')) return advance(parser);
    do {
        status = parse_value(parser, message, field);
        if (status == LM_OK) status = accept(parser, ',', &more);
    } while (status == LM_OK && more);
    if (status != LM_OK) return status;
    if (!at_symbol(parser, ']'))
        return fail_at(parser, &parser->next, "expected ',' or ']' in the list of %s, got %s",
                       field->name, describe(&parser->next, shown));
    return advance(parser);
}

static enum lm_status fail_unknown(struct parser *parser, const ProtobufCMessageDescriptor *known,
                                   const char *name)
{
    struct nearest nearest = {.word = name};
    for (unsigned i = 0; i < known->n_fields; i++)
        nearest_offer(&nearest, known->fields[i].name);
    const char *near = nearest_name(&nearest);
    return fail_at(parser, &parser->next, "unknown field %.80s in %s%s%s%s", name, known->name,
                   near ? ", did you mean " : "", near ? near : "", near ? "?" : "");
}

/* The field that the next lexeme names. seen: [n_fields] of this block; set for it. */
static enum lm_status find_named(struct parser *parser, message_t *message, bool *seen,
                                 const field_t **out)
{
    const ProtobufCMessageDescriptor *known = message->descriptor;
    char name[128], shown[64];
    if (at_symbol(parser, '['))
        return fail_at(parser, &parser->next, "extensions are not supported");
    if (parser->next.kind != LEXEME_NAME)
        return fail_at(parser, &parser->next, "expected a field name, got %s",
                       describe(&parser->next, shown));
    snprintf(name, sizeof(name), "%.*s", (int)(parser->next.n < 127 ? parser->next.n : 127),
             parser->next.text);
    const field_t *field = protobuf_c_message_descriptor_get_field_by_name(known, name);
    if (!field) return fail_unknown(parser, known, name);

    bool *field_seen = &seen[field - known->fields];
    if (*field_seen && !is_repeated(field))
        return fail_at(parser, &parser->next, "%s is given twice", field->name);
    const field_t *rival = oneof_rival(message, field);
    if (rival && seen[rival - known->fields])
        return fail_at(parser, &parser->next, "%s and %s exclude each other", rival->name,
                       field->name);
    if (!*field_seen && is_repeated(field)) clear_field(message, field);
    if (field->flags & PROTOBUF_C_FIELD_FLAG_DEPRECATED) {
        char position[400];
        format_position(parser, &parser->next, position, sizeof(position));
        log_warning("%s: %s is deprecated", position, field->name);
    }
    *field_seen = true;
    *out = field;
    return LM_OK;
}

/* One field with its value; parser->path names it meanwhile. */
static enum lm_status parse_field(struct parser *parser, message_t *message, bool *seen)
{
    char shown[64];
    const field_t *field = NULL;
    const struct lexeme start = parser->next;
    const size_t path_length = parser->path_length;
    bool colon = false, separator;
    enum lm_status status = find_named(parser, message, seen, &field);
    if (status != LM_OK) return status;
    const int n = snprintf(parser->path + path_length, MAX_PATH_BYTES - path_length, "%s%s",
                           path_length ? "." : "", field->name);
    if (path_length + (size_t)n >= MAX_PATH_BYTES)
        return fail_at(parser, &start, "path of the field is longer than %d bytes", MAX_PATH_BYTES);
    parser->path_length += (size_t)n;

    status = advance(parser);
    if (status == LM_OK) status = accept(parser, ':', &colon);
    if (status == LM_OK && !colon && field->type != PROTOBUF_C_TYPE_MESSAGE)
        status = fail_at(parser, &parser->next, "expected ':' after %s, got %s", field->name,
                         describe(&parser->next, shown));
    if (status == LM_OK)
        status = at_symbol(parser, '[') ? parse_list(parser, message, field)
                                        : parse_value(parser, message, field);
    if (status == LM_OK && parser->on_set) parser->on_set(parser->context, parser->path);
    if (status == LM_OK) status = accept(parser, ',', &separator);
    if (status == LM_OK && !separator) status = accept(parser, ';', &separator);
    parser->path_length = path_length;
    parser->path[path_length] = '\0';
    return status;
}

/* Fields up to the closing symbol, which stays next; up to the end of the text if it is '\0'. */
static enum lm_status parse_fields(struct parser *parser, message_t *message, char closing)
{
    enum lm_status status = LM_OK;
    bool *seen = calloc(message->descriptor->n_fields + 1, sizeof(*seen));
    if (!seen) return lm_fail(parser->err, LM_E_NO_MEM, "%s: no memory", parser->name);
    while (status == LM_OK && !(closing && at_symbol(parser, closing))) {
        if (parser->next.kind != LEXEME_END)
            status = parse_field(parser, message, seen);
        else if (closing)
            status = fail_at(parser, &parser->next, "the text ends before '%c'", closing);
        else
            break;
    }
    free(seen);
    return status;
}

enum lm_status textproto_merge(message_t *message, const char *name, const char *text, size_t n,
                               textproto_on_set_fn on_set, void *context, struct lm_error *err)
{
    struct parser parser = {
        .name = name,
        .at = text,
        .end = text + n,
        .line_start = text,
        .line = 1,
        .on_set = on_set,
        .context = context,
        .err = err,
    };
    const enum lm_status status = advance(&parser);
    return status == LM_OK ? parse_fields(&parser, message, '\0') : status;
}

/* ---- writer ---- */

struct writer {
    FILE *out;
    char path[MAX_PATH_BYTES];
    textproto_comment_fn comment;
    void *context;
};

/* protoc's spelling: the shorter precision when it reads back to the same value. */
static void format_real(double value, bool is_float, char *text, size_t size)
{
    if (!isfinite(value)) {
        snprintf(text, size, "%s", isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
        return;
    }
    snprintf(text, size, "%.*g", is_float ? FLT_DIG : DBL_DIG, value);
    const double again = is_float ? (double)strtof(text, NULL) : strtod(text, NULL);
    if (again != value) snprintf(text, size, "%.*g", is_float ? FLT_DIG + 3 : DBL_DIG + 2, value);
}

static void write_quoted(FILE *out, const char *text, size_t n, bool utf8)
{
    fputc('"', out);
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)text[i];
        const char *escape = c == '\n'   ? "\\n"
                             : c == '\t' ? "\\t"
                             : c == '\r' ? "\\r"
                             : c == '"'  ? "\\\""
                             : c == '\'' ? "\\'"
                             : c == '\\' ? "\\\\"
                                         : NULL;
        if (escape)
            fputs(escape, out);
        else if (c < 32 || c == 127 || (c > 127 && !utf8))
            fprintf(out, "\\%03o", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

/* A number, bool or enum as the text format spells it. */
static void format_scalar(const field_t *field, const union scalar *value, char *text, size_t size)
{
    const ProtobufCEnumValue *name;
    switch (field->type) {
    case PROTOBUF_C_TYPE_BOOL:
        snprintf(text, size, "%s", value->boolean ? "true" : "false");
        break;
    case PROTOBUF_C_TYPE_ENUM:
        name = protobuf_c_enum_descriptor_get_value(field->descriptor, value->i32);
        if (name)
            snprintf(text, size, "%s", name->name);
        else
            snprintf(text, size, "%d", value->i32);
        break;
    case PROTOBUF_C_TYPE_FLOAT:
        format_real(value->f32, true, text, size);
        break;
    case PROTOBUF_C_TYPE_DOUBLE:
        format_real(value->f64, false, text, size);
        break;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        snprintf(text, size, "%u", value->u32);
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        snprintf(text, size, "%llu", (unsigned long long)value->u64);
        break;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        snprintf(text, size, "%lld", (long long)value->i64);
        break;
    default:
        snprintf(text, size, "%d", value->i32);
    }
}

static void write_message(struct writer *writer, const message_t *message, size_t path_length,
                          int indent);

static void write_value(struct writer *writer, const field_t *field, const void *at,
                        size_t path_length, int indent)
{
    char number[64];
    const union scalar value = load_scalar(field, at);
    fprintf(writer->out, "%*s%s", indent, "", field->name);
    switch (field->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        fputs(" {\n", writer->out);
        write_message(writer, *(message_t *const *)at, path_length, indent + 2);
        fprintf(writer->out, "%*s}\n", indent, "");
        return;
    case PROTOBUF_C_TYPE_STRING:
        fputs(": ", writer->out);
        write_quoted(writer->out, value.string, strlen(value.string), true);
        break;
    case PROTOBUF_C_TYPE_BYTES:
        fputs(": ", writer->out);
        write_quoted(writer->out, (const char *)value.bytes.data, value.bytes.len, false);
        break;
    default:
        format_scalar(field, &value, number, sizeof(number));
        fprintf(writer->out, ": %s", number);
    }
    const char *comment = writer->comment ? writer->comment(writer->context, writer->path) : NULL;
    fprintf(writer->out, "%s%s\n", comment ? "  # " : "", comment ? comment : "");
}

static void write_message(struct writer *writer, const message_t *message, size_t path_length,
                          int indent)
{
    for (unsigned f = 0; f < message->descriptor->n_fields; f++) {
        const field_t *field = &message->descriptor->fields[f];
        const size_t n = n_value(message, field);
        const int length = snprintf(writer->path + path_length, MAX_PATH_BYTES - path_length,
                                    "%s%s", path_length ? "." : "", field->name);
        for (size_t i = 0; i < n; i++)
            write_value(writer, field, value_at(message, field, i), path_length + (size_t)length,
                        indent);
    }
}

char *textproto_write(const message_t *message, textproto_comment_fn comment, void *context)
{
    char *text = NULL;
    size_t n = 0;
    struct writer writer = {
        .out = open_memstream(&text, &n), .comment = comment, .context = context};
    if (!writer.out) return NULL;
    write_message(&writer, message, 0, 0);
    const bool failed = ferror(writer.out) != 0;
    if (fclose(writer.out) || failed) {
        free(text);
        return NULL;
    }
    return text;
}

/* ---- access by path ---- */

/* The message type and the field name that path ends in; NULL if the path leads nowhere. */
const field_t *textproto_find(const ProtobufCMessageDescriptor *descriptor, const char *path)
{
    for (;;) {
        char name[128];
        const size_t n = strcspn(path, ".");
        if (n >= sizeof(name)) return NULL;
        memcpy(name, path, n);
        name[n] = '\0';
        const field_t *field = protobuf_c_message_descriptor_get_field_by_name(descriptor, name);
        if (!field || !path[n]) return field;
        if (field->type != PROTOBUF_C_TYPE_MESSAGE || is_repeated(field)) return NULL;
        descriptor = field->descriptor;
        path += n + 1;
    }
}

/* The message that holds the last field of path; missing ones on the way are made if create.
 * NULL: there is none, or no memory. */
static message_t *holder_of(message_t *message, const char *path, bool create)
{
    for (const char *dot; message && (dot = strchr(path, '.')); path = dot + 1) {
        char name[128];
        snprintf(name, sizeof(name), "%.*s", (int)(dot - path), path);
        const field_t *field =
            protobuf_c_message_descriptor_get_field_by_name(message->descriptor, name);
        message = create || n_value(message, field) ? block_message(message, field) : NULL;
    }
    return message;
}

enum lm_status textproto_set_plain(message_t *message, const char *path, const char *text,
                                   struct lm_error *err)
{
    const field_t *field = textproto_find(message->descriptor, path);
    assert(field && field->type != PROTOBUF_C_TYPE_MESSAGE);
    char spelled[256];
    struct literal literal = {.kind = LITERAL_STRING, .text = text, .n = strlen(text)};
    const bool is_text =
        field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_BYTES;
    const bool has_unit = is_size(field) || is_time(field);
    if (!is_text && !has_unit && literal.n < sizeof(spelled) - 1) {
        const char *bare = text;
        if (field->type == PROTOBUF_C_TYPE_BOOL)
            bare = !strcmp(text, "on") ? "true" : !strcmp(text, "off") ? "false" : text;
        else if (*bare == '-')
            literal.negative = *bare++ == '-';
        literal.n = strlen(bare);
        for (size_t i = 0; i <= literal.n; i++)
            spelled[i] = field->type != PROTOBUF_C_TYPE_ENUM ? bare[i]
                         : bare[i] == '-'                    ? '_'
                                          : (char)toupper((unsigned char)bare[i]);
        literal.text = spelled;
        literal.kind =
            isdigit((unsigned char)*spelled) || *spelled == '.' ? LITERAL_NUMBER : LITERAL_NAME;
    }
    message_t *holder = holder_of(message, path, true);
    if (!holder) return lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
    return put_scalar(holder, field, &literal, err);
}

enum lm_status textproto_get_plain(const message_t *message, const char *path, size_t i,
                                   char **text, struct lm_error *err)
{
    const field_t *field = textproto_find(message->descriptor, path);
    assert(field && field->type != PROTOBUF_C_TYPE_MESSAGE && field->type != PROTOBUF_C_TYPE_BYTES);
    const message_t *holder = holder_of((message_t *)message, path, false);
    *text = NULL;
    if (!holder || i >= n_value(holder, field)) return LM_OK;

    char number[64];
    const union scalar value = load_scalar(field, value_at(holder, field, i));
    if (field->type == PROTOBUF_C_TYPE_STRING) {
        *text = strdup(value.string);
    } else {
        format_scalar(field, &value, number, sizeof(number));
        if (field->type == PROTOBUF_C_TYPE_BOOL)
            snprintf(number, sizeof(number), "%s", value.boolean ? "on" : "off");
        for (char *c = number; field->type == PROTOBUF_C_TYPE_ENUM && *c; c++)
            *c = (char)tolower((unsigned char)*c);
        *text = strdup(number);
    }
    return *text ? LM_OK : lm_fail(err, LM_E_NO_MEM, "%s: no memory", path);
}

void textproto_clear(message_t *message, const char *path)
{
    const field_t *field = textproto_find(message->descriptor, path);
    assert(field);
    message_t *holder = holder_of(message, path, false);
    if (holder) clear_field(holder, field);
}
