#!/usr/bin/env bash
# Format check and static analysis, with clang-format 14 and clang-tidy 14 (their output differs
# between versions). Debian 12 and Ubuntu 24.04 have them; needs a build/release made by setup.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in clang-format-14 clang-tidy-14; do
  command -v "$tool" >/dev/null || { echo "error: $tool is missing: apt-get install $tool" >&2; exit 1; }
done
[ -e build/release/compile_commands.json ] ||
  { echo "error: build/release is missing: run scripts/setup.sh" >&2; exit 1; }

git ls-files -z '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs -0 clang-format-14 --dry-run -Werror
echo "format: good" >&2
scripts/docs_results.py --check
echo "docs/results.md: good" >&2
# The build's flags are GCC's, hence the extra argument; clang counts what it found in system headers.
git ls-files -z 'src/*.cpp' 'search/*.cpp' 'kernels/*.cpp' |
  xargs -0 -n 1 -P "$(nproc)" clang-tidy-14 --quiet -p build/release \
    --extra-arg=-Wno-unknown-warning-option 2> >(grep -v ' warnings generated\.$' >&2)
echo "clang-tidy: good" >&2
