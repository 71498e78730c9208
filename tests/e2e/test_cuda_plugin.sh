#!/usr/bin/env bash
# The program links to no CUDA library, and starts where there is none; the plugin that nvcc built
# needs no library but the system's, and says in one line what it misses on a machine without GPU.
set -eu
fail() { echo "$1"; exit 1; }

! ldd "$LEAN" | grep -iE 'cuda|nvidia|cublas|nccl' || fail "$LEAN links to CUDA"
"$LEAN" version >/dev/null || fail "$LEAN does not start"

plugin=$LEAN_BUILD_DIR/lib/lean/liblean_cuda.so
[ -e "$plugin" ] || { echo "skipped: no nvcc, which compiles $(basename "$plugin")"; exit 77; }
! ldd "$plugin" | grep -iE 'not found|cuda|nvidia|cublas|nccl' || fail "$plugin needs more than the system"
[ "$(nm -D --defined-only "$plugin" | awk '{print $3}')" = lean_plugin_v1 ] ||
    fail "$plugin exports more than its table"

said=$("$LEAN_BUILD_DIR/tests/test_kernels_backend" --backend cuda --only rows --cases 1) && status=0 || status=$?
case "$status $said" in
    "0 all operations agree") echo "the plugin runs on this machine's GPU" ;;
    "1 cuda: no NVIDIA driver is loaded on this machine") echo "the plugin says that no driver is here" ;;
    *) fail "$said" ;;
esac
