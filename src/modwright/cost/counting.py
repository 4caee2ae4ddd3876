"""What each part of a model costs, counted: no forward pass, no weights needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

from torch import nn

from modwright.anatomy import Anatomy
from modwright.anatomy.inputs import Images
from modwright.anatomy.projection import linear_layer
from modwright.core.compat.torch import tensor_tables
from modwright.core.errors import UnsupportedArchitecture
from modwright.core.formatting import format_number, percent
from modwright.cost.macs import Pass, at_least, part_macs
from modwright.cost.memory import activation_bytes, cached_positions, kv_cache_bytes, state_bytes
from modwright.cost.meta_trace import MetaTrace, trace_on_meta
from modwright.cost.render import CostTable, Shown, fold, page

__all__ = ["Cost", "PartCost", "cost", "count"]

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_GROWTH = {
    "attention": "parameters: quadratic in width, linear in depth; projections: linear in length, "
    "quadratic in width, linear in depth; scores: quadratic in length (one decode step: linear in "
    "context), linear in width and depth",
    "mlp": "parameters: quadratic in width, linear in depth; MACs: linear in length, quadratic in "
    "width, linear in depth",
    "head": "MACs: linear in length, width and vocabulary, independent of depth",
    "embedding": "parameters: linear in width and vocabulary; no MACs",
    "kv_bytes": "linear in length (constant beyond a sliding window), width of the key/value heads "
    "and depth",
    "state_bytes": "constant in length, linear in depth",
    "activation_bytes": "linear in length (quadratic with eager attention) and width, independent "
    "of depth",
}


@dataclass(frozen=True)
class PartCost:
    """What one part costs.

    Attributes:
        address: of the part; "other" for all that belongs to no part (a pooler, a classifier).
        kind: attention, mlp, norm, embedding, patches, linear, head or other.
        parameters: numbers that it owns; a tied table belongs to the embedding.
        bytes: what a checkpoint stores for it, index buffers included.
        prefill_macs: multiply-accumulates when ``length`` tokens are read at once.
        decode_macs: multiply-accumulates of the next token; 0 for encoders.
    """

    address: str
    kind: str
    parameters: int = 0
    bytes: int = 0
    prefill_macs: int = 0
    decode_macs: int = 0

    def plus(self, other: PartCost) -> PartCost:
        """Both together, under this one's address and kind."""
        names = ("parameters", "bytes", "prefill_macs", "decode_macs")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return replace(self, **sums)


@dataclass(frozen=True, repr=False)
class Cost(Shown):
    """What a model costs, part by part. All totals are sums of the rows.

    Attributes:
        rows: one per part, in the order of the forward pass.
        kv_bytes: key/value cache of one sequence of ``length`` tokens; 0 for encoders.
        activation_bytes: of the whole batch, see :func:`modwright.cost.activation_bytes`.
        recipe: under which conditions and by which rules was counted.
        state_bytes: what recurrent mixers keep of one sequence, constant in its length.
    """

    rows: tuple[PartCost, ...]
    kv_bytes: int
    activation_bytes: int
    recipe: Mapping[str, Any]
    state_bytes: int = 0

    @property
    def parameters(self) -> int:
        """Numbers stored as parameters; tied ones once."""
        return sum(row.parameters for row in self.rows)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in a checkpoint; tied ones once."""
        return sum(row.bytes for row in self.rows)

    @property
    def prefill_macs(self) -> int:
        """To read ``length`` tokens of every sequence of the batch, with logits for each token."""
        return sum(row.prefill_macs for row in self.rows)

    @property
    def decode_macs(self) -> int:
        """Of one more token for every sequence of the batch; 0 for encoders."""
        return sum(row.decode_macs for row in self.rows)

    def by_kind(self) -> dict[str, PartCost]:
        """The rows summed over the parts of one kind."""
        sums: dict[str, PartCost] = {}
        for row in self.rows:
            sums[row.kind] = sums.get(row.kind, PartCost(row.kind, row.kind)).plus(row)
        return sums

    def growth(self) -> dict[str, str]:
        """How each cost grows with length, width and depth; only those that the model has."""
        found = {row.kind for row in self.rows}
        found |= {"activation_bytes", "kv_bytes" if self.kv_bytes else ""}
        found |= {"state_bytes" if self.state_bytes else ""}
        return {name: text for name, text in _GROWTH.items() if name in found}

    def to_dict(self) -> dict[str, Any]:
        """Plain values: totals, recipe, rows."""
        names = ["parameters", "stored_bytes", "prefill_macs", "decode_macs", "kv_bytes"]
        names += ["state_bytes"] * (self.state_bytes > 0)
        return {
            **{name: getattr(self, name) for name in (*names, "activation_bytes")},
            "recipe": dict(self.recipe),
            "growth": self.growth(),
            "rows": [asdict(row) for row in self.rows],
        }

    def __repr__(self) -> str:
        size, macs = format_number(self.stored_bytes, "B"), format_number(self.prefill_macs)
        parameters, length = format_number(self.parameters), self.recipe["length"]
        return f"Cost({parameters} parameters, {size}, {macs} MACs for {length} tokens)"

    def table(self) -> CostTable:
        """One line per kind of part, the totals, and what they were counted for."""
        recipe = self.recipe
        caption = (
            f"batch {recipe['batch']}, {recipe['length']} tokens, {recipe['dtype']}; key/value "
            f"cache {format_number(self.kv_bytes, 'B')} per sequence; {self._states}activations "
            f"at least {format_number(self.activation_bytes, 'B')}; bytes in powers of 1000"
        )
        if "positions" in recipe:
            caption += f"; {recipe['positions']}"
        whole = (self.parameters, self.stored_bytes, self.prefill_macs, self.decode_macs)
        lines = self._lines([*self.by_kind().values(), PartCost("total", "total", *whole)])
        return lines._replace(caption=caption, rows=lines.rows[:-1], total=lines.rows[-1])

    @property
    def _states(self) -> str:
        size = format_number(self.state_bytes, "B")
        return f"states {size} per sequence, constant in length; " if self.state_bytes else ""

    def _lines(self, rows: Iterable[PartCost]) -> CostTable:
        heads = ["kind", "parameters", "share", "bytes", "prefill\nMACs", "share", "decode\nMACs"]
        shown = len(heads) if "context" in self.recipe else -1
        lines = [
            [
                row.address,
                format_number(row.parameters),
                percent(row.parameters, self.parameters),
                format_number(row.bytes, "B"),
                format_number(row.prefill_macs),
                percent(row.prefill_macs, self.prefill_macs),
                format_number(row.decode_macs),
            ][:shown]
            for row in rows
        ]
        return CostTable("", heads[:shown], lines)

    def _repr_html_(self) -> str:
        told = (f"<li>{escape(f'{name}: {value}')}</li>" for name, value in self.recipe.items())
        return page(
            self.table().html(),
            fold("what is counted", "<ul>", *told, "</ul>"),
            fold(f"{len(self.rows)} parts", self._lines(self.rows).html()),
        )


def count(
    model: nn.Module | Anatomy, *, length: int = 512, batch: int = 1, context: int | None = None
) -> Cost:
    """Counts parameters, bytes and multiply-accumulates of every part of a model.

    It equals half of what ``torch.utils.flop_counter.FlopCounterMode`` reports for a forward pass
    with the math attention kernel: matrix products only, attention over all T x T positions. The
    model may be on the meta device and may carry edits.

    Args:
        length: tokens that the prefill reads, of each sequence; a model of images has its own.
        batch: sequences side by side.
        context: tokens in the cache when the decode step comes; it attends to them and to itself.
            None for ``length``.

    Raises:
        InvalidInputError: ``length``, ``batch`` or ``context`` below 1.
        UnsupportedArchitecture: unknown family, or a part without a formula.

    Example:
        >>> import modwright
        >>> counted = count(modwright.open("preset:tiny-llama").model, length=10)
        >>> counted
        Cost(98.7 k parameters, 394.9 kB, 1 M MACs for 10 tokens)
        >>> counted.prefill_macs, counted.by_kind()["attention"].prefill_macs
        (1040640, 426240)
    """
    anatomy = Anatomy.of(model)
    return counted(anatomy, trace_on_meta(anatomy), length, batch, context)


cost = count


def counted(
    anatomy: Anatomy, trace: MetaTrace | None, length: int, batch: int, context: int | None
) -> Cost:
    """As :func:`count`, from a pass that was observed already where the family asks for one."""
    context = length if context is None else context
    at_least(1, length=length, batch=batch, context=context)
    length = anatomy.family.inputs().positions(length)
    runs = [Pass(batch, length)]
    if anatomy.family.is_causal():
        runs.append(Pass(batch, 1, cached_positions(anatomy, context)))
    return Cost(
        rows=_rows(anatomy, runs, trace),
        kv_bytes=kv_cache_bytes(anatomy, length),
        activation_bytes=activation_bytes(anatomy, length, batch, trace),
        recipe=_recipe(anatomy, length, batch, context),
        state_bytes=state_bytes(anatomy),
    )


def _rows(anatomy: Anatomy, runs: list[Pass], trace: MetaTrace | None) -> tuple[PartCost, ...]:
    parts = list(anatomy.parts())
    modules = {address: part.modules() for address, part in parts}
    left = {id(t): t for t in anatomy.model.state_dict(keep_vars=True).values() if t is not None}
    # Each tensor counts for the first part that stores it. Norms and tables go first: the module
    # of an attention may enclose a norm that is its own part.
    leaves_first = sorted(parts, key=lambda named: named[1].encloses_parts)
    owned = {address: _take(left, modules[address]) for address, _ in leaves_first}
    rows = []
    for address, part in parts:
        macs = [
            part_macs(part, run) if trace is None else trace.part_macs(address, part, run)
            for run in runs
        ]
        rows.append(PartCost(address, part.kind, *owned[address], *macs))
    known = {id(module) for found in modules.values() for module in found}
    rest = {p: m for p, m in anatomy.model.named_modules() if id(m) not in known}
    stored = _take(left, rest.values())
    if trace is None:
        macs = [_other_macs(anatomy, rest, run) for run in runs]
    else:
        macs = [run.sequences * trace.macs - sum(r.prefill_macs for r in rows) for run in runs]
    if any((*stored, *macs)):
        rows.append(PartCost("other", "other", *stored, *macs))
    return tuple(rows)


def _take(left: dict[int, Any], modules: Iterable[nn.Module]) -> tuple[int, int]:
    """(parameters, bytes) of what the modules hold themselves and nobody took before."""
    tables = (table for module in modules for table in tensor_tables(module))
    found = [left.pop(id(t)) for table in tables for t in table.values() if id(t) in left]
    parameters = sum(t.numel() for t in found if isinstance(t, nn.Parameter))
    return parameters, sum(t.nbytes for t in found)


def _other_macs(anatomy: Anatomy, modules: Mapping[str, nn.Module], run: Pass) -> int:
    """Maps outside the parts: once per sequence behind a pooler, else for every token.

    Convolutions see the patches alone.

    Raises:
        UnsupportedArchitecture: a convolution over more positions than one.
    """
    family, inputs = anatomy.family, anatomy.family.inputs()
    inside, pooled = family.prefix(anatomy.model), family.pools(anatomy.model)
    total = 0
    for path, module in modules.items():
        if isinstance(module, _CONVOLUTIONS):
            if not isinstance(inputs, Images) or {*module.kernel_size, *module.stride} != {1}:
                raise UnsupportedArchitecture(f"{path}: a convolution outside the parts, {module}")
            total += module.weight.numel() * run.sequences * inputs.patches
        elif (layer := linear_layer(module, path)) is not None:
            names = path.split(".")
            behind = pooled and bool(inside) and not path.startswith(inside)
            once = "pooler" in names or (behind and "predictions" not in names)
            total += layer.macs * (run.sequences if once else run.positions)
    return total


def _recipe(anatomy: Anatomy, length: int, batch: int, context: int) -> dict[str, Any]:
    dtypes = {str(p.dtype).removeprefix("torch.") for p in anatomy.model.parameters()}
    recipe: dict[str, Any] = {
        "length": length,
        "batch": batch,
        "context": context,
        "dtype": ", ".join(sorted(dtypes)),
        "macs": "multiply-accumulates of matrix products, half of torch's FLOP count; norms, "
        "softmax, activations, rotary angles and look-ups count 0",
        "attention": "scores over all T x T positions, masked ones included",
        "head": "logits for every token of the prefill; generate() computes the last one only",
        "decode": f"one token more for each sequence, after {context} in the cache",
        "bytes": "tensors of the checkpoint, tied ones once; powers of 1000 when abbreviated",
        "kv_bytes": f"one sequence of {length} tokens, all layers, dtype of the weights",
        "activation_bytes": "lower bound of inference: the largest working set of one part",
    }
    if not anatomy.family.is_causal():
        del recipe["decode"], recipe["context"]
    fixed = anatomy.family.inputs().describe()
    if fixed:
        recipe["input"] = fixed
    limit = getattr(anatomy.config, "max_position_embeddings", None)
    if limit is not None and max(length, context + 1) > limit:
        recipe["positions"] = f"the model is made for {limit} positions, fewer than counted here"
    return recipe
