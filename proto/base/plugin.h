/* Parts of the program that need libraries which may be absent: shared objects opened at run time.
 *
 * A plugin exports one symbol, lean_plugin_v1, a function that returns its table. Every table
 * begins with struct plugin_head. It is refused unless it was built together with the program.
 *
 *   searched   $LEAN_PLUGIN_DIR alone if it is set, else the program's folder and ../lib/lean from
 * there
 *
 * Once open it stays: what it links to does not survive dlclose. */
#ifndef LEAN_PROTO_BASE_PLUGIN_H
#define LEAN_PROTO_BASE_PLUGIN_H

#include <stddef.h>

#include "proto/base/error.h"

#ifndef LEAN_BUILD_ID
#define LEAN_BUILD_ID LEAN_VERSION
#endif

struct plugin_head {
    size_t size; /* of the whole table */
    const char *build_id;
};

typedef const struct plugin_head *plugin_fn(void);
#define PLUGIN_EXPORT __attribute__((visibility("default")))

/* file: "liblean_mpi.so". LM_E_UNSUPPORTED: not there, it or a library that it needs cannot be
 * loaded, or it is of another build. */
enum lm_status plugin_open(const struct plugin_head **out, const char *file, size_t table_size,
                           struct lm_error *err);

#endif
