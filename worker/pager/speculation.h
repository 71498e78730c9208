/* Which experts are worth reading on a prediction, by what this run has measured.
 *
 * A prediction is made before the router runs. What is read on it gains the time that the disk
 * would have idled, if it is chosen; if it is not, it costs the time for which it holds up reads
 * that are. What has not begun when more is known is taken back, and costs nothing.
 *
 *      prediction                        more is known: needed reads begin
 *          |<---------- gap ---------->|
 *          [ 1st read ][ 2nd read      ]          2nd: gains, if chosen ......
 *                                      ^^^^^      or costs this
 *
 * So a read pays if p * gain > (1 - p) * cost. p is how often what was named at that rank was
 * chosen lately; the gap and the time of a read are means of this run; which makes the number of
 * reads what disk, processor and model make of it.
 *
 * Threads: none of its own. */
#ifndef LEAN_WORKER_PAGER_SPECULATION_H
#define LEAN_WORKER_PAGER_SPECULATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* From what a layer's experts are predicted. */
enum prediction_point {
    PREDICT_EARLY, /* the input of the experts before: two blocks of the model are missing */
    PREDICT_LATE,  /* their output, or the embedding: the mixer is missing */
    PREDICT_POINT_COUNT
};

enum { SPECULATION_RANKS = 16 };

/* All zero: nothing is known yet. */
struct speculation {
    struct {
        double n_read, n_chosen; /* of what was named at that rank; fades */
    } rank[PREDICT_POINT_COUNT][SPECULATION_RANKS];
    double gap_s[PREDICT_POINT_COUNT]; /* 0: not measured */
    double read_s;                     /* the disk's time for one expert; 0: not measured */
};

/* Whether to read an expert that was named at a rank (0: the likeliest of its row), behind n_before
 * others. Until it is known better, a prediction is trusted. */
bool speculation_pays(const struct speculation *speculation, enum prediction_point point,
                      size_t rank, size_t n_before);

/* What became of a read that was not taken back. */
void speculation_count(struct speculation *speculation, enum prediction_point point, size_t rank,
                       bool chosen);
/* The disk had nothing else to do for so long: from the prediction, or the end of the needed reads
 * if that was later, until more was known. */
void speculation_measure_gap(struct speculation *speculation, enum prediction_point point,
                             double gap_s);
void speculation_measure_reads(struct speculation *speculation, double busy_s, uint64_t n_read);
/* A token later. What is no longer read is forgotten, and so tried again now and then. */
void speculation_fade(struct speculation *speculation);

#endif
