#!/usr/bin/env bash
# Installs what is missing, configures and builds, as root or with sudo, on Debian 12, Ubuntu 24.04 or
# later. Running it again costs little.
#   scripts/setup.sh [--program] [PRESET...]   (default: release; --program: moe-tune alone, no tests)
set -euo pipefail
cd "$(dirname "$0")/.."
tests=ON
if [ "${1:-}" = --program ]; then tests=OFF; shift; fi
[ $# -gt 0 ] || set -- release

mkdir -p build
log=$PWD/build/setup.log
wheels=$PWD/build/cuda-wheels
: > "$log"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
# Runs a command with its output in the log; shows the log's end when it fails.
quiet() {
  "$@" >>"$log" 2>&1 || { tail -n 40 "$log" >&2; die "'$*' failed; everything it said is in $log"; }
}

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
  install_packages python3-venv ca-certificates
  say "no CUDA toolkit 12.8 or later: getting NVRTC and the CUDA runtime from NVIDIA's wheels"
  rm -rf "$wheels"
  quiet python3 -m venv build/venv
  quiet build/venv/bin/pip install --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$wheels" 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
    'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*'
  ln -s lib "$root/lib64"
  ln -s libnvrtc.so.13 "$root/lib/libnvrtc.so"
  ln -s libcudart.so.13 "$root/lib/libcudart.so"
  echo "CUDA Version 13.0" > "$root/version.txt"
  is_toolkit "$root" || die "the wheels in $wheels hold no usable CUDA toolkit; install CUDA 12.8 or later and set CUDAToolkit_ROOT"
}

command -v apt-get >/dev/null || die "this script needs Debian or Ubuntu; docs/dependencies.md lists what to install elsewhere"
. /etc/os-release
case "$ID-${VERSION_ID:-testing}" in
  debian-1[01] | ubuntu-2[0-3].*)
    die "$PRETTY_NAME is too old (its g++, cmake and libraries are); use Debian 12 or Ubuntu 24.04 or later" ;;
esac
packages=(g++ cmake ninja-build libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev
  libvalijson-dev libjs-chart.js zlib1g-dev)
[ "$tests" = OFF ] || packages+=(doctest-dev)
install_packages "${packages[@]}"

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
  quiet cmake --preset "$preset" -DCUDAToolkit_ROOT="$toolkit" -DCUDAToolkit_BIN_DIR="$toolkit/bin" \
    -DMOETUNE_BUILD_TESTS="$tests"
  target=all
  [ "$tests" = ON ] || target=moe-tune
  quiet cmake --build --preset "$preset" --target "$target"
done
