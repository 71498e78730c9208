/* The device on which a rank computes some of its layers: --device, and how much of its memory may
 * be used, --vram.
 *
 * Nothing asked for: the CUDA device of the rank's number on its host (binding.h), if there is a
 * driver and a device that runs our kernels; else none, and a line of the log says why.
 *
 * Threads: one caller. */
#ifndef LEAN_LAUNCH_DEVICE_H
#define LEAN_LAUNCH_DEVICE_H

#include <stdint.h>

#include "launch/binding.h"
#include "proto/base/error.h"

struct backend;
struct rank_settings;

struct device {
    struct backend *backend; /* NULL: none, all layers are computed on the CPU */
    char name[96];           /* "cuda:0 (NVIDIA H100 80GB HBM3)" */
    char kind[24];           /* "cuda:0" */
    uint64_t budget_bytes;   /* of its memory */
};

/* LM_E_USAGE: --device is no device, or there is no such one. LM_E_UNSUPPORTED: what was asked for
 * is not there, or cannot run this. LM_E_NO_MEM, LM_E_FAIL: the device refused. */
enum lm_status device_open(struct device *out, const struct rank_settings *settings,
                           struct local_rank local, struct lm_error *err);
void device_close(struct device *device); /* legal of none */

#endif
