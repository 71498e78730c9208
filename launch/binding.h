/* What of its host each rank gets: NUMA nodes for its threads, a device.
 *
 *   ranks of one host     0     1     2     3        nodes are divided in order, so that a rank has
 *   2 nodes              [  node 0  ][  node 1  ]    whole ones or shares one with its neighbours
 *
 * mpirun is told not to bind (launch/mpirun.h): by default it would squeeze all threads of a rank
 * onto one core. On a host with one node nothing is bound, ranks only divide the number of cores.
 */
#ifndef LEAN_LAUNCH_BINDING_H
#define LEAN_LAUNCH_BINDING_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/error.h"

/* One of the ranks of a host. */
struct local_rank {
    uint32_t index, n; /* index < n */
};

/* Nodes begin .. end of n_node, at least one. */
void binding_nodes(struct local_rank rank, uint32_t n_node, uint32_t *begin, uint32_t *end);

/* Which of the n_device devices of its host the rank takes. list: "2,0", the devices to use, by
 * number or UUID, that of the first rank first; NULL: 0, 1, ... uuids: [n_device], or NULL. Where
 * there are fewer than ranks they begin anew: a launcher may show each rank one of its own as its
 * only one, and whether two have the same is seen when all are known (device_share). LM_E_USAGE:
 * list is no such list, names one twice or one that there is not. n_device > 0. */
enum lm_status binding_device(struct local_rank rank, const char *list, const char *const *uuids,
                              uint32_t n_device, uint32_t *out, struct lm_error *err);

/* Where the calling thread ran before. */
struct binding;

/* Binds the calling thread, and so those that it starts, to the rank's nodes, and says so in the
 * log. NULL: it is not bound, since there is one node only, or one rank, or the system refuses. */
struct binding *binding_begin(struct local_rank rank);
/* The calling thread runs again where it did. NULL is legal. */
void binding_end(struct binding *binding);

#endif
