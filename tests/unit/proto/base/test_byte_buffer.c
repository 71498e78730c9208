/* Text that is put together piece by piece. */
#include <stdint.h>

#include "proto/base/byte_buffer.h"
#include "tests/unit/cmocka_all.h"

static void test_pieces_become_one_text(void **state)
{
    (void)state;
    struct byte_buffer buffer = {0};
    byte_buffer_put(&buffer, NULL, 0);
    assert_string_equal(buffer.data, "");
    for (int i = 0; i < 1000; i++)
        byte_buffer_printf(&buffer, "%d,", i);
    byte_buffer_put_text(&buffer, "end");
    assert_int_equal(buffer.n, 10 * 2 + 90 * 3 + 900 * 4 + 3);
    assert_int_equal(strlen(buffer.data), buffer.n);
    assert_string_equal(buffer.data + buffer.n - 7, "999,end");
    byte_buffer_clear(&buffer);
    assert_string_equal(buffer.data, "");
    byte_buffer_put(&buffer, "a\0b", 3);
    assert_memory_equal(buffer.data, "a\0b", 4);
    byte_buffer_free(&buffer);
    assert_true(!buffer.data && !buffer.n);
}

static void test_json_escapes(void **state)
{
    (void)state;
    static const char text[] = "a\"\\/\b\f\n\r\t\v\0\x1f\x7f\xC3\xA9";
    struct byte_buffer buffer = {0};
    byte_buffer_put_json(&buffer, text, sizeof(text) - 1);
    assert_string_equal(buffer.data, "a\\\"\\\\/\\b\\f\\n\\r\\t\\u000b\\u0000\\u001f\x7f\xC3\xA9");
    byte_buffer_free(&buffer);
}

static void test_no_memory_is_remembered(void **state)
{
    (void)state;
    struct byte_buffer buffer = {0};
    byte_buffer_put_text(&buffer, "kept");
    byte_buffer_put(&buffer, "", SIZE_MAX - 100);
    assert_true(buffer.failed);
    byte_buffer_put_text(&buffer, "lost");
    assert_string_equal(buffer.data, "kept");
    byte_buffer_free(&buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_become_one_text),
        cmocka_unit_test(test_json_escapes),
        cmocka_unit_test(test_no_memory_is_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
