/* What mpirun and its ranks print: log lines pass, the rest is kept, the last of it. */
#include "tests/unit/cmocka_all.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "launch/job_output.h"

#define RULER "--------------------------------------------------------------------------\n"

/* Feeds text in pieces of so many bytes; what reached stderr is in *shown, malloc'ed. */
static void feed(struct job_output *output, const char *text, size_t piece, char **shown)
{
    int fds[2];
    char path[] = "/tmp/lean-output-XXXXXX";
    const int file = mkstemp(path), saved = dup(STDERR_FILENO);
    unlink(path);
    assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
    dup2(file, STDERR_FILENO);
    for (size_t n = strlen(text); n; n -= piece, text += piece) {
        if (piece > n) piece = n;
        assert_int_equal(write(fds[1], text, piece), piece);
        assert_true(job_output_read(output, fds[0]));
    }
    close(fds[1]);
    assert_false(job_output_read(output, fds[0]));
    dup2(saved, STDERR_FILENO);
    const off_t size = lseek(file, 0, SEEK_END);
    *shown = calloc(1, (size_t)size + 1);
    assert_int_equal(pread(file, *shown, (size_t)size, 0), size);
    close(fds[0]);
    close(file);
    close(saved);
}

static void test_log_lines_pass(void **state)
{
    (void)state;
    for (size_t piece = 1; piece < 100; piece += 7) {
        struct job_output *output = calloc(1, sizeof(*output));
        char *shown;
        feed(output,
             "[3] lean: loaded\nnoise\n[12] lean: warning: slow\r\n[x] lean: no\n[] lean: no\n",
             piece, &shown);
        assert_string_equal(shown, "[3] lean: loaded\n[12] lean: warning: slow\n");
        assert_int_equal(output->n_kept, strlen("noise\n[x] lean: no\n[] lean: no\n"));
        free(shown);
        free(output);
    }
}

static void test_the_first_line_that_is_not_mpiruns(void **state)
{
    (void)state;
    struct job_output *output = calloc(1, sizeof(*output));
    char *shown, text[16];
    feed(output, RULER "a box\n" RULER "[node:123] a remark\n\n", 4096, &shown);
    assert_false(job_output_first(output, text, sizeof(text)));
    free(shown);
    feed(output, "ssh: no such host anywhere\nmore\n", 4096, &shown);
    assert_true(job_output_first(output, text, sizeof(text)));
    assert_string_equal(text, "ssh: no such ho");
    free(shown);
    free(output);
}

static void test_the_last_of_it_is_kept(void **state)
{
    (void)state;
    struct job_output *output = calloc(1, sizeof(*output));
    char *shown, line[64];
    for (int i = 0; i < 5000; i++) {
        snprintf(line, sizeof(line), "line %d\n", i);
        feed(output, line, strlen(line), &shown);
        free(shown);
    }
    assert_true(output->n_kept <= sizeof(output->kept));
    assert_true(output->n_kept > sizeof(output->kept) - 64);
    assert_memory_equal(output->kept + output->n_kept - 10, "line 4999\n", 10);
    assert_memory_equal(output->kept, "line ", 5);
    free(output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log_lines_pass),
        cmocka_unit_test(test_the_first_line_that_is_not_mpiruns),
        cmocka_unit_test(test_the_last_of_it_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
