/* Matrix products for avx512: kernels/x86/matmul_quant.h and matmul_float.h, compiled for it. */
#include "kernels/x86/matmul_float.h"
#include "kernels/x86/matmul_quant.h"

void kernels_init_matmul_avx512(struct kernel_table *table)
{
    init_matmul_quant(table);
    init_matmul_float(table);
}
