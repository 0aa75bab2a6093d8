"""moe_tune under transformers: on a GPU where there is one, else over the fake library."""

from __future__ import annotations

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "python")]

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.17")

import on_cpu  # noqa: E402

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    if on_cpu.compiler() is None:
        pytest.skip("neither a GPU nor a C compiler", allow_module_level=True)
    on_cpu.run_on_cpu()

import gpu_checks  # noqa: E402
import transformers_checks  # noqa: E402

if not HAS_GPU:
    gpu_checks.DEVICE = "cpu"
# One of them is as good as five where a C loop does the work.
MODELS = transformers_checks.MODELS if HAS_GPU else ("qwen3_moe",)


@pytest.mark.parametrize(
    "check", [pytest.param(c, id=c.name) for c in transformers_checks.checks(MODELS)]
)
def test_check(check: gpu_checks.Check) -> None:
    try:
        check.function()
    except gpu_checks.Skip as reason:
        pytest.skip(str(reason))
