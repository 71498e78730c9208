#!/usr/bin/env bash
# The full counts of what tests/run.sh samples: fuzzing with libFuzzer under sanitizers, more random
# templates, more seeds of the kernel comparison, a server under load. Takes about two hours; needs
# clang. Prints one line per job and appends the same to bench/results/long-DATE.md. MINUTES=N sets the
# length of a fuzz job and of each load.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
minutes=${MINUTES:-10}
report=bench/results/long-$(date +%F).md
status=0

# job NAME COMMAND...: runs it, keeps its last line.
job() {
    local name=$1 log last
    shift
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then last="ok: $(tail -n 1 "$log" | cut -c1-120)"; else
        last="FAILED, log in $log"
        status=1
    fi
    echo "- $name: $last" | tee -a "$report"
}

echo "# Long tests, $(date +%F), $(git describe --always --dirty), $(nproc) cores" >>"$report"
cmake -S . -B build-fuzz -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo \
      -DLEAN_FUZZ=ON -DLEAN_ASAN=ON >/dev/null && cmake --build build-fuzz || exit 1
export LEAN_SOURCE_DIR=$PWD
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    found=$(mktemp -d)
    job "$name, $minutes minutes" "build-fuzz/tests/$name" -max_total_time=$((minutes * 60)) \
        -timeout=10 -rss_limit_mb=2048 "$found" "tests/fuzz/corpus/${name#fuzz_}"
done
cmake --preset release >/dev/null && cmake --build --preset release || exit 1
for seed in $(seq 1 20); do
    job "kernels.matmul, seed $seed" build/tests/test_kernels_matmul "$seed"
done
venv=${XDG_CACHE_HOME:-$HOME/.cache}/lean-tests/venv
[ -x "$venv/bin/python3" ] && export PATH="$venv/bin:$PATH"
export LEAN=$PWD/build/lean LEAN_SOAK_S=$((minutes * 60)) LEAN_HOSTILE_S=$((minutes * 60))
job "a server under mixed load, $minutes minutes" python3 tests/e2e/test_serve_soak.py
job "a server under hostile requests, $minutes minutes" python3 tests/e2e/test_serve_hostile.py
LEAN_KILLS=50 job "processes of jobs killed 50 times" python3 tests/e2e/test_ranks_failures.py
LEAN_KILLS=200 job "a download killed 200 times" python3 tests/e2e/test_pull_resume.py
exit $status
