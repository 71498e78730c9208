/* Places, nearest first. */
#include "launch/share_path.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The folder of the running program, without a slash at its end; false if it cannot be told. */
static bool program_folder(char path[PATH_MAX])
{
    const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (n <= 0) return false;
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    if (slash) *slash = '\0';
    return slash != NULL;
}

/* FOLDER/BELOW/NAME if it is there. */
static char *find_in(const char *folder, const char *below, const char *name)
{
    char *path;
    if (asprintf(&path, "%s%s/%s", folder, below, name) < 0) return NULL;
    if (!access(path, R_OK)) return path;
    free(path);
    return NULL;
}

char *share_path(const char *name)
{
    char program[PATH_MAX], *path = NULL;
    static const char *const beside[] = {"/../share/lean", "/../configs"};
    const bool known = program_folder(program);
    for (size_t i = 0; known && !path && i < sizeof(beside) / sizeof(beside[0]); i++)
        path = find_in(program, beside[i], name);
    return path ? path : find_in(LEAN_SHARE_DIR, "", name);
}
