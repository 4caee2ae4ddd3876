"""Narrowing MLPs: MoDeGPT's step beside Torch-Pruning's magnitude pruning, in one process.

Perplexity and seconds are compared on a model without grouped queries: the same weights with every
key/value head copied to each query head that reads it, which computes the same. Both narrow every
MLP to one width, so parameters are equal. Then the peer gets the grouped-query model itself, in
three ways, each in a process that is ended after a limit.

    python benchmarks/peers/mlp_narrowing.py --sparsity 0.2 --limit 120 --threads 2
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

import modwright
from modwright.anatomy import Anatomy
from modwright.calibration import token_windows
from modwright.metrics.perplexity import PerplexityRecipe, perplexity
from modwright.surgery import apply, make_method


def without_groups(model: Any) -> Any:
    """The same function with as many key/value heads as query heads."""
    config = copy.deepcopy(model.config)
    config.num_key_value_heads = config.num_attention_heads
    built = LlamaForCausalLM(config).eval()
    state = model.state_dict()
    for block in Anatomy.of(model).blocks:
        attention = block.attention
        assert attention is not None
        owner = attention.kv_of_head()
        here = f"model.layers.{block.index}.self_attn"
        state[f"{here}.k_proj.weight"] = attention.read_k()[owner].flatten(0, 1)
        state[f"{here}.v_proj.weight"] = attention.read_v()[owner].flatten(0, 1)
    built.load_state_dict(state)
    built.generation_config = model.generation_config
    return built


def _prune(model: Any, ignored: list[nn.Module], **options: Any) -> None:
    import torch_pruning

    torch_pruning.pruner.BasePruner(
        model,
        {"input_ids": torch.arange(8)[None]},
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        ignored_layers=ignored,
        root_module_types=[nn.Linear],
        output_transform=lambda out: out.logits.sum(),
        **options,
    ).step()


def narrow_mlps(model: Any, sparsity: float) -> None:
    """Every MLP narrower by ``sparsity``; attention and the stream stay."""
    inner = {m for layer in model.model.layers for m in (layer.mlp.gate_proj, layer.mlp.up_proj)}
    others = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in inner]
    _prune(model, others, pruning_ratio=sparsity)


def prune_heads(model: Any, sparsity: float) -> None:
    """Whole heads go, with the counts of each map given as the peer asks for them."""
    config = model.config
    counts = {}
    for layer in model.model.layers:
        counts[layer.self_attn.q_proj] = config.num_attention_heads
        counts[layer.self_attn.k_proj] = config.num_key_value_heads
        counts[layer.self_attn.v_proj] = config.num_key_value_heads
    options = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": sparsity}
    _prune(model, [model.lm_head], num_heads=counts, pruning_ratio=sparsity, **options)


def pruned(model: Any, how: Callable[[Any, float], None], sparsity: float) -> Any:
    """A copy of the model after the peer, which wants no key/value cache in the output."""
    found = copy.deepcopy(model)
    found.config.use_cache = False
    how(found, sparsity)
    found.config.use_cache = True
    return found


GROUPED: dict[str, Callable[[Any, float], Any]] = {
    "MLPs narrower, cache off": lambda model, share: pruned(model, narrow_mlps, share),
    "heads, cache off": lambda model, share: pruned(model, prune_heads, share),
    "heads, cache on": lambda model, share: prune_heads(copy.deepcopy(model), share),
}
"""What the peer is asked to do with grouped queries."""


def attempt(way: str, given: argparse.Namespace) -> None:
    """In a process of its own: says when it begins, and what came of it."""
    model = modwright.open(given.model).model
    print("begin", flush=True)
    begin = time.perf_counter()
    try:
        GROUPED[way](model, given.sparsity)
        print(f"done after {time.perf_counter() - begin:.1f} s")
    except Exception as error:
        print(f"failed: {type(error).__name__}: {str(error).splitlines()[0]}")


def outcome(way: str, limit: float) -> str:
    """What became of a piece of the peer's work: done, failed, or ended after the limit."""
    command = [sys.executable, *sys.argv, "--way", way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the model is there; from here on the clock runs
        try:
            return process.communicate(timeout=limit)[0].strip()
        except subprocess.TimeoutExpired:
            process.kill()
            return f"not done after {limit:.0f} s, ended"


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--limit", type=float, default=120, help="seconds for the peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=GROUPED, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", message="Unwrapped parameters")  # norms, hundreds of names
    if given.way:
        attempt(given.way, given)
        return

    opened = modwright.open(given.model)
    tokenizer = opened.tokenizer
    single = without_groups(opened.model)
    text = token_windows(tokenizer, "lee-background", windows=64, length=256, batch_size=8)

    def quality(model: Any) -> float:
        return perplexity(model, tokenizer, PerplexityRecipe("lee", windows=6, length=512)).value

    print(f"{given.model} with {single.config.num_key_value_heads} key/value heads: ", end="")
    print(f"{parameters(single):,} parameters, perplexity {quality(single):.2f}")

    begin = time.perf_counter()
    theirs = pruned(single, narrow_mlps, given.sparsity)
    told = f"{time.perf_counter() - begin:.1f} s without data"
    width = theirs.model.layers[0].mlp.down_proj.in_features
    print(
        f"Torch-Pruning, magnitude: MLPs {width} wide, {parameters(theirs):,} parameters, ", end=""
    )
    print(f"perplexity {quality(theirs):,.1f}, {told}")

    options = {
        "sparsity": 1 - width / single.config.intermediate_size,
        "pairs": ["mlp"],
        "allocation": "uniform",
        "round_to": 1,
    }
    begin = time.perf_counter()
    ours = apply(single, make_method("modegpt", options), text).model
    told = f"{time.perf_counter() - begin:.1f} s with {text.describe()}"
    width = Anatomy.of(ours).blocks[0].mlp.intermediate_size  # type: ignore[union-attr]
    print(f"modwright, modegpt: MLPs {width} wide, {parameters(ours):,} parameters, ", end="")
    print(f"perplexity {quality(ours):.2f}, {told}")

    kv_heads = opened.model.config.num_key_value_heads
    print(f"Torch-Pruning on the model as it is, {kv_heads} key/value heads:")
    for way in GROUPED:
        print(f"  {way}: {outcome(way, given.limit)}")


if __name__ == "__main__":
    main()
