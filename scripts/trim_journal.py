#!/usr/bin/env python3
"""Keeps of a search's journal what later readers need.

  scripts/trim_journal.py JOURNAL.jsonl OUTPUT.jsonl [FASTEST]
      the header, the fastest trials of each stage and token count, all thorough ones, the chosen
      entries, rejections and the run's record. Still a journal: offline searches take recorded
      times from it.
  scripts/trim_journal.py --grid JOURNAL.jsonl OUTPUT.jsonl.gz
      the first look at every point, with what `moe-tune replay` needs of it, and the records that
      are no trials.
"""

import collections
import gzip
import json
import sys

GRID_FIELDS = ("record", "round", "elapsed_s", "stage", "num_tokens", "plan", "status", "rule",
               "compile_ms", "registers", "smem_bytes", "median_us", "p10_us", "p90_us",
               "num_samples", "screened_out", "source")


def rounded(value):
    return float(f"{value:.6g}") if isinstance(value, float) else value


def grid(source, output) -> None:
    # No time of writing in the file: the same journal gives the same bytes.
    with open(output, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        for line in open(source, encoding="utf-8"):
            record = json.loads(line)
            if record.get("record") == "trial":
                if record["round"] != 0:
                    continue
                record = {key: rounded(record[key]) for key in GRID_FIELDS if key in record}
            packed.write((json.dumps(record, separators=(",", ":")) + "\n").encode())


def fastest(source, output, num_fastest) -> None:
    lines = open(source, encoding="utf-8").read().splitlines()
    records = [json.loads(line) for line in lines]
    groups = collections.defaultdict(list)
    for i, record in enumerate(records):
        if record.get("record") == "trial" and record["status"] == "ok":
            if not record.get("screened_out"):
                key = (record["stage"], record["num_tokens"])
                groups[key].append((record["median_us"], i))
    keep = {i for trials in groups.values() for _, i in sorted(trials)[:num_fastest]}
    with open(output, "w", encoding="utf-8") as file:
        for i, record in enumerate(records):
            thorough = record.get("num_samples", 0) >= 5
            if record.get("record") != "trial" or i in keep or thorough:
                file.write(lines[i] + "\n")


def main() -> None:
    arguments = sys.argv[1:]
    if len(arguments) == 3 and arguments[0] == "--grid":
        grid(arguments[1], arguments[2])
    elif len(arguments) in (2, 3) and not arguments[0].startswith("--"):
        fastest(arguments[0], arguments[1], int(arguments[2]) if len(arguments) == 3 else 30)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
