/* proto/base/units.c: amounts of bytes and seconds. */
#include "tests/unit/cmocka_all.h"

#include "proto/base/units.h"

static void reads_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t n_bytes;
    } good[] = {{"0", 0},           {"4096", 4096},
                {"64M", 64u << 20}, {"1.5GiB", 3ull << 29},
                {"2kb", 2048},      {"1 TiB", 1ull << 40},
                {"7B", 7},          {"9007199254740993", 9007199254740993ull}};
    static const char *const bad[] = {"",     "M",     "-1",    "1.5X", "1e999",
                                      "0x10", "20EiB", "1GiBs", "nan"};
    uint64_t n_bytes;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(units_parse_bytes(good[i].text, &n_bytes));
        assert_int_equal(n_bytes, good[i].n_bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        n_bytes = 42;
        assert_false(units_parse_bytes(bad[i], &n_bytes));
        assert_int_equal(n_bytes, 42);
    }
}

static void reads_seconds(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double seconds;
    } good[] = {{"30s", 30},     {"5m", 300},      {"150ms", 0.15}, {"2.5", 2.5},
                {"1h02m", 3720}, {"3m07s", 187.0}, {"0", 0}};
    static const char *const bad[] = {"", "s", "1h30", "-1s", "5x", "1s 2s", "inf", "1e308h"};
    double seconds;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(units_parse_seconds(good[i].text, &seconds));
        assert_true(seconds == good[i].seconds);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(units_parse_seconds(bad[i], &seconds));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_bytes),
        cmocka_unit_test(reads_seconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
