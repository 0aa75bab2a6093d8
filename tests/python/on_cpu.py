"""Lets moe_tune run on the CPU over `fake_moetune.c`, for tests on machines without a GPU."""

from __future__ import annotations

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
_folder: tempfile.TemporaryDirectory[str] | None = None


def compiler() -> str | None:
    """A C compiler, if the machine has one."""
    return next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)


def build_fake() -> pathlib.Path:
    """Compiles the fake library, once a process."""
    global _folder
    if _folder is None:
        _folder = tempfile.TemporaryDirectory(prefix="moe-tune-fake-")
        command = [compiler() or "cc", "-std=c11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra"]
        command += ["-Werror", f"-I{ROOT / 'src'}", str(HERE / "fake_moetune.c")]
        command += ["-o", f"{_folder.name}/libmoetune.so", "-lm"]
        subprocess.run(command, check=True)
    return pathlib.Path(_folder.name) / "libmoetune.so"


def use_fake() -> ctypes.CDLL:
    """Makes the package use the fake library; returns it, for what it recorded."""
    if str(ROOT / "python") not in sys.path:
        sys.path.insert(0, str(ROOT / "python"))
    os.environ["MOE_TUNE_LIBRARY"] = str(build_fake())
    from moe_tune import _library

    return _library.load_library()


_registered = None


def run_on_cpu() -> ctypes.CDLL:
    """The same, and the operators take the CPU's tensors: their addresses are the host's."""
    global _registered
    library = use_fake()
    import torch
    from moe_tune import _experts

    if _registered is None:
        _experts._stream_of = lambda device: 0
        _experts._is_capturing = lambda: False
        _experts.device_types.add("cpu")
        _registered = torch.library.Library("moe_tune", "IMPL")
        _registered.impl("fused_experts", lambda *a: _experts._call(*a, None), "CPU")

        def call_out(*arguments: torch.Tensor) -> None:
            _experts._call(*arguments)

        _registered.impl("fused_experts_out", call_out, "CPU")
    return library


def number(library: ctypes.CDLL, name: str) -> ctypes.c_int:
    """A counter or switch of the fake library's: read and set its `.value`."""
    return ctypes.c_int.in_dll(library, name)
