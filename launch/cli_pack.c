/* lean pack MODEL -o DIR, lean pack --verify DIR */
#include <sys/stat.h>
#include <unistd.h>

#include "launch/command.h"
#include "launch/model_ref.h"
#include "launch/write_job.h"
#include "proto/base/log.h"
#include "proto/gguf/gguf.h"
#include "worker/pack/packer.h"

static enum lm_status write_pack(const struct options *options, const struct gguf_file *source,
                                 const char *folder, const struct pack_config *config,
                                 struct lm_error *err)
{
    const bool dry_run = options_flag(options, "dry-run");
    const double started_s = log_now_s();
    uint64_t n_bytes = 0;
    enum lm_status status = pack_plan(source, &n_bytes, err);
    if (status == LM_OK && !dry_run) status = write_job_check(options, folder, err);
    if (status == LM_OK && !dry_run) status = pack_write(source, folder, config, err);
    if (status == LM_OK && !dry_run && options_flag(options, "verify"))
        status = pack_verify(folder, source, config, &n_bytes, err);
    if (status == LM_OK)
        write_job_print(options, dry_run ? NULL : folder, n_bytes, log_now_s() - started_s);
    return status;
}

static enum lm_status verify_pack(const struct options *options, const struct gguf_file *source,
                                  const char *folder, const struct pack_config *config,
                                  struct lm_error *err)
{
    const double started_s = log_now_s();
    uint64_t n_bytes = 0;
    const enum lm_status status = pack_verify(folder, source, config, &n_bytes, err);
    if (status == LM_OK) write_job_print(options, folder, n_bytes, log_now_s() - started_s);
    return status;
}

static bool is_folder(const char *path)
{
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode);
}

static enum lm_status run_pack(struct options *options, struct lm_error *err)
{
    struct gguf_file *source = NULL;
    struct pack_config config = {
        .n_job = (uint32_t)options_int(options, "jobs"),
        .profile_path = options_string(options, "profile"),
    };
    const char *folder = options_string(options, "output");
    const char *model = options_n_arg(options) ? options_arg(options, 0) : NULL;
    const bool dry_run = options_flag(options, "dry-run"), force = options_flag(options, "force");
    const bool verify = options_flag(options, "verify") && !force && !dry_run;
    if (verify && !folder && model && is_folder(model)) { /* --verify DIR */
        folder = model;
        model = NULL;
    }
    if (!folder && !dry_run) return lm_fail(err, LM_E_USAGE, "no output folder given, use -o DIR");
    /* a pack that is there is only looked at, unless it is to be made again */
    const bool only_verify = verify && !access(folder, F_OK);
    if (!model && !only_verify) return lm_fail(err, LM_E_USAGE, "pack takes one MODEL, got none");
    enum lm_status status = LM_OK;
    if (model) status = model_ref_open(options, model, &source, err);
    if (status == LM_OK) status = write_job_catch_signals(&config.is_interrupted, err);
    if (status == LM_OK)
        status = only_verify ? verify_pack(options, source, folder, &config, err)
                             : write_pack(options, source, folder, &config, err);
    gguf_close(source);
    return status;
}

static const struct option_spec options_pack[] = {
    {"output", 'o', OPTION_PATH, "DIR", .help = "the folder to write, NAME.lmpack"},
    {"jobs", 'j', OPTION_INT, "N", .def = "2", .min = 1, .max = 64,
     .help = "layers written at a time. The result does not depend on it"},
    {"verify", 0, OPTION_FLAG,
     .help = "read the pack again and check it; one that is there already is only checked"},
    {"profile", 0, OPTION_PATH, "FILE", .help = "a routing profile to put in"},
    {"force", 'f', OPTION_FLAG, .help = "replace DIR if it exists"},
    {"dry-run", 0, OPTION_FLAG, .help = "print the size, write nothing"},
    {0},
};

const struct command command_pack = {
    .name = "pack",
    .usage = "MODEL -o DIR | --verify DIR",
    .n_arg_max = 1,
    .summary = "rewrite a model so that its experts are read fastest",
    .details =
        "A pack is a folder with the model's bytes in another order: each routed expert in one\n"
        "piece, aligned, with a checksum. No weight changes, and no answer does. Name the folder\n"
        "wherever a model is asked for. Packing that was interrupted goes on when it is started\n"
        "again. `lean pack --verify DIR` checks a pack; `MODEL --verify -o DIR` also against its\n"
        "source.",
    .options = (const struct option_spec *const[]){options_pack, NULL},
    .reads_config = true,
    .run = run_pack,
};
