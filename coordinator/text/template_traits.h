/* What a chat template can do, told from its source: which variables it reads and which markup it
 * writes. Nothing is run.
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_TEXT_TEMPLATE_TRAITS_H
#define LEAN_COORDINATOR_TEXT_TEMPLATE_TRAITS_H

#include <stdbool.h>
#include <stddef.h>

#include "coordinator/text/tool_format.h"

struct template_traits {
    bool tools;            /* shows `tools` to the model */
    bool reasoning;        /* knows <think>, or a channel for it */
    bool reasoning_switch; /* reads enable_thinking */
    enum tool_format tool_format;
};

/* source: n bytes of Jinja. */
struct template_traits template_traits(const char *source, size_t n);

#endif
