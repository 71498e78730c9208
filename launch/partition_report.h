/* A cut into stages as people and programs see it: from --partition, to a table or JSON. */
#ifndef LEAN_LAUNCH_PARTITION_REPORT_H
#define LEAN_LAUNCH_PARTITION_REPORT_H

#include <stdint.h>
#include <stdio.h>

#include "coordinator/plan/partition.h"

struct json_object;

/* "12,14,11,11" to n_layer: [n_rank]. LM_E_USAGE: no list of n_rank positive numbers. */
enum lm_status partition_parse(uint32_t *n_layer, uint32_t n_rank, const char *text,
                               struct lm_error *err);

struct options;

/* --partition-objective. */
enum partition_objective partition_objective_from_options(const struct options *options);

/* A line for each rank, and what the slowest one means; hosts: [n_rank] names, or NULL. */
void partition_print(FILE *out, const struct partition_stage *stages, const char *const *hosts,
                     uint32_t n_rank);
struct json_object *partition_json(const struct partition_stage *stages, uint32_t n_rank);

#endif
