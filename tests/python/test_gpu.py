"""The GPU checks under pytest; `--slow` adds the million calls. run_gpu.py runs the same without it."""

from __future__ import annotations

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "python")]

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no GPU that torch sees", allow_module_level=True)

import gpu_checks  # noqa: E402


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            check,
            id=f"{check.group}/{check.name}",
            marks=[pytest.mark.slow] if check.group == "long" else [],
        )
        for check in gpu_checks.checks(long=True)
    ],
)
def test_check(check: gpu_checks.Check) -> None:
    try:
        check.function()
    except gpu_checks.Skip as reason:
        pytest.skip(str(reason))
