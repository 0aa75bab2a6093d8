#!/usr/bin/env bash
# Installs what is missing, builds, and runs all tests: under AddressSanitizer and UBSan, then plain.
# Tests that need a GPU skip without one.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh release sanitize
ctest --preset sanitize -j "$(nproc)"
ctest --preset release -j "$(nproc)"
