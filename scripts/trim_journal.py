#!/usr/bin/env python3
"""Keeps of a search's journal what later readers need.

  scripts/trim_journal.py JOURNAL.jsonl OUTPUT.jsonl [PLANS]
      the header, the last trial of each of the best plans of each stage and token count, the
      chosen entries, rejections and the run's record. Still a journal: offline searches take recorded
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


def best(source, output, num_plans) -> None:
    lines = open(source, encoding="utf-8").read().splitlines()
    records = [json.loads(line) for line in lines]
    last = collections.defaultdict(dict)  # of a stage and token count: each plan's last trial
    chosen = {(record["num_tokens"], json.dumps(record["plan"], sort_keys=True))
              for record in records if record["record"] == "entry"}
    keep = set()
    for i, record in enumerate(records):
        if record.get("record") != "trial":
            keep.add(i)
        elif record["status"] == "ok" and not record.get("screened_out"):
            plan = json.dumps(record["plan"], sort_keys=True)
            last[record["stage"], record["num_tokens"]][plan] = i
    for (_, num_tokens), plans in last.items():
        # Times of one round compare; of what fell out earlier, those of that round do.
        order = sorted(plans.values(), key=lambda i: (-records[i]["round"], records[i]["median_us"]))
        keep.update(order[:num_plans])
        keep.update(i for plan, i in plans.items() if (num_tokens, plan) in chosen)
    with open(output, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for i, line in enumerate(lines) if i in keep)


def main() -> None:
    arguments = sys.argv[1:]
    if len(arguments) == 3 and arguments[0] == "--grid":
        grid(arguments[1], arguments[2])
    elif len(arguments) in (2, 3) and not arguments[0].startswith("--"):
        best(arguments[0], arguments[1], int(arguments[2]) if len(arguments) == 3 else 30)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
