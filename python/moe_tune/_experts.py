"""`fused_experts`: the layer as a function of tensors, and as an operator that torch.compile knows."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_tune._library import (
    INT32,
    INT64,
    WEIGHT_BF16,
    WEIGHT_FP32,
    Args,
    Dtype,
    Layer,
    LayerKey,
    NotPreparedError,
    Status,
    error_of,
)

_FP8 = torch.float8_e4m3fn
_ID_TYPES = {torch.int32: INT32, torch.int64: INT64}
_WEIGHT_TYPES = {torch.float32: WEIGHT_FP32, torch.bfloat16: WEIGHT_BF16}
_DTYPES = {
    torch.bfloat16: Dtype.BF16,
    "bf16": Dtype.BF16,
    "bfloat16": Dtype.BF16,
    "fp8_block": Dtype.FP8_BLOCK,
    "fp8_tensor": Dtype.FP8_TENSOR,
}
# What sizes must be multiples of (moetune.h): rows of 16 bytes, whole scale blocks.
_MULTIPLES = {Dtype.BF16: 8, Dtype.FP8_BLOCK: 128, Dtype.FP8_TENSOR: 16}
_BLOCK = 128


def _is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


# --- Layers -------------------------------------------------------------------------------------

_lock = threading.Lock()
_layers: dict[LayerKey, Layer] = {}
# What a call's weights look like -> their layer: one look-up instead of the checks, once they passed.
_checked: dict[tuple[Any, ...], Layer] = {}


def layer_of(key: LayerKey) -> Layer:
    """The process's one handle for this layer, made when first asked for."""
    layer = _layers.get(key)
    if layer is None:
        with _lock:
            layer = _layers.get(key)
            if layer is None:
                layer = _layers[key] = Layer(key)
    return layer


def _pitch(name: str, weight: Tensor) -> int:
    """Elements from one row to the next of [E, rows, columns] weights that are used where they lie."""
    num_experts, rows, columns = weight.shape
    expert_stride, row_stride, column_stride = weight.stride()
    if column_stride != 1:
        raise ValueError(
            f"{name} has stride {column_stride} along its rows: each row must be contiguous"
            f" ({name}.transpose(...) is read as it lies; call .contiguous() once, when loading)"
        )
    bytes_of_row = row_stride * weight.element_size()
    if row_stride < columns or bytes_of_row % 16 != 0:
        raise ValueError(
            f"{name}'s rows are {bytes_of_row} bytes apart: this must be a multiple of 16, and at "
            f"least a row ({columns * weight.element_size()} bytes)"
        )
    if num_experts > 1 and expert_stride != rows * row_stride:
        raise ValueError(
            f"{name}'s experts are {expert_stride} elements apart: only rows may be padded, so this "
            f"must be {rows} rows of {row_stride}"
        )
    return row_stride


def _check_scale(name: str, scale: Tensor | None, weight: Tensor, shape: tuple[int, ...]) -> None:
    if scale is None:
        raise ValueError(f"{name} is missing: float8_e4m3fn weights need float32 scales")
    if scale.dtype != torch.float32:
        raise ValueError(f"{name} is {scale.dtype}: scales must be float32")
    if scale.device != weight.device:
        raise ValueError(f"{name} is on {scale.device}, the weights on {weight.device}")
    if tuple(scale.shape) != shape and not (
        len(shape) == 1 and scale.numel() == shape[0] == scale.shape[0]
    ):
        raise ValueError(f"{name} has shape {list(scale.shape)}: expected {list(shape)}")
    if not scale.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


def _check_weights(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_ids: Tensor,
    w1_scale: Tensor | None,
    w2_scale: Tensor | None,
) -> Layer:
    """All that can be wrong with a call's weights; their layer, if nothing is."""
    if w1.dim() != 3 or w2.dim() != 3:
        raise ValueError(
            f"w1 and w2 have {w1.dim()} and {w2.dim()} dimensions: expected w1 [E, 2I, H] and "
            "w2 [E, H, I]"
        )
    num_experts, twice, hidden_size = w1.shape
    intermediate_size = w2.shape[2]
    if twice != 2 * intermediate_size or tuple(w2.shape[:2]) != (num_experts, hidden_size):
        raise ValueError(
            f"w1 has shape {list(w1.shape)} and w2 {list(w2.shape)}: expected w1 [E, 2I, H] (the gate's "
            "rows, then the up projection's) and w2 [E, H, I]"
        )
    if w1.dtype != w2.dtype:
        raise ValueError(f"w1 is {w1.dtype} and w2 is {w2.dtype}: they must be alike")
    if w1.device != w2.device:
        raise ValueError(f"w1 is on {w1.device} and w2 on {w2.device}")
    if topk_ids.dim() != 2:
        raise ValueError(f"topk_ids has {topk_ids.dim()} dimensions: expected [T, K]")
    if w1.dtype == torch.bfloat16:
        dtype = Dtype.BF16
        for name, scale in (("w1_scale", w1_scale), ("w2_scale", w2_scale)):
            if scale is not None:
                raise ValueError(f"{name} is given, but the weights are bfloat16")
    elif w1.dtype == _FP8:
        if w1_scale is None or w2_scale is None:
            missing = "w1_scale" if w1_scale is None else "w2_scale"
            raise ValueError(f"{missing} is missing: float8_e4m3fn weights need float32 scales")
        # Blocks of w1 are two rows of them at least: [E, 1, 1] is one scale for each matrix.
        block = w1_scale.dim() == 3 and tuple(w1_scale.shape[1:]) != (1, 1)
        dtype = Dtype.FP8_BLOCK if block else Dtype.FP8_TENSOR
    else:
        raise ValueError(
            f"the weights are {w1.dtype}: supported are bfloat16, and float8_e4m3fn with scales"
        )
    multiple = _MULTIPLES[dtype]
    for name, size in (("hidden size", hidden_size), ("intermediate size", intermediate_size)):
        if size <= 0 or size % multiple != 0:
            raise ValueError(f"the {name} is {size}: {dtype.name} weights need a multiple of {multiple}")
    if dtype == Dtype.FP8_BLOCK:
        _check_scale(
            "w1_scale", w1_scale, w1, (num_experts, twice // _BLOCK, hidden_size // _BLOCK)
        )
        _check_scale(
            "w2_scale",
            w2_scale,
            w2,
            (num_experts, hidden_size // _BLOCK, intermediate_size // _BLOCK),
        )
    elif dtype == Dtype.FP8_TENSOR:
        _check_scale("w1_scale", w1_scale, w1, (num_experts,))
        _check_scale("w2_scale", w2_scale, w2, (num_experts,))
    pitches = _pitch("w1", w1), _pitch("w2", w2)
    device = w1.get_device()
    sizes = num_experts, topk_ids.shape[1], hidden_size, intermediate_size
    return layer_of(LayerKey(device, dtype, *sizes, *pitches))


# --- One call -----------------------------------------------------------------------------------


class _ThreadState(threading.local):
    """A thread's argument struct: filled anew at each call, made once."""

    def __init__(self) -> None:
        self.args = Args(size=ctypes.sizeof(Args))
        self.address = ctypes.addressof(self.args)


_thread = _ThreadState()


def _stream_of(device: int) -> int:
    stream: int = torch._C._cuda_getCurrentRawStream(device)
    return stream


def _rows(tensor: Tensor) -> Tensor:
    """Itself where its rows can be read as they lie, else a copy.

    Activations are small beside the weights, and a view that starts at an odd column or was expanded
    from one row is legitimate: they are copied, weights never are.
    """
    rows, columns = tensor.shape
    if (
        tensor.stride(1) == 1
        and tensor.data_ptr() % 16 == 0
        and (rows <= 1 or (tensor.stride(0) >= columns and tensor.stride(0) % 8 == 0))
    ):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _packed(tensor: Tensor) -> Tensor:
    """Itself where it is contiguous and aligned as the kernels read it, else a copy."""
    if tensor.is_contiguous() and tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_activations(
    layer: Layer,
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    expert_map: Tensor | None,
) -> None:
    """Says what is wrong with a call whose quick check failed."""
    device = layer.key.device
    if hidden_states.dtype != torch.bfloat16:
        raise ValueError(f"hidden_states is {hidden_states.dtype}: it must be bfloat16")
    if hidden_states.dim() != 2 or hidden_states.shape[1] != layer.key.hidden_size:
        raise ValueError(
            f"hidden_states has shape {list(hidden_states.shape)}: expected "
            f"[T, {layer.key.hidden_size}], as the weights have it"
        )
    if topk_ids.dtype not in _ID_TYPES:
        raise ValueError(f"topk_ids is {topk_ids.dtype}: it must be int32 or int64")
    if topk_weights.dtype not in _WEIGHT_TYPES:
        raise ValueError(f"topk_weights is {topk_weights.dtype}: it must be float32 or bfloat16")
    expected = (hidden_states.shape[0], layer.key.top_k)
    for name, tensor in (("topk_ids", topk_ids), ("topk_weights", topk_weights)):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: expected {list(expected)}")
    named = [
        ("hidden_states", hidden_states),
        ("topk_ids", topk_ids),
        ("topk_weights", topk_weights),
    ]
    if expert_map is not None:
        named.append(("expert_map", expert_map))
        if expert_map.dtype != torch.int32 or expert_map.dim() != 1:
            raise ValueError(
                f"expert_map is {expert_map.dtype} of shape {list(expert_map.shape)}: it must be int32, "
                "one entry for each of the model's experts: this GPU's expert, or -1"
            )
    for name, tensor in named:
        if tensor.get_device() != device:
            raise ValueError(f"{name} is on {tensor.device}, the weights on GPU {device}")


def _check_out(out: Tensor, hidden_states: Tensor) -> None:
    if (
        out.shape != hidden_states.shape
        or out.dtype != torch.bfloat16
        or out.get_device() != hidden_states.get_device()
    ):
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)} on {out.device}: it must be like hidden_states, "
            f"bfloat16 {list(hidden_states.shape)} on {hidden_states.device}"
        )
    rows, columns = out.shape
    if out.numel() == 0:
        return
    if (
        out.stride(1) != 1
        or out.data_ptr() % 16 != 0
        or (rows > 1 and (out.stride(0) < columns or out.stride(0) % 8 != 0))
    ):
        raise ValueError(
            f"out has strides {list(out.stride())}: its rows must be contiguous, and start at multiples "
            "of 16 bytes"
        )
    ends = []
    for tensor in (out, hidden_states):
        first = tensor.data_ptr()
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        ends.append((first, first + 2 * (reach + 1)))
    if ends[0][0] < ends[1][1] and ends[1][0] < ends[0][1]:
        raise ValueError(
            "out overlaps hidden_states, which is read until the end: give other memory, or inplace=True"
        )


def _call(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w1_scale: Tensor | None,
    w2_scale: Tensor | None,
    expert_map: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """One call on real tensors; everything it does is on the current stream."""
    looks: tuple[Any, ...] = (
        w1.get_device(),
        w1.dtype,
        w1.shape,
        w1.stride(),
        w2.get_device(),
        w2.dtype,
        w2.shape,
        w2.stride(),
        topk_ids.shape[-1],
    )
    if w1_scale is not None or w2_scale is not None:
        looks += tuple(
            None if s is None else (s.dtype, s.get_device(), s.shape, s.stride())
            for s in (w1_scale, w2_scale)
        )
    layer = _checked.get(looks)
    if layer is None:
        layer = _check_weights(hidden_states, w1, w2, topk_ids, w1_scale, w2_scale)
        _checked[looks] = layer
    key = layer.key
    device = key.device
    id_type = _ID_TYPES.get(topk_ids.dtype)
    weight_type = _WEIGHT_TYPES.get(topk_weights.dtype)
    num_tokens = hidden_states.shape[0]
    shape = (num_tokens, key.hidden_size)
    if (
        id_type is None
        or weight_type is None
        or hidden_states.dtype != torch.bfloat16
        or hidden_states.shape != shape
        or topk_ids.shape != (num_tokens, key.top_k)
        or topk_weights.shape != topk_ids.shape
        or hidden_states.get_device() != device
        or topk_ids.get_device() != device
        or topk_weights.get_device() != device
        or expert_map is not None
    ):
        _check_activations(layer, hidden_states, topk_weights, topk_ids, expert_map)
    if out is not None:
        _check_out(out, hidden_states)
    elif hidden_states.is_contiguous():
        out = torch.empty_like(hidden_states)  # a third of what new_empty costs
    else:
        out = hidden_states.new_empty(shape)
    if num_tokens == 0:
        return out
    x_address = hidden_states.data_ptr()
    if x_address % 16 != 0 or not hidden_states.is_contiguous():
        hidden_states = _rows(hidden_states)
        x_address = hidden_states.data_ptr()
    topk_ids = _packed(topk_ids)
    topk_weights = _packed(topk_weights)
    # From torch's allocator: it knows streams and graphs, and takes the memory back when the stream
    # has passed this call.
    workspace_bytes = layer.workspace_bytes(num_tokens)
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=hidden_states.device)

    args = _thread.args
    args.num_tokens = num_tokens
    args.x = x_address
    # A single row may have any stride.
    args.x_row_pitch = hidden_states.stride(0) if num_tokens > 1 else 0
    args.w13 = w1.data_ptr()
    args.w13_scale = None if w1_scale is None else w1_scale.data_ptr()
    args.w2 = w2.data_ptr()
    args.w2_scale = None if w2_scale is None else w2_scale.data_ptr()
    args.topk_ids = topk_ids.data_ptr()
    args.id_type = id_type
    args.topk_weights = topk_weights.data_ptr()
    args.weight_type = weight_type
    if expert_map is None:
        args.expert_map = None
        args.expert_map_size = 0
    else:
        expert_map = _packed(expert_map)
        args.expert_map = expert_map.data_ptr()
        args.expert_map_size = expert_map.shape[0]
    args.out = out.data_ptr()
    args.out_row_pitch = out.stride(0) if num_tokens > 1 else 0
    args.workspace = workspace.data_ptr()
    args.workspace_bytes = workspace_bytes
    status = layer.run(_thread.address, _stream_of(device))
    if status != Status.OK:
        _recover(status, layer, num_tokens)
    return out


def _recover(status: int, layer: Layer, num_tokens: int) -> None:
    """After a call that was refused: prepares and calls again where that helps, else raises."""
    if status != Status.NOT_PREPARED:
        raise error_of(status)
    key = layer.key
    if _is_capturing():
        raise NotPreparedError(
            f"no kernels are loaded for {num_tokens} tokens, and none can be compiled while a CUDA graph "
            "is captured: call the layer once with as many tokens before the capture, or "
            f"moe_tune.prepare(num_experts={key.num_experts}, top_k={key.top_k}, "
            f"hidden_size={key.hidden_size}, intermediate_size={key.intermediate_size}, "
            f"dtype={key.dtype.name.lower()!r}, token_counts=[{num_tokens}])"
        )
    layer.prepare([num_tokens])
    # The struct is this thread's, and preparing does not call back into Python: it is as it was.
    status = layer.run(_thread.address, _stream_of(key.device))
    if status != Status.OK:
        raise error_of(status)


# --- The operators ------------------------------------------------------------------------------

# define/impl/register_fake and not custom_op, whose wrappers cost 4 to 8 us a call more.
_ARGUMENTS = (
    "Tensor hidden_states, Tensor w1, Tensor w2, Tensor topk_weights, Tensor topk_ids, "
    "Tensor? w1_scale, Tensor? w2_scale, Tensor? expert_map"
)
# Exact strides: a compiler may not replace padded weights by a packed copy, nor the other way round.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_operators = torch.library.Library("moe_tune", "DEF")
_operators.define(f"fused_experts({_ARGUMENTS}) -> Tensor", tags=_TAGS)
_operators.define(f"fused_experts_out({_ARGUMENTS}, Tensor(a!) out) -> ()", tags=_TAGS)


def _fused_experts_cuda(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w1_scale: Tensor | None,
    w2_scale: Tensor | None,
    expert_map: Tensor | None,
) -> Tensor:
    device = w1.get_device()
    if torch._C._cuda_getDevice() == device:
        return _call(
            hidden_states, w1, w2, topk_weights, topk_ids, w1_scale, w2_scale, expert_map, None
        )
    with torch.cuda.device(device):
        return _call(
            hidden_states, w1, w2, topk_weights, topk_ids, w1_scale, w2_scale, expert_map, None
        )


def _fused_experts_out_cuda(*arguments: Any) -> None:
    with torch.cuda.device(arguments[1].get_device()):
        _call(*arguments)


def _fused_experts_fake(hidden_states: Tensor, *_: Any) -> Tensor:
    return hidden_states.new_empty(hidden_states.shape)


def _fused_experts_out_fake(*_: Any) -> None:
    return None


_NO_GRADIENTS = (
    "moe_tune.fused_experts has no backward pass, and {name} requires a gradient: call it under "
    "torch.no_grad() or torch.inference_mode(), or train with another implementation"
)
_NAMES = ("hidden_states", "w1", "w2", "topk_weights")


def _refuse_gradients(*tensors: Tensor) -> None:
    """Raises where a result without history would silently be taken for a constant."""
    if torch.is_grad_enabled():
        for name, tensor in zip(_NAMES, tensors):
            if tensor.requires_grad:
                raise RuntimeError(_NO_GRADIENTS.format(name=name))


def _fused_experts_autograd(*arguments: Any) -> Tensor:
    _refuse_gradients(*arguments[:4])
    with torch._C._AutoDispatchBelowAutograd():
        result: Tensor = _fused_experts_op(*arguments)
        return result


def _fused_experts_out_autograd(*arguments: Any) -> None:
    _refuse_gradients(*arguments[:4])
    with torch._C._AutoDispatchBelowAutograd():
        _fused_experts_out_op(*arguments)


_operators.impl("fused_experts", _fused_experts_cuda, "CUDA")
_operators.impl("fused_experts_out", _fused_experts_out_cuda, "CUDA")
_operators.impl("fused_experts", _fused_experts_autograd, "Autograd")
_operators.impl("fused_experts_out", _fused_experts_out_autograd, "Autograd")
torch.library.register_fake("moe_tune::fused_experts", _fused_experts_fake, lib=_operators)
torch.library.register_fake("moe_tune::fused_experts_out", _fused_experts_out_fake, lib=_operators)
_fused_experts_op = torch.ops.moe_tune.fused_experts.default
_fused_experts_out_op = torch.ops.moe_tune.fused_experts_out.default

# Types of device whose tensors the operators take.
device_types = {"cuda"}


def call_operator(*arguments: Any) -> Tensor:
    """The operator, for callers that saw to it that no gradient is wanted.

    The dispatcher then need not come by Python for the same question.
    """
    if torch.compiler.is_compiling():
        return _fused_experts_op(*arguments)  # type: ignore[no-any-return]
    with torch._C._AutoDispatchBelowAutograd():
        return _fused_experts_op(*arguments)  # type: ignore[no-any-return]

# --- The public functions -----------------------------------------------------------------------

_SUPPORTED = (
    "supported are bfloat16 weights, and float8_e4m3fn weights (use_fp8_w8a8=True) with float32 scales "
    "for each 128 x 128 block (block_shape=[128, 128]) or for each expert's matrix; "
    "activation 'silu'; no biases"
)
# Keywords of vLLM's that only permit another of its implementations.
_PERMISSIONS = ("allow_deep_gemm", "allow_cutlass_block_scaled_grouped_gemm")
_QUANT_CONFIG = (
    "use_fp8_w8a8",
    "use_int8_w8a8",
    "use_int8_w8a16",
    "use_int4_w4a16",
    "w1_scale",
    "w2_scale",
    "w1_zp",
    "w2_zp",
    "a1_scale",
    "a2_scale",
    "block_shape",
    "w1_bias",
    "w2_bias",
)


def _unsupported(name: str, value: object) -> ValueError:
    shown = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return ValueError(f"fused_experts: {name} ({shown}) is not supported: {_SUPPORTED}")


def fused_experts(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    inplace: bool = False,
    activation: str = "silu",
    apply_router_weight_on_input: bool = False,
    *,
    use_fp8_w8a8: bool = False,
    use_int8_w8a8: bool = False,
    use_int8_w8a16: bool = False,
    use_int4_w4a16: bool = False,
    per_channel_quant: bool = False,
    global_num_experts: int = -1,
    expert_map: Tensor | None = None,
    w1_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    w1_zp: Tensor | None = None,
    w2_zp: Tensor | None = None,
    a1_scale: Tensor | None = None,
    a2_scale: Tensor | None = None,
    block_shape: Sequence[int] | None = None,
    w1_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    quant_config: Any = None,
    out: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """A mixture-of-experts layer after its router.

    ``out[t] = sum over k of topk_weights[t, k] * w2[e] (silu(w1[e, :I] x) * (w1[e, I:] x))`` with
    ``x = hidden_states[t]`` and ``e = topk_ids[t, k]``. The keywords are those of vLLM's function of
    this name; what is not supported raises `ValueError` and is named in it.

    Parameters
    ----------
    hidden_states : Tensor
        bfloat16 [T, H]. Rows may be padded; what the kernels cannot read where it lies is copied.
    w1, w2 : Tensor
        [E, 2I, H], the gate's rows before the up projection's, and [E, H, I]: bfloat16, or
        float8_e4m3fn with scales. Used where they lie; rows may be padded to multiples of 16 bytes.
    topk_weights, topk_ids : Tensor
        [T, K]: float32 or bfloat16; int32 or int64. An id that is negative, or not below the number of
        experts, is another GPU's and adds nothing.
    inplace : bool
        The result is also written over `hidden_states`, which is returned. The layer reads its input
        until its end, so this costs a copy.
    activation : str
        'silu'.
    apply_router_weight_on_input : bool
        Must be false.
    use_fp8_w8a8 : bool
        The weights are float8_e4m3fn; activations are quantised inside.
    use_int8_w8a8, use_int8_w8a16, use_int4_w4a16, per_channel_quant : bool
        Must be false.
    global_num_experts : int
        The model's number of experts; -1: not said. Only compared with `expert_map`.
    expert_map : Tensor, optional
        int32 [global_num_experts]: this GPU's expert for each of the model's, or -1.
    w1_scale, w2_scale : Tensor, optional
        float32: [E, 2I / 128, H / 128] and [E, H / 128, I / 128] with ``block_shape=[128, 128]``, else
        [E] or [E, 1].
    w1_zp, w2_zp, a1_scale, a2_scale, w1_bias, w2_bias : Tensor, optional
        Must be None.
    block_shape : sequence of int, optional
        None or [128, 128].
    quant_config : object, optional
        A `FusedMoEQuantConfig` of vLLM's, or anything with its attributes, in place of the keywords.
    out : Tensor, optional
        bfloat16 [T, H], not overlapping `hidden_states`: the result is written there and returned.
    **others
        Keywords of other versions of vLLM's: accepted where they ask for nothing.

    Returns
    -------
    Tensor
        bfloat16 [T, H]: `out` or `hidden_states` where these are to be written, else new.

    Raises
    ------
    ValueError
        Something is not supported or does not fit together.
    NotPreparedError
        Within a CUDA graph's capture, where no kernels were prepared for this number of tokens.
    RuntimeError
        A gradient is wanted, which there is none of; or CUDA's trouble.
    """
    if quant_config is not None:
        given: dict[str, Any] = {name: getattr(quant_config, name, None) for name in _QUANT_CONFIG}
        if getattr(quant_config, "per_act_token_quant", False):
            raise _unsupported("quant_config.per_act_token_quant", True)
        if getattr(quant_config, "use_mxfp4_w4a4", False) or getattr(
            quant_config, "use_mxfp4_w4a16", False
        ):
            raise _unsupported("quant_config", "mxfp4")
        return fused_experts(
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            inplace,
            activation,
            apply_router_weight_on_input,
            global_num_experts=global_num_experts,
            expert_map=expert_map,
            out=out,
            **given,
            **others,
        )
    kind = getattr(activation, "value", activation)  # vLLM's later versions have an enumeration
    if kind != "silu":
        raise _unsupported("activation", kind)
    if (
        apply_router_weight_on_input
        or use_int8_w8a8
        or use_int8_w8a16
        or use_int4_w4a16
        or per_channel_quant
        or w1_zp is not None
        or w2_zp is not None
        or a1_scale is not None
        or a2_scale is not None
        or w1_bias is not None
        or w2_bias is not None
        or others
    ):
        named: dict[str, Any] = {
            "apply_router_weight_on_input": apply_router_weight_on_input,
            "use_int8_w8a8": use_int8_w8a8,
            "use_int8_w8a16": use_int8_w8a16,
            "use_int4_w4a16": use_int4_w4a16,
            "per_channel_quant": per_channel_quant,
            "w1_zp": w1_zp,
            "w2_zp": w2_zp,
            "a1_scale": a1_scale,
            "a2_scale": a2_scale,
            "w1_bias": w1_bias,
            "w2_bias": w2_bias,
        }
        for name, value in {**named, **others}.items():
            if value is not None and value is not False and name not in _PERMISSIONS:
                raise _unsupported(name, value)
    if use_fp8_w8a8:
        if w1.dtype != _FP8:
            raise ValueError(f"fused_experts: use_fp8_w8a8 is true, but w1 is {w1.dtype}")
        if block_shape is None:
            if w1_scale is not None and w1_scale.numel() != w1.shape[0]:
                raise ValueError(
                    f"fused_experts: w1_scale has shape {list(w1_scale.shape)}: without block_shape it "
                    "is one scale for each expert; give block_shape=[128, 128] for blocks'"
                )
        elif tuple(block_shape) != (_BLOCK, _BLOCK):
            raise _unsupported("block_shape", list(block_shape))
        elif w1_scale is not None and w1_scale.dim() != 3:
            raise ValueError(
                f"fused_experts: w1_scale has shape {list(w1_scale.shape)}: with block_shape it is "
                "[E, 2I / 128, H / 128]"
            )
    elif w1.dtype == _FP8:
        raise ValueError("fused_experts: w1 is float8_e4m3fn: give use_fp8_w8a8=True and scales")
    elif block_shape is not None:
        raise _unsupported("block_shape without use_fp8_w8a8", list(block_shape))
    if expert_map is not None and global_num_experts not in (-1, expert_map.shape[0]):
        raise ValueError(
            f"fused_experts: global_num_experts is {global_num_experts}, but expert_map has "
            f"{expert_map.shape[0]} entries"
        )
    if hidden_states.device.type not in device_types:
        raise ValueError(
            f"fused_experts: hidden_states is on {hidden_states.device}: only CUDA tensors are supported"
        )
    if inplace and out is not None and out is not hidden_states:
        raise ValueError("fused_experts: give inplace=True or out=, not both")
    inplace = inplace or out is hidden_states
    arguments = (
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        w1_scale,
        w2_scale,
        expert_map,
    )
    if torch.compiler.is_compiling():
        # The operator itself refuses gradients.
        if inplace:
            return hidden_states.copy_(_fused_experts_op(*arguments))
        if out is None:
            return call_operator(*arguments)
        _fused_experts_out_op(*arguments, out)
        return out
    _refuse_gradients(*arguments[:4])
    if out is None or inplace:
        result = call_operator(*arguments)
        return hidden_states.copy_(result) if inplace else result
    _fused_experts_out_op(*arguments, out)
    torch.autograd.graph.increment_version(out)  # as torch's own functions with out= do
    return out


def _dtype_of(dtype: torch.dtype | str) -> Dtype:
    known = _DTYPES.get(dtype)
    if known is None:
        raise ValueError(
            f"dtype {dtype!r}: there are torch.bfloat16 ('bf16'), 'fp8_block' and 'fp8_tensor'"
        )
    return known


def _device_index(device: int | str | torch.device | None) -> int:
    if isinstance(device, int):
        return device
    if device is not None:
        index = torch.device(device).index
        if index is not None:
            return index
    return torch.cuda.current_device()


def _layer_from(
    num_experts: int | None,
    top_k: int | None,
    hidden_size: int | None,
    intermediate_size: int | None,
    dtype: torch.dtype | str,
    w1_row_pitch: int | None,
    w2_row_pitch: int | None,
    device: int | str | torch.device | None,
) -> Layer:
    named = {
        "num_experts": num_experts,
        "top_k": top_k,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
    }
    missing = [name for name, value in named.items() if value is None]
    if missing:
        raise TypeError(f"without a model, give {', '.join(missing)} too")
    assert num_experts and top_k and hidden_size and intermediate_size
    return layer_of(
        LayerKey(
            _device_index(device),
            _dtype_of(dtype),
            num_experts,
            top_k,
            hidden_size,
            intermediate_size,
            w1_row_pitch or hidden_size,
            w2_row_pitch or intermediate_size,
        )
    )


def prepare(
    model: torch.nn.Module | None = None,
    *,
    token_counts: Iterable[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    dtype: torch.dtype | str = torch.bfloat16,
    w1_row_pitch: int | None = None,
    w2_row_pitch: int | None = None,
    device: int | str | torch.device | None = None,
) -> int:
    """Compiles, or loads from the cache, what later calls need; takes seconds where it compiles.

    A call whose token count was not prepared prepares it itself, except within a CUDA graph's capture,
    where it raises `NotPreparedError`.

    Parameters
    ----------
    model : torch.nn.Module, optional
        A model of transformers, or one of its experts modules: all layers in it that
        `moe_tune.transformers` would run are prepared. Instead of the sizes.
    token_counts : iterable of int, optional
        Numbers of tokens of the calls to come; None: whatever number.
    num_experts, top_k, hidden_size, intermediate_size : int
        One layer, as this GPU sees it. `top_k` with a model: where its config does not say it.
    dtype : torch.dtype or str
        torch.bfloat16 ('bf16'), 'fp8_block' or 'fp8_tensor'.
    w1_row_pitch, w2_row_pitch : int, optional
        Elements between rows of padded weights.
    device : int, str or torch.device, optional
        The GPU; None: the current one.

    Returns
    -------
    int
        How many distinct layers were prepared.
    """
    counts = sorted(set(token_counts)) if token_counts is not None else []
    if token_counts is not None and not counts:
        raise ValueError("token_counts is empty: give None for whatever number of tokens")
    if model is not None:
        from moe_tune.transformers import layers_of

        layers = layers_of(model, top_k=top_k)
        if not layers:
            raise ValueError("the model has no experts module that moe_tune can run")
    else:
        layers = [
            _layer_from(
                num_experts,
                top_k,
                hidden_size,
                intermediate_size,
                dtype,
                w1_row_pitch,
                w2_row_pitch,
                device,
            )
        ]
    for layer in layers:
        layer.prepare(counts)
    return len(layers)


def explain(
    num_tokens: int,
    *,
    num_experts: int,
    top_k: int,
    hidden_size: int,
    intermediate_size: int,
    dtype: torch.dtype | str = torch.bfloat16,
    w1_row_pitch: int | None = None,
    w2_row_pitch: int | None = None,
    device: int | str | torch.device | None = None,
    as_dict: bool = False,
) -> str | dict[str, Any]:
    """Which table, which of its entries and which kernels a call takes, and why.

    Parameters
    ----------
    num_tokens : int
        Of the call.
    num_experts, top_k, hidden_size, intermediate_size, dtype, w1_row_pitch, w2_row_pitch, device
        As in `prepare`.
    as_dict : bool
        The same as a dict instead of text for people.

    Returns
    -------
    str or dict
    """
    layer = _layer_from(
        num_experts,
        top_k,
        hidden_size,
        intermediate_size,
        dtype,
        w1_row_pitch,
        w2_row_pitch,
        device,
    )
    text = layer.explain(num_tokens, as_json=as_dict)
    if not as_dict:
        return text
    result: dict[str, Any] = json.loads(text)
    return result
