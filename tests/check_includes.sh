#!/usr/bin/env bash
# Fails on an include that points against the arrows:
#   proto/base <- proto/*   <- worker, coordinator <- launch      proto/base <- kernels <- worker
set -u
cd "$(dirname "$0")/.." || exit 1
status=0
# forbid FOLDER REGEX: no file of FOLDER includes a path that matches REGEX.
forbid() {
    local hits
    hits=$(grep -rnE "^#include \"($2)" --include='*.c' --include='*.h' --include='*.cu' --include='*.cuh' "$1")
    [ -z "$hits" ] || { printf 'include against the arrows:\n%s\n' "$hits"; status=1; }
}
forbid proto 'kernels|worker|coordinator|launch|tests|bench'
forbid proto/base 'proto/(text|gguf|lmpack|model|transport)'
forbid kernels 'worker|coordinator|launch|tests|bench|proto/(text|gguf|lmpack|model|transport)'
forbid worker 'coordinator|launch|tests|bench'
forbid coordinator 'kernels|worker|launch|tests|bench'
forbid launch 'tests|bench'
[ $status = 0 ] && echo 'includes follow the arrows'
exit $status
