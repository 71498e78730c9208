/* What a user calls a model of the hub: [hf:]OWNER/NAME[@REVISION][:VARIANT].
 *
 * Threads: pure functions. */
#ifndef LEAN_COORDINATOR_HUB_HUB_REF_H
#define LEAN_COORDINATOR_HUB_HUB_REF_H

#include <stdbool.h>

struct hub_ref {
    char repo[200];     /* OWNER/NAME */
    char revision[200]; /* branch, tag or commit; "" if not given */
    char variant[80];   /* "" if not given */
};

/* False: text is not of that form. Owner and name are letters, digits, '-', '_' and '.', and no
 * part of a revision is "..", so that each can be part of a path. */
bool hub_ref_parse(struct hub_ref *out, const char *text);
/* Whether a revision can be part of a path and of a URL. */
bool hub_ref_is_revision(const char *text);
/* Whether it is a commit: 40 hexadecimal digits in lower case. */
bool hub_ref_is_commit(const char *text);

#endif
