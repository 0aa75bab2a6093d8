#!/usr/bin/env bash
# Installs what is missing, builds the program and runs a first search for a real model: on the GPU if
# there is one, else offline. More options for the search may follow: scripts/quickstart.sh --seed 1
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --program release
set -x
exec build/release/moe-tune search --guided --model qwen3-30b-a3b --tokens 1,64 --budget 60s "$@"
