/* Which files a model is, as publishers name them. */
#include <stdlib.h>

#include "coordinator/hub/hub_files.h"
#include "tests/unit/cmocka_all.h"

static struct hub_files list(const char *const *paths, size_t n)
{
    struct hub_files files = {0};
    for (size_t i = 0; i < n; i++)
        assert_int_equal(hub_files_add(&files, paths[i], 100 + i, "", NULL), LM_OK);
    hub_files_sort(&files);
    return files;
}

/* The number of files chosen, or minus the status. */
static int choose(const struct hub_files *files, const struct hub_wish *wish, char main_path[100])
{
    struct hub_choice choice = {0};
    const enum lm_status status = hub_choose(files, wish, &choice, NULL);
    if (status != LM_OK) return -(int)status;
    const int n = (int)choice.n;
    strcpy(main_path, choice.main_path ? choice.main_path : "");
    hub_choice_free(&choice);
    return n;
}

static const char *const published[] = {
    "README.md",
    "mmproj-BF16.gguf",
    "imatrix.gguf",
    "BF16/M-BF16-00001-of-00002.gguf",
    "BF16/M-BF16-00002-of-00002.gguf",
    "M-Q4_K_M.gguf",
    "M-Q4_K_S.gguf",
    "M-UD-Q4_K_XL.gguf",
    "m.q8_0.gguf",
    "M-IQ3_XXS.gguf",
};
enum { N_PUBLISHED = sizeof(published) / sizeof(published[0]) };

static void test_variants(void **state)
{
    static const struct {
        const char *variant, *main_path;
        int n;
    } wishes[] = {
        {NULL, "M-Q4_K_M.gguf", 1},
        {"", "M-Q4_K_M.gguf", 1},
        {"q4_k_s", "M-Q4_K_S.gguf", 1},
        {"Q8_0", "m.q8_0.gguf", 1},
        {"bf16", "BF16/M-BF16-00001-of-00002.gguf", 2},
        {"UD-Q4_K_XL", "M-UD-Q4_K_XL.gguf", 1},
        {"Q4_K_XL", "M-UD-Q4_K_XL.gguf", 1},
        {"IQ3_XXS", "M-IQ3_XXS.gguf", 1},
        {"Q4_K", "", -LM_E_NOT_FOUND}, /* not delimited in any */
        {"M", "", -LM_E_USAGE},        /* in several */
    };
    struct hub_files files = list(published, N_PUBLISHED);
    char main_path[100];
    (void)state;
    for (size_t i = 0; i < sizeof(wishes) / sizeof(wishes[0]); i++) {
        const struct hub_wish wish = {.variant = wishes[i].variant};
        assert_int_equal(choose(&files, &wish, main_path), wishes[i].n);
        if (wishes[i].n > 0) assert_string_equal(main_path, wishes[i].main_path);
    }
    hub_files_free(&files);
}

static void test_globs_keep_the_numbers_of_files(void **state)
{
    static const char *const excludes[] = {"*Q4_K_M*", "BF16/*"};
    const struct hub_wish wish = {.variant = "Q8_0", .excludes = excludes, .n_exclude = 2};
    struct hub_files files = list(published, N_PUBLISHED);
    struct hub_choice choice;
    (void)state;
    assert_int_equal(hub_choose(&files, &wish, &choice, NULL), LM_OK);
    assert_int_equal(choice.n, 1);
    assert_string_equal(files.file[choice.index[0]].path, "m.q8_0.gguf");
    hub_choice_free(&choice);
    hub_files_free(&files);
}

static void test_packs(void **state)
{
    static const char *const paths[] = {"M-Q4_K_M.gguf",
                                        "M-Q4_K_M.lmpack/dense.gguf",
                                        "M-Q4_K_M.lmpack/experts-000.bin",
                                        "M-Q4_K_M.lmpack/experts-011.bin",
                                        "M-Q4_K_M.lmpack/manifest.pb",
                                        "M-Q4_K_M.lmpack/notes.txt"};
    static const char *const root[] = {"dense.gguf", "experts-000.bin", "manifest.pb"};
    char main_path[100];
    (void)state;
    struct hub_files files = list(paths, 6);
    const struct hub_wish all = {0};
    const struct hub_wish some = {.has_layers = true, .first_layer = 1, .last_layer = 20};
    assert_int_equal(choose(&files, &all, main_path), 4);
    assert_string_equal(main_path, "M-Q4_K_M.lmpack/dense.gguf");
    assert_int_equal(choose(&files, &some, main_path), 3);
    hub_files_free(&files);
    files = list(root, 3);
    assert_int_equal(choose(&files, &all, main_path), 3);
    hub_files_free(&files);
}

static void test_names_that_lead_elsewhere(void **state)
{
    static const char *const paths[] = {"",     "/a",   "a/",   "../a",   "a/../b",   "a/.",
                                        "a//b", "a\nb", "a\\b", "a/\x7f", "a\xc2\x9b"};
    struct hub_files files = {0};
    (void)state;
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
        assert_int_equal(hub_files_add(&files, paths[i], 1, "", NULL), LM_E_FORMAT);
    hub_files_free(&files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_globs_keep_the_numbers_of_files),
        cmocka_unit_test(test_packs),
        cmocka_unit_test(test_names_that_lead_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
