#!/usr/bin/env bash
# What a machine with a GPU is asked, on the emulator: every part of tests/gpu/run.sh runs and agrees.
exec tests/gpu/run.sh --device emu --quick
