/* The sample, made from sample.txt by the build. */
#include "launch/bench/sample.h"

#include "launch/bench/sample_text.h"

const char *sample_text(size_t *n)
{
    *n = sizeof(SAMPLE_TEXT);
    return SAMPLE_TEXT;
}
