/* libnvidia-ml, by the few functions that are needed of it. */
#include "launch/bench/accelerator.h"

#include <dlfcn.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <string.h>

enum { N_DEVICE_MAX = 64, TEXT_BYTES = 96 };

/* Each returns 0 for success. */
struct nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*driver)(char *text, unsigned n);
    int (*count)(unsigned *n);
    int (*device)(unsigned index, void **out);
    int (*name)(void *device, char *text, unsigned n);
    int (*power_mw)(void *device, unsigned *out);
    int (*energy_mj)(void *device, unsigned long long *out);
};

static bool find(const struct nvml *nvml, const char *name, void *out)
{
    void *const symbol = dlsym(nvml->library, name);
    memcpy(out, &symbol, sizeof(symbol)); /* of data to functions C knows no cast */
    return symbol != NULL;
}

static void nvml_close(struct nvml *nvml)
{
    nvml->shutdown();
    dlclose(nvml->library);
}

static bool nvml_open(struct nvml *nvml)
{
    nvml->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!nvml->library) return false;
    if (find(nvml, "nvmlInit_v2", &nvml->init) && find(nvml, "nvmlShutdown", &nvml->shutdown) &&
        find(nvml, "nvmlSystemGetDriverVersion", &nvml->driver) &&
        find(nvml, "nvmlDeviceGetCount_v2", &nvml->count) &&
        find(nvml, "nvmlDeviceGetHandleByIndex_v2", &nvml->device) &&
        find(nvml, "nvmlDeviceGetName", &nvml->name) &&
        find(nvml, "nvmlDeviceGetPowerUsage", &nvml->power_mw) &&
        find(nvml, "nvmlDeviceGetTotalEnergyConsumption", &nvml->energy_mj) && nvml->init() == 0)
        return true;
    dlclose(nvml->library);
    return false;
}

static unsigned n_device(const struct nvml *nvml)
{
    unsigned n = 0;
    if (nvml->count(&n) != 0) return 0;
    return n < N_DEVICE_MAX ? n : N_DEVICE_MAX;
}

static struct json_object *describe(const struct nvml *nvml, void *device)
{
    struct json_object *json = json_object_new_object();
    char name[TEXT_BYTES], driver[TEXT_BYTES];
    unsigned power_mw;
    json_object_object_add(
        json, "name", nvml->name(device, name, sizeof(name)) ? NULL : json_object_new_string(name));
    json_object_object_add(json, "driver",
                           nvml->driver(driver, sizeof(driver)) ? NULL
                                                                : json_object_new_string(driver));
    json_object_object_add(
        json, "power_w",
        nvml->power_mw(device, &power_mw) ? NULL : json_object_new_double(power_mw / 1e3));
    return json;
}

struct json_object *accelerator_list(void)
{
    struct nvml nvml;
    struct json_object *list = NULL;
    void *device;
    if (!nvml_open(&nvml)) return NULL;
    for (unsigned i = 0; i < n_device(&nvml); i++) {
        if (nvml.device(i, &device) != 0) continue;
        if (!list) list = json_object_new_array();
        json_object_array_add(list, describe(&nvml, device));
    }
    nvml_close(&nvml);
    return list;
}

double accelerator_energy_j(void)
{
    struct nvml nvml;
    double sum_j = -1;
    void *device;
    unsigned long long energy_mj;
    if (!nvml_open(&nvml)) return -1;
    for (unsigned i = 0; i < n_device(&nvml); i++)
        if (nvml.device(i, &device) == 0 && nvml.energy_mj(device, &energy_mj) == 0)
            sum_j = (sum_j < 0 ? 0 : sum_j) + (double)energy_mj / 1e3;
    nvml_close(&nvml);
    return sum_j;
}
