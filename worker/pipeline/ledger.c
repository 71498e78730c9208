/* A backend that has addresses only. */
#include "worker/pipeline/ledger.h"

#include <stdlib.h>
#include <sys/mman.h>

/* A piece of address space that was handed out. */
struct piece {
    struct piece *next;
    void *memory;
    size_t n_bytes;
};

struct ledger {
    struct backend backend;
    struct piece *pieces;
    struct seq_state *state;
};

static void *ledger_alloc(struct backend *backend, size_t n_bytes, struct lm_error *err)
{
    struct ledger *ledger = (struct ledger *)backend;
    struct piece *piece = calloc(1, sizeof(*piece));
    void *memory = MAP_FAILED;
    if (piece)
        memory = mmap(NULL, n_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        free(piece);
        lm_fail(err, LM_E_NO_MEM, "pipeline: no addresses for %zu bytes", n_bytes);
        return NULL;
    }
    *piece = (struct piece){.next = ledger->pieces, .memory = memory, .n_bytes = n_bytes};
    ledger->pieces = piece;
    return memory;
}

static void ledger_free(struct backend *backend, void *memory)
{
    struct ledger *ledger = (struct ledger *)backend;
    struct piece **link = &ledger->pieces;
    while ((*link)->memory != memory)
        link = &(*link)->next;
    struct piece *const piece = *link;
    *link = piece->next;
    munmap(piece->memory, piece->n_bytes);
    free(piece);
}

static void ledger_upload(struct backend *backend, void *to, const void *from_host, size_t n_bytes)
{
    (void)backend, (void)to, (void)from_host, (void)n_bytes;
}

static void ledger_copy(struct backend *backend, void *to, const void *from, size_t n_bytes)
{
    (void)backend, (void)to, (void)from, (void)n_bytes;
}

/* All that a seq_state calls. */
static const struct backend_ops ledger_ops = {.name = "ledger",
                                              .alloc = ledger_alloc,
                                              .free = ledger_free,
                                              .upload = ledger_upload,
                                              .copy = ledger_copy};

enum lm_status ledger_create(struct ledger **out, const struct hparams *hp,
                             const struct seq_state_config *config, struct lm_error *err)
{
    struct ledger *ledger = calloc(1, sizeof(*ledger));
    if (!ledger) return lm_fail(err, LM_E_NO_MEM, "pipeline: no memory");
    ledger->backend.ops = &ledger_ops;
    const enum lm_status status =
        seq_state_create(&ledger->state, &ledger->backend, hp, config, err);
    if (status != LM_OK) {
        ledger_destroy(ledger);
        return status;
    }
    *out = ledger;
    return LM_OK;
}

void ledger_destroy(struct ledger *ledger)
{
    if (!ledger) return;
    seq_state_destroy(ledger->state);
    free(ledger);
}

struct seq_state *ledger_state(const struct ledger *ledger)
{
    return ledger->state;
}
