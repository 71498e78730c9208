/* Everything but matrix products, for avx512. */
#include "kernels/kernels.h"

void kernels_init_ops_avx512(struct kernel_table *table)
{
    (void)table;
}
