/* Everything but matrix products for AVX2: kernels/x86/ops.h, compiled for it. */
#include "kernels/x86/ops.h"

void kernels_init_ops_avx2(struct kernel_table *table)
{
    init_ops(table);
}
