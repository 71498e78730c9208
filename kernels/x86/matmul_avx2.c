/* Matrix products for avx2. */
#include "kernels/kernels.h"

void kernels_init_matmul_avx2(struct kernel_table *table)
{
    (void)table;
}
