/* Runs a fuzz target over the files of the folders and paths given: the committed corpus as an
 * ordinary test, and any crash file by hand. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat info;
    if (!file || fstat(fileno(file), &info)) {
        perror(path);
        return 0;
    }
    const size_t size = (size_t)info.st_size;
    uint8_t *data = malloc(size ? size : 1);
    const size_t got = data ? fread(data, 1, size, file) : 0;
    fclose(file);
    if (got == size) LLVMFuzzerTestOneInput(data, size);
    free(data);
    return got == size;
}

static int run_folder(const char *path)
{
    DIR *folder = opendir(path);
    int n_run = 0;
    if (!folder) return 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        char name[4096];
        snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        n_run += run_file(name);
    }
    closedir(folder);
    return n_run;
}

int main(int argc, char **argv)
{
    int n_run = 0;
    for (int i = 1; i < argc; i++) {
        struct stat info;
        if (!stat(argv[i], &info) && S_ISDIR(info.st_mode))
            n_run += run_folder(argv[i]);
        else
            n_run += run_file(argv[i]);
    }
    printf("%d inputs replayed\n", n_run);
    return n_run ? 0 : 1;
}
