/* The folders of PATH. */
#include "launch/find_program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launch/config.h"

bool find_program(const char *name)
{
    const char *const variable = config_environment("PATH");
    char *const paths = strdup(variable ? variable : "");
    bool found = false;
    char *state = NULL;
    for (char *folder = paths ? strtok_r(paths, ":", &state) : NULL; folder && !found;
         folder = strtok_r(NULL, ":", &state)) {
        char path[4096];
        snprintf(path, sizeof(path), "%.4000s/%.80s", folder, name);
        found = access(path, X_OK) == 0;
    }
    free(paths);
    return found;
}
