"""MatFormer (arXiv 2310.07707): MLPs whose first neurons are MLPs, and smaller models cut from it.

Axes: d hidden_size, I intermediate_size, m the neurons that a smaller model keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from modwright.anatomy import Anatomy, pick_layers
from modwright.core.errors import InvalidInputError, refusing
from modwright.core.progress import Progress
from modwright.edits import Change, Replace
from modwright.edits.canonical import target_of
from modwright.edits.change import require_separable
from modwright.edits.granularity import (
    Widths,
    mix_and_match,
    nested_parts,
    widths_of,
)
from modwright.nn import FeedForwardShape
from modwright.nn.channel_mixers.nested_feed_forward import NestedShape
from modwright.surgery.method import (
    Decision,
    Requirements,
    WithoutData,
    apply,
    make_method,
    register_method,
)

__all__ = ["Extract", "Nest", "extract"]


@register_method(
    "nest",
    paper="matformer",
    requires=Requirements(parts=("mlp",)),
    exact=True,
    examples=({}, {"layers": "0, -1"}),
)
@dataclass(frozen=True)
class Nest(WithoutData):
    """Makes MLPs nested: each of some widths of their first neurons can be used by itself.

    Tensors and function stay, so stock transformers opens the result with all neurons. A smaller
    width of a model that was not trained so is broken: train it with the objective ``nested``.

    Attributes:
        widths: increasing to all neurons; the paper's four, an eighth of them to all, unless said.
        layers: which, as in "3, 7", "8:", "*".

    Example:
        >>> import modwright
        >>> from modwright.edits.granularity import set_granularity
        >>> nested = modwright.apply(modwright.open("preset:tiny-llama"), Nest()).model
        >>> set_granularity(nested, ["S", "S", "M", "M"])
        [12, 12, 24, 24]
    """

    widths: tuple[int, ...] | None = None
    layers: str = "*"

    def title(self) -> str:
        return "nest MLPs" if self.widths is None else f"nest MLPs, {list(self.widths)} wide"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Puts the nested MLP in place of each chosen one; its tensors stay."""
        chosen = sorted(set(pick_layers(self.layers, len(anatomy.blocks))))
        mlps: list[Any] = [anatomy.block(index).mlp for index in chosen]
        mlps = [mlp for mlp in mlps if mlp is not None]
        if not mlps:
            raise InvalidInputError(f"nest: no MLP stands in blocks {self.layers}")
        change = sum((self._nested(anatomy, mlp) for mlp in mlps), Change())
        target_of(anatomy, change.edits).skeleton()  # what cannot be built is refused here
        told = {edit.path: getattr(edit, "kwargs", {})["widths"] for edit in change.edits}
        note = "Smaller widths are to be trained: objective `nested`."
        return change, {"widths": told}, (note,)

    def _nested(self, anatomy: Anatomy, mlp: Any) -> Change:
        where = f"nest: {mlp.address}"
        if mlp.neurons.num_experts is not None:
            raise InvalidInputError(f"{where} holds experts; a nested MLP has none")
        require_separable(mlp, "none can be left out")
        for layer in mlp.projections().values():
            if layer.is_factored or layer.is_zero_mean or layer.rows is not None:
                raise InvalidInputError(f"nest: {layer.address} is no plain linear layer")
        stock = not mlp.is_generic and mlp.intermediate_size == anatomy.family.get(
            "intermediate_size"
        )
        names = _names(mlp)
        if stock and names is None:
            raise InvalidInputError(f"{where}: layers of the MLP lie outside its module")
        told = {**mlp.shape.__dict__, "widths": self.widths, "names": names if stock else None}
        with refusing(where):
            shape = NestedShape(**told)
        arguments = {**shape.to_dict(), "widths": list(shape.widths or ())}
        del arguments["width"]  # all neurons, unless it is said
        values: dict[str, Tensor] = {}
        for role, layer in {} if stock else mlp.projections().items():
            held = {name: t for name, t in layer.parameters().items() if t is not None}
            values |= {f"{mlp.address}.{role}_proj.{name}": t for name, t in held.items()}
        return Change((Replace(mlp.address, "nested_feed_forward", arguments),), values)


@register_method(
    "extract",
    paper="matformer",
    requires=Requirements(parts=("mlp",)),
    examples=({"widths": "S"}, {"widths": [12, 12, 24, 24]}),
    after=("nest", {}),
)
@dataclass(frozen=True)
class Extract(WithoutData):
    """Cuts the smaller model of some widths out of a nested one; no weight changes.

    One width for all layers gives a plain model. With several (Mix'n'Match) layers differ, so
    modwright is needed to open it.

    Attributes:
        widths: one for all nested MLPs or one for each, as in "S", "S, S, M, M" or a list; those in
            use unless they are said.
        parameters: in place of widths, the most that the result may have: two neighboring widths
            are mixed, the smaller one first.

    Example:
        >>> import modwright
        >>> nested = modwright.apply(modwright.open("preset:tiny-llama"), "nest")
        >>> modwright.apply(nested, Extract("M")).plain
        True
    """

    widths: str | tuple[int, ...] | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        if self.widths is not None and self.parameters is not None:
            raise InvalidInputError("extract takes widths or a number of parameters, not both")

    def title(self) -> str:
        if self.parameters is not None:
            return f"extract at most {self.parameters:,} parameters"
        return "extract" if self.widths is None else f"extract {self.widths}"

    def decide(self, anatomy: Anatomy, progress: Progress) -> Decision:
        """Replaces each nested MLP by the plain one of its first neurons."""
        try:
            parts, widths = nested_parts(anatomy.model), self._widths(anatomy)
        except InvalidInputError as error:
            raise InvalidInputError(f"extract: {error}") from None
        edits: list[Replace] = []
        values: dict[str, Tensor] = {}
        for part, width in zip(parts, widths):
            old = part.module.shape
            shape = FeedForwardShape(
                old.hidden_size,
                width,
                old.activation,
                old.gated,
                old.biases,
                activation_kwargs=old.activation_kwargs,
            )
            edits.append(Replace(part.address, "feed_forward", shape.to_dict()))
            for name, view in part.module.prefix(width).items():
                if view is not None:
                    values[f"{part.address}.{name}"] = view.detach()
        told = {part.address: width for part, width in zip(parts, widths)}
        notes: tuple[str, ...] = ()
        if len(set(widths)) > 1:
            notes = ("Layers differ in width (Mix'n'Match), so the result is not plain.",)
        return Change(tuple(edits), values), {"widths": told}, notes

    def _asked(self) -> Widths | None:
        if not isinstance(self.widths, str):
            return self.widths
        words = [word.strip() for word in self.widths.split(",")]
        found = [int(word) if word.isdigit() else word for word in words]
        return found if len(found) > 1 else found[0]

    def _widths(self, anatomy: Anatomy) -> list[int]:
        if self.parameters is None:
            return widths_of(anatomy.model, self._asked())
        parts = nested_parts(anatomy.model)
        choices = {part.module.shape.widths for part in parts}
        sizes = {(p.module.shape.hidden_size, p.module.shape.intermediate_size) for p in parts}
        if len(choices) > 1 or len(sizes) > 1:
            raise InvalidInputError("nested MLPs have other widths in other layers; give widths")
        full = sum(part.parameters_at(part.module.shape.intermediate_size) for part in parts)
        budget = self.parameters - (anatomy.num_parameters - full)
        return mix_and_match(choices.pop(), len(parts), budget, parts[0].parameters_at)


def extract(model: Any, widths: Widths | None = None, *, share: bool = False) -> Any:
    """The smaller model of some widths, cut out of a nested one.

    Args:
        model: stays as it is.
        widths: as in :func:`modwright.edits.granularity.set_granularity`; those in use unless said.
        share: its MLPs are views of the nested model's tensors, for a draft that needs no memory
            and follows what the model learns; what is saved are copies all the same.

    Raises:
        InvalidInputError: no nested MLP, or unknown widths.

    Example:
        >>> import modwright
        >>> nested = modwright.apply(modwright.open("preset:tiny-llama"), "nest").model
        >>> extract(nested, "S").config.intermediate_size
        12
    """
    source = Anatomy.of(model).model
    found = widths_of(source, widths)
    small = apply(source, make_method("extract", widths=found)).model
    if share:
        blocks = {block.address: block for block in Anatomy.of(small).blocks}
        for part, width in zip(nested_parts(source), found):
            mlp: Any = blocks[part.address.rpartition(".")[0]].mlp
            for name, view in part.module.prefix(width).items():
                if view is None:
                    continue
                holder, leaf = mlp.stored_at(name)
                kept = getattr(holder, leaf)
                laid = view if view.shape == kept.shape else view.T
                setattr(holder, leaf, nn.Parameter(laid.detach(), kept.requires_grad))
    return small


def _names(mlp: Any) -> dict[str, str] | None:
    """What the MLP calls its layers, by role; None where one lies outside its own module."""
    own = {id(child): name for name, child in mlp.module.named_children()}
    found = {role: own.get(id(layer.module)) for role, layer in mlp.projections().items()}
    return None if None in found.values() else {role: str(name) for role, name in found.items()}
