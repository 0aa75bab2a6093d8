#!/usr/bin/env python3
"""Times MoE layers built on torch._grouped_mm, beside `moe-tune bench --json`'s figures.

    moe-tune bench --model mixtral-8x7b,qwen3-30b-a3b --tokens 1,64,2048 --json > ours.json
    scripts/compare_torch.py --model mixtral-8x7b,qwen3-30b-a3b --tokens 1,64,2048 --ours ours.json

Needs a PyTorch with CUDA and torch._grouped_mm, on the same GPU; nothing else of this project does. The protocol
is moe-tune's: random normal activations and weights, 8 routings (softmax of normal logits, top-k,
weights renormalised), one CUDA graph of 8 layer calls, the median over replays of its time / 8. Where
the layer cannot be captured, the 8 calls are launched, and the row says so. bf16.
"""
import argparse
import json
import math
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_ROUTINGS = 8
NUM_WARMUPS = 3
NUM_SAMPLES = 20
MAX_REL_ERR = 0.01  # of bf16 operators that round every intermediate


class Failure(Exception):
    """What stops the script: the message and the exit code."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


def import_torch():
    try:
        import torch
    except ImportError as error:
        raise Failure(f"no PyTorch ({error}): pip install torch", 3) from error
    if not torch.cuda.is_available():
        raise Failure("PyTorch sees no GPU: install a build with CUDA, on a machine with a GPU", 3)
    if not hasattr(torch, "_grouped_mm"):
        raise Failure(f"PyTorch {torch.__version__} has no torch._grouped_mm: use a newer one", 3)
    return torch


def read_json(path):
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {error}", 2) from error


def load_shape(name):
    path = ROOT / "configs" / "models" / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.json")))
        raise Failure(f"--model {name}: there are {known}", 2)
    return read_json(path)


def parse_counts(text):
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise Failure(f"--tokens {text}: {error}", 2) from error
    if counts[0] < 1:
        raise Failure(f"--tokens {text}: a count is below 1", 2)
    return counts


def layer(torch, x, w13, w2, topk_ids, topk_weights):
    """One MoE layer; x [T, H], w13 [E, 2I, H] (gate rows first), w2 [E, H, I], ids, weights [T, K]."""
    num_tokens, top_k = topk_ids.shape
    num_experts = w13.shape[0]
    experts = topk_ids.flatten()
    order = torch.argsort(experts)
    counts = torch.zeros(num_experts, dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, experts, torch.ones_like(experts, dtype=torch.int32))
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    gate_up = torch._grouped_mm(x[order // top_k], w13.transpose(1, 2), offs=ends)
    gate, up = gate_up.chunk(2, dim=1)
    y = torch._grouped_mm(torch.nn.functional.silu(gate) * up, w2.transpose(1, 2), offs=ends)
    by_slot = torch.empty_like(y)
    by_slot[order] = y
    return torch.bmm(topk_weights.unsqueeze(1).to(y.dtype),
                     by_slot.view(num_tokens, top_k, -1)).squeeze(1)


def reference(torch, x, w13, w2, topk_ids, topk_weights):
    """The same in float32, expert by expert."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    half = w13.shape[1] // 2
    for expert in range(w13.shape[0]):
        tokens, choices = torch.where(topk_ids == expert)
        if len(tokens) == 0:
            continue
        gate_up = x[tokens].float() @ w13[expert].float().T
        active = torch.nn.functional.silu(gate_up[:, :half]) * gate_up[:, half:]
        y = active @ w2[expert].float().T
        out.index_add_(0, tokens, y * topk_weights[tokens, choices].unsqueeze(1))
    return out


def make_routing(torch, num_tokens, num_experts, top_k, generator):
    logits = torch.randn(num_tokens, num_experts, device="cuda", generator=generator)
    weights, ids = torch.topk(torch.softmax(logits, dim=1), top_k, dim=1)
    return ids, weights / weights.sum(dim=1, keepdim=True)


def time_calls(torch, calls):
    """Median microseconds of a call, and how they were launched."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up beside the default stream, as capturing asks for
        for _ in range(NUM_WARMUPS):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    how = "graph"
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        run = graph.replay
    except RuntimeError as error:
        print(f"not captured, timed as launches: {str(error).splitlines()[0]}", file=sys.stderr)
        torch.cuda.synchronize()
        how = "launches"

        def run():
            for call in calls:
                call()
    for _ in range(NUM_WARMUPS):
        run()
    samples = []
    for _ in range(NUM_SAMPLES):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(samples), how


def measure(torch, shape, num_tokens, weights, generator):
    w13, w2 = weights
    x = torch.randn(num_tokens, shape["hidden_size"], device="cuda", generator=generator).bfloat16()
    routings = [make_routing(torch, num_tokens, shape["num_experts"], shape["top_k"], generator)
                for _ in range(NUM_ROUTINGS)]
    got = layer(torch, x, w13, w2, *routings[0]).float()
    want = reference(torch, x, w13, w2, *routings[0])
    rel_err = ((got - want).norm() / want.norm()).item()
    if not rel_err <= MAX_REL_ERR:
        raise Failure(f"torch's layer is wrong: relative error {rel_err:.4f}", 1)
    del got, want
    time_us, how = time_calls(
        torch, [lambda r=r: layer(torch, x, w13, w2, *r) for r in routings])
    return {"torch_us": time_us, "timed_as": how, "rel_err": rel_err}


def make_weights(torch, shape, generator):
    experts, hidden, inner = (shape[key] for key in
                              ("num_experts", "hidden_size", "intermediate_size"))

    def normal(rows, columns):
        made = torch.empty(experts, rows, columns, dtype=torch.bfloat16, device="cuda")
        for expert in range(experts):  # one by one: float32 of all would be twice the layer
            made[expert] = torch.randn(rows, columns, device="cuda",
                                       generator=generator) / math.sqrt(columns)
        return made
    return normal(2 * inner, hidden), normal(hidden, inner)


def read_ours(path, gpu):
    """Times of bf16 layers by model and token count, of `moe-tune bench --json` on this GPU."""
    if path is None:
        return {}
    report = read_json(path)
    if not isinstance(report, dict) or not isinstance(report.get("rows"), list):
        raise Failure(f"{path}: no output of `moe-tune bench --json`", 2)
    if report.get("offline"):
        raise Failure(f"{path}: its times are not measured; run `moe-tune bench` on this GPU", 2)
    if report.get("gpu") != gpu:
        raise Failure(f"{path}: it is of {report.get('gpu')}, this is {gpu}", 2)
    if report.get("routing", "uniform") != "uniform":
        raise Failure(f"{path}: its routing is {report['routing']}, here it is uniform", 2)
    return {(row.get("model"), row.get("num_tokens")): row for row in report["rows"]
            if row.get("dtype") == "bf16" and row.get("source") == "measured"
            and row.get("layer_us")}


def compare(options):
    counts = parse_counts(options.tokens)
    shapes = [(name, load_shape(name)) for name in options.model.split(",")]
    torch = import_torch()
    gpu = torch.cuda.get_device_name()
    ours = read_ours(options.ours, gpu)
    generator = torch.Generator(device="cuda").manual_seed(options.seed)
    rows = []
    for name, shape in shapes:
        weights = make_weights(torch, shape, generator)
        for count in counts:
            row = {"model": name, "dtype": "bf16", "num_tokens": count}
            row.update(measure(torch, shape, count, weights, generator))
            row["moe_tune_us"] = ours.get((name, count), {}).get("layer_us")
            row["speedup"] = row["torch_us"] / row["moe_tune_us"] if row["moe_tune_us"] else None
            rows.append(row)
        del weights
        torch.cuda.empty_cache()
    return {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "rows": rows}


def text_of(report):
    lines = [f"{report['gpu']}, PyTorch {report['torch']}, CUDA {report['cuda']}, bf16", "",
             f"{'model':<20} {'tokens':>7} {'torch us':>10} {'moe-tune us':>12} {'speedup':>8} "
             f"{'rel_err':>8}  timed as"]
    for row in report["rows"]:
        ours = f"{row['moe_tune_us']:.1f}" if row["moe_tune_us"] else "-"
        speedup = f"{row['speedup']:.2f}x" if row["speedup"] else "-"
        lines.append(f"{row['model']:<20} {row['num_tokens']:>7} {row['torch_us']:>10.1f} "
                     f"{ours:>12} {speedup:>8} {row['rel_err']:>8.5f}  {row['timed_as']}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="M,...", help="names in configs/models")
    parser.add_argument("--tokens", default="1,64,2048", metavar="T,...")
    parser.add_argument("--ours", metavar="FILE", help="what `moe-tune bench --json` printed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    try:
        report = compare(options)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.code
    print(json.dumps(report, indent=2) if options.json else text_of(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
