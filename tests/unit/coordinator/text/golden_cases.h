/* Runs the strings of one golden file through a tokenizer: ids in all three modes and the text back
 * must be the reference's. */
#ifndef LEAN_TESTS_UNIT_COORDINATOR_TEXT_GOLDEN_CASES_H
#define LEAN_TESTS_UNIT_COORDINATOR_TEXT_GOLDEN_CASES_H

#include "tests/unit/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>

#include <json-c/json.h>

#include "coordinator/text/tokenizer.h"
#include "proto/gguf/gguf.h"

static struct tokenizer *open_tokenizer(const char *path)
{
    struct gguf_file *file;
    struct tokenizer *tokenizer;
    struct lm_error err = {0};
    if (gguf_open(&file, path, &err) != LM_OK) fail_msg("%s", err.message);
    if (tokenizer_create(&tokenizer, file, &err) != LM_OK) fail_msg("%s", err.message);
    gguf_close(file);
    return tokenizer;
}

/* A member of a case, or what stands in for it where the two are equal. */
static struct json_object *member(struct json_object *object, const char *name, const char *instead)
{
    struct json_object *value;
    if (json_object_object_get_ex(object, name, &value)) return value;
    assert_true(json_object_object_get_ex(object, instead, &value));
    return value;
}

static size_t from_hex(const char *hex, char *bytes)
{
    size_t n = 0;
    for (unsigned byte; sscanf(hex + 2 * n, "%2x", &byte) == 1; n++)
        bytes[n] = (char)byte;
    return n;
}

static void check_ids(struct json_object *expected, const int32_t *ids, size_t n_ids,
                      const char *hex)
{
    const size_t n = json_object_array_length(expected);
    for (size_t i = 0; i < n && i < n_ids; i++)
        if (ids[i] != json_object_get_int(json_object_array_get_idx(expected, i)))
            fail_msg("text %s: id %zu is %d", hex, i, ids[i]);
    if (n != n_ids) fail_msg("text %s: %zu ids, the reference has %zu", hex, n_ids, n);
}

static void check_case(const struct tokenizer *tokenizer, struct json_object *one)
{
    static const struct {
        const char *name;
        bool parse_special, add_special;
    } modes[] = {
        {"ids", true, false}, {"ids_plain", false, false}, {"ids_add_special", true, true}};
    char text[4096], back[4096], piece[4096];
    const char *const hex = json_object_get_string(member(one, "hex", "hex"));
    assert_true(strlen(hex) / 2 < sizeof(text));
    const size_t n_text = from_hex(hex, text);
    for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
        int32_t *ids;
        size_t n_ids;
        struct lm_error err = {0};
        assert_int_equal(tokenizer_encode(tokenizer, text, n_text, modes[i].parse_special,
                                          modes[i].add_special, &ids, &n_ids, &err),
                         LM_OK);
        check_ids(member(one, modes[i].name, "ids"), ids, n_ids, hex);
        if (!strcmp(modes[i].name, "ids_plain")) { /* without control tokens the text comes back */
            struct token_decoder decoder = {0};
            size_t n_back = 0;
            for (size_t k = 0; k < n_ids; k++) {
                size_t n_bytes;
                const char *bytes = tokenizer_token_bytes(tokenizer, ids[k], false, &n_bytes);
                const size_t n_piece = token_decoder_push(&decoder, bytes, n_bytes, false, piece);
                memcpy(back + n_back, piece, n_piece);
                n_back += n_piece;
            }
            assert_int_equal(decoder.n_pending, 0);
            char expected[4096];
            const size_t n_expected =
                from_hex(json_object_get_string(member(one, "detokenized_hex", "hex")), expected);
            assert_int_equal(n_back, n_expected);
            assert_memory_equal(back, expected, n_expected);
        }
        free(ids);
    }
}

/* vocabulary and cases: paths. */
static void check_golden(const char *vocabulary, const char *cases)
{
    struct tokenizer *tokenizer = open_tokenizer(vocabulary);
    struct json_object *root = json_object_from_file(cases);
    assert_non_null(root);
    struct json_object *list = member(root, "cases", "cases");
    const size_t n = json_object_array_length(list);
    assert_int_equal(n, 65);
    for (size_t i = 0; i < n; i++)
        check_case(tokenizer, json_object_array_get_idx(list, i));
    json_object_put(root);
    tokenizer_destroy(tokenizer);
}

#endif
