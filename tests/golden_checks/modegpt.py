"""MoDeGPT: each of its decompositions on matrices, and the allocation of sparsity."""

from __future__ import annotations

import torch
from torch import Tensor

from golden_checks import GoldenCase
from modwright.surgery.modegpt import (
    allocate_sparsity,
    moment_roots,
    nystrom_mlp,
    select_query_key,
    select_rotary_pairs,
    value_output,
)

RTOL = 1e-6
# Entries of a matrix that are much smaller than its largest are compared with that one.
ATOL = 1e-9


def check(case: GoldenCase) -> None:
    if case.names("output.mlp."):
        _mlp(case)
    for start, values in (("output.vo.", "weight.vo.v"), ("output.vo_gqa.", "weight.vo_gqa.v")):
        if case.names(start):
            _value_output(case, f"{start}product", values)
    _query_key(case)
    for name in case.names("output.alloc."):
        _allocation(case, name)


def _mlp(case: GoldenCase) -> None:
    c, moments = case.config, case["input.mlp.C"]
    keep = int(c["I"] * c["keep_mlp"])
    index, down = nystrom_mlp(
        case["weight.mlp.down"], moments, keep, c["ridge_mlp"], c["ridge_inner"]
    )
    assert moments.shape == (c["I"], c["I"]) and len(index) == keep
    case.equal("inter.mlp.index", index)
    inverse = torch.linalg.inv(moments + c["ridge_mlp"] * torch.eye(c["I"], dtype=moments.dtype))
    case.close("inter.mlp.inv_diag", inverse.diagonal(), rtol=RTOL)
    # The kept neurons are those of the largest leverage, by the file's own numbers.
    kept = torch.zeros(c["I"], dtype=torch.bool).index_fill(0, index, True)
    assert case["inter.mlp.inv_diag"][kept].max() <= case["inter.mlp.inv_diag"][~kept].min()
    case.close("output.mlp.down", down, rtol=RTOL, atol=ATOL)
    for role in ("up", "gate"):
        if f"output.mlp.{role}" in case:
            case.close(f"output.mlp.{role}", case[f"weight.mlp.{role}"][index])


def _value_output(case: GoldenCase, name: str, values: str) -> None:
    c = case.config
    heads, width, d = c["H"], c["D"], c["d"]
    value = case[values].view(-1, width, d)
    assert len(value) in (heads, c["K"])
    output = case["weight.vo.o"].T.reshape(heads, width, d)
    groups = heads // len(value)
    root, inverse = moment_roots(case["input.vo.C"], c["ridge_vo"])
    products = []
    for head, v in enumerate(value):
        mine = output[head * groups : (head + 1) * groups]
        new_v, new_o, _ = value_output(v, mine, root, inverse, c["rank"], joint=groups == 1)
        assert new_v.shape == (c["rank"], d) and new_o.shape == (groups, c["rank"], d)
        products += [o.T @ new_v for o in new_o]
    case.close(name, torch.stack(products), rtol=RTOL, atol=ATOL)


def _query_key(case: GoldenCase) -> None:
    c = case.config
    pairs = torch.arange(c["D"]).view(2, -1).T

    def diagonal(name: str, ridge: float) -> Tensor:
        return case[name].diagonal(dim1=-2, dim2=-1) + ridge

    def rotary(q: Tensor, k: Tensor) -> Tensor:
        return select_rotary_pairs(q, k, c["rank"], pairs)

    def plain(q: Tensor, k: Tensor) -> Tensor:
        return select_query_key(q, k, c["rank"])

    single = ("input.qk.Ck", c.get("ridge_qk_plain"), c.get("ridge_qk_plain"))
    shared = ("input.qk_gqa.Ck", c.get("ridge_qk_gqa_q"), c.get("ridge_qk_gqa_k"))
    for name, (keys, q_ridge, k_ridge), select in (
        ("output.qk_plain.index", single, plain),
        ("output.qk_rope.index", single, rotary),
        ("output.qk_rope_gqa.index", shared, rotary),
    ):
        if name not in case:
            continue
        k = diagonal(keys, k_ridge)
        q = diagonal("input.qk.Cq", q_ridge).view(len(k), -1, c["D"])
        case.same_sets(name, torch.stack([select(*head) for head in zip(q, k)]))


def _allocation(case: GoldenCase, name: str) -> None:
    """``output.alloc.keep``, or ``output.alloc.keep_eps5`` with another epsilon than the config."""
    c = case.config["alloc"]
    _, named, epsilon = name.partition("keep_eps")
    epsilon_of_all = c["eps"]
    sparsity = allocate_sparsity(
        case["input.alloc.bi"].tolist(),
        c["avg_sparsity"],
        float(epsilon) if named else epsilon_of_all,
        c["max_sparsity"],
    )
    case.close(name, 1 - torch.tensor(sparsity, dtype=torch.float64), rtol=RTOL)
