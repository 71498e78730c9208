/* UTF-8 as Unicode defines it, and the class table as the database has it. */
#include "tests/unit/cmocka_all.h"

#include <stdbool.h>

#include "coordinator/text/unicode.h"

/* The encoding of any code point, surrogates too; its length. */
static unsigned write_utf8(uint32_t code, char *out)
{
    const unsigned n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char leads[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (unsigned i = n; i-- > 1; code >>= 6)
        out[i] = (char)(0x80 | (code & 63));
    out[0] = (char)(leads[n] | code);
    return n;
}

static void every_code_point_is_one_sequence(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 0x120000; code++) {
        char text[8] = "";
        unsigned n_decoded;
        const unsigned n = write_utf8(code, text);
        const bool good = code < 0x110000 && (code < 0xD800 || code > 0xDFFF);
        assert_int_equal(unicode_sequence(text, n), good ? (int)n : -1);
        assert_int_equal(unicode_well_formed(text, n), good ? n : 0);
        if (!good) continue;
        assert_int_equal(unicode_decode(text, &n_decoded), code);
        assert_int_equal(n_decoded, n);
        assert_int_equal(unicode_class_at(text, &n_decoded), unicode_class(code));
        for (unsigned part = 1; part < n; part++) /* a proper beginning waits for more */
            assert_int_equal(unicode_sequence(text, part), 0);
    }
}

static void malformed_sequences_are_found(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\x80",
        "\xBF",
        "\xC0\x80",
        "\xC1\xBF",
        "\xE0\x80\x80",
        "\xE0\x9F\xBF",
        "\xED\xA0\x80",
        "\xF0\x80\x80\x80",
        "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80",
        "\xFE",
        "\xFF",
        "\xC3(",
        "\xE4\xBD(",
        "\xF0\x9F\x99(",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_int_equal(unicode_sequence(bad[i], strlen(bad[i])), -1);
    assert_int_equal(unicode_well_formed("0123456789abcdef\xC3\xA9!\xC3", 20), 19);
    assert_int_equal(unicode_well_formed("", 0), 0);
}

/* Counted from the database by another program; assigned code points that change hands show. */
static void classes_have_their_known_sizes(void **state)
{
    (void)state;
    size_t count[256] = {0};
    for (uint32_t code = 0; code < 0x110000; code++)
        count[unicode_class(code)]++;
    assert_int_equal(count[UNICODE_LETTER], 136726);
    assert_int_equal(count[UNICODE_MARK], 2450);
    assert_int_equal(count[UNICODE_NUMBER], 1831);
    assert_int_equal(count[UNICODE_PUNCT], 842);
    assert_int_equal(count[UNICODE_SYMBOL], 7775);
    assert_int_equal(count[UNICODE_SPACE], 23);
    assert_int_equal(count[UNICODE_NEWLINE], 2);
}

static void classes_of_samples(void **state)
{
    (void)state;
    static const struct {
        uint32_t code;
        enum unicode_class class;
    } samples[] = {
        {'\r', UNICODE_NEWLINE},   {'\n', UNICODE_NEWLINE},   {'\t', UNICODE_SPACE},
        {0x1C, UNICODE_OTHER},     {0x7F, UNICODE_OTHER},     {0x85, UNICODE_SPACE},
        {0xA0, UNICODE_SPACE},     {0xAA, UNICODE_LETTER},    {0xB2, UNICODE_NUMBER},
        {0x0301, UNICODE_MARK},    {0x0661, UNICODE_NUMBER},  {0x180E, UNICODE_OTHER},
        {0x200B, UNICODE_OTHER},   {0x2028, UNICODE_SPACE},   {0x2167, UNICODE_NUMBER},
        {0x2FFC, UNICODE_SYMBOL},  {0x3000, UNICODE_SPACE},   {0x4E00, UNICODE_LETTER},
        {0x9FFF, UNICODE_LETTER},  {0xE000, UNICODE_OTHER},   {0xFFFD, UNICODE_SYMBOL},
        {0x1F642, UNICODE_SYMBOL}, {0x2EBF0, UNICODE_LETTER}, /* new in 15.1 */
        {0x2EE5E, UNICODE_OTHER},  {0xE0100, UNICODE_MARK},   {0x10FFFF, UNICODE_OTHER},
        {'_', UNICODE_PUNCT},      {'$', UNICODE_SYMBOL},     {'0', UNICODE_NUMBER},
    };
    for (size_t i = 0; i < sizeof(samples) / sizeof(*samples); i++)
        assert_int_equal(unicode_class(samples[i].code), samples[i].class);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_is_one_sequence),
        cmocka_unit_test(malformed_sequences_are_found),
        cmocka_unit_test(classes_have_their_known_sizes),
        cmocka_unit_test(classes_of_samples),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
