"""fused_experts and its operators without a GPU, over the fake library; skipped without torch."""

from __future__ import annotations

import pathlib
import sys
import types
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import on_cpu  # noqa: E402

try:
    import torch
except ImportError as error:
    raise unittest.SkipTest(f"no torch: {error}") from error
if on_cpu.compiler() is None:
    raise unittest.SkipTest("no C compiler")

LIBRARY = on_cpu.run_on_cpu()

import reference  # noqa: E402
from moe_tune import _experts, explain, fused_experts, prepare  # noqa: E402
from moe_tune._library import Args, Dtype, LayerDesc, NotPreparedError  # noqa: E402

E, K, H, I, T = 8, 2, 64, 32, 5  # noqa: E741
FP8 = torch.float8_e4m3fn


def make(seed: int = 0, tokens: int = T) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    weights, ids = reference.routing(tokens, E, K, "cpu", source)
    return {
        "hidden_states": reference.normal((tokens, H), 1.0, "cpu", source),
        "w1": reference.normal((E, 2 * I, H), 0.2, "cpu", source),
        "w2": reference.normal((E, H, I), 0.2, "cpu", source),
        "topk_weights": weights,
        "topk_ids": ids,
    }


def exact(a: dict[str, torch.Tensor], **others: torch.Tensor) -> torch.Tensor:
    return reference.layer(*a.values(), **others)


class Case(unittest.TestCase):
    def close(self, out: torch.Tensor, expected: torch.Tensor) -> None:
        norm = expected.norm().item()
        self.assertGreater(norm, 0)
        error = (out.double() - expected).norm().item() / norm
        if not (error <= 0.01):
            self.fail(f"relative error {error}")

    def switch(self, name: str, value: int) -> None:
        number = on_cpu.number(LIBRARY, name)
        self.addCleanup(setattr, number, "value", number.value)
        number.value = value


class Results(Case):
    def test_plain(self):
        a = make()
        self.close(fused_experts(**a), exact(a))

    def test_a_wrong_result_is_seen(self):
        a = make()
        expected = exact(a)
        for wrong in (torch.zeros(T, H), torch.full((T, H), float("nan")), expected.roll(1, 0)):
            with self.assertRaises(AssertionError):
                self.close(wrong, expected)

    def test_types(self):
        for id_type in (torch.int32, torch.int64):
            for weight_type in (torch.float32, torch.bfloat16):
                a = make()
                a["topk_ids"] = a["topk_ids"].to(id_type)
                a["topk_weights"] = a["topk_weights"].to(weight_type)
                self.close(fused_experts(**a), exact(a))

    def test_padded_weights_are_used_where_they_lie(self):
        a = make()
        b = dict(a)
        for name, padding in (("w1", 16), ("w2", 8)):
            wide = torch.full((*a[name].shape[:2], a[name].shape[2] + padding), float("nan"))
            wide = wide.bfloat16()
            wide[..., : a[name].shape[2]] = a[name]
            b[name] = wide[..., : a[name].shape[2]]
        self.close(fused_experts(**b), exact(a))
        args = Args.in_dll(LIBRARY, "fake_last_args")
        self.assertEqual((args.w13, args.w2), (b["w1"].data_ptr(), b["w2"].data_ptr()))

    def test_rows_that_cannot_be_read_in_place(self):
        a = make()
        x = a["hidden_states"]
        odd = torch.full((T, H + 3), float("nan")).bfloat16()
        odd[:, 1 : H + 1] = x
        wide = torch.full((T, H + 8), float("nan")).bfloat16()
        wide[:, :H] = x
        views = {"odd": odd[:, 1 : H + 1], "transposed": x.T.contiguous().T, "wide": wide[:, :H]}
        for name, view in views.items():
            with self.subTest(name):
                self.close(fused_experts(**{**a, "hidden_states": view}), exact(a))
                args = Args.in_dll(LIBRARY, "fake_last_args")
                self.assertEqual(args.x == view.data_ptr(), name == "wide")
        one = {**a, "hidden_states": x[:1].expand(T, H)}
        self.close(fused_experts(**one), exact(one))
        ids = {**a, "topk_ids": a["topk_ids"].T.contiguous().T}
        self.close(fused_experts(**ids), exact(a))

    def test_out_and_inplace(self):
        a = make()
        wide = torch.full((T, H + 8), 7.0).bfloat16()
        out = wide[:, :H]
        version = out._version
        self.assertIs(fused_experts(**a, out=out), out)
        self.assertGreater(out._version, version)
        self.close(out, exact(a))
        self.assertTrue(bool((wide[:, H:] == 7).all()))
        expected = exact(a)
        self.assertIs(fused_experts(**a, inplace=True), a["hidden_states"])
        self.close(a["hidden_states"], expected)

    def test_expert_map_and_foreign_ids(self):
        a = make(tokens=40)
        expert_map = torch.full((E,), -1, dtype=torch.int32)
        expert_map[torch.tensor([6, 1, 3])] = torch.arange(3, dtype=torch.int32)
        local = {**a, "w1": a["w1"][[6, 1, 3]].contiguous(), "w2": a["w2"][[6, 1, 3]].contiguous()}
        out = fused_experts(**local, expert_map=expert_map, global_num_experts=E)
        self.close(out, exact(local, expert_map=expert_map))
        a["topk_ids"][::3, 0] = E
        a["topk_ids"][1::3, 1] = -1
        self.close(fused_experts(**a), exact(a))

    def test_no_tokens(self):
        a = make(tokens=0)
        runs = on_cpu.number(LIBRARY, "fake_num_runs").value
        self.assertEqual(fused_experts(**a).shape, (0, H))
        self.assertEqual(on_cpu.number(LIBRARY, "fake_num_runs").value, runs)

    def test_one_handle_for_a_layer(self):
        a = make()
        fused_experts(**a)
        creates = on_cpu.number(LIBRARY, "fake_num_creates").value
        for seed in (1, 2):
            fused_experts(**make(seed, 3))
        self.assertEqual(on_cpu.number(LIBRARY, "fake_num_creates").value, creates)


class Fp8(Case):
    """The fake library computes no fp8: what reaches it is checked."""

    def arguments(self) -> dict[str, torch.Tensor]:
        source = torch.Generator().manual_seed(1)
        a = make()
        a["hidden_states"] = reference.normal((T, 256), 1.0, "cpu", source)
        a["w1"] = torch.randn(E, 256, 256, generator=source).to(FP8)
        a["w2"] = torch.randn(E, 256, 128, generator=source).to(FP8)
        return a

    def test_block(self):
        a, s1, s2 = self.arguments(), torch.rand(E, 2, 2), torch.rand(E, 2, 1)
        kwargs = {"use_fp8_w8a8": True, "block_shape": [128, 128]}
        fused_experts(**a, **kwargs, w1_scale=s1, w2_scale=s2)
        args = Args.in_dll(LIBRARY, "fake_last_args")
        self.assertEqual((args.w13_scale, args.w2_scale), (s1.data_ptr(), s2.data_ptr()))
        desc = LayerDesc.in_dll(LIBRARY, "fake_last_desc")
        self.assertEqual((desc.dtype, desc.intermediate_size), (Dtype.FP8_BLOCK, 128))
        for scales, words in (
            ({"w1_scale": s1}, "w2_scale is missing"),
            ({"w1_scale": s1.double(), "w2_scale": s2}, "must be float32"),
            ({"w1_scale": s1.transpose(1, 2), "w2_scale": s2}, "must be contiguous"),
            ({"w1_scale": s1, "w2_scale": torch.rand(E, 1, 2)}, "w2_scale has shape"),
            ({"w1_scale": torch.rand(E), "w2_scale": s2}, "with block_shape"),
        ):
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                fused_experts(**a, **kwargs, **scales)
        with self.assertRaisesRegex(ValueError, "block_shape"):
            fused_experts(
                **a, use_fp8_w8a8=True, block_shape=[1, 128], w1_scale=s1, w2_scale=s2
            )

    def test_tensor(self):
        for shape in ((E,), (E, 1), (E, 1, 1)):
            a, s1, s2 = self.arguments(), torch.rand(shape), torch.rand(shape)
            fused_experts(**a, use_fp8_w8a8=True, w1_scale=s1, w2_scale=s2)
            self.assertEqual(LayerDesc.in_dll(LIBRARY, "fake_last_desc").dtype, Dtype.FP8_TENSOR)
        with self.assertRaisesRegex(ValueError, "use_fp8_w8a8=True"):
            fused_experts(**a)
        with self.assertRaisesRegex(ValueError, "use_fp8_w8a8 is true"):
            fused_experts(**make(), use_fp8_w8a8=True)

    def test_quant_config(self):
        config = types.SimpleNamespace(
            use_fp8_w8a8=True,
            block_shape=[128, 128],
            w1_scale=torch.rand(E, 2, 2),
            w2_scale=torch.rand(E, 2, 1),
            per_act_token_quant=False,
        )
        fused_experts(**self.arguments(), quant_config=config)
        args = Args.in_dll(LIBRARY, "fake_last_args")
        self.assertEqual(args.w13_scale, config.w1_scale.data_ptr())
        config.w1_bias = torch.zeros(1)
        with self.assertRaisesRegex(ValueError, "w1_bias"):
            fused_experts(**self.arguments(), quant_config=config)


class Errors(Case):
    """Each names the argument, and what it may be."""

    def test_unsupported_keywords(self):
        something = torch.ones(2)
        for name, value in {
            "activation": "gelu",
            "apply_router_weight_on_input": True,
            "use_int8_w8a8": True,
            "use_int8_w8a16": True,
            "use_int4_w4a16": True,
            "per_channel_quant": True,
            "w1_zp": something,
            "w2_zp": something,
            "a1_scale": something,
            "a2_scale": something,
            "w1_bias": something,
            "w2_bias": something,
            "block_shape": [128, 128],
            "use_mxfp4_w4a4": True,
            "ocp_mx_scheme": "w_mxfp4",
        }.items():
            with (
                self.subTest(name),
                self.assertRaisesRegex(ValueError, f"{name}.*not supported: supported are"),
            ):
                fused_experts(**make(), **{name: value})
        fused_experts(**make(), allow_deep_gemm=True, use_mxfp4_w4a4=False, ocp_mx_scheme=None)
        fused_experts(**make(), activation=types.SimpleNamespace(value="silu"))

    def test_tensors(self):
        a = make()
        half = torch.float16
        for name, value, words in (
            ("hidden_states", a["hidden_states"].to(half), "hidden_states is torch.float16"),
            ("hidden_states", a["hidden_states"][:, :56], r"hidden_states has shape \[5, 56\]"),
            ("topk_weights", a["topk_weights"].to(half), "topk_weights is torch.float16"),
            ("topk_weights", a["topk_weights"][:3], "topk_weights has shape"),
            ("topk_ids", a["topk_ids"].to(torch.int16), "topk_ids is torch.int16"),
            ("topk_ids", a["topk_ids"][:3], "topk_ids has shape"),
            ("topk_ids", a["topk_ids"].flatten(), "topk_ids has 1 dimensions"),
            ("w1", a["w1"].to(half), "w1 is torch.float16"),
            ("w1", a["w1"][:, : 2 * I - 2], "w1 has shape"),
            ("w1", a["w1"].transpose(1, 2).contiguous().transpose(1, 2), "contiguous"),
            ("w1", a["w1"][::2], "w1 has shape"),
            ("w2", a["w2"][0], "w2 have 3 and 2 dimensions"),
            ("w1_scale", torch.ones(E), "w1_scale is given"),
            ("expert_map", torch.zeros(E, dtype=torch.int64), "expert_map is torch.int64"),
            ("global_num_experts", 9, "global_num_experts is 9"),
        ):
            others = {"expert_map": torch.zeros(E, dtype=torch.int32)}
            given = {**a, **(others if name == "global_num_experts" else {}), name: value}
            with self.subTest(name=name, words=words), self.assertRaisesRegex(ValueError, words):
                fused_experts(**given)

    def test_one_dimensional_ids(self):
        a = make(tokens=K)
        fused_experts(**a)  # the layer is known: only the quick checks are left
        a["topk_ids"], a["topk_weights"] = a["topk_ids"][0], a["topk_weights"][0]
        with self.assertRaisesRegex(ValueError, "topk_ids has shape"):
            fused_experts(**a)

    def test_strides_of_weights(self):
        a = make()
        twice = torch.randn(2 * E, 2 * I, H).bfloat16()
        with self.assertRaisesRegex(ValueError, "w1's experts are"):
            fused_experts(**{**a, "w1": twice[::2]})
        odd = torch.randn(E, 2 * I, H + 1).bfloat16()[..., :H]
        with self.assertRaisesRegex(ValueError, "w1's rows are 130 bytes apart"):
            fused_experts(**{**a, "w1": odd})

    def test_sizes(self):
        a = make()
        a["hidden_states"], a["w1"], a["w2"] = (
            a["hidden_states"][:, :60],
            a["w1"][..., :60],
            a["w2"][:, :60],
        )
        with self.assertRaisesRegex(ValueError, "hidden size is 60.*multiple of 8"):
            fused_experts(**a)

    def test_out(self):
        a = make()
        x = a["hidden_states"]
        big = torch.zeros(2 * T * H, dtype=torch.bfloat16)
        for out, words in (
            (torch.zeros(T, H), "out is torch.float32"),
            (torch.zeros(T, H + 1).bfloat16()[:, :H], "out has strides"),
            (torch.zeros(H, T).bfloat16().T, "out has strides"),
        ):
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                fused_experts(**a, out=out)
        a["hidden_states"] = big[: T * H].view(T, H).copy_(x)
        with self.assertRaisesRegex(ValueError, "overlaps"):
            fused_experts(**a, out=big[H : T * H + H].view(T, H))
        with self.assertRaisesRegex(ValueError, "not both"):
            fused_experts(**a, inplace=True, out=torch.zeros_like(x))

    def test_of_the_library(self):
        self.switch("fake_fail_run", 5)
        with self.assertRaisesRegex(RuntimeError, "told to refuse the call"):
            fused_experts(**make())

    def test_gradients(self):
        for name in ("hidden_states", "w1", "w2", "topk_weights"):
            a = make()
            a[name].requires_grad_()
            with self.subTest(name), self.assertRaisesRegex(RuntimeError, f"{name} requires"):
                fused_experts(**a)
            with self.assertRaisesRegex(RuntimeError, f"{name} requires"):
                torch.ops.moe_tune.fused_experts(*a.values(), None, None, None)
            expected = exact({key: value.detach() for key, value in a.items()})
            with torch.no_grad():
                self.close(fused_experts(**a), expected)
            with torch.inference_mode():
                self.close(fused_experts(**a), expected)


class Preparing(Case):
    def test_on_demand(self):
        self.switch("fake_needs_prepare", 1)
        prepares = on_cpu.number(LIBRARY, "fake_num_prepares")
        before = prepares.value
        a = make(tokens=21)
        for _ in range(3):
            self.close(fused_experts(**a), exact(a))
        self.assertEqual(prepares.value, before + 1)

    def test_not_while_capturing(self):
        self.switch("fake_needs_prepare", 1)
        real = _experts._is_capturing
        self.addCleanup(setattr, _experts, "_is_capturing", real)
        _experts._is_capturing = lambda: True
        a = make(tokens=23)
        with self.assertRaisesRegex(NotPreparedError, r"prepare\(num_experts=8.*token_counts=\[23\]"):
            fused_experts(**a)
        sizes = {"num_experts": E, "top_k": K, "hidden_size": H, "intermediate_size": I}
        self.assertEqual(prepare(**sizes, token_counts=[23], device=-1), 1)
        self.close(fused_experts(**a), exact(a))

    def test_arguments(self):
        with self.assertRaisesRegex(TypeError, "top_k, hidden_size"):
            prepare(num_experts=3)
        sizes = {"num_experts": E, "top_k": K, "hidden_size": H, "intermediate_size": I}
        with self.assertRaisesRegex(ValueError, "token_counts is empty"):
            prepare(**sizes, token_counts=[], device=-1)
        with self.assertRaisesRegex(ValueError, "dtype"):
            prepare(**sizes, dtype=torch.float16, device=-1)
        self.assertEqual(explain(3, **sizes, device=-1), "3 tokens, hidden size 64")
        as_dict = explain(3, **sizes, device=-1, as_dict=True)
        self.assertEqual(as_dict, {"num_tokens": 3, "hidden_size": 64})


class Compiling(Case):
    def test_one_graph(self):
        torch._dynamo.reset()
        a = make()

        def function(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return fused_experts(x * 2, a["w1"], a["w2"], weights, ids) + x

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for tokens in (5, 6, 7):
            b = {**make(3, tokens), "w1": a["w1"], "w2": a["w2"]}
            x = b["hidden_states"]
            expected = exact({**b, "hidden_states": x * 2}) + x.double()
            self.close(compiled(x, b["topk_weights"], b["topk_ids"]), expected)

    def test_out_and_inplace(self):
        torch._dynamo.reset()
        a = make()
        expected = exact(a)
        out = torch.full((T, H), float("nan")).bfloat16()
        function = torch.compile(fused_experts, fullgraph=True, backend="aot_eager")
        function(**a, out=out)
        self.close(out, expected)
        function(**a, inplace=True)
        self.close(a["hidden_states"], expected)

    def test_opcheck(self):
        arguments = (*make().values(), None, None, None)
        torch.library.opcheck(torch.ops.moe_tune.fused_experts.default, arguments)
        out = torch.zeros(T, H).bfloat16()
        torch.library.opcheck(torch.ops.moe_tune.fused_experts_out.default, (*arguments, out))


if __name__ == "__main__":
    unittest.main()
