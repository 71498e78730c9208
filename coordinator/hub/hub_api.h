/* What the hub says about a repository.
 *
 *   GET ENDPOINT/api/models/OWNER/NAME/revision/REVISION          -> {"sha": COMMIT, ...}
 *   GET ENDPOINT/api/models/OWNER/NAME/tree/COMMIT?recursive=true -> [{"type": "file", "path",
 *       "size", "oid", "lfs": {"oid", "size"}}, ...], further pages by Link: <...>; rel="next"
 *   GET ENDPOINT/OWNER/NAME/resolve/COMMIT/PATH                   -> the bytes, or a redirect
 *
 * A mirror that serves plain files under these names will do.
 *
 * Threads: functions of their arguments. */
#ifndef LEAN_COORDINATOR_HUB_HUB_API_H
#define LEAN_COORDINATOR_HUB_HUB_API_H

#include "coordinator/hub/hub_files.h"
#include "coordinator/hub/hub_http.h"

/* LM_E_NOT_FOUND, LM_E_AUTH, LM_E_NETWORK; LM_E_FORMAT: the answer is not what it should be. */
enum lm_status hub_api_resolve(const struct hub_http *http, const char *repo, const char *revision,
                               char commit[41], struct lm_error *err);

/* All files, sorted by path. files: empty. */
enum lm_status hub_api_list(const struct hub_http *http, const char *repo, const char *commit,
                            struct hub_files *files, struct lm_error *err);

/* Where a file is, malloc'ed; NULL: no memory. */
char *hub_api_file_url(const struct hub_http *http, const char *repo, const char *commit,
                       const char *path);

#endif
