"""What applies to a component where it stands, and what refuses, asked from the code itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modwright.papers.support import Use, in_a_word, uses_of

if TYPE_CHECKING:
    from modwright.anatomy import Anatomy

__all__ = ["Answer", "component_support"]


@dataclass(frozen=True)
class Answer:
    """What came of one thing that can be done: in as many ways as there are ``uses``.

    Attributes:
        about: "the part", "generation", "methods" or "export".
        what: the thing, in a few words; the name of a method or of a target.
    """

    about: str
    what: str
    uses: tuple[Use, ...]

    @property
    def word(self) -> str:
        """ "yes", "in part" or "no"."""
        return in_a_word(self.uses)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why not, each reason once."""
        return tuple(dict.fromkeys(use.refusal for use in self.uses if use.refusal is not None))


def component_support(model: Any, address: str) -> list[Answer]:
    """What can be done with the part at an address, and with the model in which it stands.

    Edits of the part are carried out on a copy; text is generated where the model generates;
    methods and targets of exports are asked before they read or write anything.

    Args:
        model: a small one, as all of it is done at once; it stays as it is.
        address: of an attention or an MLP, or of what stands in its place.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> answers = component_support(model, "blocks.1.attention")
        >>> [answer.what for answer in answers if answer.word == "no"]
        ['keep some of its neurons', 'fast_scan', 'pre_rmsnorm']
    """
    from modwright.anatomy import Anatomy

    anatomy = Anatomy.of(model)
    found = [_asked("the part", what, do) for what, do in _edits(anatomy, address)]
    if anatomy.family.is_causal() and model.can_generate():
        found += [_asked("generation", what, do) for what, do in _generation(model)]
    return [*found, *_methods(model), *_exports(model)]


def _asked(about: str, what: str, do: Callable[[], Any]) -> Answer:
    from modwright.core.errors import ModwrightError

    refusal = None
    try:
        do()
    except ModwrightError as error:
        refusal = str(error)
    return Answer(about, what, (Use(what, {}, refusal),))


def _edits(anatomy: Anatomy, address: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    from modwright.core.errors import VerificationError
    from modwright.cost import count
    from modwright.edits import Plan, apply, keep_heads, keep_neurons, remove
    from modwright.edits.verify import verify

    part: Any = anatomy.part(address)
    block = anatomy.blocks[int(address.split(".")[1])]

    def edit(change: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: apply(
            anatomy.model, Plan.of(anatomy, "component_support", change()), check=False
        )

    def checked() -> None:
        verification = verify(anatomy.model)
        if not verification.ok:
            raise VerificationError(verification.failure)

    neurons = 2 if part.neurons is None else part.neurons.size // 2
    yield "verify it", checked
    yield "count what it costs", lambda: count(anatomy.model, length=16)
    yield "remove it", edit(lambda: remove(part))
    yield "remove its block", edit(lambda: remove(block))
    yield "keep some of its neurons", edit(lambda: keep_neurons(part, range(neurons)))
    yield "keep some of its heads", edit(lambda: keep_heads(part, [0]))
    yield "store its linear layers in factors", edit(lambda: _thin(part))


def _thin(part: Any) -> Any:
    """Its linear layers with one rank."""
    from modwright.core.errors import InvalidInputError
    from modwright.edits import Change, factorize

    layers = part.projections().values()
    if not layers:
        raise InvalidInputError(
            f"{part.address}: a {type(part.module).__name__} shows no linear layers; a component "
            "says which it has in `projections()`"
        )
    thin = (factorize(layer, layer.weight[:, :1], layer.weight[:1] * 0 + 1) for layer in layers)
    return sum(thin, Change())


def _generation(model: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    from modwright.edits.verify import probe_batch

    batch = probe_batch(model, rows=1, length=6)

    def generate(**options: Any) -> Callable[[], Any]:
        told = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, **options}
        return lambda: model.generate(**batch, **told)

    yield "greedy", generate()
    yield "beams", generate(num_beams=2)
    yield "static cache", generate(cache_implementation="static")
    yield "prompt in chunks", generate(prefill_chunk_size=2)
    yield "assisted generation", generate(prompt_lookup_num_tokens=2)


def _methods(model: Any) -> Iterator[Answer]:
    from modwright.surgery import method_names

    for name in method_names():
        yield Answer("methods", name, tuple(uses_of(name, model)))


def _exports(model: Any) -> Iterator[Answer]:
    from modwright.checkpoint.export import make_target, target_names

    for name in target_names():
        refusal = make_target(name).refusal(model)
        yield Answer("export", name, (Use(name, {}, refusal),))
