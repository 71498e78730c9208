/* A model pulled by its name, with what is shown meanwhile: `lean pull`, and the commands that
 * offer it when a model is missing. */
#ifndef LEAN_LAUNCH_PULL_JOB_H
#define LEAN_LAUNCH_PULL_JOB_H

#include "coordinator/hub/pull.h"
#include "coordinator/hub/registry.h"

struct hub_settings;
struct pull_report;

/* As `lean pull` without options would. settings are borrowed. */
struct pull_config pull_job_config(const struct hub_settings *settings);

struct pull_job {
    struct hub_ref ref;
    struct hub_need need;
    bool checks_need; /* before anything is fetched */
    bool packs;       /* the result is a pack (pull_pack.h) */
};

/* LM_E_NO_MEM: this machine has less memory than the registry says the model needs, and checks_need
 * is set; otherwise as pull_run. config->wish.variant NULL: the reference's. SIGINT and SIGTERM end
 * it. */
enum lm_status pull_job_run(const struct pull_job *job, struct pull_config *config,
                            struct pull_report *report, struct pull_result *out,
                            struct lm_error *err);

#endif
