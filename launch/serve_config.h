/* From the options of `lean serve` to what the server is made with. */
#ifndef LEAN_LAUNCH_SERVE_CONFIG_H
#define LEAN_LAUNCH_SERVE_CONFIG_H

#include "proto/base/error.h"

struct options;
struct server_config;

/* path: of the model, which is called after it unless --name says otherwise. Strings are borrowed
 * from the options. LM_E_USAGE: a value that cannot be. serve_config_fini is called for all the
 * same, once the server is gone. */
enum lm_status serve_config_init(struct server_config *config, const struct options *options,
                                 const char *path, struct lm_error *err);
void serve_config_fini(struct server_config *config);

#endif
