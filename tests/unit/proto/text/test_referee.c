/* proto/text against protoc: what both read must encode to the same bytes, and what we write must
 * mean the same to it. Texts are fixed ones and generated ones (the seed is printed). */
#include "tests/unit/cmocka_all.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/text/textproto.h"
#include "tests/unit/proto/text/sample.pb-c.h"

enum { N_GENERATED = 60, MAX_BYTES = 1 << 16 };

struct bytes {
    size_t n;
    unsigned char data[MAX_BYTES];
};

/* Runs protoc on input (mode: its option up to the type); false if it refused. */
static bool run_protoc(const char *mode, const void *input, size_t n, struct bytes *output)
{
    char path[] = "/tmp/lean-referee-XXXXXX", command[400];
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, input, n), n);
    close(fd);
    snprintf(command, sizeof(command),
             "protoc %s=sample.All -I tests/unit/proto/text sample.proto <%s 2>/dev/null", mode,
             path);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    output->n = fread(output->data, 1, MAX_BYTES, pipe);
    const int status = pclose(pipe);
    unlink(path);
    return status == 0;
}

static void assert_same_as_protoc(const char *text)
{
    static struct bytes theirs, ours, rewritten, decoded;
    struct lm_error err = {0};
    ProtobufCMessage *all = textproto_create(&sample__all__descriptor);
    if (textproto_merge(all, "text", text, strlen(text), NULL, NULL, &err) != LM_OK)
        fail_msg("%s\n%s", err.message, text);
    if (!run_protoc("--deterministic_output --encode", text, strlen(text), &theirs))
        fail_msg("protoc refuses what we accept:\n%s", text);
    ours.n = protobuf_c_message_pack(all, ours.data);
    if (ours.n != theirs.n || memcmp(ours.data, theirs.data, ours.n))
        fail_msg("not the bytes that protoc makes:\n%s", text);

    char *written = textproto_write(all, NULL, NULL);
    assert_true(
        run_protoc("--deterministic_output --encode", written, strlen(written), &rewritten));
    assert_int_equal(rewritten.n, theirs.n);
    assert_memory_equal(rewritten.data, theirs.data, theirs.n);
    /* protoc escapes what is not ASCII; else. */
    bool ascii = true;
    for (const char *c = written; *c; c++)
        ascii = ascii && (unsigned char)*c < 128;
    if (ascii) {
        assert_true(run_protoc("--decode", theirs.data, theirs.n, &decoded));
        decoded.data[decoded.n] = '\0';
        assert_string_equal(written, (const char *)decoded.data);
    }
    free(written);
    protobuf_c_message_free_unpacked(all, NULL);
}

static void fixed_texts_agree(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "# only a comment",
        "i32: -2147483648 i64: -9223372036854775808 u32: 4294967295 u64: 18446744073709551615",
        "s32: -0x10 s64: - 077 f32: 1, f64: 2; sf32: -3 sf64: -4",
        "real: 1.5f precise: .5 reals: [1e10, -2.5E-3, inf, -inf, 0, 7, 1e-320, 0.1]",
        "real: 3.4028235e38 precise: 123456789.123456789",
        "yes: t text: 'a' \"b\" 'c\\x41\\102\\n\\t\\?\\'' blob: '\\000\\377\\x7f'",
        "text: '\\u00e9\\U0001f600 caf\xc3\xa9'",
        "color: 7 colors: [RED, BELOW, 1] colors: DARK_BLUE colors: -2",
        "leaf { name: 'n' child < count: 1 child { } > twig { } twig: <count: 2>, }",
        "leaves [ { count: 1 }, < count: 2 > ] leaves { } numbers: [] numbers: 5 numbers: [6,7]",
        "counts { key: 'a' value: 1 } counts { key: 'b' value: 2 }",
        "by_number: 3",
        "by_name: ''",
        "by_leaf { }",
        "with_default: 41 text_default: 'preset' cache_size: 0 wait_time: 0.25",
        "words: [ 'a' 'b', \"c\" ] blobs: ''",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        assert_same_as_protoc(texts[i]);
}

/* What protoc refuses (and is no extension of ours) we refuse too. */
static void both_refuse(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "i32: 1.0",      "i32: 2147483648", "u32: -1",
        "yes: 2",        "yes: 'true'",     "color: green",
        "i32: 08",       "i32: 0x",         "text: a",
        "text: 'a\nb'",  "text: '\\q'",     "leaf { count: 1",
        "leaf count: 1", "i32 1",           "numbers: [1,]",
        "i32: 1 i32: 1", "leaf: 1",         "by_name: 'a' by_number: 1",
        "precise: 0x10", "unknown: 1",      "i32: --1",
        "i32: 5x",       "text: 'a' b",     "leaf { count: 1 >",
    };
    static struct bytes output;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        ProtobufCMessage *all = textproto_create(&sample__all__descriptor);
        if (textproto_merge(all, "t", texts[i], strlen(texts[i]), NULL, NULL, NULL) == LM_OK)
            fail_msg("we accept %s", texts[i]);
        if (run_protoc("--deterministic_output --encode", texts[i], strlen(texts[i]), &output))
            fail_msg("protoc accepts %s", texts[i]);
        protobuf_c_message_free_unpacked(all, NULL);
    }
}

static unsigned pick(unsigned n)
{
    return (unsigned)(random() % n);
}

static void add(char *text, const char *piece)
{
    strcat(text, piece);
}

static void add_leaf_fields(char *text, int depth)
{
    char piece[100];
    if (pick(2)) {
        snprintf(piece, sizeof(piece), "name: \"n%u\" ", pick(100));
        add(text, piece);
    }
    if (pick(2)) {
        snprintf(piece, sizeof(piece), "count: %d%s ", (int)pick(2000) - 1000, pick(2) ? ";" : "");
        add(text, piece);
    }
    if (depth < 4 && pick(2)) {
        add(text, pick(2) ? "child { " : "child: < ");
        const bool brace = text[strlen(text) - 2] == '{';
        add_leaf_fields(text, depth + 1);
        add(text, brace ? "}, " : "> ");
    }
}

static void generate(char *text)
{
    static const char *const singles[] = {
        "i32: %d\n",        "i64: %d ",     "s32: %d,",     "s64: %d;",
        "sf32: %d # c\n",   "sf64: %d ",    "real: %d.25 ", "precise: %de-3 ",
        "wait_time: %d.5 ", "text: 'x%d' ", "blob: '%d' ",
    };
    char piece[100];
    text[0] = '\0';
    for (size_t i = 0; i < sizeof(singles) / sizeof(singles[0]); i++)
        if (pick(2)) {
            snprintf(piece, sizeof(piece), singles[i], (int)pick(2000000) - 1000000);
            add(text, piece);
        }
    for (unsigned n = pick(6); n; n--) {
        static const char *const repeats[] = {"numbers: %u ", "numbers: [%u, 1] ", "words: '%u' ",
                                              "reals: [%u, .5] ", "colors: [RED,1] # %u\n"};
        snprintf(piece, sizeof(piece), repeats[pick(5)], pick(1000));
        add(text, piece);
    }
    for (unsigned n = pick(3); n; n--) {
        add(text, "leaves { ");
        add_leaf_fields(text, 0);
        add(text, "} ");
    }
}

static void generated_texts_agree(void **state)
{
    (void)state;
    char text[MAX_BYTES];
    srandom(20261122);
    for (int i = 0; i < N_GENERATED; i++) {
        generate(text);
        assert_same_as_protoc(text);
    }
}

int main(void)
{
    if (system("protoc --version >/dev/null 2>&1")) {
        puts("skipped: protoc is not installed");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fixed_texts_agree),
        cmocka_unit_test(both_refuse),
        cmocka_unit_test(generated_texts_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
