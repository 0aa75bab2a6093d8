#!/usr/bin/env python3
"""Writes docs/results.md from the records in results/, so that it cannot drift.

    scripts/docs_results.py            rewrite its generated section
    scripts/docs_results.py --check    exit with 1 where it is not what the records say

That section lies between two marker lines. It shows what results/<GPU>/*.json hold, of the kinds that
`moe-tune bench --out` writes: layer times, their kernels, journeys, techniques, serving. Only measured
rows.
"""
import argparse
import difflib
import json
import os
import pathlib
import sys

BEGIN = "<!-- results: made by scripts/docs_results.py -->"
END = "<!-- end of results -->"
ROOT = pathlib.Path(__file__).resolve().parent.parent


class RecordError(Exception):
    """A record or page that cannot be used; the message names file and remedy."""


def number(value, digits=1):
    """A time with separators for thousands, "-" where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(over, under):
    return "-" if not over or not under else f"{over / under:.2f}x"


def table(headings, rows):
    """A Markdown table; a heading that starts with '<' is left-aligned, others are right-aligned."""
    lines = ["| " + " | ".join(h.lstrip("<") for h in headings) + " |",
             "|" + "|".join("---" if h.startswith("<") else "--:" for h in headings) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return lines


def unique(values):
    return list(dict.fromkeys(value for value in values if value))


def origin(record, rows):
    """Which commits, dates and commands the rows are of."""
    commits = unique(row.get("commit") for row in rows) or ["not recorded"]
    dates = unique(row.get("date", "")[:10] for row in rows) or ["not recorded"]
    commands = unique(row.get("command") for row in rows)
    said = "command" if len(commands) == 1 else "commands"
    if not commands:  # layer times keep the newest run's only
        said, commands = "newest command", [record.get("command") or "not recorded"]
    return [f"Driver {record.get('driver') or 'not recorded'}, commit {', '.join(commits)}, "
            f"{', '.join(dates)}; {said}:", ""] + ["    " + command for command in commands]


def named(row):
    routing = row.get("routing", "uniform")
    return row["model"] + ("" if routing == "uniform" else f" ({routing})")


def layers_section(record, rows):
    counts = sorted({row["num_tokens"] for row in rows})
    times = {}
    for row in rows:
        times.setdefault((named(row), row["dtype"]), {})[row["num_tokens"]] = row["layer_us"]
    body = [[model, dtype] + [number(by_count.get(count)) for count in counts]
            for (model, dtype), by_count in times.items()]
    found = table(["<model", "<dtype"] + [str(count) for count in counts], body)
    near = sorted({row["num_tokens"] for row in rows if row.get("lookup", "").startswith("nearest")})
    if near:
        found += ["", f"At {', '.join(map(str, near))} tokens some by their table's nearest entry."]
    return ["A whole layer in microseconds, by tokens:", ""] + found


def kernels_section(record, rows):
    def percent(value):
        return "-" if value is None else f"{value * 100:.0f}"

    body = []
    for row in rows:
        for kernel in row["kernels"]:
            body.append([named(row), row["dtype"], str(row["num_tokens"]), kernel["step"] or "-",
                         number(kernel["time_us"]), number(kernel["floor_us"]),
                         percent(kernel["fraction_of_floor"]), number(kernel["tflops"], 0),
                         number(kernel["dram_gbps"], 0), percent(kernel["l2_hit_rate"]),
                         percent(kernel["tensor_busy"]), number(kernel["sm_mhz"], 0)])
    return ["A layer's kernels, each profiled alone (Nsight Compute), microseconds:", ""] + table(
        ["<model", "<dtype", "tokens", "<step", "time", "its floor", "% of floor", "TFLOP/s",
         "DRAM GB/s", "L2 hits %", "tensor cores busy %", "MHz"], body)


def journey_section(record, rows):
    names = [f"{level['level']} {level['name']}" for level in rows[0]["levels"]]
    body = []
    for row in sorted(rows, key=lambda row: (row["model"], row["num_tokens"])):
        times = [level["median_us"] for level in row["levels"]]
        body.append([named(row), str(row["num_tokens"])] + [number(time) for time in times] +
                    [ratio(times[0], times[6]), ratio(times[4], times[6])])
    return ["One layer on seven levels of optimisation, microseconds:", ""] + table(
        ["<model", "tokens"] + names + ["0 / 6", "4 / 6"], body)


def l2_hits(side):
    rates = side.get("l2_hit_rates")
    if not rates:
        return "-"
    return " / ".join(f"{gemm['hit_rate'] * 100:.0f}" for gemm in rates["gemms"]) or "-"


def techniques_section(record, rows):
    body = []
    for row in sorted(rows, key=lambda row: (row["model"], row["num_tokens"])):
        for pair in row["pairs"]:
            sides = [pair["without"], pair["with"]]
            body.append([named(row), str(row["num_tokens"]), pair["name"]] +
                        [f"{side['label']}: {number(side['median_us'])}" for side in sides] +
                        [ratio(sides[0]["median_us"], sides[1]["median_us"]),
                         f"{l2_hits(sides[0])}; {l2_hits(sides[1])}", pair["literature"] or "-"])
    return ["Pairs of layers that differ in one thing, microseconds; L2 hit rates of the GEMMs without "
            "and with it:", ""] + table(
        ["<model", "tokens", "<technique", "<without", "<with", "gain", "<L2 hits %", "<literature"],
        body)


def serving_section(record, rows):
    def mean(value, unit, digits):
        return f"{value['mean'] * unit:,.{digits}f} ± {value['half_width_95'] * unit:,.{digits}f}"

    def three(value, unit, digits):
        return " / ".join(f"{value[p]['mean'] * unit:,.{digits}f}" for p in ("p50", "p95", "p99"))

    rows = sorted(rows, key=lambda row: (row["model"], row["concurrency"]))
    body = [[named(row), row["dtype"], str(row["concurrency"]), row["plans"],
             f"{row['rate_per_s']:.3g}", mean(row["output_tokens_per_s"], 1, 0),
             three(row["time_per_token_s"], 1e3, 2), three(row["latency_s"], 1, 2),
             mean(row["success_rate"], 100, 1)] for row in rows]
    scopes = unique(row["setup"]["scope"] for row in rows)
    steps = unique(f"{row['setup']['num_layers']} layers a step, {row['setup']['num_launched']} of "
                   f"them launched; step times {row['setup']['step_times']}" for row in rows)
    return [f"A server under load (± 95 % over repeats): {'; '.join(scopes + steps)}.", ""] + table(
        ["<model", "<dtype", "concurrency", "<plans", "requests/s", "output tokens/s",
         "ms a token p50 / p95 / p99", "latency s p50 / p95 / p99", "success %"], body)


SECTIONS = {"layers": layers_section, "kernels": kernels_section, "journey": journey_section,
            "techniques": techniques_section, "serving": serving_section}


def kind_of(row):
    return row.get("kind") or ("layers" if "layer_us" in row else None)


def results(folder, page):
    """The section's lines, GPU by GPU; figures by their path from the page."""
    lines = []
    for gpu in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = []
        for path in sorted(gpu.glob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RecordError(f"{path}: {error}; mend or remove it") from error
            if not isinstance(record, dict) or not isinstance(record.get("rows"), list):
                continue  # no record
            rows = [row for row in record["rows"] if row.get("source") == "measured"]
            kinds = unique(kind_of(row) for row in rows)
            if len(kinds) != 1 or kinds[0] not in SECTIONS:
                continue
            try:
                section = SECTIONS[kinds[0]](record, rows)
                found.append((list(SECTIONS).index(kinds[0]), path, record,
                              section + [""] + origin(record, rows)))
            except (KeyError, TypeError, IndexError) as error:
                raise RecordError(f"{path}: a row lacks {error}; mend it or record it anew") from error
        if found:
            lines += [f"## {found[0][2]['gpu']}", ""]
        for _, path, _, section in sorted(found, key=lambda item: item[:2]):
            figure = path.with_suffix(".svg")
            lines += section + [""]
            if figure.exists():
                relative = pathlib.PurePath(os.path.relpath(figure, page.parent)).as_posix()
                lines += [f"![{figure.stem}]({relative})", ""]
    return lines or ["No record is in `results/` yet.", ""]


def rewritten(page, folder):
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RecordError(f"{page}: it needs the lines '{BEGIN}' and '{END}', once and in order")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return text, head + "\n".join([BEGIN, ""] + results(folder, page) + [END]) + tail


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare; 1 where they differ")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "results")
    options = parser.parse_args()
    try:
        old, new = rewritten(options.page, options.results)
        if old == new:
            return 0
        if options.check:
            sys.stderr.writelines(difflib.unified_diff(
                old.splitlines(True), new.splitlines(True), options.page.name, "what the records say"))
            print(f"error: {options.page}: the results section is not what the records say; run "
                  "scripts/docs_results.py", file=sys.stderr)
            return 1
        options.page.write_text(new, encoding="utf-8")
        return 0
    except (OSError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
