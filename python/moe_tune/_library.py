"""The binding of libmoetune.so (`moetune.h`) by ctypes: its structs, its calls, its statuses.

Nothing here imports torch, so that the binding can be tested, and used, without it.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.util
import os
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "Args",
    "Dtype",
    "Layer",
    "LayerDesc",
    "LayerKey",
    "NotPreparedError",
    "Options",
    "Status",
    "UnsupportedError",
    "library_version",
    "load_library",
]


class Status(enum.IntEnum):
    """`moetune_status`."""

    OK = 0
    INVALID_ARGUMENT = 1
    UNSUPPORTED = 2
    NOT_PREPARED = 3
    COMPILATION_FAILED = 4
    DEVICE_ERROR = 5
    INTERNAL_ERROR = 6


class Dtype(enum.IntEnum):
    """`moetune_dtype`: how weights are stored and multiplied."""

    BF16 = 0
    FP8_BLOCK = 1
    FP8_TENSOR = 2


INT32, INT64 = 0, 1  # moetune_id_type
WEIGHT_FP32, WEIGHT_BF16 = 0, 1  # moetune_weight_type


class UnsupportedError(ValueError):
    """No kernel here does this layer, on this GPU."""


class NotPreparedError(RuntimeError):
    """The kernels for this number of tokens are not loaded: call `prepare()` first."""


class LayerDesc(ctypes.Structure):
    """`moetune_layer_desc`."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("dtype", ctypes.c_int),
        ("num_experts", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("intermediate_size", ctypes.c_int64),
        ("w13_row_pitch", ctypes.c_int64),
        ("w2_row_pitch", ctypes.c_int64),
    ]


class Options(ctypes.Structure):
    """`moetune_options`."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("device", ctypes.c_int),
        ("table_path", ctypes.c_char_p),
        ("cache_dir", ctypes.c_char_p),
        ("num_compile_threads", ctypes.c_int),
    ]


class Args(ctypes.Structure):
    """`moetune_args`."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("num_tokens", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_row_pitch", ctypes.c_int64),
        ("w13", ctypes.c_void_p),
        ("w13_scale", ctypes.c_void_p),
        ("w2", ctypes.c_void_p),
        ("w2_scale", ctypes.c_void_p),
        ("topk_ids", ctypes.c_void_p),
        ("id_type", ctypes.c_int),
        ("topk_weights", ctypes.c_void_p),
        ("weight_type", ctypes.c_int),
        ("expert_map", ctypes.c_void_p),
        ("expert_map_size", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("out_row_pitch", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
    ]


class LayerKey(NamedTuple):
    """One MoE layer as one GPU sees it; sizes and pitches in elements."""

    device: int
    dtype: Dtype
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    w13_row_pitch: int
    w2_row_pitch: int


_lock = threading.Lock()
_library: ctypes.CDLL | None = None


def _library_path() -> pathlib.Path:
    chosen = os.environ.get("MOE_TUNE_LIBRARY")
    if chosen:
        path = pathlib.Path(chosen)
        if not path.is_file():
            raise OSError(f"MOE_TUNE_LIBRARY is {chosen!r}, which is no file")
        return path
    path = pathlib.Path(__file__).resolve().parent / "lib" / "libmoetune.so"
    if not path.is_file():
        raise OSError(
            f"there is no {path}: this installation of moe-tune has no libmoetune.so; install a wheel "
            "that has it, or set MOE_TUNE_LIBRARY to the library's path"
        )
    return path


def _preload_nvrtc() -> None:
    """Loads the NVRTC that came with torch's wheels, where there is one.

    The library opens NVRTC by name when it first compiles. The wheels put it where no search path
    leads; what is loaded already is found by name. Nothing is imported for this.
    """
    roots: list[str] = []
    for package in ("nvidia", "torch"):
        if package == "torch" and "torch" in sys.modules:
            location = getattr(sys.modules["torch"], "__file__", None)
            if location:
                roots.append(str(pathlib.Path(location).resolve().parent.parent / "nvidia"))
            continue
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        if spec is None:
            continue
        for place in spec.submodule_search_locations or ():
            roots.append(place if package == "nvidia" else os.path.join(place, "..", "nvidia"))
    for root in roots:
        for folder in ("cu13/lib", "cuda_nvrtc/lib"):
            for version in ("13", "12"):
                path = pathlib.Path(root) / folder / f"libnvrtc.so.{version}"
                if not path.is_file():
                    continue
                try:
                    # NVRTC opens its builtins by name too, and with the same difficulty.
                    for builtins in sorted(path.parent.glob(f"libnvrtc-builtins.so.{version}.*")):
                        ctypes.CDLL(str(builtins))
                    ctypes.CDLL(str(path))
                except OSError:
                    continue  # the library looks elsewhere, and says so when it finds none
                return


def _open() -> ctypes.CDLL:
    path = _library_path()
    _preload_nvrtc()
    library = ctypes.CDLL(str(path))
    handle = ctypes.c_void_p
    # Addresses are passed as plain integers: byref() at each call would cost more than the call.
    signatures = {
        "moetune_create": (ctypes.c_int, [handle, handle, handle]),
        "moetune_destroy": (None, [handle]),
        "moetune_prepare": (ctypes.c_int, [handle, handle, ctypes.c_size_t]),
        "moetune_workspace_bytes": (ctypes.c_int, [handle, ctypes.c_int64, handle]),
        "moetune_run": (ctypes.c_int, [handle, handle, handle]),
        "moetune_explain": (ctypes.c_int, [handle, ctypes.c_int64, ctypes.c_int, handle]),
        "moetune_last_error": (ctypes.c_char_p, []),
        "moetune_status_name": (ctypes.c_char_p, [ctypes.c_int]),
        "moetune_version": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise OSError(f"{path} has no {name}: it is not this version's libmoetune.so") from None
        function.restype = result
        function.argtypes = arguments
    return library


def load_library() -> ctypes.CDLL:
    """Opens libmoetune.so once: MOE_TUNE_LIBRARY, else the one inside the package.

    Raises
    ------
    OSError
        There is none, or it cannot be loaded; the message says where it was looked for.
    """
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                _library = _open()
    return _library


def library_version() -> str:
    """The version that libmoetune.so states."""
    version: bytes = load_library().moetune_version()
    return version.decode()


def error_of(status: int) -> Exception:
    """The exception for a status, with the library's own message for this thread's last call."""
    library = load_library()
    message = (library.moetune_last_error() or b"").decode(errors="replace")
    if not message:
        message = (library.moetune_status_name(status) or b"").decode() or f"status {status}"
    if status == Status.INVALID_ARGUMENT:
        return ValueError(message)
    if status == Status.UNSUPPORTED:
        return UnsupportedError(message)
    if status == Status.NOT_PREPARED:
        return NotPreparedError(message)
    return RuntimeError(message)


def _environment(name: str) -> bytes | None:
    value = os.environ.get(name)
    return None if value is None else os.fsencode(value)


class Layer:
    """A layer handle. It lives until the process ends: graphs may hold its kernels.

    Parameters
    ----------
    key : LayerKey
        Shape, format, pitches and GPU.

    Raises
    ------
    ValueError
        Sizes or pitches that are no layer's, or (`UnsupportedError`) that no kernel here takes.
    RuntimeError
        CUDA's or the library's own trouble.
    """

    def __init__(self, key: LayerKey) -> None:
        library = load_library()
        self.key = key
        self._run = library.moetune_run
        self._library = library
        self._workspace_bytes: dict[int, int] = {}
        desc = LayerDesc(ctypes.sizeof(LayerDesc), *key[1:])
        options = Options(
            size=ctypes.sizeof(Options),
            device=key.device,
            table_path=_environment("MOE_TUNE_TABLES"),
            cache_dir=_environment("MOE_TUNE_CACHE"),
            num_compile_threads=0,
        )
        handle = ctypes.c_void_p()
        status = library.moetune_create(
            ctypes.addressof(desc), ctypes.addressof(options), ctypes.addressof(handle)
        )
        if status != Status.OK:
            raise error_of(status)
        self.handle = handle.value

    def prepare(self, token_counts: Sequence[int] = ()) -> None:
        """Compiles, or loads, what calls with these numbers of tokens need; none: with any."""
        counts = (ctypes.c_int64 * len(token_counts))(*token_counts)
        address = ctypes.addressof(counts) if len(token_counts) else None
        status = self._library.moetune_prepare(self.handle, address, len(token_counts))
        if status != Status.OK:
            raise error_of(status)

    def workspace_bytes(self, num_tokens: int) -> int:
        """Device memory that a call with this many tokens needs."""
        known = self._workspace_bytes.get(num_tokens)
        if known is not None:
            return known
        result = ctypes.c_size_t()
        status = self._library.moetune_workspace_bytes(
            self.handle, num_tokens, ctypes.addressof(result)
        )
        if status != Status.OK:
            raise error_of(status)
        if len(self._workspace_bytes) >= 65536:  # a server that saw every length: start again
            self._workspace_bytes.clear()
        self._workspace_bytes[num_tokens] = result.value
        return result.value

    def run(self, args: int, stream: int) -> int:
        """Enqueues one call: the address of an `Args`, a `cudaStream_t`. Returns the status."""
        status: int = self._run(self.handle, args, stream)
        return status

    def explain(self, num_tokens: int, *, as_json: bool = False) -> str:
        """Which table, entry and plan a call with this many tokens takes, and why."""
        text = ctypes.c_char_p()
        status = self._library.moetune_explain(
            self.handle, num_tokens, int(as_json), ctypes.addressof(text)
        )
        if status != Status.OK:
            raise error_of(status)
        return (text.value or b"").decode(errors="replace")
