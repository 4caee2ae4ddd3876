"""MatFormer: a language model with ALiBi at every width, its MLP alone, and the joint gradient.

The blocks are assembled from the nested MLP and plain torch; biases of the scores are ALiBi's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golden_checks import GoldenCase
from modwright.nn.channel_mixers.nested_feed_forward import NestedFeedForward, NestedShape

VALUES = 1e-5


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); scores are less by slope times distance."""

    def __init__(self, d: int, heads: int, inner: int, eps: float, widths: list[int]) -> None:
        super().__init__()
        self.heads = heads
        self.att_proj, self.attn_out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.attn_norm, self.ff_norm = nn.LayerNorm(d, eps), nn.LayerNorm(d, eps)
        shape = NestedShape(d, inner, "gelu", biases="ud", widths=tuple(widths))
        self.mlp = NestedFeedForward(shape, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        parts = self.att_proj(self.attn_norm(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        at = torch.arange(t)
        slopes = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1) / self.heads)
        bias = -slopes[:, None, None] * (at[:, None] - at).abs()
        bias = bias.masked_fill(at[:, None] < at, -torch.inf)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        x = x + self.attn_out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.ff_norm(x))


def check(case: GoldenCase) -> None:
    c = case.config
    d, vocab = c["d_model"], c["vocab"]
    assert c["alibi"] and not c["multi_query"] and c["act"] == "gelu (exact)"
    norm, eps = c["norm"].split(" eps ")
    assert norm == "layernorm"
    inner = c["mlp_ratio"] * d
    widths = {factor: inner // factor for factor in c["factors"]}
    outputs = {name.rpartition("factor")[2] for name in case.names("output.")}
    assert outputs == {str(factor) for factor in widths}
    blocks = nn.ModuleList(
        Block(d, c["n_heads"], inner, float(eps), sorted(widths.values()))
        for _ in range(c["n_layers"])
    )
    names = {"mlp.up_proj": "ff_proj", "mlp.down_proj": "ff_out"}
    theirs: dict[str, str] = {}
    for path, _ in blocks.named_parameters():
        number, _, rest = path.partition(".")
        module, _, leaf = rest.rpartition(".")
        theirs[path] = f"transformer.blocks.{number}.{names.get(module, module)}.{leaf}"
    blocks.load_state_dict({path: case[f"weight.{name}"] for path, name in theirs.items()})
    used = {f"weight.{name}" for name in theirs.values()}
    last = {leaf: case[f"weight.transformer.ln_f.{leaf}"] for leaf in ("weight", "bias")}
    table = case["weight.transformer.wte.weight"]
    assert table.shape[0] == vocab
    used |= {f"weight.transformer.ln_f.{leaf}" for leaf in last} | {"weight.transformer.wte.weight"}
    assert used == set(case.names("weight."))

    ids, total = case["input.ids"], torch.zeros(())
    for factor, width in widths.items():
        for block in blocks:
            block.mlp.width = width
        h = table[ids]
        for block in blocks:
            h = block(h)
        logits = F.layer_norm(h, (d,), last["weight"], last["bias"], float(eps)) @ table.T
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        total = total + loss
        alone = blocks[0].mlp(case["input.mlp_x"])
        case.close(f"output.logits.factor{factor}", logits.detach(), atol=VALUES)
        case.close(f"output.loss.factor{factor}", loss.detach().view(1), atol=VALUES)
        case.close(f"output.mlp.factor{factor}", alone.detach(), atol=VALUES)
    total.backward()
    gradients = {name: blocks.get_parameter(path).grad for path, name in theirs.items()}
    for name in case.names("grad.joint_sum."):
        found = gradients[name.removeprefix("grad.joint_sum.")]
        assert found is not None
        case.close(name, found, atol=VALUES)
