/* Bodies that come compressed. */
#ifndef LEAN_COORDINATOR_SERVER_HTTP_BODY_H
#define LEAN_COORDINATOR_SERVER_HTTP_BODY_H

#include "coordinator/server/api_error.h"
#include "proto/base/byte_buffer.h"

/* Replaces gzip data by what it holds, at most max bytes. Fills error: broken data, or more. */
bool http_body_gunzip(struct byte_buffer *body, size_t max, struct api_error *error);

#endif
