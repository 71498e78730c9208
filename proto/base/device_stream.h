/* A stream of a device beside that of its operations, for a library that moves memory between
 * devices (NCCL). What is put on it runs in order; how far it gets beside the operations is up to
 * the device.
 *
 * Errors:    as of operations: the backend keeps them, and its next sync reports them. reached
 *            tells at once.
 * Ownership: the backend's, open as long as that is; one for each.
 * Threads:   as the backend's, reached from any. */
#ifndef LEAN_PROTO_BASE_DEVICE_STREAM_H
#define LEAN_PROTO_BASE_DEVICE_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

struct device_stream {
    const struct device_stream_ops *ops;
    void *handle; /* a cudaStream_t */
};

/* Points that can be told apart: those of older marks are reached with the oldest of these. */
enum { DEVICE_STREAM_POINTS = 32 };

struct device_stream_ops {
    /* What is put on the stream from here on runs behind the operations called so far. The device
     * becomes that of the calling thread. */
    void (*after_operations)(struct device_stream *stream);
    /* A point behind what is on the stream. */
    uint64_t (*mark)(struct device_stream *stream);
    /* Operations called from here on run behind a point. */
    void (*before_operations)(struct device_stream *stream, uint64_t point);
    /* Whether all before a point is done. LM_E_FAIL: the device is lost. */
    enum lm_status (*reached)(struct device_stream *stream, uint64_t point, bool *reached,
                              struct lm_error *err);
};

#endif
