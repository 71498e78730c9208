/* libnvidia-ml with two devices, by its documented interface: one tells all, the other neither
 * power nor energy. The counter moves by 5 J from question to question. */
#include <stdio.h>
#include <stdlib.h>

#pragma GCC visibility push(default)
int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlSystemGetDriverVersion(char *text, unsigned n);
int nvmlDeviceGetCount_v2(unsigned *n);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device);
int nvmlDeviceGetName(void *device, char *text, unsigned n);
int nvmlDeviceGetPowerUsage(void *device, unsigned *power_mw);
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy_mj);
#pragma GCC visibility pop

enum { NOT_SUPPORTED = 3 };
static int is_init;

int nvmlInit_v2(void)
{
    is_init = 1;
    return 0;
}

int nvmlShutdown(void)
{
    if (!is_init) abort();
    is_init = 0;
    return 0;
}

int nvmlSystemGetDriverVersion(char *text, unsigned n)
{
    snprintf(text, n, "600.1");
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *n)
{
    if (!is_init) abort();
    *n = 2;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    static char handles[2];
    *device = &handles[index];
    return 0;
}

static int index_of(void *device)
{
    void *first;
    nvmlDeviceGetHandleByIndex_v2(0, &first);
    return device != first;
}

int nvmlDeviceGetName(void *device, char *text, unsigned n)
{
    snprintf(text, n, "Stand-in %d", index_of(device));
    return 0;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *power_mw)
{
    *power_mw = 123456;
    return index_of(device) ? NOT_SUPPORTED : 0;
}

/* What was counted outlives the library, which is loaded anew for each question. */
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy_mj)
{
    if (index_of(device)) return NOT_SUPPORTED;
    const char *before = getenv("STAND_IN_MJ");
    char now[32];
    *energy_mj = (before ? strtoull(before, NULL, 10) : 1000000) + 5000;
    snprintf(now, sizeof(now), "%llu", *energy_mj);
    setenv("STAND_IN_MJ", now, 1);
    return 0;
}
