/* MPI behind mpi_plugin.h, and what Open MPI is told before it starts. */
#include <assert.h>
#include <dlfcn.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/transport/mpi/mpi_plugin.h"

static_assert(sizeof(MPI_Request) <= sizeof(struct mpi_handle), "requests fit");
static_assert(sizeof(MPI_Message) <= sizeof(struct mpi_handle), "messages fit");

/* MPI has one state per process, and so has this. */
static struct {
    MPI_Comm comm[MPI_CHANNEL_COUNT];
    int n_rank;
} mpi;

#define MPI_TRY(call, err)                                                                         \
    do {                                                                                           \
        const int code_ = (call);                                                                  \
        if (code_ != MPI_SUCCESS) return fail_mpi(code_, #call, err);                              \
    } while (0)

static enum lm_status fail_mpi(int code, const char *call, struct lm_error *err)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int n;
    MPI_Error_string(code, text, &n);
    return lm_fail(err, LM_E_RANK_LOST, "%.*s: %s", (int)strcspn(call, "("), call, text);
}

/* Parameters of Open MPI, by the version in which a name came up. Measured: shared memory without
 * the copy by the kernel (cma) is three times as fast for large messages, messages of decoding go
 * eagerly up to 32 KiB, starting takes 40 ms instead of 250 without the search for networks, and
 * testing without yielding costs 4 ms where the message needs this core to arrive by TCP. */
struct parameter {
    int version_min, version_max; /* of Open MPI, major */
    const char *name, *value;
};

static const struct parameter tuning[] = {
    {1, 99, "OMPI_MCA_pml", "ob1"},
    {1, 99, "OMPI_MCA_mpi_yield_when_idle", "1"},
    {1, 4, "OMPI_MCA_btl", "self,vader,tcp"},
    {1, 4, "OMPI_MCA_btl_vader_eager_limit", "32768"},
    {1, 4, "OMPI_MCA_btl_vader_single_copy_mechanism", "none"},
    {5, 99, "OMPI_MCA_btl", "self,sm,tcp"},
    {5, 99, "OMPI_MCA_btl_sm_eager_limit", "32768"},
    {5, 99, "OMPI_MCA_smsc", "^cma,knem,xpmem"},
};

static int open_mpi_version(void)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int n, version = 0;
    MPI_Get_library_version(text, &n); /* legal before MPI_Init */
    return sscanf(text, "Open MPI v%d", &version) == 1 ? version : 0;
}

static void set_parameters(const char *interface)
{
    const int version = open_mpi_version();
    if (!version) return; /* another MPI, which knows nothing of these */
    for (size_t i = 0; i < sizeof(tuning) / sizeof(tuning[0]); i++)
        if (version >= tuning[i].version_min && version <= tuning[i].version_max)
            setenv(tuning[i].name, tuning[i].value, 0);
    if (interface) {
        setenv("OMPI_MCA_btl_tcp_if_include", interface, 0);
        setenv("OMPI_MCA_oob_tcp_if_include", interface, 0);
    }
}

/* In place of Open MPI's help texts. When a peer's connection breaks, Open MPI 4 hands one of them
 * to mpirun in the middle of MPI_Test, and waits for its answer; but mpirun is then ending the job.
 * Who was lost is told by the guard, and better. */
static int keep_silent(const char *file, const char *topic, bool header, ...)
{
    (void)file;
    (void)topic;
    (void)header;
    return 0;
}

static void silence_help(void)
{
    Dl_info self;
    if (open_mpi_version() != 4 || !dladdr((void *)(uintptr_t)keep_silent, &self)) return;
    void *plugin = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    if (!plugin) return;
    int (**show_help)(const char *, const char *, bool, ...) = dlsym(plugin, "opal_show_help");
    if (show_help) *show_help = keep_silent;
    dlclose(plugin);
}

static enum lm_status plugin_open_mpi(const char *interface, uint32_t *rank, uint32_t *n_rank,
                                      struct lm_error *err)
{
    set_parameters(interface);
    int provided, own;
    MPI_TRY(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided), err);
    if (provided < MPI_THREAD_SERIALIZED)
        return lm_fail(err, LM_E_UNSUPPORTED, "this MPI allows one thread only");
    for (int i = 0; i < MPI_CHANNEL_COUNT; i++) {
        MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &mpi.comm[i]), err);
        MPI_TRY(MPI_Comm_set_errhandler(mpi.comm[i], MPI_ERRORS_RETURN), err);
    }
    MPI_TRY(MPI_Comm_rank(MPI_COMM_WORLD, &own), err);
    MPI_TRY(MPI_Comm_size(MPI_COMM_WORLD, &mpi.n_rank), err);
    silence_help();
    *rank = (uint32_t)own;
    *n_rank = (uint32_t)mpi.n_rank;
    return LM_OK;
}

static void plugin_close_mpi(void)
{
    MPI_Finalize();
}

static enum lm_status plugin_exchange(const void *mine, size_t n_bytes, void *all, double timeout_s,
                                      struct lm_error *err)
{
    MPI_Request request;
    MPI_TRY(MPI_Iallgather(mine, (int)n_bytes, MPI_BYTE, all, (int)n_bytes, MPI_BYTE,
                           mpi.comm[MPI_CHANNEL_FRAMES], &request),
            err);
    const struct timespec pause = {.tv_nsec = 50000};
    const double deadline = MPI_Wtime() + timeout_s;
    int done = 0;
    while (!done) {
        MPI_TRY(MPI_Test(&request, &done, MPI_STATUS_IGNORE), err);
        if (!done && MPI_Wtime() > deadline)
            return lm_fail(err, LM_E_RANK_LOST, "not all of %d ranks had started after %.0f s",
                           mpi.n_rank, timeout_s);
        if (!done) nanosleep(&pause, NULL);
    }
    return LM_OK;
}

static enum lm_status plugin_send(enum mpi_channel channel, uint32_t to, const void *buffer,
                                  size_t n_bytes, struct mpi_handle *handle, struct lm_error *err)
{
    MPI_Request request;
    MPI_TRY(MPI_Isend(buffer, (int)n_bytes, MPI_BYTE, (int)to, 0, mpi.comm[channel], &request),
            err);
    memcpy(handle, &request, sizeof(request));
    return LM_OK;
}

static enum lm_status plugin_recv(enum mpi_channel channel, uint32_t from, void *buffer,
                                  size_t n_bytes, struct mpi_handle *handle, struct lm_error *err)
{
    MPI_Request request;
    MPI_TRY(MPI_Irecv(buffer, (int)n_bytes, MPI_BYTE, (int)from, 0, mpi.comm[channel], &request),
            err);
    memcpy(handle, &request, sizeof(request));
    return LM_OK;
}

static enum lm_status plugin_test(struct mpi_handle *handle, bool *done, size_t *n_bytes,
                                  struct lm_error *err)
{
    MPI_Request request;
    MPI_Status status;
    memcpy(&request, handle, sizeof(request));
    int flag, count;
    MPI_TRY(MPI_Test(&request, &flag, &status), err);
    memcpy(handle, &request, sizeof(request));
    *done = flag;
    if (!flag || !n_bytes) return LM_OK;
    MPI_TRY(MPI_Get_count(&status, MPI_BYTE, &count), err);
    *n_bytes = (size_t)count;
    return LM_OK;
}

static enum lm_status plugin_probe(enum mpi_channel channel, bool *found, uint32_t *from,
                                   size_t *n_bytes, struct mpi_handle *handle, struct lm_error *err)
{
    int flag, count;
    MPI_Message message;
    MPI_Status status;
    MPI_TRY(MPI_Improbe(MPI_ANY_SOURCE, 0, mpi.comm[channel], &flag, &message, &status), err);
    *found = flag;
    if (!flag) return LM_OK;
    MPI_TRY(MPI_Get_count(&status, MPI_BYTE, &count), err);
    *from = (uint32_t)status.MPI_SOURCE;
    *n_bytes = (size_t)count;
    memcpy(handle, &message, sizeof(message));
    return LM_OK;
}

static enum lm_status plugin_take(struct mpi_handle *handle, void *buffer, size_t n_bytes,
                                  struct mpi_handle *out, struct lm_error *err)
{
    MPI_Message message;
    MPI_Request request;
    memcpy(&message, handle, sizeof(message));
    MPI_TRY(MPI_Imrecv(buffer, (int)n_bytes, MPI_BYTE, &message, &request), err);
    memcpy(out, &request, sizeof(request));
    return LM_OK;
}

static void plugin_cancel(struct mpi_handle *handle)
{
    MPI_Request request;
    memcpy(&request, handle, sizeof(request));
    MPI_Cancel(&request);
    MPI_Request_free(&request);
}

static const struct mpi_plugin table = {
    .head = {.size = sizeof(table), .build_id = LEAN_BUILD_ID},
    .open = plugin_open_mpi,
    .close = plugin_close_mpi,
    .exchange = plugin_exchange,
    .send = plugin_send,
    .recv = plugin_recv,
    .test = plugin_test,
    .probe = plugin_probe,
    .take = plugin_take,
    .cancel = plugin_cancel,
};

PLUGIN_EXPORT const struct plugin_head *lean_plugin_v1(void);
const struct plugin_head *lean_plugin_v1(void)
{
    return &table.head;
}
