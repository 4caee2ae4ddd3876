"""``pytest tests/golden --golden-dir DIR`` checks any tree of the same shape, and can fail."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from golden_checks import GoldenCase, checker_of, golden_files
from warm_processes import run_python

OWN = Path(__file__).parents[1] / "golden"
LLM_DROP = OWN / "llm-drop" / "case0.safetensors"
MODEGPT = OWN / "modegpt" / "case0.safetensors"
PRE_LN_VIT = OWN / "pre-rmsnorm" / "vit_variants.safetensors"
PRE_LN_GPT = OWN / "pre-rmsnorm" / "gpt_zero_mean_training.safetensors"


def write(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = json.dumps({"config": config, "source": "formulas, step by step", "seed": 1})
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path, {"meta": meta})


def rewrite(source: Path, path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    with safe_open(source, "pt") as stored:
        config = json.loads(stored.metadata()["meta"])["config"]
    tensors = load_file(source)
    change(tensors)
    write(path, config, tensors)


# Cases of other configurations, from the formulas alone


def other_modegpt(path: Path) -> None:
    """Three groups of one, no gate, other ridges and ratios; everything in loops and inverses."""
    torch.manual_seed(1)
    c: dict[str, Any] = {"d": 18, "I": 20, "H": 6, "K": 3, "D": 6, "keep_mlp": 0.55, "rank": 2}
    c |= {"ridge_mlp": 3e-3, "ridge_inner": 1e-7, "ridge_vo": 2e-4, "ridge_qk_plain": 2e-4}
    c |= {"ridge_qk_gqa_q": 3e-4, "ridge_qk_gqa_k": 5e-6}
    c["alloc"] = {"eps": 0.2, "avg_sparsity": 0.25, "max_sparsity": 0.5}
    double: Any = {"dtype": torch.float64}

    def moments(size: int) -> Tensor:
        x = torch.randn(60, size, **double) @ torch.randn(size, size, **double)
        return x.T @ x / 60

    t: dict[str, Tensor] = {"input.mlp.C": moments(20), "input.vo.C": moments(18)}
    t["weight.mlp.up"], t["weight.mlp.down"] = (
        torch.randn(*s, **double) for s in ((20, 18), (18, 20))
    )
    inverse = (t["input.mlp.C"] + c["ridge_mlp"] * torch.eye(20, **double)).inverse().diagonal()
    index = inverse.topk(11, largest=False).indices.sort().values
    kept = t["input.mlp.C"][index][:, index] + c["ridge_inner"] * torch.eye(11, **double)
    t |= {"inter.mlp.inv_diag": inverse, "inter.mlp.index": index}
    t["output.mlp.up"] = t["weight.mlp.up"][index]
    mixing = kept.inverse() @ t["input.mlp.C"][index]
    t["output.mlp.down"] = t["weight.mlp.down"] @ mixing.T

    values, vectors = torch.linalg.eigh(t["input.vo.C"])
    root = vectors @ (values + c["ridge_vo"]).sqrt().diag() @ vectors.T
    t["weight.vo.v"], t["weight.vo_gqa.v"] = (
        torch.randn(36, 18, **double),
        torch.randn(18, 18, **double),
    )
    t["weight.vo.o"] = torch.randn(18, 36, **double)
    single, shared = [], []
    for head in range(6):
        o = t["weight.vo.o"][:, head * 6 : head * 6 + 6]
        whole = root @ (o @ t["weight.vo.v"][head * 6 : head * 6 + 6]).T
        u, s, vh = torch.linalg.svd(whole)
        single.append((root.inverse() @ (u[:, :2] * s[:2]) @ vh[:2]).T)
        value = root @ t["weight.vo_gqa.v"][head // 2 * 6 : head // 2 * 6 + 6].T
        u, s, vh = torch.linalg.svd(value)
        shared.append((root.inverse() @ (u[:, :2] * s[:2]) @ vh[:2] @ o.T).T)
    t["output.vo.product"], t["output.vo_gqa.product"] = torch.stack(single), torch.stack(shared)

    t["input.qk.Cq"] = torch.stack([moments(6) for _ in range(6)])
    t["input.qk.Ck"] = torch.stack([moments(6) for _ in range(6)])
    t["input.qk_gqa.Ck"] = torch.stack([moments(6) for _ in range(3)])
    plain, rotary, grouped = [], [], []
    for head in range(6):
        q, k = (t[f"input.qk.C{x}"][head].diagonal() + c["ridge_qk_plain"] for x in "qk")
        plain.append((q * k).topk(2).indices)
        best = int((q * k).view(2, 3).sum(0).argmax())
        rotary.append(torch.tensor([best, best + 3]))
    for head in range(3):
        k = t["input.qk_gqa.Ck"][head].diagonal() + c["ridge_qk_gqa_k"]
        q = sum(t["input.qk.Cq"][2 * head + g].diagonal() + c["ridge_qk_gqa_q"] for g in (0, 1))
        best = int((q * k).view(2, 3).sum(0).argmax())
        grouped.append(torch.tensor([best + 3, best]))
    t["output.qk_plain.index"], t["output.qk_rope.index"] = torch.stack(plain), torch.stack(rotary)
    t["output.qk_rope_gqa.index"] = torch.stack(grouped)

    importance = torch.tensor([0.9, 0.02, 0.1, 0.2], **double)
    t["input.alloc.bi"] = importance
    even = 4 * 0.25 * (-importance / 3).softmax(0)
    t["output.alloc.keep_eps3"] = 1 - even
    write(path, c, t)


@torch.no_grad()
def other_llm_drop(path: Path) -> None:
    """Other sizes, and streams taken from ``output_hidden_states`` and from a forward by hand."""
    torch.manual_seed(2)
    c = {"layers": 4, "d": 24, "H": 3, "K": 1, "I": 40, "vocab": 37, "drop_n": 2}
    c |= {"rope_theta": 500.0, "rms_eps": 1e-5}
    config = LlamaConfig(
        vocab_size=37,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 37, (2, 9))
    angles = model.model.rotary_emb(torch.zeros(1), torch.arange(9)[None])
    mask = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    streams = [model.model.embed_tokens(ids)]
    sims: dict[str, list[Tensor]] = {}

    def note(name: str, a: Tensor, b: Tensor) -> None:
        sims.setdefault(name, []).append(torch.cosine_similarity(a, b, dim=-1).mean())

    for layer in model.model.layers:
        h = streams[-1]
        for name, norm, part in (
            ("attn", layer.input_layernorm, layer.self_attn),
            ("mlp", layer.post_attention_layernorm, layer.mlp),
        ):
            kwargs = {"attention_mask": mask, "position_embeddings": angles}
            out = part(norm(h), **kwargs)[0] if name == "attn" else part(norm(h))
            note(f"output.sim.{name}.drop_norm_True", h, h + out)
            note(f"output.sim.{name}.drop_norm_False", norm(h), out)
            h = h + out
        note("output.sim.block", streams[-1], h)
        streams.append(h)
    own = model.model(ids, output_hidden_states=True).hidden_states
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own[:-1], streams))
    t = {name: torch.stack(values) for name, values in sims.items()}
    gaps = torch.full((4, 4), -torch.inf)
    for i in range(4):
        for g in range(1, 5 - i):
            gaps[i, g - 1] = torch.cosine_similarity(streams[i], streams[i + g], dim=-1).mean()
    t["output.sim.consecutive"] = gaps
    joint = [t[f"output.sim.{name}.drop_norm_True"] for name in ("attn", "mlp")]
    for name, scores in (("attn", joint[0]), ("mlp", joint[1]), ("all", torch.cat(joint))):
        t[f"output.dropped.{name}"] = scores.argsort(descending=True)[:2]
    weights = model.state_dict()
    t |= {f"weight.{name}": weights[name] for name in weights if name != "lm_head.weight"}
    write(path, c, {**t, "input.ids": ids})


def other_pre_rmsnorm(path: Path) -> None:
    """One layer of three heads on nine patches; the norms from their definitions."""
    torch.manual_seed(3)
    c: dict[str, Any] = {"image_size": 6, "patch_size": 2, "dim": 9, "depth": 1, "heads": 3}
    c |= {"mlp_dim": 14, "num_classes": 5, "batch": 2, "eps": 1e-3, "gelu": "exact erf"}
    c |= {"dtype": "float64", "norm_affine": False}
    d, inner, classes, entries = 9, 14, 5, 12
    t: dict[str, Tensor] = {"input.patches": torch.randn(2, 9, entries, dtype=torch.float64)}

    def draw(name: str, *shape: int) -> Tensor:
        t[f"weight.{name}"] = torch.randn(*shape, dtype=torch.float64) + 0.5
        return t[f"weight.{name}"]

    w = {
        name: (
            draw(f"{name}_linear_weight", *layers, out, into),
            draw(f"{name}_linear_bias", *layers, out),
        )
        for name, layers, out, into in (
            ("patch", (), d, entries),
            ("att_in", (1,), 3 * d, d),
            ("att_out", (1,), d, d),
            ("mlp_in", (1,), inner, d),
            ("mlp_out", (1,), d, inner),
            ("cls_head", (), classes, d),
        )
    }
    tokens = draw("cls_token", 1, 1, d), draw("pos_embedding", 1, 9, d)
    writers = ("patch", "att_out", "mlp_out")
    centre = torch.eye(d, dtype=torch.float64) - 1 / d
    zero = {n: (centre @ a, b @ centre) if n in writers else (a, b) for n, (a, b) in w.items()}
    zero_tokens = tuple(token @ centre for token in tokens)
    small = {
        n: (a[..., :-1, :], b[..., :-1]) if n in writers else (a[..., :-1] - a[..., -1:], b)
        for n, (a, b) in zero.items()
    }
    small_tokens = tuple(token[..., :-1] for token in zero_tokens)

    def layer(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + 1e-3
        ).sqrt()

    def rms(x: Tensor) -> Tensor:
        return x / (x.square().sum(-1, keepdim=True) / d + 1e-3).sqrt()

    def crms(z: Tensor) -> Tensor:
        return rms(torch.cat((z, -z.sum(-1, keepdim=True)), -1))[..., :-1]

    def vit(w: Any, tokens: Any, norm: Any) -> Tensor:
        def linear(name: str, x: Tensor) -> Tensor:
            weight, bias = (
                tensor.reshape(-1, *tensor.shape[-n:]) for n, tensor in zip((2, 1), w[name])
            )
            return x @ weight[0].T + bias[0]

        h = linear("patch", t["input.patches"]) + tokens[1]
        h = torch.cat((tokens[0].expand(2, -1, -1), h), 1)
        q, k, v = linear("att_in", norm(h)).chunk(3, -1)
        heads = []
        for i in range(0, d, 3):
            scores = q[..., i : i + 3] @ k[..., i : i + 3].transpose(1, 2) / 3**0.5
            heads.append(scores.softmax(-1) @ v[..., i : i + 3])
        h = h + linear("att_out", torch.cat(heads, -1))
        h = h + linear("mlp_out", torch.nn.functional.gelu(linear("mlp_in", norm(h))))
        return linear("cls_head", norm(h)[:, 0])

    t["output.pre_ln"], t["output.zero_mean_pre_ln"] = (
        vit(w, tokens, layer),
        vit(zero, zero_tokens, layer),
    )
    t["output.pre_rms"], t["output.pre_crms"] = (
        vit(zero, zero_tokens, rms),
        vit(small, small_tokens, crms),
    )
    for start, found, named in (("zm", zero, zero_tokens), ("compressed", small, small_tokens)):
        kept = writers if start == "zm" else tuple(found)
        for name in kept:
            t[f"inter.{start}_{name}_linear_weight"] = found[name][0]
            if name in writers:
                t[f"inter.{start}_{name}_linear_bias"] = found[name][1]
        t[f"inter.{start}_cls_token"], t[f"inter.{start}_pos_embedding"] = named
    write(path, c, t)


def other_massive_fit(path: Path) -> None:
    """More noise and other steps. Noise at right angles to the slopes: the truth fits best."""
    generator = torch.Generator().manual_seed(4)
    order = ["A", "lam", "gamma", "t0", "K"]
    x = torch.arange(0, 60_000, 1000, dtype=torch.float64)
    t: dict[str, Tensor] = {"input.t": x}
    for number, true in enumerate(([40.0, 0.3, 2e-4, 0.5, 7.0], [-3.0, 0.1, 5e-4, 0.9, 20.0])):
        p = torch.tensor(true, dtype=torch.float64)

        def curve(p: Tensor) -> Tensor:
            z = p[2] * x + p[3]
            return p[0] * torch.exp(-p[1] * z) * torch.log(z) + p[4]

        truth = curve(p)
        slopes: Any = torch.autograd.functional.jacobian(curve, p)
        basis, corner = torch.linalg.qr(slopes * p)  # by relative changes
        noise = torch.randn(len(x), generator=generator, dtype=torch.float64)
        noise = noise - basis @ (basis.T @ noise)
        noise = 0.02 * (truth.max() - truth.min()) * noise / noise.std()
        inverse = corner.inverse() * p[:, None]
        rss = noise.square().sum()
        y = truth + noise
        t |= {f"input.true.{number}": p, f"input.y.{number}": y}
        t |= {f"output.popt.{number}": p, f"output.fit.{number}": truth}
        t[f"output.pcov.{number}"] = inverse @ inverse.T * rss / (len(x) - 5)
        t[f"output.r2.{number}"] = 1 - rss / (y - y.mean()).square().sum()
        t[f"output.aic.{number}"] = len(x) * (rss / len(x)).log() + 10
    told = {"kind": "fit", "formula": "A*exp(-lam*x)*log(x)+K, x=gamma*t+t0"}
    meta = json.dumps({**told, "param_order": order, "noise": 0.02, "seed": 4})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: v.contiguous().clone() for n, v in t.items()}, path, {"meta": meta})


@torch.no_grad()
def other_massive_llama(path: Path) -> None:
    """Other sizes and limits; layers by hand, statistics from sorted lists, one entry planted."""
    torch.manual_seed(5)
    c: dict[str, Any] = {"vocab_size": 23, "hidden_size": 12, "intermediate_size": 20}
    c |= {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
    c |= {"max_position_embeddings": 32, "tie_word_embeddings": False, "bos_token_id": 1}
    c |= {"eos_token_id": 0, "pad_token_id": 0}
    double: Any = {"dtype": torch.float64}
    place = {"layer": 2, "dim": 9, "token": 0}
    limits = {"absolute": 50, "relative": 200}
    model = LlamaForCausalLM(LlamaConfig(**c, initializer_range=0.3)).double().eval()
    ids = torch.randint(1, 23, (3, 7))
    ids[:, 0], ids[:, 1:] = 4, ids[:, 1:].clamp(min=5)
    model.model.embed_tokens.weight[4, 9] = 900.0
    angles = model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.arange(7)[None])
    mask = torch.full((7, 7), -1e30, dtype=torch.float64).triu(1)[None, None]

    def forward(value: float | None) -> tuple[Tensor, list[Tensor], list[float]]:
        h, streams, sinks = model.model.embed_tokens(ids), [], []
        for number, layer in enumerate(model.model.layers):
            given = {"attention_mask": mask, "position_embeddings": angles}
            out, weights = layer.self_attn(layer.input_layernorm(h), **given)
            h = h + out
            h = h + layer.mlp(layer.post_attention_layernorm(h))
            if value is not None and number == place["layer"]:
                h[:, place["token"], place["dim"]] = value
            streams.append(h.clone())
            if weights is not None:
                sinks.append(float(weights[:, :, 1:, 0].double().mean()))
        return model.lm_head(model.model.norm(h)), streams, sinks

    full, streams, _ = forward(None)
    stats, rows = torch.zeros(3, 4, 4, dtype=torch.float64), []
    for layer, stream in enumerate(streams):
        for sequence, state in enumerate(stream):
            size = sorted(state.abs().flatten().tolist())
            median = size[(len(size) - 1) // 2]
            stats[sequence, :, layer] = torch.tensor([*size[:-4:-1], median], **double)
            least = max(limits["absolute"], limits["relative"] * median)
            rows += [[sequence, layer, *at] for at in (state.abs() > least).nonzero().tolist()]
    rows.sort(key=lambda row: (row[1], row[0], *row[2:]))
    mean = float(streams[place["layer"]][:, place["token"], place["dim"]].mean())
    t = {"input.ids": ids, "output.stats": stats, "output.massive": torch.tensor(rows)}
    t["output.logits.full"] = full
    for name, value in (("zero", 0.0), ("mean", mean)):
        t[f"output.value.{name}"] = torch.tensor(value, dtype=torch.float64)
        t[f"output.logits.{name}"] = forward(value)[0]
    t |= {f"weight.{name}": tensor for name, tensor in model.state_dict().items()}
    model.set_attn_implementation("eager")  # it gives weights, but rounds softmax to float32
    t["output.sink"] = torch.tensor(forward(None)[2], dtype=torch.float64)
    assert rows and all(row[2:] == [0, 9] for row in rows)
    meta = {"kind": "llama", "config": c, "intervention": place, "thresholds": limits}
    save_file({n: v.contiguous().clone() for n, v in t.items()}, path,
              {"meta": json.dumps(meta)})  # fmt: skip


def other_matformer(path: Path) -> None:
    """Three heads, one layer, another epsilon, two widths; scores and softmax in loops, neurons by
    sums over those that are used."""
    torch.manual_seed(4)
    d, heads, inner, vocab, eps = 12, 3, 24, 17, 1e-3
    c: dict[str, Any] = {"d_model": d, "n_heads": heads, "n_layers": 1, "mlp_ratio": 2}
    c |= {"vocab": vocab, "multi_query": False, "alibi": True, "norm": f"layernorm eps {eps}"}
    c |= {"act": "gelu (exact)", "factors": [1, 3]}
    sizes: dict[str, tuple[int, ...]] = {"att_proj.weight": (3 * d, d), "attn_out.weight": (d, d)}
    sizes |= {"ff_proj.weight": (inner, d), "ff_out.weight": (d, inner)}
    sizes |= {f"{n}.weight": (d,) for n in ("attn_norm", "ff_norm")}
    sizes |= {f"{n}.bias": (d,) for n in ("attn_norm", "ff_norm", "attn_out", "ff_out")}
    sizes |= {"att_proj.bias": (3 * d,), "ff_proj.bias": (inner,)}
    w = {n: (torch.randn(s, dtype=torch.float64) / 3).requires_grad_() for n, s in sizes.items()}
    last = [torch.randn(d, dtype=torch.float64) for _ in range(2)]
    table = torch.randn(vocab, d, dtype=torch.float64)
    ids, alone = torch.randint(0, vocab, (2, 6)), torch.randn(1, 4, d, dtype=torch.float64)

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        spread = (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
        return (x - x.mean(-1, keepdim=True)) / spread * weight + bias

    def mlp(x: Tensor, width: int) -> Tensor:
        out = w["ff_out.bias"].expand_as(x)
        for neuron in range(width):
            u = (x * w["ff_proj.weight"][neuron]).sum(-1) + w["ff_proj.bias"][neuron]
            act = u * (1 + torch.erf(u / 2**0.5)) / 2
            out = out + act[..., None] * w["ff_out.weight"][:, neuron]
        return out

    def attention(x: Tensor) -> Tensor:
        q, k, v = (x @ w["att_proj.weight"].T + w["att_proj.bias"]).split(d, -1)
        rows = []
        for i in range(x.shape[1]):
            mixed = []
            for h in range(heads):
                own, slope = slice(4 * h, 4 * h + 4), 2 ** (-8 * (h + 1) / heads)
                scores = [
                    (q[:, i, own] * k[:, j, own]).sum(-1) / 2 - slope * (i - j)
                    for j in range(i + 1)
                ]
                share = torch.stack(scores, -1).softmax(-1)
                mixed.append(sum(share[:, j, None] * v[:, j, own] for j in range(i + 1)))
            rows.append(torch.cat(mixed, -1))
        return torch.stack(rows, 1) @ w["attn_out.weight"].T + w["attn_out.bias"]

    t: dict[str, Tensor] = {"input.ids": ids, "input.mlp_x": alone}
    total = torch.zeros((), dtype=torch.float64)
    for factor in c["factors"]:
        h = table[ids]
        h = h + attention(norm(h, w["attn_norm.weight"], w["attn_norm.bias"]))
        h = h + mlp(norm(h, w["ff_norm.weight"], w["ff_norm.bias"]), inner // factor)
        logits = norm(h, *last) @ table.T
        picked = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        total = total - picked.mean()
        t[f"output.logits.factor{factor}"] = logits
        t[f"output.loss.factor{factor}"] = -picked.mean().view(1)
        t[f"output.mlp.factor{factor}"] = mlp(alone, inner // factor)
    total.backward()
    start = "transformer.blocks.0."
    t |= {f"grad.joint_sum.{start}{n}": p.grad for n, p in w.items() if p.grad is not None}
    t |= {f"weight.{start}{n}": p for n, p in w.items()}
    t |= {"weight.transformer.ln_f.weight": last[0], "weight.transformer.ln_f.bias": last[1]}
    t["weight.transformer.wte.weight"] = table
    single = {n: v.detach().float() if v.is_floating_point() else v for n, v in t.items()}
    write(path, c, single)


def run(tree: Path) -> tuple[int, dict[str, str], str]:
    """Exit code, outcome by case of the other tree, and all that was printed."""
    words = ["-m", "pytest", str(OWN), "--golden-dir", str(tree)]
    words += ["-v", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = run_python(words, cwd=OWN.parents[1])
    found = re.findall(r"\[other-(\S+)\] (PASSED|FAILED|ERROR)", done.stdout)
    return done.returncode, dict(found), done.stdout + done.stderr


@pytest.mark.slow
def test_other_configurations_pass(tmp_path: Path) -> None:
    other_modegpt(tmp_path / "modegpt" / "wider.safetensors")
    other_llm_drop(tmp_path / "llm-drop" / "other.safetensors")
    other_pre_rmsnorm(tmp_path / "pre-rmsnorm" / "other.safetensors")
    other_matformer(tmp_path / "matformer" / "other.safetensors")
    shutil.copy(MODEGPT, tmp_path / "modegpt" / "copy.safetensors")
    other_massive_fit(tmp_path / "massive-activations" / "fit.safetensors")
    other_massive_llama(tmp_path / "massive-activations" / "llama.safetensors")
    code, outcomes, said = run(tmp_path)
    assert code == 0, said
    wanted = ("modegpt/wider", "modegpt/copy", "llm-drop/other", "pre-rmsnorm/other")
    wanted += ("massive-activations/fit", "massive-activations/llama")
    wanted += ("matformer/other",)
    assert outcomes == dict.fromkeys(wanted, "PASSED"), said
    assert re.search(r"test_golden\[llm-drop/case0\] PASSED", said), "our own tree is checked too"


@pytest.mark.slow
def test_what_is_wrong_fails(tmp_path: Path) -> None:
    def off_by_little(tensors: dict[str, Tensor]) -> None:
        tensors["output.mlp.down"][3, 4] *= 1 + 1e-5

    rewrite(MODEGPT, tmp_path / "modegpt" / "off.safetensors", off_by_little)
    shutil.copytree(OWN / "llm-drop", tmp_path / "new-paper")
    code, outcomes, said = run(tmp_path)
    assert code == 1
    assert outcomes == {"modegpt/off": "FAILED", "new-paper/case0": "FAILED"}, said
    assert "output.mlp.down: off by up to" in said
    assert "add tests/golden_checks/new_paper.py with a function check(case)" in said


@pytest.mark.slow
def test_a_tree_without_cases_fails(tmp_path: Path) -> None:
    code, _, said = run(tmp_path)
    assert code == 1 and "holds no SLUG/NAME.safetensors" in said


# What a single case must not get away with


def check(path: Path, slug: str) -> None:
    case = GoldenCase.read(path)
    checker_of(slug)(case)
    case.assert_complete()


def named(source: Path) -> str:
    return f"{source.parent.name}/{source.stem}"


def raise_entry(name: str, by: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        flat = tensors[name].view(-1)
        at = int(flat.isfinite().int().argmax())
        flat[at] = flat[at] + by if flat.is_floating_point() else (flat[at] + 1) % 5

    return change


class Doubting(GoldenCase):
    """Sees to it that every comparison would find another number."""

    def _expected(self, name: str, found: Tensor) -> Tensor:
        expected = super()._expected(name, found)
        if self.changed:
            raise_entry(name, 1e-3)(changed := {name: expected.clone()})
            return changed[name]
        return expected

    changed = False

    def _doubted(self, compare: Callable[..., None], name: str, found: Tensor, **how: Any) -> None:
        self.changed = True
        with pytest.raises(AssertionError, match=re.escape(name)):
            compare(name, found, **how)
        self.changed = False
        compare(name, found, **how)

    def close(self, name: str, found: Tensor, **how: Any) -> None:
        self._doubted(super().close, name, found, **how)

    def equal(self, name: str, found: Tensor) -> None:
        self._doubted(super().equal, name, found)

    def same_sets(self, name: str, found: Tensor) -> None:
        self._doubted(super().same_sets, name, found)


@pytest.mark.parametrize("source", golden_files([OWN]), ids=named)
def test_fault_C5_every_output_is_looked_at(source: Path) -> None:
    case = Doubting.read(source)
    checker_of(source.parent.name)(case)
    case.assert_complete()


# What is read and decides no number of these files when its last entry is doubled: sizes of images
# where nothing depends on them, offsets that the file gives, ridges too small to change a ranking,
# heads of a stage without them, passes of a block that has one, an epsilon that nothing is divided
# with or that float32 does not tell from its double, tokens that ids given as they are do not need
# and the number of positions where rotary ones are not scaled.
OF_EVERY_CONFIG = """_name_or_path architectures bos_token_id chunk_size_feed_forward dtype
    eos_token_id is_encoder_decoder output_attentions output_hidden_states pad_token_id
    problem_type transformers_version use_cache"""
START_VALUES = """initializer_range rescale_prenorm_residual residual_in_fp32 time_step_floor
    time_step_max time_step_min"""
OF_MAMBA = {*OF_EVERY_CONFIG.split(), *START_VALUES.split()}
"""What a config of transformers says that decides nothing where weights are given."""

FREE = {
    "craft/dynamic_pos_bias": {"window"},
    "craft/tiny_x2": {"input_shape"},
    "mamba/mamba1_lm": OF_MAMBA
    | {"time_step_scale", "tie_word_embeddings", "use_associative_scan", "use_mambapy"},
    "mamba/mamba2_lm": OF_MAMBA | {"chunk_size", "time_step_rank"},
    "massive-activations/llama": {"max_position_embeddings"}
    | {"bos_token_id", "eos_token_id", "pad_token_id"},
    "metaformer/poolformer_rect": {"img"},
    "metaformer/poolformer_tiny": {"img"},
    "modegpt/case0": {"ridge_qk_plain", "ridge_qk_gqa_k", "ridge_qk_gqa_q"},
    "polycom/polynorm_init": {"eps"},
    "polycom/polynorm_trained": {"eps"},
    "polycom/polyrelu_float64": {"eps"},
    "polycom/polyrelu_init": {"eps"},
    "polycom/polyrelu_trained": {"eps"},
    "smt/smt_tiny": {"img", "ca_num_heads"},
    "sret/sret_tiny": {"recursive_num"},
    "sret/sret_wo_slice": {"recursive_num"},
    "t2t-vit/t2t_dense": {"depth"},
}


def other(value: Any) -> Any:
    """A valid value in place of another one, or at least one of its type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 if value else 1
    if isinstance(value, list):
        return [*value[:-1], other(value[-1])]
    return None if isinstance(value, str) else 3


@pytest.mark.parametrize("source", golden_files([OWN]), ids=named)
def test_fault_C5_every_key_is_read_and_decides(source: Path) -> None:
    free = set()
    for key in GoldenCase.read(source).config:
        case = GoldenCase.read(source)
        case.config[key] = other(case.config[key])
        with contextlib.suppress(Exception):
            checker_of(source.parent.name)(case)
            free.add(key)
    assert free == FREE.get(named(source), set())


def test_fault_C5_a_key_that_no_checker_reads_fails(tmp_path: Path) -> None:
    with safe_open(MODEGPT, "pt") as stored:
        told = json.loads(stored.metadata()["meta"])
    for more in ({"shared_experts": 2}, {"config": {**told["config"], "heads_of_keys": 2}}):
        meta = json.dumps({**told, **more})
        save_file(load_file(MODEGPT), tmp_path / "a.safetensors", {"meta": meta})
        with pytest.raises(AssertionError, match=r"nothing reads (shared_ex|config\.heads_of_k)"):
            check(tmp_path / "a.safetensors", "modegpt")


def test_fault_C5_a_file_without_the_key_config_is_read_by_its_metadata(tmp_path: Path) -> None:
    meta = json.dumps({"kind": "fit", "noise": 0.01, "seed": 1, "sizes": {"x": 7}})
    save_file({"output.x": torch.zeros(1)}, tmp_path / "a.safetensors", {"meta": meta})
    case = GoldenCase.read(tmp_path / "a.safetensors")
    assert case.config["kind"] == "fit" and case.config["sizes"]["x"] == 7
    assert case.meta.unread() == ["noise"]


def test_fault_C5_a_gradient_that_nothing_compares_fails(tmp_path: Path) -> None:
    def more(tensors: dict[str, Tensor]) -> None:
        tensors["grad.something"] = torch.zeros(1)

    rewrite(MODEGPT, tmp_path / "a.safetensors", more)
    with pytest.raises(AssertionError, match=r"nothing compares grad\.something"):
        check(tmp_path / "a.safetensors", "modegpt")


def test_an_output_that_no_checker_knows_fails(tmp_path: Path) -> None:
    def more(tensors: dict[str, Tensor]) -> None:
        tensors["output.something.new"] = torch.zeros(1)

    rewrite(MODEGPT, tmp_path / "a.safetensors", more)
    with pytest.raises(AssertionError, match=r"nothing compares output\.something\.new"):
        check(tmp_path / "a.safetensors", "modegpt")


def test_a_case_without_outputs_fails(tmp_path: Path) -> None:
    def fewer(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if n.startswith(("output.", "inter."))]:
            del tensors[name]

    rewrite(MODEGPT, tmp_path / "a.safetensors", fewer)
    with pytest.raises(AssertionError, match="holds no output to compare with"):
        check(tmp_path / "a.safetensors", "modegpt")


def test_a_file_without_its_config_fails(tmp_path: Path) -> None:
    save_file({"output.x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(AssertionError, match="no metadata key 'meta'"):
        GoldenCase.read(tmp_path / "a.safetensors")
