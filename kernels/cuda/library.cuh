/* Libraries of CUDA that are opened when they are wanted; on the emulator, its own of these names.
 */
#ifndef LEAN_KERNELS_CUDA_LIBRARY_CUH
#define LEAN_KERNELS_CUDA_LIBRARY_CUH

#ifdef __CUDACC__
#include <dlfcn.h>
#else
#include "kernels/cuda/emu/cuemu.h"
#endif

/* NULL: it cannot be opened; library_error tells why. It stays open. */
static inline void *library_open(const char *file)
{
#ifdef __CUDACC__
    return dlopen(file, RTLD_NOW | RTLD_LOCAL);
#else
    return emu_library_open(file);
#endif
}

static inline const char *library_error(void)
{
#ifdef __CUDACC__
    const char *text = dlerror();
    return text ? text : "unknown error";
#else
    return "no such library on the emulator";
#endif
}

/* NULL: there is none. */
static inline void *library_symbol(void *library, const char *name)
{
#ifdef __CUDACC__
    return dlsym(library, name);
#else
    return emu_library_symbol(library, name);
#endif
}

#endif
