#!/usr/bin/env bash
# Installs what is missing, configures and builds. Debian 12/13 or Ubuntu 22.04/24.04, as root or
# with sudo. Runs again at no cost. Usage: scripts/setup.sh [PRESET...]   (default: release)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- release

mkdir -p build
log=$PWD/build/setup.log
tools=$PWD/build/tools  # a Python environment with what the distribution lacks
wheels=$PWD/build/cuda-wheels
export PATH="$tools/bin:$PATH"
: > "$log"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
# Runs a command with its output in the log; shows the log's end when it fails.
quiet() {
  "$@" >>"$log" 2>&1 || { tail -n 40 "$log" >&2; die "'$*' failed; everything it said is in $log"; }
}
# True when version $1 is at least $2.
at_least() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "not root and no sudo; ask an administrator for: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  quiet "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=120 update
  quiet "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
    install -y --no-install-recommends "${missing[@]}"
}

python_environment() {
  [ -x "$tools/bin/pip" ] && return 0
  install_packages python3-venv ca-certificates
  quiet python3 -m venv "$tools"
}

# Whether $1 is a toolkit that this project can be built with: CUDA 12.8 or later, with NVRTC.
is_toolkit() {
  local version
  version=$(sed -n 's/^#define CUDA_VERSION //p' "$1/include/cuda.h" 2>/dev/null) || return 1
  [ "${version:-0}" -ge 12080 ] && [ -e "$1/include/nvrtc.h" ] &&
    [ -e "$1/lib64/libcudart_static.a" ] && [ -e "$1/lib64/libnvrtc.so" ]
}

# NVIDIA's wheels hold the libraries and headers; links and version.txt make CMake see a toolkit.
fetch_toolkit() {
  local root=$1
  python_environment
  say "no CUDA toolkit 12.8 or later: getting NVRTC and the CUDA runtime from NVIDIA's wheels"
  rm -rf "$wheels"
  quiet "$tools/bin/pip" install --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$wheels" 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
    'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*'
  ln -s lib "$root/lib64"
  ln -s libnvrtc.so.13 "$root/lib/libnvrtc.so"
  ln -s libcudart.so.13 "$root/lib/libcudart.so"
  echo "CUDA Version 13.0" > "$root/version.txt"
  is_toolkit "$root" || die "the wheels in $wheels hold no usable CUDA toolkit; install CUDA 12.8 or later and set CUDAToolkit_ROOT"
}

command -v apt-get >/dev/null || die "this script needs Debian or Ubuntu; README.md lists what to install elsewhere"
packages=(g++ cmake ninja-build libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev doctest-dev
          python3 python3-jsonschema)
. /etc/os-release
if [ "${VERSION_ID:-}" = 22.04 ]; then  # its g++ is 11
  packages+=(g++-12)
  export CXX=${CXX:-g++-12}
fi
install_packages "${packages[@]}"

cmake_version=$(cmake --version | sed -n 's/^cmake version //p')
if ! at_least "$cmake_version" 3.25; then
  python_environment
  say "cmake $cmake_version is older than 3.25: getting a newer one from PyPI"
  quiet "$tools/bin/pip" install --disable-pip-version-check 'cmake>=3.25,<4'
  hash -r
fi

toolkit=
for candidate in "${CUDAToolkit_ROOT:-}" "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda "$wheels/nvidia/cu13"; do
  if [ -n "$candidate" ] && is_toolkit "$candidate"; then toolkit=$candidate; break; fi
done
if [ -z "$toolkit" ]; then
  toolkit=$wheels/nvidia/cu13
  fetch_toolkit "$toolkit"
fi

for preset in "$@"; do
  say "building build/$preset with the CUDA toolkit in $toolkit"
  # The second variable keeps newer CMakes from preferring another nvcc on the path.
  quiet cmake --preset "$preset" -DCUDAToolkit_ROOT="$toolkit" -DCUDAToolkit_BIN_DIR="$toolkit/bin"
  quiet cmake --build --preset "$preset"
done
