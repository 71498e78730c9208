/* cmocka with the headers that it wants included before it. */
#ifndef LEAN_TESTS_UNIT_CMOCKA_ALL_H
#define LEAN_TESTS_UNIT_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#endif
