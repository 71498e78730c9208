/* Several values of one option in one word, for measurements that try them all:
 *
 *   1,2,4     8G-32G*2  is 8G,16G,32G     0%-100%+25  is 0%,25%,50%,75%,100%     2-4  is 2,3,4
 *
 * A range has whole numbers with one unit on both sides; its end is part of it if a step meets it.
 *
 * Ownership: the list owns its texts. */
#ifndef LEAN_LAUNCH_VALUE_LIST_H
#define LEAN_LAUNCH_VALUE_LIST_H

#include <stddef.h>

#include "proto/base/error.h"

struct option_spec;

enum { VALUE_LIST_MAX = 1000 };

struct value_list {
    char **text; /* [n], n >= 1 */
    size_t n;
};

/* Each value must be one of spec's kind. name: what messages call the option. LM_E_USAGE: one is
 * not, a range goes nowhere, or there are more than VALUE_LIST_MAX; LM_E_NO_MEM. */
enum lm_status value_list_parse(struct value_list *out, const struct option_spec *spec,
                                const char *name, const char *text, struct lm_error *err);
void value_list_fini(struct value_list *list);

#endif
