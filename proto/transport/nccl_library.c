/* dlopen, and a table of names. */
#include "proto/transport/nccl_library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Behind the places where the system looks. */
static const char *const toolkit_folders[] = {"/usr/local/cuda/lib64", "/usr/local/cuda/lib"};

static const struct {
    const char *name;
    size_t offset;
} functions[] = {
    {"ncclGetVersion", offsetof(struct nccl_library, get_version)},
    {"ncclGetUniqueId", offsetof(struct nccl_library, get_unique_id)},
    {"ncclCommInitRankConfig", offsetof(struct nccl_library, comm_init_rank_config)},
    {"ncclCommGetAsyncError", offsetof(struct nccl_library, comm_get_async_error)},
    {"ncclCommAbort", offsetof(struct nccl_library, comm_abort)},
    {"ncclCommDestroy", offsetof(struct nccl_library, comm_destroy)},
    {"ncclSend", offsetof(struct nccl_library, send)},
    {"ncclRecv", offsetof(struct nccl_library, recv)},
    {"ncclGroupStart", offsetof(struct nccl_library, group_start)},
    {"ncclGroupEnd", offsetof(struct nccl_library, group_end)},
    {"ncclGetErrorString", offsetof(struct nccl_library, get_error_string)},
    {"ncclGetLastError", offsetof(struct nccl_library, get_last_error)},
};

/* The library, and in err why not. */
static void *open_file(const char *file, struct lm_error *err)
{
    void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (handle) return handle;
    lm_fail(err, LM_E_UNSUPPORTED, "NCCL: %.400s", dlerror()); /* which names the file */
    for (size_t i = 0; i < sizeof(toolkit_folders) / sizeof(toolkit_folders[0]); i++) {
        char path[512];
        if (strchr(file, '/')) break;
        snprintf(path, sizeof(path), "%s/%s", toolkit_folders[i], file);
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (handle) return handle;
    }
    lm_hint(err, "install libnccl2, or name its folder in LD_LIBRARY_PATH; --transport mpi does "
                 "without");
    return NULL;
}

static enum lm_status find_functions(struct nccl_library *nccl, const char *file,
                                     struct lm_error *err)
{
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *const function = dlsym(nccl->handle, functions[i].name);
        if (!function)
            return lm_fail(err, LM_E_UNSUPPORTED, "NCCL: %s has no %s", file, functions[i].name);
        memcpy((char *)nccl + functions[i].offset, &function, sizeof(function));
    }
    const int result = nccl->get_version(&nccl->version);
    if (result != NCCL_SUCCESS) return nccl_library_fail(nccl, result, "ncclGetVersion", NULL, err);
    if (nccl->version >= NCCL_VERSION_MIN) return LM_OK;
    return lm_fail(err, LM_E_UNSUPPORTED, "NCCL: %s is version %d.%d.%d, 2.19 is the least", file,
                   nccl->version / 10000, nccl->version / 100 % 100, nccl->version % 100);
}

enum lm_status nccl_library_open(struct nccl_library **out, const char *file, struct lm_error *err)
{
    struct nccl_library *const nccl = calloc(1, sizeof(*nccl));
    if (!nccl) return lm_fail(err, LM_E_NO_MEM, "NCCL: no memory");
    nccl->handle = open_file(file, err);
    enum lm_status status = nccl->handle ? LM_OK : LM_E_UNSUPPORTED;
    if (status == LM_OK) status = find_functions(nccl, file, err);
    if (status != LM_OK) {
        free(nccl);
        return status;
    }
    *out = nccl;
    return LM_OK;
}

void nccl_library_close(struct nccl_library *nccl)
{
    free(nccl);
}

enum lm_status nccl_library_make_id(const struct nccl_library *nccl, struct nccl_id *out,
                                    struct lm_error *err)
{
    const int result = nccl->get_unique_id(out);
    return result == NCCL_SUCCESS ? LM_OK
                                  : nccl_library_fail(nccl, result, "ncclGetUniqueId", NULL, err);
}

enum lm_status nccl_library_fail(const struct nccl_library *nccl, int result, const char *call,
                                 struct nccl_comm *comm, struct lm_error *err)
{
    const char *const last = nccl->get_last_error(comm);
    return lm_fail(err, LM_E_FAIL, "%s: %s%s%.300s", call, nccl->get_error_string(result),
                   last && *last ? ": " : "", last ? last : "");
}
