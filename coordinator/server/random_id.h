/* Identifiers that nobody can guess: "chatcmpl-" and 24 characters of [A-Za-z0-9]. */
#ifndef LEAN_COORDINATOR_SERVER_RANDOM_ID_H
#define LEAN_COORDINATOR_SERVER_RANDOM_ID_H

enum { RANDOM_ID_SIZE = 48 };

/* prefix: at most 20 characters. */
void random_id_make(char out[RANDOM_ID_SIZE], const char *prefix);

#endif
