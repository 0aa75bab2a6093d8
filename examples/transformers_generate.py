#!/usr/bin/env python3
"""Generates text with a mixture-of-experts model of transformers: moe_tune beside the default experts.

    examples/transformers_generate.py Qwen/Qwen3-30B-A3B
    examples/transformers_generate.py config.json --random-weights --layers 4 --new-tokens 64

MODEL is a model's name or folder, or a config.json (then weights are random: for speed, not for sense).
Works without a network where the model, or the config, is on disk. Needs torch with CUDA, transformers 5.17 or
later, and moe_tune.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import moe_tune
import moe_tune.transformers


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="name, folder or config.json")
    parser.add_argument("--random-weights", action="store_true", help="load no weights")
    parser.add_argument("--layers", type=int, help="only so many layers (with random weights)")
    parser.add_argument("--prompt", default="A mixture of experts is", help="text to go on from")
    parser.add_argument("--prompt-length", type=int, help="random tokens instead of a text")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true",
                        help="static cache: transformers compiles decoding, with CUDA graphs")
    parser.add_argument("--experts", default="moe_tune,default",
                        help="implementations to time, separated by commas (default: %(default)s)")
    return parser.parse_args()


def load(options: argparse.Namespace) -> tuple[torch.nn.Module, object | None]:
    path = pathlib.Path(options.model)
    is_config = path.suffix == ".json"
    if not is_config and not options.random_weights:
        model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=torch.bfloat16, device_map="cuda"
        )
        return model.eval(), AutoTokenizer.from_pretrained(options.model)
    config = AutoConfig.from_pretrained(str(path.parent) if path.name == "config.json" else options.model)
    if options.layers:
        config.num_hidden_layers = options.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: options.layers]
    torch.manual_seed(0)
    with torch.device("cuda"):  # initialised where it lies: a large model takes minutes on the CPU
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval(), None


def timed(model: torch.nn.Module, inputs: dict[str, torch.Tensor], options: argparse.Namespace,
          new_tokens: int) -> tuple[float, torch.Tensor]:
    """Median seconds of generating so many tokens, and the tokens."""
    kwargs = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    if options.compile:
        kwargs["cache_implementation"] = "static"
    seconds = []
    for turn in range(options.repeats + 1):  # the first one compiles, and is not counted
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = model.generate(**inputs, **kwargs)
        torch.cuda.synchronize()
        if turn:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), out


def main() -> int:
    options = arguments()
    if not torch.cuda.is_available():
        print("error: torch sees no GPU", file=sys.stderr)
        return 3
    moe_tune.transformers.register()
    model, tokenizer = load(options)
    if tokenizer is not None and options.prompt_length is None:
        inputs = tokenizer([options.prompt] * options.batch, return_tensors="pt").to("cuda")
    else:
        length = options.prompt_length or 128
        top = min(model.config.get_text_config().vocab_size, 30000)
        ids = torch.randint(3, top, (options.batch, length), device="cuda")
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch, length = inputs["input_ids"].shape
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}, moe_tune {moe_tune.version()}")
    print(f"{batch} x {length} tokens of prompt, {options.new_tokens} new ones")
    default = model.config._experts_implementation
    results = {}
    for name in options.experts.split(","):
        model.set_experts_implementation(default if name == "default" else name)
        if name == "moe_tune":
            start = time.perf_counter()
            moe_tune.prepare(model, token_counts=[batch, batch * length])
            print(f"moe_tune: prepared in {time.perf_counter() - start:.1f} s")
        # One token more or less: what decoding alone takes, without the prompt.
        whole, out = timed(model, inputs, options, options.new_tokens)
        first, _ = timed(model, inputs, options, 1)
        rate = batch * (options.new_tokens - 1) / (whole - first)
        results[name] = (rate, out)
        shown = f"{name} ({default})" if name == "default" else name
        print(f"{shown:<24} {rate:10.1f} tokens/s decoding, {first * 1000:8.1f} ms prompt and first token")
    if tokenizer is not None:
        for name, (_, out) in results.items():
            print(f"--- {name}\n{tokenizer.decode(out[0], skip_special_tokens=True)}")
    if len(results) == 2:
        (_, (first_rate, first_out)), (_, (second_rate, second_out)) = results.items()
        same = (first_out[:, length:] == second_out[:, length:]).double().mean().item()
        print(f"{first_rate / second_rate:.2f} times as fast; {same:.0%} of the tokens are the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
