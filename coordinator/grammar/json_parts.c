#include "coordinator/grammar/json_parts.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar/expression.h"

enum { N_INDENT_MAX = 32 };

#define SEQUENCE(builder, ...)                                                                     \
    grammar_build_sequence(builder, (const grammar_expr[]){__VA_ARGS__},                           \
                           sizeof((const grammar_expr[]){__VA_ARGS__}) / sizeof(grammar_expr))
#define CHOICE(builder, ...)                                                                       \
    grammar_build_choice(builder, (const grammar_expr[]){__VA_ARGS__},                             \
                         sizeof((const grammar_expr[]){__VA_ARGS__}) / sizeof(grammar_expr))

/* One character of ASCII ranges given as pairs: "azAZ". */
static grammar_expr one_in(struct grammar_builder *builder, const char *pairs)
{
    struct code_range ranges[8];
    size_t n = 0;
    for (; pairs[2 * n]; n++)
        ranges[n] = (struct code_range){(uint8_t)pairs[2 * n], (uint8_t)pairs[2 * n + 1]};
    return grammar_build_class(builder, ranges, n);
}

static grammar_expr as_rule(struct grammar_builder *builder, grammar_expr body)
{
    const grammar_rule rule = grammar_build_rule(builder, NULL);
    grammar_build_define(builder, rule, body);
    return grammar_build_call(builder, rule);
}

/* ---- white space ---------------------------------------------------------------------------- */

void grammar_build_pretty(struct grammar_builder *builder)
{
    builder->json.pretty = true;
}

/* A line break and its indentation, or nothing; nothing where JSON is written in one line. */
static grammar_expr line_break(struct grammar_builder *builder)
{
    if (!builder->json.pretty) return GRAMMAR_EMPTY;
    if (!builder->json.line_break) {
        const grammar_expr space = grammar_build_string(builder, " ");
        const grammar_expr line = SEQUENCE(builder, grammar_build_string(builder, "\n"),
                                           grammar_build_repeat(builder, space, 0, N_INDENT_MAX));
        builder->json.line_break = as_rule(builder, grammar_build_optional(builder, line));
    }
    return builder->json.line_break;
}

static grammar_expr spaced(struct grammar_builder *builder, char sign, grammar_expr otherwise)
{
    const grammar_expr space = grammar_build_string(builder, " ");
    return SEQUENCE(builder, grammar_build_literal(builder, &sign, 1),
                    otherwise == GRAMMAR_EMPTY ? grammar_build_optional(builder, space)
                                               : CHOICE(builder, space, otherwise));
}

grammar_expr json_parts_colon(struct grammar_builder *builder)
{
    return spaced(builder, ':', GRAMMAR_EMPTY);
}

grammar_expr json_parts_comma(struct grammar_builder *builder)
{
    return spaced(builder, ',', line_break(builder));
}

grammar_expr json_parts_open(struct grammar_builder *builder, char bracket)
{
    return SEQUENCE(builder, grammar_build_literal(builder, &bracket, 1), line_break(builder));
}

grammar_expr json_parts_close(struct grammar_builder *builder, char bracket)
{
    return SEQUENCE(builder, line_break(builder), grammar_build_literal(builder, &bracket, 1));
}

/* ---- strings -------------------------------------------------------------------------------- */

static grammar_expr hex(struct grammar_builder *builder, uint32_t n)
{
    return grammar_build_repeat(builder, one_in(builder, "09afAF"), n, n);
}

/* One code point, plain or escaped; surrogates in pairs. */
static grammar_expr json_parts_character(struct grammar_builder *builder)
{
    static const struct code_range plain[] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, CHAR_LAST}};
    if (builder->json.character) return builder->json.character;
    const grammar_expr d = one_in(builder, "ddDD");
    const grammar_expr basic =
        CHOICE(builder, SEQUENCE(builder, one_in(builder, "09acefACEF"), hex(builder, 3)),
               SEQUENCE(builder, d, one_in(builder, "07"), hex(builder, 2)));
    const grammar_expr pair =
        SEQUENCE(builder, d, one_in(builder, "89abAB"), hex(builder, 2),
                 grammar_build_string(builder, "\\u"), d, one_in(builder, "cfCF"), hex(builder, 2));
    const grammar_expr escape =
        SEQUENCE(builder, grammar_build_string(builder, "\\"),
                 CHOICE(builder, one_in(builder, "\"\"\\\\//bbffnnrrtt"),
                        SEQUENCE(builder, grammar_build_string(builder, "u"),
                                 CHOICE(builder, basic, pair))));
    const grammar_expr raw = grammar_build_class(builder, plain, sizeof(plain) / sizeof(plain[0]));
    builder->json.character = CHOICE(builder, raw, escape);
    return builder->json.character;
}

grammar_expr json_parts_string_of(struct grammar_builder *builder, uint32_t least, uint32_t most)
{
    const grammar_expr quote = grammar_build_string(builder, "\"");
    return SEQUENCE(builder, quote,
                    grammar_build_repeat(builder, json_parts_character(builder), least, most),
                    quote);
}

grammar_expr json_parts_string(struct grammar_builder *builder)
{
    if (!builder->json.string)
        builder->json.string =
            as_rule(builder, json_parts_string_of(builder, 0, GRAMMAR_UNBOUNDED));
    return builder->json.string;
}

/* The one way in which text is written where it is given: with its quotes, escaped where it must
 * be. out: room for STRING_BYTES_MAX(n). Returns the length. */
#define STRING_BYTES_MAX(n) (6 * (size_t)(n) + 2)
static size_t write_string(char *out, const char *text, size_t n)
{
    size_t n_out = 0;
    out[n_out++] = '"';
    for (size_t i = 0; i < n; i++) {
        const uint8_t byte = (uint8_t)text[i];
        const char *letter = byte ? strchr("\bb\ff\nn\rr\tt\"\"\\\\", byte) : NULL;
        if (byte >= 0x20 && byte != '"' && byte != '\\')
            out[n_out++] = text[i];
        else if (letter) {
            out[n_out++] = '\\';
            out[n_out++] = letter[1];
        } else {
            memcpy(out + n_out, "\\u00", 4);
            out[n_out + 4] = (char)('0' + (byte >> 4));
            out[n_out + 5] = "0123456789abcdef"[byte & 15];
            n_out += 6;
        }
    }
    out[n_out++] = '"';
    return n_out;
}

grammar_expr grammar_build_json_string(struct grammar_builder *builder, const char *text, size_t n)
{
    char *json = malloc(STRING_BYTES_MAX(n));
    if (!json) {
        if (builder->status == LM_OK) builder->status = LM_E_NO_MEM;
        return GRAMMAR_NOTHING;
    }
    const grammar_expr literal = grammar_build_literal(builder, json, write_string(json, text, n));
    free(json);
    return literal;
}

/* ---- numbers -------------------------------------------------------------------------------- */

static grammar_expr up_to_digits(struct grammar_builder *builder, grammar_expr digit, uint32_t n)
{
    return grammar_build_repeat(builder, digit, 0, n);
}

/* As many digits behind the point as the integer part has left. */
static grammar_expr mantissa(struct grammar_builder *builder)
{
    const grammar_expr digit = one_in(builder, "09"), point = grammar_build_string(builder, ".");
    grammar_expr more = GRAMMAR_EMPTY; /* behind n digits of the integer part */
    for (uint32_t n = JSON_DIGITS_MAX - 1; n > 0; n--) {
        const grammar_expr fraction =
            SEQUENCE(builder, point, digit, up_to_digits(builder, digit, JSON_DIGITS_MAX - n - 1));
        const grammar_expr longer = SEQUENCE(builder, digit, more);
        more = CHOICE(builder, GRAMMAR_EMPTY, fraction, longer);
    }
    const grammar_expr after_zero =
        SEQUENCE(builder, grammar_build_string(builder, "0"),
                 grammar_build_optional(
                     builder, SEQUENCE(builder, point, digit,
                                       up_to_digits(builder, digit, JSON_DIGITS_MAX - 2))));
    return CHOICE(builder, after_zero, SEQUENCE(builder, one_in(builder, "19"), more));
}

static grammar_expr exponent(struct grammar_builder *builder)
{
    const grammar_expr digit = one_in(builder, "09");
    const grammar_expr value =
        CHOICE(builder, digit, SEQUENCE(builder, digit, digit),
               SEQUENCE(builder, one_in(builder, "02"), digit, digit),
               SEQUENCE(builder, grammar_build_string(builder, "30"), one_in(builder, "08")));
    return SEQUENCE(builder, one_in(builder, "eeEE"),
                    grammar_build_optional(builder, one_in(builder, "++--")), value);
}

grammar_expr json_parts_number(struct grammar_builder *builder)
{
    if (!builder->json.number)
        builder->json.number = as_rule(
            builder,
            SEQUENCE(builder, grammar_build_optional(builder, grammar_build_string(builder, "-")),
                     mantissa(builder), grammar_build_optional(builder, exponent(builder))));
    return builder->json.number;
}

/* ---- values --------------------------------------------------------------------------------- */

/* item (comma item)* in brackets, or none. */
static grammar_expr bracketed(struct grammar_builder *builder, const char *brackets,
                              grammar_expr item)
{
    const grammar_expr more = SEQUENCE(builder, json_parts_comma(builder), item);
    const grammar_expr items = SEQUENCE(builder, json_parts_open(builder, brackets[0]), item,
                                        grammar_build_repeat(builder, more, 0, GRAMMAR_UNBOUNDED),
                                        json_parts_close(builder, brackets[1]));
    return CHOICE(builder, grammar_build_string(builder, brackets), items);
}

static void make_values(struct grammar_builder *builder)
{
    const grammar_rule value = grammar_build_rule(builder, NULL);
    const grammar_rule object = grammar_build_rule(builder, NULL);
    const grammar_expr any = grammar_build_call(builder, value);
    const grammar_expr member =
        SEQUENCE(builder, json_parts_string(builder), json_parts_colon(builder), any);
    grammar_build_define(builder, object, bracketed(builder, "{}", member));
    builder->json.object = grammar_build_call(builder, object);
    grammar_build_define(builder, value,
                         CHOICE(builder, builder->json.object, bracketed(builder, "[]", any),
                                json_parts_string(builder), json_parts_number(builder),
                                grammar_build_string(builder, "true"),
                                grammar_build_string(builder, "false"),
                                grammar_build_string(builder, "null")));
    builder->json.value = any;
}

grammar_expr grammar_build_json_value(struct grammar_builder *builder)
{
    if (!builder->json.value) make_values(builder);
    return builder->json.value;
}

grammar_expr grammar_build_json_object(struct grammar_builder *builder)
{
    if (!builder->json.value) make_values(builder);
    return builder->json.object;
}
