/* /sys/class/powercap/intel-rapl:N: one folder for each package. */
#include "launch/bench/energy.h"

#include <stdio.h>

enum { N_PACKAGE_MAX = 64 };

double energy_read_j(void)
{
    double sum_j = -1;
    for (int i = 0; i < N_PACKAGE_MAX; i++) {
        char path[80];
        unsigned long long energy_uj;
        snprintf(path, sizeof(path), "/sys/class/powercap/intel-rapl:%d/energy_uj", i);
        FILE *file = fopen(path, "re");
        if (!file) break;
        if (fscanf(file, "%llu", &energy_uj) == 1)
            sum_j = (sum_j < 0 ? 0 : sum_j) + (double)energy_uj / 1e6;
        fclose(file);
    }
    return sum_j;
}

double energy_since_j(double reading_j)
{
    const double now_j = reading_j < 0 ? -1 : energy_read_j();
    return now_j <= reading_j ? -1 : now_j - reading_j; /* some hosts show a 0 that stays */
}
