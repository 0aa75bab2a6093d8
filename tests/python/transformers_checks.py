"""moe_tune under models of transformers, tiny and random: the checks, for a GPU or over the fake library.

What is compared, and how closely:
  experts   each experts module by itself, on what a forward pass gives it, against its own eager
            forward in float32: relative error of the norm at most 0.01 in bf16. Weights are ten times
            transformers' usual ones: with those, experts that return zeros pass any test of a model.
  model     the logits of the whole model against eager experts in the same bf16: relative error of
            the norm at most 0.1 (another rounding turns near ties of the router the other way: 0.04 was seen).
  compile   one graph without breaks.
Sizes that the kernels take must reach them, once a layer; others must not, and one warning says why.
"""

from __future__ import annotations

import copy
import functools
import importlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gpu_checks
import reference
import torch
from gpu_checks import Check, Skip, compare
from moe_tune import _experts, prepare
from moe_tune import transformers as ours
from torch import Tensor, nn

# Standard gated layers: the kernels' own.
MODELS = ("mixtral", "qwen3_moe", "olmoe", "glm4_moe", "minimax_m2")
# Biased, transposed and interleaved; without a gate.
OTHERS = {"gpt_oss": "biases", "nemotron_h": "no gate"}
FITS = {"hidden": 128, "inter": 256, "moe_inter": 128}
# transformers' tests have had such sizes: rows of 74 bytes.
ODD = {"hidden": 32, "inter": 37, "moe_inter": 37}
NUM_LAYERS = 2


def config_of(config: type, sizes: dict[str, int], **others: Any) -> Any:
    hidden = sizes["hidden"]
    return config(
        hidden_size=hidden,
        intermediate_size=sizes["inter"],
        moe_intermediate_size=sizes["moe_inter"],
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        vocab_size=128,
        num_experts=8,
        num_local_experts=8,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        first_k_dense_replace=0,
        initializer_range=0.2,
        **others,
    )


def model_of(
    name: str, sizes: dict[str, int], implementation: str, dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    ours.register()
    library = importlib.import_module(f"transformers.models.{name}")
    causal = next(getattr(library, k) for k in dir(library) if k.endswith("ForCausalLM"))
    torch.manual_seed(0)
    model = causal._from_config(
        config_of(causal.config_class, sizes), dtype=dtype, experts_implementation=implementation
    )
    return model.to(gpu_checks.DEVICE).eval()


def tokens_of(batch: int, length: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(3, 100, (batch, length), generator=source).to(gpu_checks.DEVICE)


def experts_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "has_gate") and hasattr(m, "down_proj")]


class Counted:
    """Counts the operator's calls, and collects this package's warnings, while it is entered."""

    def __enter__(self) -> Counted:
        self.calls = 0
        self._real = _experts.call_operator
        self._said = set(ours._said)
        ours._said.clear()

        def counting(*arguments: Any) -> Tensor:
            self.calls += 1
            return self._real(*arguments)

        _experts.call_operator = counting
        self._caught = warnings.catch_warnings(record=True)
        self._all = self._caught.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *error: Any) -> None:
        self._caught.__exit__(*error)
        _experts.call_operator = self._real
        ours._said.clear()
        ours._said.update(self._said)

    @property
    def warnings(self) -> list[str]:
        return [str(w.message) for w in self._all if "moe_tune" in str(w.message)]


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def check_model(name: str, sizes: dict[str, int], reason: str) -> dict[str, float]:
    """`reason`: what the warning must say where the kernels are not to be reached; else ''."""
    model = model_of(name, sizes, "eager")
    ids = tokens_of(4, 33)
    seen: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, args: seen.append((m, args)))
        for module in experts_of(model)
    ]
    expected = logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    assert seen, "no experts were called"
    figures = {"experts_error": 0.0}
    with Counted() as counted:
        for module, (x, index, weights) in seen:
            exact = copy.deepcopy(module).float()(x.float(), index, weights.float())
            with torch.no_grad():
                got = ours.experts_forward(module, x, index, weights)
            assert bool(torch.isfinite(got).all()), "not finite"
            error = ((got.double() - exact.double()).norm() / exact.double().norm()).item()
            if not (error <= 0.01):
                raise AssertionError(f"experts alone: relative error {error:.4g} > 0.01")
            figures["experts_error"] = max(figures["experts_error"], error)
        model.set_experts_implementation("moe_tune")
        got = logits_of(model, ids)
    error = ((got - expected).double().norm() / expected.double().norm()).item()
    if not (error <= 0.1):
        raise AssertionError(f"logits: relative error {error:.4g} > 0.1")
    figures["logits_error"] = error
    if reason:
        assert counted.calls == 0, "the kernels were reached"
        assert len(counted.warnings) == 1, f"one warning, not {counted.warnings}"
        assert reason in counted.warnings[0], counted.warnings[0]
    else:
        assert counted.calls == 2 * len(seen), f"{counted.calls} calls for {len(seen)} layers"
        assert not counted.warnings, counted.warnings
    return figures


def check_compile(name: str, sizes: dict[str, int]) -> dict[str, float]:
    torch._dynamo.reset()
    model = model_of(name, sizes, "moe_tune")
    ids = tokens_of(2, 7)
    with torch.no_grad():
        found = torch._dynamo.explain(lambda i: model(input_ids=i, use_cache=False).logits)(ids)
    assert found.graph_break_count == 0, [str(b.reason) for b in found.break_reasons]
    assert found.graph_count == 1, found.graph_count
    operator = torch.ops.moe_tune.fused_experts.default
    inside = sum(node.target is operator for graph in found.graphs for node in graph.graph.nodes)
    wanted = NUM_LAYERS if sizes is FITS and name in MODELS else 0
    assert inside == wanted, f"{inside} calls of the operator in the graph, not {wanted}"
    return {}


def check_foreign_ids(name: str) -> dict[str, float]:
    """transformers' expert parallelism gives E for an expert of another GPU's."""
    module = experts_of(model_of(name, FITS, "moe_tune"))[0]
    E, K, T, H = 8, 2, 33, FITS["hidden"]
    source = gpu_checks.generator(5)
    x = reference.normal((T, H), 1.0, gpu_checks.DEVICE, source)
    weights, index = reference.routing(T, E, K, gpu_checks.DEVICE, source)
    index = index.long()
    index[::3, 1] = E
    index[4] = E
    with torch.no_grad():
        out = module(x, index, weights)
        expected = reference.layer(x, module.gate_up_proj, module.down_proj, weights, index)
    assert bool((out[4] == 0).all()), "a token without experts here must get zeros"
    return compare(out, expected, torch.arange(T, device=x.device), 1e9, 0.01)


def check_gradients(name: str) -> dict[str, float]:
    model = model_of(name, FITS, "moe_tune").train()
    with Counted() as counted:
        model(input_ids=tokens_of(2, 9), use_cache=False).logits.float().square().mean().backward()
    assert counted.calls == 0 and len(counted.warnings) == 1, (counted.calls, counted.warnings)
    assert "gradients are wanted" in counted.warnings[0], counted.warnings
    for module in experts_of(model):
        size = module.down_proj.grad.norm().item()
        assert size > 0, "the experts got no gradient"
    return {}


def check_moved_module(name: str) -> dict[str, float]:
    """What was decided for a module does not outlive its weights."""
    model = model_of(name, FITS, "moe_tune", torch.float32)
    ids = tokens_of(2, 9)
    with Counted() as counted:
        logits_of(model, ids)
        assert counted.calls == 0 and "float32" in counted.warnings[0], counted.warnings
        model.to(torch.bfloat16)
        logits_of(model, ids)
        assert counted.calls == len(experts_of(model)), counted.calls
        model.to(torch.float16)
        logits_of(model, ids)
        assert counted.calls == len(experts_of(model)), counted.calls
    return {}


def check_prepare(name: str) -> dict[str, float]:
    model = model_of(name, FITS, "moe_tune")
    assert prepare(model, token_counts=[1, 2]) == 1, "all layers of a model are one"
    try:
        prepare(model_of("gpt_oss", FITS, "moe_tune"))
    except ValueError as error:
        assert "no experts module" in str(error)
    else:
        raise AssertionError("gpt_oss was prepared")
    return {}


def check_fp8() -> dict[str, float]:
    """FP8Experts with blocks of 128 x 128; others go elsewhere, which needs kernels of the hub's."""
    from transformers.integrations.finegrained_fp8 import FP8Experts
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig

    if gpu_checks.on_gpu() and torch.cuda.get_device_capability() < (8, 9):
        raise Skip("this GPU has no e4m3 instructions")
    ours.register()
    E, K, T, H, I = 8, 2, 33, 256, 128  # noqa: E741
    config = MixtralConfig(
        hidden_size=H, intermediate_size=I, num_local_experts=E, num_experts_per_tok=K
    )
    module = FP8Experts(config, block_size=(128, 128)).to(gpu_checks.DEVICE)
    source = gpu_checks.generator(9)
    w1, s1 = reference.block_fp8((E, 2 * I, H), 1 / 15, gpu_checks.DEVICE, source)
    w2, s2 = reference.block_fp8((E, H, I), 1 / 15, gpu_checks.DEVICE, source)
    for name, value in (
        ("gate_up_proj", w1),
        ("down_proj", w2),
        ("gate_up_proj_scale_inv", s1),
        ("down_proj_scale_inv", s2),
    ):
        parameter = getattr(module, name)
        assert parameter.shape == value.shape and parameter.dtype == value.dtype, name
        parameter.requires_grad_(False)
        parameter.data = value
    x = reference.normal((T, H), 1.0, gpu_checks.DEVICE, source)
    weights, index = reference.routing(T, E, K, gpu_checks.DEVICE, source)
    with Counted() as counted:
        out = ours.fp8_experts_forward(module, x, index.long(), weights)
    assert counted.calls == 1 and not counted.warnings, counted.warnings
    for name, value in (("limit", 7.0), ("block_size", (64, 64)), ("activation_scheme", "static")):
        kept = getattr(module, name)
        setattr(module, name, value)
        assert ours._why_not_module(module, ours._FP8), name
        setattr(module, name, kept)
    if not gpu_checks.on_gpu():
        return {}  # the fake library computes no fp8
    tokens = torch.arange(T, device=x.device)
    expected = reference.layer(x, w1, w2, weights, index, w1_scale=s1, w2_scale=s2)
    return gpu_checks.compare_fp8(out, expected, tokens, T)


def check_generate(name: str, compiled: bool) -> dict[str, float]:
    """generate() gives the tokens that eager experts give, or nearly: a tie may fall otherwise."""
    if compiled and not (gpu_checks.on_gpu() and shutil.which("gcc")):
        raise Skip("needs a GPU and gcc")
    torch._dynamo.reset()
    ids = tokens_of(2, 8)
    kwargs: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "min_new_tokens": 12}
    if compiled:
        kwargs["cache_implementation"] = "static"  # transformers compiles decoding then, with graphs
    eager = model_of(name, FITS, "eager").generate(ids, **{**kwargs, "cache_implementation": None})
    with Counted() as counted:
        out = model_of(name, FITS, "moe_tune").generate(ids, **kwargs)
    assert out.shape == eager.shape
    assert counted.calls > 0 and not counted.warnings, (counted.calls, counted.warnings)
    same = (out == eager)[:, ids.shape[1] :].double().mean().item()
    assert bool((out[:, : ids.shape[1] + 2] == eager[:, : ids.shape[1] + 2]).all()), "first tokens"
    return {"different_tokens": 1 - same}


def check_graph(name: str) -> dict[str, float]:
    """A forward pass of the whole model in one CUDA graph, replayed on other tokens."""
    if not gpu_checks.on_gpu():
        raise Skip("needs CUDA graphs")
    model = model_of(name, FITS, "moe_tune")
    ids = tokens_of(2, 16)
    graph, out = gpu_checks.capture(lambda: logits_of(model, ids))
    worst = 0.0
    for seed in (1, 2, 3):
        ids.copy_(tokens_of(2, 16, seed))
        out.fill_(float("nan"))
        graph.replay()
        expected = logits_of(model, ids)
        error = ((out - expected).double().norm() / expected.double().norm()).item()
        if not (error <= 0.02):
            raise AssertionError(f"relative error {error:.4g} between the graph and a plain call")
        worst = max(worst, error)
    return {"graph_error": worst}


def checks(models: tuple[str, ...] = MODELS) -> Iterator[Check]:
    def check(name: str, function: Callable[..., Any], *arguments: Any) -> Check:
        return Check("transformers", name, functools.partial(function, *arguments))

    for name in models:
        yield check(f"{name}-fits", check_model, name, FITS, "")
        yield check(f"{name}-compile", check_compile, name, FITS)
        yield check(f"{name}-graph", check_graph, name)
        yield check(f"{name}-odd", check_model, name, ODD, "intermediate size is 37")
    for name, reason in OTHERS.items():
        yield check(f"{name}-fallback", check_model, name, FITS, reason)
        yield check(f"{name}-compile", check_compile, name, FITS)
    yield check("odd-compile", check_compile, "mixtral", ODD)
    yield check("foreign-ids", check_foreign_ids, "qwen3_moe")
    yield check("gradients", check_gradients, "mixtral")
    yield check("moved-module", check_moved_module, "mixtral")
    yield check("prepare", check_prepare, "qwen3_moe")
    yield check("fp8", check_fp8)
    yield check("generate", check_generate, "qwen3_moe", False)
    yield check("generate-compiled", check_generate, "qwen3_moe", True)
