/* Programs that may or may not be installed. */
#ifndef LEAN_LAUNCH_FIND_PROGRAM_H
#define LEAN_LAUNCH_FIND_PROGRAM_H

#include <stdbool.h>

/* Whether a folder of PATH has it. */
bool find_program(const char *name);

#endif
