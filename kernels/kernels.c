/* Which variants this CPU runs, and their tables. */
#include "kernels/kernels.h"

#include <cpuid.h>
#include <pthread.h>
#include <string.h>

enum { VARIANT_REF, VARIANT_AVX2, VARIANT_AVX512, VARIANT_COUNT };

/* Filled once by init_tables, constant afterwards. */
static struct kernel_table tables[VARIANT_COUNT];
static struct kernel_table reference;
static const char *available[VARIANT_COUNT + 1];
static int n_available;
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static bool cpu_has_avx2(void)
{
    unsigned eax, ebx, ecx, edx; /* clang 14 does not know "f16c" by name */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool cpu_has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

static struct kernel_table *add_variant(const char *name)
{
    struct kernel_table *table = &tables[n_available];
    if (n_available) *table = table[-1];
    table->name = available[n_available++] = name;
    return table;
}

static void init_tables(void)
{
    struct kernel_table *table = add_variant("ref");
    kernels_init_ref(table);
    if (cpu_has_avx2()) {
        table = add_variant("avx2");
        kernels_init_matmul_avx2(table);
        kernels_init_ops_avx2(table);
        if (cpu_has_avx512()) {
            table = add_variant("avx512");
            kernels_init_matmul_avx512(table);
            kernels_init_ops_avx512(table);
        }
    }
    reference = *table;
    reference.name = "reference";
    kernels_init_reference(&reference);
}

const struct kernel_table *kernels_select(const char *name)
{
    pthread_once(&tables_once, init_tables);
    if (!strcmp(name, "auto")) return &tables[n_available - 1];
    if (!strcmp(name, "reference")) return &reference;
    for (int i = 0; i < n_available; i++)
        if (!strcmp(name, tables[i].name)) return &tables[i];
    return NULL;
}

const char *const *kernels_available(void)
{
    pthread_once(&tables_once, init_tables);
    return available;
}

size_t act_row_bytes(enum act_type type, uint32_t n_col)
{
    if (type == ACT_F32) return ((size_t)n_col * sizeof(float) + 63) / 64 * 64;
    return ((size_t)n_col + QK - 1) / QK * sizeof(struct act_q8_k);
}
