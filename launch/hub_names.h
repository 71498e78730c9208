/* What a user calls a model of the hub, by the registry's names and by OWNER/NAME.
 *
 * The names are those of registry.textproto beside the program and, before them, of the same file
 * in the user's configuration folder. */
#ifndef LEAN_LAUNCH_HUB_NAMES_H
#define LEAN_LAUNCH_HUB_NAMES_H

#include "coordinator/hub/registry.h"

/* Reads both files. LM_E_USAGE: one is malformed. */
enum lm_status hub_names_open(struct hub_registry **out, struct lm_error *err);

/* LM_E_NOT_FOUND: text is no name; the message gives the nearest. LM_E_USAGE: it has a slash and is
 * not of the form OWNER/NAME[@REVISION][:VARIANT]. need: all 0 for what is not in the registry. */
enum lm_status hub_names_resolve(const struct hub_registry *registry, const char *text,
                                 struct hub_ref *out, struct hub_need *need, struct lm_error *err);

#endif
