"""moe_tune under transformers' models (5.17): an experts implementation of that name.

    import moe_tune.transformers
    moe_tune.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(..., experts_implementation="moe_tune")

What a layer is, is read off its module. Layers that the kernels do not take go to transformers' own
`grouped_mm`, and one warning for each reason says why.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.finegrained_fp8 import (
    ALL_FP8_EXPERTS_FUNCTIONS,
    FP8Experts,
    fp8_grouped_mm_experts_forward,
)
from transformers.integrations.moe import (
    ALL_EXPERTS_FUNCTIONS,
    _default_apply_gate,
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)

from moe_tune import _experts
from moe_tune._library import Dtype, Layer, LayerKey, UnsupportedError

__all__ = ["experts_forward", "fp8_experts_forward", "layers_of", "register"]

_NAME = "moe_tune"
# silu under the names that configs have for it.
_SILU = tuple({type(ACT2FN["silu"]), type(ACT2FN["swish"]), nn.SiLU})
_FP8_APPLY_GATE = FP8Experts._apply_gate
_TOP_K_NAMES = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k")


def register() -> None:
    """Makes `experts_implementation="moe_tune"` known to transformers; again is harmless."""
    ALL_EXPERTS_FUNCTIONS.register(_NAME, experts_forward)
    ALL_FP8_EXPERTS_FUNCTIONS.register(_NAME, fp8_experts_forward)


# --- What a module is ---------------------------------------------------------------------------


class _Kind(NamedTuple):
    """How one of transformers' two interfaces for experts is taken."""

    dtype: Dtype
    weights: torch.dtype
    apply_gate: Any


_BF16 = _Kind(Dtype.BF16, torch.bfloat16, _default_apply_gate)
_FP8 = _Kind(Dtype.FP8_BLOCK, torch.float8_e4m3fn, _FP8_APPLY_GATE)


def _why_not_module(module: Any, kind: _Kind) -> str:
    """Why the kernels do not do what this module does, whatever it is called on; '' if they do."""
    # Attributes of the decorator's; a module that lacks one is of another version of transformers.
    if not getattr(module, "has_gate", False):
        return "the experts have no gate"
    if getattr(module, "has_bias", True):
        return "the experts have biases"
    if getattr(module, "is_transposed", kind is _BF16):
        return "the weights are stored transposed"
    if not getattr(module, "is_concatenated", kind is _FP8):
        return "gate and up projection are stored interleaved"
    if type(module)._apply_gate is not kind.apply_gate:
        return f"{type(module).__name__} has a gate of its own"
    if type(getattr(module, "act_fn", None)) not in _SILU:
        return f"the activation is {type(getattr(module, 'act_fn', None)).__name__}, not silu"
    if kind is _FP8:
        if tuple(module.block_size or ()) != (128, 128):
            return f"the fp8 blocks are {module.block_size}, not 128 x 128"
        if module.activation_scheme != "dynamic":
            return f"the activations' scales are {module.activation_scheme}, not dynamic"
        if module.swiglu_alpha is not None or module.limit is not None:
            return "the gate is clamped"
    return ""


def _why_not_weights(
    gate_up: Tensor, down: Tensor, scales: tuple[Tensor, Tensor] | None, kind: _Kind
) -> str:
    """Why the kernels do not take these weights where they lie; '' if they do."""
    for weight in (gate_up, down):
        # Sharded and otherwise wrapped tensors are classes of their own.
        if type(weight) not in (nn.Parameter, Tensor):
            return f"the weights are {type(weight).__name__}s"
        if weight.device.type not in _experts.device_types:
            return f"the weights are on {weight.device.type}"
        if weight.dtype != kind.weights:
            return f"the weights are {weight.dtype}"
        if weight.dim() != 3:
            return f"the weights have {weight.dim()} dimensions, not 3"
    num_experts, twice, hidden_size = gate_up.shape
    if tuple(down.shape) != (num_experts, hidden_size, twice // 2):
        return f"the weights' shapes are {list(gate_up.shape)} and {list(down.shape)}"
    multiple = _experts._MULTIPLES[kind.dtype]
    for name, size in (("hidden size", hidden_size), ("intermediate size", twice // 2)):
        if size == 0 or size % multiple != 0:
            return f"the {name} is {size}, not a multiple of {multiple}"
    for weight in (gate_up, down):
        rows, columns = weight.shape[1], weight.shape[2]
        if weight.stride(2) != 1 or weight.stride(1) * weight.element_size() % 16 != 0:
            return f"the weights' strides are {weight.stride()}"
        if weight.stride(1) < columns or (
            num_experts > 1 and weight.stride(0) != rows * weight.stride(1)
        ):
            return f"the weights' strides are {weight.stride()}"
    if scales is not None:
        for scale, weight in zip(scales, (gate_up, down)):
            expected = (num_experts, weight.shape[1] // 128, weight.shape[2] // 128)
            if scale.dtype != torch.float32:
                return f"the scales are {scale.dtype}, not float32"
            if tuple(scale.shape) != expected or not scale.is_contiguous():
                return f"a scale's shape is {list(scale.shape)}, not {list(expected)}"
    return ""


def _key_of(gate_up: Tensor, down: Tensor, kind: _Kind, top_k: int) -> LayerKey:
    num_experts, twice, hidden_size = gate_up.shape
    return LayerKey(
        gate_up.get_device(),
        kind.dtype,
        num_experts,
        top_k,
        hidden_size,
        twice // 2,
        gate_up.stride(1),
        down.stride(1),
    )


@torch.compiler.assume_constant_result
def _why_not_layer(
    device: int,
    dtype: int,
    num_experts: int,
    top_k: int,
    hidden_size: int,
    intermediate_size: int,
    w13_row_pitch: int,
    w2_row_pitch: int,
) -> str:
    """What the library says against this layer on this GPU; '' if nothing.

    Of plain numbers, so that torch.compile calls it once and keeps the answer.
    """
    sizes = num_experts, top_k, hidden_size, intermediate_size, w13_row_pitch, w2_row_pitch
    try:
        _experts.layer_of(LayerKey(device, Dtype(dtype), *sizes))
    except UnsupportedError as error:
        return str(error)
    return ""


_said: set[str] = set()


@torch.compiler.assume_constant_result
def _say(reason: str, instead: str) -> bool:
    """Warns once for each reason; under torch.compile too, when it traces."""
    if reason not in _said:
        _said.add(reason)
        warnings.warn(
            f"moe_tune does not run these experts: {reason}. transformers' {instead} does instead "
            "(this is said once).",
            stacklevel=2,
        )
    return True


def _why_not_decided(
    module: Any, gate_up: Tensor, down: Tensor, kind: _Kind, top_k: int
) -> str:
    reason = _why_not_module(module, kind)
    if not reason:
        scales = None
        if kind is _FP8:
            scales = (module.gate_up_proj_scale_inv, module.down_proj_scale_inv)
        reason = _why_not_weights(gate_up, down, scales, kind)
    if not reason:
        key = _key_of(gate_up, down, kind, top_k)
        reason = _why_not_layer(key.device, int(key.dtype), *key[2:])
    return reason


def _why_not(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, kind: _Kind
) -> str:
    """Why the kernels do not take this call; '' if they do."""
    if not getattr(module, "has_gate", False):
        return "the experts have no gate"
    gate_up, down = module.gate_up_proj, module.down_proj
    if torch.is_grad_enabled() and (
        hidden_states.requires_grad
        or top_k_weights.requires_grad
        or gate_up.requires_grad
        or down.requires_grad
    ):
        return "gradients are wanted (call it under torch.no_grad() or inference_mode())"
    top_k = top_k_index.shape[1]
    if torch.compiler.is_compiling():
        # Traced once: nothing to save, and a cache on the module would be one more guard.
        reason = _why_not_decided(module, gate_up, down, kind, top_k)
    else:
        # Whatever moves or converts a module changes its weights' data pointers.
        looks = (gate_up.data_ptr(), down.data_ptr(), gate_up.dtype, gate_up.device, top_k)
        known = module.__dict__.get("_moe_tune_decision")
        if known is not None and known[0] == looks:
            reason = known[1]
        else:
            reason = _why_not_decided(module, gate_up, down, kind, top_k)
            module.__dict__["_moe_tune_decision"] = (looks, reason)
    if reason:
        return reason
    if hidden_states.dtype != torch.bfloat16:
        return f"the hidden states are {hidden_states.dtype}"
    if hidden_states.dim() != 2 or hidden_states.device != gate_up.device:
        return "the hidden states are not [tokens, hidden size] beside the weights"
    if top_k_weights.dtype not in _experts._WEIGHT_TYPES:
        return f"the routing weights are {top_k_weights.dtype}"
    if top_k_index.dtype not in _experts._ID_TYPES:
        return f"the expert ids are {top_k_index.dtype}"
    return ""


def _grouped_mm_can(module: Any) -> bool:
    """Whether torch's grouped_mm takes these weights: it refuses rows of odd lengths."""
    up = module.gate_up_proj if module.has_gate else module.up_proj
    return all(w.stride(-2) * w.element_size() % 16 == 0 for w in (up, module.down_proj))


# --- The implementations ------------------------------------------------------------------------


def experts_forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts of one layer, as transformers' interface calls them.

    Ids that are not below the number of experts are another GPU's (transformers' expert parallelism):
    they add nothing.

    Parameters
    ----------
    self : nn.Module
        The experts module, with its weights.
    hidden_states : Tensor
        [T, H].
    top_k_index, top_k_weights : Tensor
        [T, K].

    Returns
    -------
    Tensor
        [T, H].
    """
    reason = _why_not(self, hidden_states, top_k_index, top_k_weights, _BF16)
    if reason:
        # The functions themselves: under their names there may be others by now, even this one.
        if _grouped_mm_can(self):
            _say(reason, "grouped_mm")
            return grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
        _say(reason, "batched_mm")
        return batched_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    return _experts.call_operator(
        hidden_states,
        self.gate_up_proj,
        self.down_proj,
        top_k_weights,
        top_k_index,
        None,
        None,
        None,
    )


def fp8_experts_forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The same for `FP8Experts`: e4m3 weights with a scale for each 128 x 128 block."""
    reason = _why_not(self, hidden_states, top_k_index, top_k_weights, _FP8)
    if reason:
        _say(reason, "fp8 grouped_mm")
        return fp8_grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    return _experts.call_operator(
        hidden_states,
        self.gate_up_proj,
        self.down_proj,
        top_k_weights,
        top_k_index,
        self.gate_up_proj_scale_inv,
        self.down_proj_scale_inv,
        None,
    )


# --- prepare ------------------------------------------------------------------------------------


def _top_k_of(module: Any) -> int | None:
    config: Any = getattr(module, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in _TOP_K_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def layers_of(model: nn.Module, *, top_k: int | None = None) -> list[Layer]:
    """The distinct layers of a model that the kernels take.

    Parameters
    ----------
    model : nn.Module
        A model, or one experts module.
    top_k : int, optional
        Experts a token, where the config does not say it.

    Returns
    -------
    list of Layer
    """
    found: dict[LayerKey, Layer] = {}
    for module in model.modules():
        gate_up: Any = getattr(module, "gate_up_proj", None)
        down: Any = getattr(module, "down_proj", None)
        if not isinstance(gate_up, Tensor) or not isinstance(down, Tensor):
            continue
        if not hasattr(module, "has_gate"):
            continue
        kind = _FP8 if gate_up.dtype == torch.float8_e4m3fn else _BF16
        chosen = top_k if top_k is not None else _top_k_of(module)
        if chosen is None:
            raise ValueError(
                f"{type(module).__name__}'s config does not say how many experts a token has: give top_k"
            )
        if not _why_not_decided(module, gate_up, down, kind, chosen):
            key = _key_of(gate_up, down, kind, chosen)
            found[key] = _experts.layer_of(key)
    return list(found.values())
