/* The device on which a rank computes some of its layers: --device, and how much of its memory may
 * be used, --vram.
 *
 * Nothing asked for: the CUDA device of the rank's number on its host (binding.h), if there is a
 * driver and a device that runs our kernels; else none, and a line of the log says why.
 *
 * Threads: one caller. */
#ifndef LEAN_LAUNCH_DEVICE_H
#define LEAN_LAUNCH_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "launch/binding.h"
#include "proto/base/error.h"

struct backend;
struct rank_settings;

struct device {
    struct backend *backend; /* NULL: none, all layers are computed on the CPU */
    char name[96];           /* "cuda:0 (NVIDIA H100 80GB HBM3)" */
    char kind[24];           /* "cuda:0" */
    char uuid[40];           /* "": it is emulated, and every process has its own */
    uint64_t budget_bytes;   /* of its memory */
    const char *plugin;      /* as of struct backend_cuda_config */
    uint32_t index;
    bool fast; /* its numerics are */
};

/* LM_E_USAGE: --device is no device, or there is no such one. LM_E_UNSUPPORTED: what was asked for
 * is not there, or cannot run this. LM_E_NO_MEM, LM_E_FAIL: the device refused. */
enum lm_status device_open(struct device *out, const struct rank_settings *settings,
                           struct local_rank local, struct lm_error *err);
void device_close(struct device *device); /* legal of none */
/* What is free of an open device's memory now, but the reserve; UINT64_MAX: it does not say. */
uint64_t device_spare_bytes(const struct device *device);
/* When everything is allocated: a warning if hardly anything is left, for then whatever another
 * program takes slows both down, or ends one of them. */
void device_recheck(const struct device *device);

/* What one rank of a job wants of its device. */
struct device_claim {
    const char *host, *uuid; /* uuid: "": it has none that others could have, too */
    const char *rank, *name; /* for messages: whose, of which device */
    bool share;              /* it may be another rank's, too */
    uint64_t asked_bytes;    /* 0: what is free */
    uint64_t budget_bytes;   /* that it found; out: its part */
};
/* Ranks that have one device in common divide what it has: who asked for a size gets it. claims:
 * [n]. LM_E_USAGE: they have one in common, and not all of them may share it. */
enum lm_status device_share(struct device_claim *claims, uint32_t n, struct lm_error *err);

#endif
