/* TCP sockets between the ranks of a job, beside whatever carries their messages.
 *
 * Each rank opens a listener and writes its card; the cards are exchanged by other means (MPI);
 * then each connects to every rank below it and accepts from every rank above. A socket begins with
 * the token that rank 0 drew, so that no stranger gets in. Between two ranks on one machine they go
 * over loopback.
 *
 *   LIVE   from each rank to rank 0: who is alive (liveness.h)
 *   BELL   between each two: something was sent to you
 *
 * Limits: jobs of tens of ranks, as every rank holds a socket to every other. */
#ifndef LEAN_PROTO_TRANSPORT_RANK_SOCKETS_H
#define LEAN_PROTO_TRANSPORT_RANK_SOCKETS_H

#include <stdint.h>

#include "proto/base/error.h"

enum { RANK_ADDRESS_MAX = 8, RANK_TOKEN_SIZE = 16 };

/* What ranks know of each other; sent as it lies in memory. */
struct rank_card {
    char host[64];
    uint64_t machine;   /* equal: sockets of one network stack, reached over loopback */
    uint64_t pid_space; /* equal: the same process ids */
    int32_t pid;
    uint16_t port, n_address;
    struct {
        uint8_t is_v6, bytes[16];
    } address[RANK_ADDRESS_MAX];
    uint8_t token[RANK_TOKEN_SIZE]; /* of rank 0 counts */
};

/* network: "10.0.0.0/24" or an address, of the interface to use, or its name; NULL: any.
 * LM_E_USAGE: network is none of these or this machine has no address in it. */
enum lm_status rank_listener_open(int *listener, struct rank_card *card, const char *network,
                                  struct lm_error *err);

/* live: [n_rank], bell: [n_rank]; -1 where there is none. The caller closes them, after a failure
 * too, and the listener. LM_E_RANK_LOST: a rank could not be reached, or did not come in time. */
enum lm_status rank_sockets_connect(int listener, const struct rank_card *cards, uint32_t rank,
                                    uint32_t n_rank, double timeout_s, int *live, int *bell,
                                    struct lm_error *err);

#endif
