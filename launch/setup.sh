#!/usr/bin/env bash
# Installs what lean needs on Debian 12 (or Ubuntu 22.04 and newer), builds it, and shows that it
# works. Asks nothing; may be run again at any time. Root is needed only while a package is
# missing: as root directly, as another user through sudo. --packages installs and stops there.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(gcc g++ libc6-dev cmake ninja-build pkg-config protobuf-c-compiler protobuf-compiler
          libprotobuf-c-dev libprotobuf-dev libjson-c-dev libxxhash-dev libhwloc-dev liburing-dev
          libcmocka-dev libmicrohttpd-dev zlib1g-dev libcurl4-openssl-dev libssl-dev
          python3 python3-venv
          libopenmpi-dev openmpi-bin)

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing: ${missing[*]}"
    root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "run this as root, or install sudo" >&2; exit 1; }
        root=(sudo)
    fi
    "${root[@]}" apt-get update -q
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

[ "${1:-}" = --packages ] && exit

# The CUDA backend is built for the GPUs that are here; for others where LEAN_CUDA_ARCHITECTURES asks
# for it ("86;90"), which takes nvcc some minutes; the preset all-gpus has all.
gpus=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -nu | paste -sd';') || true
architectures=${LEAN_CUDA_ARCHITECTURES:-$gpus}
cmake --preset release ${architectures:+"-DLEAN_CUDA_ARCHITECTURES=$architectures"}
cmake --build --preset release --target lean plugin_mpi ${architectures:+plugin_cuda}
echo "built $(build/lean version): $PWD/build/lean"
