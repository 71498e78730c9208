/* Lines made from the pager's counters. */
#include "launch/loading_view.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "launch/engine.h"
#include "launch/pager_report.h"
#include "launch/terminal/text_width.h"
#include "worker/pager/expert_pager.h"

enum {
    HIT_LINES_MAX = 2,
    HIT_COLUMN = 13, /* where the blocks begin */
    BAR_COLUMNS = 20,
    BLOCKS_MAX = HPARAMS_MAX_LAYER, /* in all lines */
    TEXT_MAX = 4 * BLOCKS_MAX + 768
};

static const double first_s = 0.3, redraw_s = 0.1, plain_s = 10, rate_window_s = 1;

struct hits {
    uint64_t n_lookup, n_hit;
};

/* Of n_layer layers from il on, since the view began. */
static struct hits hits_of(const struct loading_view *view, uint32_t il, uint32_t n_layer)
{
    struct hits hits = {0, 0};
    for (const uint32_t end = il + n_layer; il < end; il++) {
        const struct expert_pager_layer_stats layer = view->now.layer[il];
        hits.n_lookup += layer.decode.n_lookup + layer.prefill.n_lookup - view->before[il].n_lookup;
        hits.n_hit += layer.decode.n_hit + layer.prefill.n_hit - view->before[il].n_hit;
    }
    return hits;
}

static double share(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

/* ---- lines -------------------------------------------------------------------------------- */

struct text {
    char bytes[TEXT_MAX];
    size_t n;
};

static void put(struct text *text, const char *more)
{
    const size_t n = strlen(more);
    if (text->n + n >= sizeof(text->bytes)) return;
    memcpy(text->bytes + text->n, more, n + 1);
    text->n += n;
}

static void format_prompt(const struct loading_view *view, const struct expert_pager_stats *stats,
                          char *line, size_t size)
{
    const double elapsed_s = log_now_s() - view->started_s;
    size_t n =
        (size_t)snprintf(line, size, "reading prompt %zu/%zu tok", view->n_done, view->n_total);
    if (view->alone && n < size)
        n += (size_t)snprintf(line + n, size - n, ", layer %u of %u", stats->layer + 1,
                              stats->layer_end);
    if (view->n_done && n < size)
        snprintf(line + n, size - n, "   %.1f tok/s", (double)view->n_done / elapsed_s);
}

/* Eighths of a column. */
static void put_bar(struct text *text, double filled)
{
    static const char *const parts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    const int eighths = (int)(filled * BAR_COLUMNS * 8);
    int column = 0;
    for (; column < eighths / 8; column++)
        put(text, "█");
    if (eighths % 8) {
        put(text, parts[eighths % 8]);
        column++;
    }
    for (; column < BAR_COLUMNS; column++)
        put(text, " ");
}

/* place: of eight columns. */
static void put_slots(struct text *text, const char *place, uint32_t n_resident, uint32_t n_slot,
                      uint64_t slot_bytes, int n_column)
{
    char line[128], used[24], all[24];
    const double filled = share(n_resident, n_slot);
    put(text, "\n");
    put(text, place);
    if (n_column >= 8 + BAR_COLUMNS + 48) put_bar(text, filled);
    snprintf(line, sizeof(line), "  %u of %u experts   %s of %s", n_resident, n_slot,
             log_format_bytes((uint64_t)(filled * (double)slot_bytes), used),
             log_format_bytes(slot_bytes, all));
    put(text, line);
}

/* One block for each n_merged layers of a line. */
static void put_blocks(struct text *text, const struct loading_view *view, uint32_t il,
                       uint32_t end, uint32_t n_merged)
{
    static const char *const blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    for (; il < end; il += n_merged) {
        const struct hits hits = hits_of(view, il, end - il < n_merged ? end - il : n_merged);
        const unsigned level = (unsigned)(share(hits.n_hit, hits.n_lookup) * 8);
        put(text, hits.n_lookup ? blocks[level < 8 ? level : 7] : "·");
    }
}

static void put_hits(struct text *text, const struct loading_view *view,
                     const struct expert_pager_stats *stats, int n_column)
{
    char line[32];
    const uint32_t n_layer = stats->layer_end - stats->layer_begin;
    const struct hits all = hits_of(view, stats->layer_begin, n_layer);
    snprintf(line, sizeof(line), "\nhits   %4.0f%% ", 100 * share(all.n_hit, all.n_lookup));
    put(text, line);
    if (n_column <= HIT_COLUMN) return;
    const uint32_t room = (uint32_t)(n_column - HIT_COLUMN);
    const uint32_t n_merged = (n_layer + HIT_LINES_MAX * room - 1) / (HIT_LINES_MAX * room);
    const uint32_t n_block = (n_layer + n_merged - 1) / n_merged;
    const uint32_t per_line = n_block <= room ? n_block : (n_block + 1) / HIT_LINES_MAX;
    for (uint32_t at = 0; at < n_block; at += per_line) {
        const uint32_t begin = stats->layer_begin + at * n_merged;
        const uint32_t end = begin + per_line * n_merged;
        snprintf(line, sizeof(line), "\n%*s", HIT_COLUMN, "");
        if (at) put(text, line);
        put_blocks(text, view, begin, end < stats->layer_end ? end : stats->layer_end, n_merged);
    }
}

/* What is beyond the terminal's last column goes. */
static void cut_columns(char *text, int n_column)
{
    char *to = text;
    int column = 0, width;
    for (size_t n; *text; text += n) {
        n = text_char(text, strlen(text), &width);
        column = *text == '\n' ? 0 : column + width;
        if (column > n_column) continue;
        memmove(to, text, n);
        to += n;
    }
    *to = 0;
}

/* As many of the lines as the terminal has room for above the one that it keeps free. */
static void keep_lines(char *text, int n_line)
{
    for (; (text = strchr(text, '\n')); text++)
        if (--n_line < 2) {
            *text = 0;
            return;
        }
}

static void draw(const struct loading_view *view, const struct expert_pager_stats *stats,
                 uint64_t read_bytes)
{
    int n_line;
    const int n_column = terminal_columns(STDERR_FILENO, &n_line);
    char line[128], rate[24], bytes[24];
    struct text text = {.n = 0};
    format_prompt(view, stats, line, sizeof(line));
    put(&text, line);
    put_slots(&text, "memory  ", stats->n_resident, stats->n_slot, stats->slot_bytes, n_column);
    const struct device_tier_stats *const device = &view->now.device;
    if (device->n_slot)
        put_slots(&text, "device  ", device->n_resident, device->n_slot, device->slot_bytes,
                  n_column);
    snprintf(line, sizeof(line), "\ndisk    %s/s   %s read",
             log_format_bytes((uint64_t)view->rate, rate), log_format_bytes(read_bytes, bytes));
    put(&text, line);
    put_hits(&text, view, stats, n_column);
    cut_columns(text.bytes, n_column);
    keep_lines(text.bytes, n_line);
    log_redraw(text.bytes);
}

static void say(const struct loading_view *view, const struct expert_pager_stats *stats)
{
    char line[128], rate[24];
    const struct hits all =
        hits_of(view, stats->layer_begin, stats->layer_end - stats->layer_begin);
    format_prompt(view, stats, line, sizeof(line));
    log_info("%s; %u of %u experts in memory, disk %s/s, hits %.0f%%", line, stats->n_resident,
             stats->n_slot, log_format_bytes((uint64_t)view->rate, rate),
             100 * share(all.n_hit, all.n_lookup));
}

/* ---- the view ----------------------------------------------------------------------------- */

static void update(struct loading_view *view)
{
    const double now_s = log_now_s();
    const bool redrawn = log_progress() == LOG_PROGRESS_TTY;
    if (log_progress() == LOG_PROGRESS_NONE || now_s - view->started_s < first_s ||
        now_s - view->shown_s < (redrawn ? redraw_s : plain_s))
        return;
    if (!view->alone) engine_ask_experts(view->engine); /* to be told by the next time */
    engine_experts_told(view->engine, &view->now);
    const struct expert_pager_stats stats = view->now.total;
    if (!stats.n_slot) return;
    view->shown_s = now_s;
    const uint64_t read_bytes = pager_report_read_bytes(&stats);
    if (now_s - view->rate_s >= rate_window_s || !view->rate) {
        view->rate = (double)(read_bytes - view->rate_bytes) / (now_s - view->rate_s);
        view->rate_s = now_s;
        view->rate_bytes = read_bytes;
    }
    if (redrawn)
        draw(view, &stats, read_bytes);
    else
        say(view, &stats);
}

static void on_change(void *context)
{
    update(context);
}

void loading_view_begin(struct loading_view *view, struct engine *engine)
{
    *view = (struct loading_view){.engine = engine, .alone = engine_n_rank(engine) == 1};
    const bool told = engine_experts(engine, &view->now, NULL) == LM_OK;
    const struct expert_pager_stats *const stats = &view->now.total;
    view->paged = told && stats->n_slot > 0;
    view->started_s = view->shown_s = view->rate_s = log_now_s();
    view->rate_bytes = pager_report_read_bytes(stats);
    if (!view->paged) {
        log_bar_begin(&view->bar, "reading prompt", "tok", 0);
        return;
    }
    for (uint32_t il = stats->layer_begin; il < stats->layer_end; il++) {
        const struct hits hits = hits_of(view, il, 1);
        view->before[il].n_lookup = hits.n_lookup;
        view->before[il].n_hit = hits.n_hit;
    }
    if (view->alone) expert_pager_watch(engine_pager(engine), on_change, view);
}

void loading_view_prompt(struct loading_view *view, size_t n_done, size_t n_total)
{
    view->n_done = n_done;
    view->n_total = n_total;
    view->bar.total = n_total;
    if (!view->engine) return;
    if (view->paged)
        update(view);
    else
        log_bar_update(&view->bar, n_done);
}

void loading_view_end(struct loading_view *view)
{
    if (!view->engine) return;
    if (view->alone) expert_pager_watch(engine_pager(view->engine), NULL, NULL);
    view->engine = NULL;
    log_redraw("");
}
