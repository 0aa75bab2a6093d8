#!/usr/bin/env python3
"""Keeps of a search's journal what later readers need: the header, the fastest trials of each stage
and token count, all thorough ones, the chosen entries, rejections and the run's record.

  scripts/trim_journal.py JOURNAL.jsonl OUTPUT.jsonl [FASTEST]

What is left is still a journal: offline searches take recorded times from it.
"""

import collections
import json
import sys


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    fastest = int(sys.argv[3]) if len(sys.argv) == 4 else 30
    lines = open(sys.argv[1], encoding="utf-8").read().splitlines()
    records = [json.loads(line) for line in lines]
    groups = collections.defaultdict(list)
    for i, record in enumerate(records):
        if record.get("record") == "trial" and record["status"] == "ok":
            if not record.get("screened_out"):
                key = (record["stage"], record["num_tokens"])
                groups[key].append((record["median_us"], i))
    keep = {i for trials in groups.values() for _, i in sorted(trials)[:fastest]}
    with open(sys.argv[2], "w", encoding="utf-8") as output:
        for i, record in enumerate(records):
            thorough = record.get("num_samples", 0) >= 20
            if record.get("record") != "trial" or i in keep or thorough:
                output.write(lines[i] + "\n")


if __name__ == "__main__":
    main()
