#!/usr/bin/env bash
# Everything that only a GPU can show, in one table: the kernels' bits on the device, golden models,
# CPU = GPU = GPU with some layers on the CPU bit by bit, compute-sanitizer, then the kernels'
# speed beside measured roofs. Runs in a build tree or in the folder that tests/gpu/prepare.sh made,
# needs no network, and ends within 10 minutes.
#
#   tests/gpu/run.sh [--device cuda|emu] [--quick]
#
# emu: a dry run on the emulator. --quick: few cases. Exits 0 if no row of the table failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d build/shared ] && export LD_LIBRARY_PATH=$PWD/build/shared${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec python3 tests/gpu/report.py "$@"
