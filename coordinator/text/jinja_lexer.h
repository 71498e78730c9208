/* A template's text as tokens, with jinja2's white space control.
 *
 * Set up as chat templates expect: the newline after a block or comment tag goes (trim_blocks), so
 * does white space from the start of a line to such a tag (lstrip_blocks); "-" in a tag strips
 * all white space on its side, "+" keeps it. Line ends become "\n" and the last one is dropped.
 * Comments and raw tags never reach the parser. */
#ifndef LEAN_COORDINATOR_TEXT_JINJA_LEXER_H
#define LEAN_COORDINATOR_TEXT_JINJA_LEXER_H

#include "coordinator/text/jinja_value.h"

enum jinja_token_type { /* one-character operators are their character */
                        TOKEN_END = 256,
                        TOKEN_DATA,
                        TOKEN_BLOCK_BEGIN,
                        TOKEN_BLOCK_END,
                        TOKEN_VARIABLE_BEGIN,
                        TOKEN_VARIABLE_END,
                        TOKEN_NAME,
                        TOKEN_STRING,
                        TOKEN_NUMBER,
                        TOKEN_POWER,        /* ** */
                        TOKEN_FLOOR_DIVIDE, /* // */
                        TOKEN_EQUAL,
                        TOKEN_NOT_EQUAL,
                        TOKEN_LESS_EQUAL,
                        TOKEN_GREATER_EQUAL
};

struct jinja_token {
    int type;
    uint32_t line;
    struct jinja_value value; /* of data, names, strings and numbers */
};

/* All tokens, the last one TOKEN_END. Fails on what no token can start with, on brackets that do
 * not match, and on comments and raw blocks that do not end. */
struct jinja_token *jinja_tokenize(struct jinja_run *run, const char *source, size_t n_bytes);

/* For messages: "end of print statement", "'name'". text: at least 64 bytes. */
const char *jinja_describe_token(const struct jinja_token *token, char *text);

#endif
