#!/usr/bin/env bash
# Makes the folder that a bare machine with a GPU needs to run tests/gpu/run.sh: programs, plugins,
# the shared libraries that they need, golden models, the scripts; and FOLDER.tar.xz, at most 64 MiB.
#
#   tests/gpu/prepare.sh [FOLDER]       default: build/gpu-bundle
#
# Here: a machine with launch/setup.sh's packages and nvcc; the compute capability of the machine
# there in LEAN_CUDA_ARCHITECTURES keeps the bundle small; build/llama, if tests/gpu/build_llama.sh
# made it, goes along. There: a driver of CUDA 13, Python, a C library as new as ours;
# compute-sanitizer and cuBLAS 13, which PyTorch brings, are used where they are.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/gpu-bundle}
limit_mib=64

cmake --preset release \
    ${LEAN_CUDA_ARCHITECTURES:+"-DLEAN_CUDA_ARCHITECTURES=$LEAN_CUDA_ARCHITECTURES"} >/dev/null
cmake --build --preset release --target lean lean_cuda lean_cuda_emu test_kernels_backend test_kernels_nccl \
    test_kernels_fast test_cuda_backend bench_kernels_gpu
rm -rf "$folder"
mkdir -p "$folder"/build/{tests,bench,lib/lean,shared} "$folder"/tests/{gpu,e2e,data/golden}
cp build/lean "$folder/build/"
cp build/tests/test_{kernels_backend,kernels_fast,kernels_nccl,cuda_backend} "$folder/build/tests/"
cp build/bench/bench_kernels_gpu "$folder/build/bench/"
cp build/lib/lean/liblean_cuda{,_emu}.so "$folder/build/lib/lean/"
for plugin in liblean_cuda liblean_cuda_emu; do
    for beside in build build/tests build/bench; do
        ln -s "$(realpath -m --relative-to="$folder/$beside" "$folder/build/lib/lean")/$plugin.so" \
            "$folder/$beside/$plugin.so"
    done
done
strip "$folder"/build/lean "$folder"/build/*/{test,bench}_* "$folder"/build/lib/lean/*.so

# All libraries but the C library's own, which belong to the loader of the machine.
ldd "$folder/build/lean" "$folder"/build/tests/test_* "$folder"/build/lib/lean/*.so |
    awk '/=> \//{print $3}' | sort -u |
    grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so' |
    xargs -I{} cp -L {} "$folder/build/shared/"

cp -r tests/data/golden/{models,expected} "$folder/tests/data/golden/"
cp tests/e2e/{cli,golden,test_goldens}.py "$folder/tests/e2e/"
cp tests/gpu/{run.sh,report.py} "$folder/tests/gpu/"
[ -x build/llama/llama-bench ] && cp -r build/llama "$folder/build/"

archive=$folder.tar.xz
tar -C "$(dirname "$folder")" -cf - "$(basename "$folder")" | xz -T0 -3 >"$archive"
mib=$(du -m --apparent-size "$archive" | cut -f1)
[ "$mib" -le "$limit_mib" ] || { echo "$archive has $mib MiB, at most $limit_mib may travel" >&2; exit 1; }
echo "$archive: $mib MiB; there: tar xf, and in the folder tests/gpu/run.sh"
