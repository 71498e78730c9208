#!/usr/bin/env bash
# Builds llama.cpp's own benchmark with CUDA, from the source package of llama-cpp-python, into
# build/llama: what tests/gpu/run.sh holds lean against. Long before a GPU is there: nvcc takes an
# hour or two of a core for one compute capability. Without NCCL, since there is one GPU.
#
#   tests/gpu/build_llama.sh CAPABILITY [VERSION]        as 90; default: the newest version
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/../.."
capability=$1 version=${2:-}
work=build/llama-source
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
[ -x "$nvcc" ] || { echo "no nvcc on PATH or in /usr/local/cuda" >&2; exit 1; }
mkdir -p "$work" build/llama
python3 -m venv "$work/venv"
"$work/venv/bin/pip" download -q --no-deps --no-binary llama-cpp-python -d "$work" \
    "llama-cpp-python${version:+==$version}"
tar -C "$work" -xf "$(ls -t "$work"/llama_cpp_python-*.tar.gz | head -1)"
source=$(ls -td "$work"/llama_cpp_python-*/ | head -1)vendor/llama.cpp
cmake -S "$source" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$capability" -DCMAKE_CUDA_COMPILER="$nvcc" \
    -DGGML_NATIVE=OFF -DGGML_AVX512=OFF -DGGML_CUDA_NCCL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF
cmake --build "$work/build" --target llama-bench
strip -o build/llama/llama-bench "$work/build/bin/llama-bench"
# Its libraries but the C library's, the driver and cuBLAS, which are there.
ldd build/llama/llama-bench | awk '/=> \//{print $3}' |
    grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*|libcuda|libcublas[^/]*)\.so' |
    xargs -I{} cp -L {} build/llama/
echo "build/llama: $(du -sh build/llama | cut -f1), of $(basename "$(dirname "$(dirname "$source")")")"
