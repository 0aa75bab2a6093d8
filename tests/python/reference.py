"""The layer in float64, for as many tokens as are to be checked, and random inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def routing(
    num_tokens: int, num_experts: int, top_k: int, device: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Top-k of a softmax of normal logits, as vLLM's tests route: float32 weights, int32 ids."""
    logits = torch.randn(num_tokens, num_experts, device=device, generator=generator)
    weights, ids = torch.topk(torch.softmax(logits, dim=-1), top_k, dim=-1)
    return weights, ids.to(torch.int32)


def normal(
    shape: tuple[int, ...], scale: float, device: str, generator: torch.Generator, padding: int = 0
) -> Tensor:
    """bfloat16; with `padding`, rows have that many more columns, of NaN, which is not returned."""
    wide = torch.empty(*shape[:-1], shape[-1] + padding, device=device, dtype=torch.bfloat16)
    wide.normal_(generator=generator).mul_(scale)
    if padding:
        wide[..., shape[-1] :] = float("nan")
    return wide[..., : shape[-1]]


def block_fp8(
    shape: tuple[int, int, int], scale: float, device: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """e4m3 weights of standard deviation about `scale`; scales differ from block to block."""
    values = torch.empty(shape, device=device, dtype=torch.bfloat16)
    values.normal_(generator=generator).mul_(100.0)
    blocks = (shape[0], shape[1] // 128, shape[2] // 128)
    scales = torch.rand(blocks, device=device, generator=generator).add_(0.5)
    return values.clamp_(-FP8_MAX, FP8_MAX).to(FP8), scales.mul_(scale / 100.0)


def tensor_fp8(
    shape: tuple[int, int, int], scale: float, device: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """e4m3 weights with one scale for each expert's matrix."""
    values = torch.empty(shape, device=device, dtype=torch.bfloat16)
    values.normal_(generator=generator).mul_(100.0)
    scales = torch.rand(shape[0], device=device, generator=generator).add_(0.5)
    return values.clamp_(-FP8_MAX, FP8_MAX).to(FP8), scales.mul_(scale / 100.0)


def _quantised(values: Tensor, group: int) -> Tensor:
    """float64 rows after a passage through e4m3, with one fp32 scale for `group` columns."""
    rows, columns = values.shape
    groups = values.float().reshape(rows, columns // group, group)
    scale = groups.abs().amax(dim=-1, keepdim=True).clamp_min(1e-10) / FP8_MAX
    rounded = (groups / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).double()
    return (rounded * scale.double()).reshape(rows, columns)


def _matrix(weight: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return weight.double()
    if scale.dim() == 0 or scale.numel() == 1:
        return weight.double() * scale.double()
    full = scale.double().repeat_interleave(128, dim=0).repeat_interleave(128, dim=1)
    return weight.double() * full


def layer(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    weights: Tensor,
    ids: Tensor,
    *,
    w1_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    expert_map: Tensor | None = None,
    tokens: Tensor | None = None,
) -> Tensor:
    """float64 [len(tokens), H]: the rows of the result that are asked for; all without `tokens`.

    With scales, activations pass through e4m3 where the kernels quantise them: the layer's input and
    the activation's result, for each 128 columns (block scales) or each row.
    """
    if tokens is not None:
        x, weights, ids = x[tokens], weights[tokens], ids[tokens]
    local = ids.long()
    if expert_map is not None:
        local = torch.where(local < 0, local, expert_map.long()[local.clamp_min(0)])
    x64 = x.double()
    block = w1_scale is not None and w1_scale.dim() == 3
    if w1_scale is not None:
        x64 = _quantised(x64, 128 if block else x.shape[1])
    result = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    # Grouped on the host: one wait for the ids instead of one for each expert.
    by_expert: dict[int, tuple[list[int], list[int]]] = {}
    for token, row in enumerate(local.tolist()):
        for slot, expert in enumerate(row):
            if 0 <= expert < w1.shape[0]:
                places = by_expert.setdefault(expert, ([], []))
                places[0].append(token)
                places[1].append(slot)
    for expert, (rows, slots) in by_expert.items():
        at = torch.tensor(rows, device=x.device)
        slot = torch.tensor(slots, device=x.device)
        first = _matrix(w1[expert], None if w1_scale is None else w1_scale[expert])
        gate, up = (x64[at] @ first.T).chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate) * up
        if w2_scale is not None:
            activated = _quantised(activated, 128 if block else activated.shape[1])
        second = _matrix(w2[expert], None if w2_scale is None else w2_scale[expert])
        value = (activated @ second.T) * weights[at, slot].double().unsqueeze(1)
        result.index_add_(0, at, value)
    return result


def sample(num_tokens: int, device: str, generator: torch.Generator, most: int = 256) -> Tensor:
    """The tokens to check: all, or `most` of them with the first and the last."""
    if num_tokens <= most:
        return torch.arange(num_tokens, device=device)
    chosen = torch.randperm(num_tokens, device=device, generator=generator)[:most]
    chosen[0], chosen[1] = 0, num_tokens - 1
    return chosen
