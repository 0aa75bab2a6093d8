#!/usr/bin/env bash
# Searches the full grid for models on this machine's first GPU and validates the tables.
#   scripts/tune.sh MODEL[:DTYPE[:TP]]...     e.g. scripts/tune.sh mixtral-8x7b deepseek-v3:fp8_block:8
# Tables go to tuned/configs/tuned/<GPU>, journals to tuned/results/<GPU>, what was printed and the
# JUnit report to tuned. Run again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }

scripts/setup.sh --program release
mkdir -p tuned
for job in "$@"; do
  IFS=: read -r model dtype tp <<<"$job"
  build/release/moe-tune search --grid --device 0 --resume --out tuned \
    --model "$model" --dtype "${dtype:-bf16}" --tp "${tp:-1}" | tee -a tuned/search.txt
done
build/release/moe-tune validate --device 0 --junit tuned/validate.xml tuned/configs/tuned/*/*.json |
  tee tuned/validate.txt
