/* Fetches files in ranges over several connections.
 *
 * Files are taken in their order, and the ranges of each that are missing, in theirs. A lane is a
 * connection: it takes a range, asks for it where the endpoint redirects to, and writes what comes
 * to its place. What a lane does not bring goes back to the ranges that are missing:
 *
 *   missing --lane takes it--> in flight --all bytes came--> there
 *      ^------- failed, or less came ------+
 *
 *   connection errors, time-outs, stalls, 408, 429, 5xx   the lane waits: 1, 2, 4 ... 60 s; or, if
 *                                                         the server says how long, all lanes do
 *   401, 403, 410 of the storage host                     the signed URL has expired: the endpoint
 *                                                         is asked again
 *   200 instead of 206                                    the server ignores ranges: this file goes
 *                                                         over one connection, from its start
 *   another size, or another hash in the end              the file starts over, once
 *
 * It gives up when a lane or a range has failed eight times while nothing came.
 *
 * Threads: the caller's; part_keeper has two more. */
#ifndef LEAN_COORDINATOR_HUB_DOWNLOAD_H
#define LEAN_COORDINATOR_HUB_DOWNLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/error.h"

struct hub_http;
struct part_file;

struct download_file {
    const char *name; /* for messages */
    const char *url;  /* at the endpoint */
    const char *hash; /* expected; NULL: not to be checked */
    struct part_file *part;
    uint64_t head_bytes; /* of its start that come before anything else of all files */
    uint64_t n_fetched;  /* out: bytes that came over the network */
};

struct download_config {
    const struct hub_http *http;
    uint32_t n_connection;
    uint64_t segment_bytes; /* largest range of one request */
    uint64_t rate_bytes;    /* bytes per second of all together; 0: no limit */
    bool restarts;          /* a file that is wrong is fetched again, once */
    /* Several times a second; not LM_OK ends the download. */
    enum lm_status (*on_tick)(void *context, struct lm_error *err);
    /* File i is whole, right and on the disk. */
    enum lm_status (*on_done)(void *context, size_t i, struct lm_error *err);
    /* File i is fetched again from its start. */
    void (*on_restart)(void *context, size_t i, const char *why);
    void *context;
};

/* LM_E_NETWORK: gave up; LM_E_FORMAT: size or hash are wrong for the second time, and the file is
 * discarded; LM_E_AUTH, LM_E_NOT_FOUND: says the endpoint; LM_E_NO_SPACE; LM_E_INTERRUPTED. What
 * came is in the part files and their journals, whatever the end. */
enum lm_status download_run(struct download_file *files, size_t n,
                            const struct download_config *config, struct lm_error *err);

#endif
