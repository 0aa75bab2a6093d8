#!/usr/bin/env bash
# Builds the wheel to give away: program, library and Python package, without tests. Its platform tag is
# what the binaries' own symbol versions say, and it is held to 25 MB.
# Usage: scripts/build_wheel.sh [DIRECTORY]   (default: build/wheel). What it needs: README.md's list and
# a CUDA toolkit (CUDAToolkit_ROOT), python3 with venv and pip; NO_ISOLATION=1 takes scikit-build-core from the
# python3 at hand (PYTHON) instead of the package index.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/wheel}
python=${PYTHON:-python3}
limit=$((25 * 1000 * 1000))

die() { printf 'error: %s\n' "$*" >&2; exit 1; }
command -v objdump >/dev/null || die "no objdump: apt-get install binutils"

mkdir -p "$out"
rm -f "$out"/moe_tune-*.whl
arguments=(wheel . --no-deps --wheel-dir "$out")
[ -z "${NO_ISOLATION:-}" ] || arguments+=(--no-build-isolation)
"$python" -m pip --disable-pip-version-check "${arguments[@]}"
wheel=$(ls "$out"/moe_tune-*-py3-none-*.whl)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m zipfile -e "$wheel" "$work"
binaries=("$work"/moe_tune/bin/moe-tune)
[ ! -e "$work/moe_tune/lib/libmoetune.so" ] || binaries+=("$work/moe_tune/lib/libmoetune.so")
[ ${#binaries[@]} -eq 2 ] || printf 'warning: the wheel has no libmoetune.so\n' >&2

# The newest glibc that a symbol asks for; other libraries than glibc's own cannot be promised.
newest=$(objdump -T "${binaries[@]}" | grep -o 'GLIBC_2\.[0-9]*' | sort -t. -k2 -n -u | tail -1)
needed=$(objdump -p "${binaries[@]}" | sed -n 's/^ *NEEDED *//p' | sort -u)
for library in $needed; do
  case $library in
    libc.so.6 | libm.so.6 | libdl.so.2 | libpthread.so.0 | librt.so.1 | ld-linux-x86-64.so.2) ;;
    *) die "the binaries need $library, which manylinux does not promise" ;;
  esac
done
minor=${newest#GLIBC_2.}
[ -n "$minor" ] || die "found no glibc symbols in ${binaries[*]}"

# wheel names and the WHEEL file must say the same; RECORD has the hash of that file.
"$python" - "$wheel" "manylinux_2_${minor}_x86_64" <<'PYTHON'
import base64, hashlib, pathlib, re, sys, zipfile

old, platform = pathlib.Path(sys.argv[1]), sys.argv[2]
new = old.with_name(re.sub(r"-py3-none-[^-]+\.whl$", f"-py3-none-{platform}.whl", old.name))
part = new.with_suffix(".part")
with zipfile.ZipFile(old) as source, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as target:
    texts = {}
    for info in source.infolist():
        data = source.read(info)
        if info.filename.endswith(".dist-info/WHEEL"):
            data = re.sub(rb"(?m)^Tag: .*$", f"Tag: py3-none-{platform}".encode(), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            texts[info.filename] = f"{info.filename},sha256={digest},{len(data)}"
        elif info.filename.endswith(".dist-info/RECORD"):
            lines = data.decode().splitlines()
            lines = [texts.get(line.split(",")[0], line) for line in lines]
            data = ("\n".join(lines) + "\n").encode()
        target.writestr(info, data, zipfile.ZIP_DEFLATED, 9)
old.unlink()
part.rename(new)
PYTHON
wheel=$(ls "$out"/moe_tune-*-py3-none-manylinux*.whl)
size=$(stat -c %s "$wheel")
printf '%s: %d.%02d MB, glibc 2.%s or later\n' "$wheel" $((size / 1000000)) $((size % 1000000 / 10000)) "$minor"
[ "$size" -lt "$limit" ] || die "$wheel has $size bytes: more than $limit"
