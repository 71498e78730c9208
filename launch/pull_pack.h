/* `lean pull --pack`: a GGUF file becomes a pack while it is downloaded, and is not kept.
 *
 * A thread packs layer after layer as their bytes arrive; the disk space of what is in the pack and
 * hashed is given back. So beside the pack there is never much more than what the packer is behind,
 * and everything that is no expert. The pack takes its name when every byte of the source was held
 * against its hash.
 *
 * A run that was interrupted keeps the layers it has packed, but fetches their bytes again: without
 * them the source's hash could not be told, and the layers not be held against it. */
#ifndef LEAN_LAUNCH_PULL_PACK_H
#define LEAN_LAUNCH_PULL_PACK_H

#include <signal.h>

#include "coordinator/hub/pull.h"

struct pull_pack;

/* is_interrupted: borrowed, may be NULL. */
enum lm_status pull_pack_create(struct pull_pack **out, const volatile sig_atomic_t *is_interrupted,
                                struct lm_error *err);
void pull_pack_destroy(struct pull_pack *pack); /* NULL is legal */
const struct pull_user *pull_pack_user(const struct pull_pack *pack);

#endif
