/* What the expert pager planned and did, for people and for programs. */
#ifndef LEAN_LAUNCH_PAGER_REPORT_H
#define LEAN_LAUNCH_PAGER_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct expert_pager_stats;
struct expert_usage;
struct hparams;
struct json_object;
struct memory_plan;
struct metrics_experts;
struct pager_snapshot;

/* What can be expected with n_slot of n_expert experts in memory, in words: hits, and what they
 * leave to the disk. Returns out. */
enum { PAGER_EXPECTATION_BYTES = 192 };
const char *pager_report_expectation(char out[PAGER_EXPECTATION_BYTES],
                                     const struct memory_plan *plan, const struct hparams *hp,
                                     uint32_t n_expert, uint32_t n_slot);
/* ", N of M experts (P%) there, ...", behind what a device holds: n_slot of the n_expert experts of
 * its layers, at first n_slot_first of them. miss: what becomes of the others, NULL: auto. Returns
 * out. */
enum { PAGER_DEVICE_BYTES = 240 };
const char *pager_report_device(char out[PAGER_DEVICE_BYTES], const struct hparams *hp,
                                uint32_t n_expert, uint32_t n_slot, uint32_t n_slot_first,
                                const char *miss);
/* A line, before anything is loaded: what of the model will be in memory. */
void pager_report_plan(const struct memory_plan *plan, const struct hparams *hp, uint32_t n_expert,
                       uint32_t n_slot);
/* From disk, for whatever reason. */
uint64_t pager_report_read_bytes(const struct expert_pager_stats *stats);
/* A few lines under the timings of an answer: its own numbers, then those since the start; nothing
 * if no expert is ever read. */
void pager_report_print(FILE *out, const struct pager_snapshot *experts,
                        const struct expert_usage *usage);
/* Of one answer, with the keys of a server's timings. The caller owns it. */
struct json_object *pager_report_usage_json(const struct expert_usage *usage);
/* For /metrics. False: all experts are mapped, none is looked up. */
bool pager_report_metrics(struct metrics_experts *out, const struct pager_snapshot *experts);
/* The caller owns it. */
struct json_object *pager_report_json(const struct pager_snapshot *experts);

#endif
