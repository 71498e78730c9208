/* Needs, signals, and the pull itself. */
#include "launch/pull_job.h"

#include <unistd.h>

#include "launch/hub_settings.h"
#include "launch/pull_pack.h"
#include "launch/pull_report.h"
#include "launch/terminal/interrupt.h"
#include "launch/write_job.h"
#include "proto/base/log.h"

struct pull_config pull_job_config(const struct hub_settings *settings)
{
    return (struct pull_config){
        .http = {.endpoint = settings->endpoint,
                 .token = settings->token,
                 .retry_wait_s = 1,
                 .stall_s = 30,
                 .wake_fd = -1},
        .cache = settings->cache,
        .n_connection = 8,
        .segment_bytes = 64 << 20,
        .checks_hash = true,
        .offline = settings->offline,
        .waits = true,
    };
}

/* Shows what the model needs, and holds it against what is here. */
static enum lm_status check_need(const struct hub_need *need, bool checks, struct lm_error *err)
{
    char disk[24], ram[24], vram[24], here[24];
    if (!need->ram_bytes) return LM_OK;
    const uint64_t n_here = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    log_format_bytes(n_here, here);
    log_info("needs %s of disk and at least %s of memory (on a GPU: %s); here are %s",
             log_format_bytes(need->disk_bytes, disk), log_format_bytes(need->ram_bytes, ram),
             log_format_bytes(need->vram_bytes, vram), here);
    if (!checks || need->ram_bytes <= n_here) return LM_OK;
    lm_fail(err, LM_E_NO_MEM, "it needs %s of memory, this machine has %s", ram, here);
    return lm_hint(err, "--no-check fetches it all the same");
}

enum lm_status pull_job_run(const struct pull_job *job, struct pull_config *config,
                            struct pull_report *report, struct pull_result *out,
                            struct lm_error *err)
{
    struct pull_pack *pack = NULL;
    enum lm_status status = check_need(&job->need, job->checks_need, err);
    if (status != LM_OK) return status;
    status = write_job_catch_signals(&config->http.is_interrupted, err);
    if (status != LM_OK) return status;
    config->http.wake_fd = interrupt_fd();
    config->view = pull_report_view(report);
    if (!config->wish.variant) config->wish.variant = job->ref.variant;
    if (job->packs) status = pull_pack_create(&pack, config->http.is_interrupted, err);
    if (pack) config->user = pull_pack_user(pack);
    if (status == LM_OK) status = pull_run(&job->ref, config, out, err);
    pull_pack_destroy(pack);
    interrupt_end();
    return status;
}
