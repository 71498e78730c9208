/* What `lean run` shows on stderr from when it begins to read a prompt until the answer starts.
 *
 * A model whose experts are all in memory gets a progress bar. One whose experts are paged gets
 *
 *   reading prompt 1024/2048 tok, layer 17 of 40   26.9 tok/s
 *   memory  ███████████▌          1228 of 2560 experts   2.31 of 4.82 GiB
 *   disk    812 MiB/s   3.41 GiB read
 *   hits     63% ▃▃▄▅▅▆▅▆▆▆▇▆▇▇▆▇▇▇▇▇▇█▇▇▇█▇█▇██▇█▇█▇██▇█
 *
 * drawn anew in place, with a second bar below the first where a device has slots, too: experts in
 * slots of how many, what the disk gave in the last second, and the
 * share of its experts that every layer found in memory since the view began, one block a layer in
 * at most two lines (more layers share a block, `·` has not run). Where nothing can be redrawn, a
 * line says the same every ten seconds.
 *
 * Of several ranks it shows all layers, whenever a piece of the prompt has been read: they tell
 * what they have between steps.
 *
 * Threads: that which runs the engine: of one rank the pager calls the view while it works, so a
 *          view that has ended costs nothing. */
#ifndef LEAN_LAUNCH_LOADING_VIEW_H
#define LEAN_LAUNCH_LOADING_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/base/log.h"
#include "proto/model/hparams.h"
#include "worker/pager/pager_snapshot.h"

struct engine;

struct loading_view {
    struct engine *engine; /* NULL: the view has ended */
    bool paged, alone;     /* alone: one rank */
    struct pager_snapshot now;
    struct log_bar bar; /* if not paged */
    size_t n_done, n_total;
    double started_s, shown_s;
    double rate_s, rate; /* when the disk's rate was taken, bytes/s */
    uint64_t rate_bytes; /* read by then */
    struct {
        uint64_t n_lookup, n_hit;
    } before[HPARAMS_MAX_LAYER]; /* when the view began */
};

/* The view must stay where it is until its end. */
void loading_view_begin(struct loading_view *view, struct engine *engine);
/* Tokens of the prompt that have been read. */
void loading_view_prompt(struct loading_view *view, size_t n_done, size_t n_total);
/* Erases it; legal more than once. */
void loading_view_end(struct loading_view *view);

#endif
