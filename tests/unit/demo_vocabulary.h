/* The tokenizer of the demonstration model, for tests that need a real vocabulary. */
#ifndef LEAN_TESTS_UNIT_DEMO_VOCABULARY_H
#define LEAN_TESTS_UNIT_DEMO_VOCABULARY_H

#include <stdio.h>
#include <stdlib.h>

#include "coordinator/text/tokenizer.h"
#include "proto/gguf/gguf.h"
#include "tests/unit/cmocka_all.h"

/* The caller's to destroy. */
static inline struct tokenizer *demo_vocabulary_open(void)
{
    const char *const source = getenv("LEAN_SOURCE_DIR");
    char path[4096];
    struct gguf_file *file = NULL;
    struct tokenizer *tokenizer = NULL;
    struct lm_error err = {0};
    snprintf(path, sizeof(path), "%s/configs/demo/lean-demo-q4_k_m.gguf", source ? source : ".");
    if (gguf_open(&file, path, &err) != LM_OK || tokenizer_create(&tokenizer, file, &err) != LM_OK)
        fail_msg("%s", err.message);
    gguf_close(file);
    return tokenizer;
}

#endif
