/* Names to repositories: lean-agent-35b:Q6_K to OWNER/NAME:Q6_K, with what it needs to run.
 *
 * The names come from texts of the message lean.Registry (proto/registry.proto). A name in a later
 * text replaces that of an earlier one.
 *
 * Threads: one owner; immutable once all texts are added. */
#ifndef LEAN_COORDINATOR_HUB_REGISTRY_H
#define LEAN_COORDINATOR_HUB_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/hub/hub_ref.h"
#include "proto/base/error.h"

struct hub_registry;

enum lm_status hub_registry_create(struct hub_registry **out, struct lm_error *err);
void hub_registry_destroy(struct hub_registry *registry); /* NULL is legal */

/* file: the text's name in messages. LM_E_USAGE: it is malformed, or a model lacks name or
 * repository. */
enum lm_status hub_registry_add(struct hub_registry *registry, const char *file, const char *text,
                                size_t n, struct lm_error *err);

/* What a variant needs; 0: not known. */
struct hub_need {
    uint64_t disk_bytes, ram_bytes, vram_bytes;
};

/* text: NAME[:VARIANT]. False: there is no such name. need may be NULL. */
bool hub_registry_find(const struct hub_registry *registry, const char *text, struct hub_ref *out,
                       struct hub_need *need);

/* The i-th name, strongest texts first; NULL after the last. summary may be NULL. */
const char *hub_registry_name(const struct hub_registry *registry, size_t i, const char **summary);

#endif
