/* Status codes of the whole program.
 *
 * Every function that can fail returns one of these; the text that explains it travels beside it
 * in struct lm_error (error.h). lm_exit_code maps a status to the process's documented exit code,
 * so that a failure keeps its meaning from where it is found to the shell. */
#ifndef LEAN_PROTO_BASE_STATUS_H
#define LEAN_PROTO_BASE_STATUS_H

enum lm_status {
    LM_OK = 0,
    LM_E_FAIL,        /* anything without a more precise name */
    LM_E_USAGE,       /* wrong option, argument, configuration or request */
    LM_E_NOT_FOUND,   /* no such file, model, revision, server */
    LM_E_NETWORK,     /* the network failed after retries */
    LM_E_FORMAT,      /* malformed, truncated or corrupt input */
    LM_E_NO_SPACE,    /* disk full or over quota */
    LM_E_AUTH,        /* authentication failed, gated repository */
    LM_E_BUSY,        /* lock held, port in use, server full */
    LM_E_UNSUPPORTED, /* a valid input of a kind this program does not have */
    LM_E_NO_MEM,      /* does not fit in memory */
    LM_E_LIMIT,       /* a stated bound was exceeded */
    LM_E_MISMATCH,    /* a check or comparison that was asked for did not hold */
    LM_E_RANK_LOST,   /* a rank or link was lost */
    LM_E_DEVICE_LOST, /* a GPU does not answer any more */
    LM_E_IO,          /* a read or write failed */
    LM_E_INTERRUPTED, /* stopped by SIGINT or by the caller */
    LM_STATUS_COUNT
};

/* "malformed input" and the like; never NULL. */
const char *lm_status_name(enum lm_status status);

/* The process exit code for a status: README lists them. */
int lm_exit_code(enum lm_status status);

#endif
