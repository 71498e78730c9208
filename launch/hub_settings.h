/* Where the hub is and where its files are kept: from options and the public variables.
 *
 *   cache     --cache-dir, LEAN_CACHE, HF_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub,
 *             ~/.cache/huggingface/hub, the first that is set
 *   endpoint  --endpoint, HF_ENDPOINT, https://huggingface.co
 *   token     --token-file; unless HF_HUB_DISABLE_IMPLICIT_TOKEN is on: HF_TOKEN, the file
 *             HF_TOKEN_PATH, the file `token` in HF_HOME, in ~/.cache/huggingface
 *   offline   HF_HUB_OFFLINE */
#ifndef LEAN_LAUNCH_HUB_SETTINGS_H
#define LEAN_LAUNCH_HUB_SETTINGS_H

#include <stdbool.h>

#include "proto/base/error.h"

struct hub_settings {
    char *cache;    /* absolute unless given otherwise, without a slash at its end */
    char *endpoint; /* the same */
    char *token;    /* NULL: none */
    bool offline;
};

/* cache, endpoint, token_file: what options say, or NULL. LM_E_USAGE: an endpoint that is no URL;
 * LM_E_NOT_FOUND, LM_E_IO: the token file cannot be read. */
enum lm_status hub_settings_read(struct hub_settings *out, const char *cache, const char *endpoint,
                                 const char *token_file, struct lm_error *err);
void hub_settings_free(struct hub_settings *settings);

#endif
