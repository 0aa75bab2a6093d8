#!/usr/bin/env python3
"""Runs the GPU checks without pytest: a time limit, a table of what passed, a record as JSON.

    MOE_TUNE_LIBRARY=build/release/libmoetune.so python3 tests/python/run_gpu.py --json out.json

All layers of the chosen checks are prepared first, several at once, and that is timed apart: it is
compilation, which the cache (MOE_TUNE_CACHE) saves the next time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import pathlib
import signal
import sys
import time
import traceback
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "python")]


class OutOfTime(Exception):
    """The run's time limit, or a check's own, is over."""


def on_alarm(*_: Any) -> None:
    raise OutOfTime


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", metavar="PATH", help="write the record here, as it grows")
    parser.add_argument("--group", metavar="NAME,...", help="these groups only")
    parser.add_argument("--match", metavar="TEXT", help="checks whose group/name has this in it")
    parser.add_argument("--every", type=int, default=1, metavar="N",
                        help="of the two large grids, every N-th check only")
    parser.add_argument("--limit", type=float, default=480, metavar="SECONDS",
                        help="begin no check after this; the rest is reported as not run")
    parser.add_argument("--check-limit", type=float, default=60, metavar="SECONDS",
                        help="of one check (not of the long one)")
    parser.add_argument("--jobs", type=int, default=8, help="layers that are prepared at once")
    parser.add_argument("--long", action="store_true",
                        help="a million calls too (MOE_TUNE_LONG_CALLS, MOE_TUNE_LONG_SECONDS)")
    parser.add_argument("--list", action="store_true", help="only say which checks there are")
    parser.add_argument("--stop", type=int, default=0, metavar="N", help="stop after N failures")
    parser.add_argument("--cpu", action="store_true",
                        help="over the fake library on the CPU: tries the checks themselves")
    return parser.parse_args()


def chosen(options: argparse.Namespace, gpu_checks: Any) -> list[Any]:
    groups = set(options.group.split(",")) if options.group else None
    result = []
    turn = 0
    every = list(gpu_checks.checks(long=options.long))
    if importlib.util.find_spec("transformers") and (groups is None or "transformers" in groups):
        import transformers_checks

        every += transformers_checks.checks()
    for check in every:
        if groups is not None and check.group not in groups:
            continue
        if options.match and options.match not in f"{check.group}/{check.name}":
            continue
        # The fake library is slow, and has no fp8.
        if options.cpu and (
            check.group.startswith("fp8")
            or any(max(counts, default=0) > 300 or key.hidden_size * key.intermediate_size > 20000
                   for key, counts in check.layers)
        ):
            continue
        if check.group in ("moe_bf16", "fp8_block"):
            turn += 1
            if turn % options.every:
                continue
        result.append(check)
    return result


def prepare(checks: list[Any], jobs: int, deadline: float) -> dict[str, Any]:
    """Prepares every layer for every count; what cannot be prepared fails in its checks."""
    from moe_tune import _experts

    wanted: dict[Any, set[int]] = {}
    for check in checks:
        for key, counts in check.layers:
            if counts:
                wanted.setdefault(key, set()).update(counts)
    start = time.monotonic()
    errors = []

    def one(key: Any) -> None:
        if time.monotonic() < deadline:
            _experts.layer_of(key).prepare(sorted(wanted[key]))

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(one, key): key for key in wanted}
        for future in concurrent.futures.as_completed(futures):
            if future.exception() is not None:
                errors.append(f"{futures[future]}: {future.exception()}")
    for error in errors[:5]:
        print("prepare:", error, flush=True)
    return {
        "layers": len(wanted),
        "plans": sum(map(len, wanted.values())),
        "seconds": round(time.monotonic() - start, 2),
        "errors": errors,
    }


def run_one(check: Any, skip: type[Exception], limit: float) -> dict[str, Any]:
    row: dict[str, Any] = {"group": check.group, "name": check.name}
    start = time.monotonic()
    if check.group != "long":
        signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        row["figures"] = check.function()
        row["result"] = "passed"
    except skip as reason:
        row |= {"result": "skipped", "why": str(reason)}
    except OutOfTime:
        row |= {"result": "failed", "why": f"not done after {limit:g} s"}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        where = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {lines[0]} ({pathlib.Path(where.filename).name}:{where.lineno})"
        row |= {"result": "failed", "why": why, "traceback": traceback.format_exc()[-4000:]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    row["seconds"] = round(time.monotonic() - start, 3)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'group':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'not run':>9}{'s':>8}  worst"]
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        count = {kind: sum(row["result"] == kind for row in mine)
                 for kind in ("passed", "failed", "skipped", "not run")}
        worst: dict[str, float] = {}
        for row in mine:
            for name, value in row.get("figures", {}).items():
                worst[name] = max(worst.get(name, 0.0), value)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in worst.items())
        seconds = sum(row["seconds"] for row in mine)
        lines.append(f"{group:<12}{count['passed']:>8}{count['failed']:>8}{count['skipped']:>9}"
                     f"{count['not run']:>9}{seconds:>8.1f}  {shown}")
    return "\n".join(lines)


def main() -> int:
    options = arguments()
    start = time.monotonic()
    if options.cpu:
        import on_cpu

        on_cpu.run_on_cpu()
    import gpu_checks
    import moe_tune
    import torch

    if options.cpu:
        gpu_checks.DEVICE = "cpu"
        gpu_checks.SMALL = (16, 4, 64, 32)  # the fake library is slow
    elif not torch.cuda.is_available():
        print("no GPU that torch sees")
        return 77
    checks = chosen(options, gpu_checks)
    if options.list:
        for check in checks:
            print(f"{check.group}/{check.name}")
        return 0
    signal.signal(signal.SIGALRM, on_alarm)
    record: dict[str, Any] = {
        "gpu": "none" if options.cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "library": moe_tune.version(),
        "arguments": sys.argv[1:],
        "import_seconds": round(time.monotonic() - start, 2),
    }
    record["prepare"] = prepare(checks, options.jobs, start + options.limit)
    print(f"prepared {record['prepare']['layers']} layers, {record['prepare']['plans']} plans in "
          f"{record['prepare']['seconds']} s", flush=True)
    rows: list[dict[str, Any]] = []
    record["rows"] = rows
    failed = 0

    def save() -> None:
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(record, indent=1), encoding="utf-8")

    fatal = ""
    for check in checks:
        late = time.monotonic() - start > options.limit
        if fatal or late or (options.stop and failed >= options.stop):
            rows.append({"group": check.group, "name": check.name, "result": "not run",
                         "why": fatal or ("time" if late else "stopped"), "seconds": 0.0})
            continue
        row = run_one(check, gpu_checks.Skip, options.check_limit)
        rows.append(row)
        if row["result"] == "failed":
            failed += 1
            print(f"FAILED {check.group}/{check.name}: {row['why']}", flush=True)
        # After an illegal access nothing on this GPU works any more in this process.
        if not options.cpu:
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                fatal = f"the GPU's context is lost after {check.name}: {str(error).splitlines()[0]}"
                print(fatal, flush=True)
        if len(rows) % 20 == 0:
            save()
    record["seconds"] = round(time.monotonic() - start, 2)
    save()
    print(table(rows))
    not_run = sum(row["result"] == "not run" for row in rows)
    print(f"{len(rows)} checks, {failed} failed, {not_run} not run, {record['seconds']} s")
    return 1 if failed or not_run or record["prepare"]["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
