/* Matrix products for avx512. */
#include "kernels/kernels.h"

void kernels_init_matmul_avx512(struct kernel_table *table)
{
    (void)table;
}
