#!/usr/bin/env bash
# Everything that only a GPU can show, in one table: the kernels' bits on the device, golden models,
# CPU = GPU = GPU with some layers on the CPU = GPU with slots for half of the experts bit by bit,
# drafts, NCCL on one device, compute-sanitizer; then the kernels' speed beside measured roofs, the
# link's, and a model of the 35B's true shape, whole and with slots, beside llama.cpp. Runs in a build
# tree or in the folder that tests/gpu/prepare.sh made, needs no network, and ends within 10 minutes.
#
#   tests/gpu/run.sh [--device cuda|emu] [--quick]
#
# emu: a dry run on the emulator. --quick: few cases. Exits 0 if no row of the table failed. With
# OUT set to a folder, all that is printed is in OUT/gpu.txt too.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -n "${OUT:-}" ] && exec > >(tee "$OUT/gpu.txt") 2>&1
export LD_LIBRARY_PATH=$PWD/build/shared:$PWD/build/llama${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec python3 tests/gpu/report.py "$@"
