"""Which method works on which family, asked from the methods themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Support", "Use", "in_a_word", "support_table", "uses_of"]


@dataclass(frozen=True)
class Use:
    """One way to use a method on one model.

    Attributes:
        title: the method with its options, in a few words.
        options: of the method.
        refusal: why it cannot be used so, in one line; None where it can.
    """

    title: str
    options: dict[str, Any]
    refusal: str | None


@dataclass(frozen=True)
class Support:
    """A method on a tiny model (``preset``) of a family; ``uses`` are the method's own examples."""

    family: str
    preset: str
    method: str
    uses: tuple[Use, ...]

    @property
    def word(self) -> str:
        """In a word: "yes" where every use works, "no" where none does, else "in part".

        Example:
            >>> fine, not_so = Use("a", {}, None), Use("b", {}, "too narrow")
            >>> [Support("f", "p", "m", uses).word for uses in ((fine,), (fine, not_so), (not_so,))]
            ['yes', 'in part', 'no']
        """
        return in_a_word(self.uses)


def in_a_word(uses: Sequence[Use]) -> str:
    """ "yes" where every use works, "no" where none does, else "in part"."""
    refused = sum(use.refusal is not None for use in uses)
    return "yes" if not refused else "no" if refused == len(uses) else "in part"


def support_table() -> list[Support]:
    """Every registered method on every preset of every registered family.

    Each method is asked before any data is read, as `modwright plan` asks it; nothing is computed.

    Example:
        >>> table = support_table()
        >>> next(s.word for s in table if (s.preset, s.method) == ("tiny-llama", "llm_drop"))
        'yes'
    """
    from modwright.anatomy.families import families
    from modwright.checkpoint import open as open_checkpoint
    from modwright.surgery import method_names

    table = []
    for family in dict.fromkeys(families().values()):
        for preset in family.presets:
            model = open_checkpoint(f"preset:{preset}").model
            for name in method_names():
                table.append(Support(family.name, preset, name, tuple(uses_of(name, model))))
    return table


def uses_of(name: str, model: PreTrainedModel) -> Iterator[Use]:
    """Each example of a method, asked of a model."""
    from modwright.anatomy import Anatomy
    from modwright.surgery import after_prerequisite, make_method, method_type, unsupported_reason

    anatomy = Anatomy.of(after_prerequisite(name, model))
    for options in method_type(name).examples:
        method = make_method(name, options)
        yield Use(method.title(), dict(options), unsupported_reason(method, anatomy))
