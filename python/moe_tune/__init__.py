"""Tuned mixture-of-experts layers, called from PyTorch.

`fused_experts` is the layer, with the keywords that vLLM's function of this name has. `prepare`
compiles what it needs before the first call, `explain` says which kernels a call takes and why.
`moe_tune.transformers.register()` puts the layer under transformers' models.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "explain", "fused_experts", "prepare", "version"]

if TYPE_CHECKING:
    from moe_tune._experts import explain, fused_experts, prepare

_NEEDS_TORCH = ("explain", "fused_experts", "prepare")


def version() -> str:
    """The version of libmoetune.so, which does the work."""
    from moe_tune._library import library_version

    return library_version()


def __getattr__(name: str) -> object:
    # The program's launcher imports this package too: it must not wait two seconds for torch.
    if name in _NEEDS_TORCH:
        from moe_tune import _experts

        for each in _NEEDS_TORCH:
            globals()[each] = getattr(_experts, each)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if "torch" in sys.modules:  # it costs nothing then, and torch.compile sees plain functions
    from moe_tune._experts import explain, fused_experts, prepare
