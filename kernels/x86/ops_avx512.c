/* Everything but matrix products for AVX-512: kernels/x86/ops.h, compiled for it. */
#include "kernels/x86/ops.h"

void kernels_init_ops_avx512(struct kernel_table *table)
{
    init_ops(table);
}
