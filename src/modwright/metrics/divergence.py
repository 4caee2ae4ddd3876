"""How far a model is from the one it was made of: what both say at the same positions of a text."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy.coerce import model_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.data.text import TokenWindows, tokenizer_of
from modwright.metrics.forward import (
    PerplexityRecipe,
    call,
    dtype_of,
    first_ids,
    looks_ahead,
    require_vocabulary,
    vocabulary_size,
)
from modwright.metrics.images import EvalImages, class_logits
from modwright.metrics.interval import mean_interval
from modwright.metrics.positions import HIDDEN, MASKED, NEXT, EvalPositions, eval_positions_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Divergence", "compare_distributions", "divergence", "divergence_of"]
__all__ += ["image_divergence", "require_comparable", "shared_ids", "wide_of"]

# The wide copies of the outputs are taken in slices of this many numbers (16 MiB in float64).
_SLICE = 1 << 21
_NEEDS = (
    "divergence needs models of text that give every token logits over the vocabulary or a hidden "
    "state"
)


@dataclass(frozen=True)
class Divergence:
    """How far a model is from its teacher.

    Attributes:
        kl: mean over the positions of KL(teacher || student) over the vocabulary, in nats; inf or
            nan where an output is not finite, None for models without a head.
        top1: share of the positions at which both put the same token first; None without a head.
        cosine: mean cosine between the last hidden states, for models without a head; else None.
        tokens: how many positions were compared.
        recipe: JSON-able: what `Perplexity.recipe` says of the windows, what was compared at which
            tokens, direction, unit, both dtypes.
        seconds: of the forward passes of both.
        interval: ``low``, ``high`` and ``windows``: where the mean KL, or the mean cosine, lies
            with 95 % confidence, as as many windows tell; None where they are too few.
        by_window: sums of each window, by the names above, with ``counts`` of its positions.
    """

    kl: float | None
    top1: float | None
    cosine: float | None
    tokens: int
    recipe: dict[str, Any]
    seconds: float
    interval: dict[str, Any] | None = None
    by_window: dict[str, list[float]] | None = None

    @property
    def finite(self) -> bool:
        """Whether what was measured are ordinary numbers."""
        return all(math.isfinite(x) for x in (self.kl, self.cosine) if x is not None)


def divergence(
    teacher: Any,
    student: Any,
    tokenizer: Any,
    windows: PerplexityRecipe | TokenWindows,
    progress: Progress = SILENT,
) -> Divergence:
    """Compare what two models say at the same tokens of the same windows.

    What is compared follows from what the models are. Of models that predict the next token: their
    distributions before every token that perplexity counts. Of models that see both sides and have
    a head over the vocabulary: their distributions at every seventh token, which is masked, since
    at a token that it sees an encoder hardly errs. Of models without a head: their last hidden
    states, whose cosine takes the place of KL and top-1. Padding and special tokens are left out.

    The outputs of two batches are alive and never more. KL is computed in float64 (float32 where
    the device has none) whatever the dtypes of the models.

    Args:
        teacher: the original; a model, an opened checkpoint or an edit's result, as the student.
        student: what was made of it.
        tokenizer: of both, see `modwright.metrics.vocabulary.require_same_tokenizer`. None will do
            for one's own sequences, where nothing has to be masked.
        windows: the recipe of the evaluation windows, or one's own sequences, padded or not.
        progress: told of every batch.

    Raises:
        InvalidInputError: the outputs cannot be compared; says which and why.

    Example:
        ``divergence(original, smaller, tokenizer, PerplexityRecipe("lee")).kl``
    """
    teacher, student = model_of(teacher), model_of(student)
    tokenizer = None if tokenizer is None else tokenizer_of(tokenizer)
    with eval_mode(teacher, student), torch.no_grad():
        kind = require_comparable(teacher, student, tokenizer)
        batches, recipe = eval_positions_of(kind, teacher, tokenizer, windows)
        shared = shared_ids(teacher, student, tokenizer) if kind != HIDDEN else None
        output, compare, told = _COMPARED[kind == HIDDEN]
        rows: list[tuple[dict[str, float], int]] = []
        begin = time.perf_counter()
        with progress.phase("divergence", sum(len(batch.ids) for batch in batches)) as task:
            for batch in batches:
                rows += _row_sums(_pairs(teacher, student, batch, output, shared), compare)
                task.advance(len(batch.ids))
        seconds = time.perf_counter() - begin
    found = divergence_of(rows, recipe | told, seconds)
    facts: dict[str, Any] = {"tokens_compared": found.tokens, "dtype": dtype_of(student)}
    facts["teacher_dtype"] = dtype_of(teacher)
    if shared is not None:
        sizes = [vocabulary_size(model) for model in (teacher, student)]
        facts["vocabulary_compared"] = (
            f"the {shared:,} ids of the tokenizer, of {sizes[0]:,} and {sizes[1]:,}"
        )
    return replace(found, recipe=found.recipe | facts)


def divergence_of(
    rows: Sequence[tuple[Mapping[str, float], int]], recipe: dict[str, Any], seconds: float
) -> Divergence:
    """Means and their interval from the sums of each window and the number of its positions."""
    counted = [(sums, count) for sums, count in rows if count]
    counts = [float(count) for _, count in counted]
    names = counted[0][0] if counted else ()
    by_window = {name: [float(sums[name]) for sums, _ in counted] for name in names}
    means = {name: sum(values) / sum(counts) for name, values in by_window.items()}
    sure = mean_interval(by_window.get("kl") or by_window.get("cosine") or (), counts)
    return Divergence(
        **{name: means.get(name) for name in ("kl", "top1", "cosine")},
        tokens=int(sum(counts)),
        recipe=recipe,
        seconds=seconds,
        interval=None if sure is None else asdict(sure),
        by_window={**by_window, "counts": counts},
    )


def _row_sums(
    pairs: Iterable[tuple[int, Tensor, Tensor]],
    compare: Callable[[Tensor, Tensor], dict[str, Any]],
) -> list[tuple[dict[str, float], int]]:
    """For every row of a batch the sums of what its positions give, and how many those are."""
    sums: dict[int, Counter[str]] = {}
    counts = Counter[int]()
    for row, one, two in pairs:
        sums.setdefault(row, Counter()).update(compare(one, two))
        counts[row] += len(one)
    return [(dict(found), counts[row]) for row, found in sums.items()]


def require_comparable(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """What of two models can be compared, seen from a few tokens; refuses two that differ in it.

    Vocabularies of two sizes are compared over the ids that the ``tokenizer`` has, where both have
    them all: tables of embeddings are padded to different multiples.
    """
    models, names = (teacher, student), [type(model).__name__ for model in (teacher, student)]
    with eval_mode(*models), torch.no_grad():
        kinds = [_kind_of(model) for model in models]
    known = [kind for kind in kinds if kind is not None]
    if len(set(known)) > 1:
        said = " and ".join(f"{name} gives a {kind}" for name, kind in zip(names, kinds))
        raise InvalidInputError(f"two models can be compared if they give the same; {said}")
    kind, what = known[0] if known else NEXT, "a vocabulary"
    sizes = [vocabulary_size(model) for model in models]
    if kind == HIDDEN:
        what = "hidden states"
        sizes = [getattr(m.config.get_text_config(), "hidden_size", None) for m in models]
    padded = kind != HIDDEN and shared_ids(teacher, student, tokenizer) is not None
    if sizes[0] != sizes[1] and not padded:
        raise InvalidInputError(
            f"{names[0]} has {what} of {sizes[0]} and {names[1]} of {sizes[1]}; they can be "
            "compared only at one size"
        )
    return kind


def shared_ids(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> int | None:
    """How many ids the tokenizer has, where two vocabularies differ and both have all of these."""
    sizes = [vocabulary_size(model) for model in (teacher, student)]
    if sizes[0] == sizes[1] or None in sizes or tokenizer is None:
        return None
    count = max(tokenizer.get_vocab().values(), default=-1) + 1
    return count if 0 < count <= min(size for size in sizes if size is not None) else None


def _kind_of(model: PreTrainedModel) -> str | None:
    """What can be compared of a model; None where its logits are not finite, so it is not seen."""
    require_vocabulary(model, _NEEDS)
    ids = first_ids(model)
    output = call(model, ids)
    if getattr(output, "logits", None) is None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None or hidden.shape[:2] != ids.shape:
            raise InvalidInputError(f"{_NEEDS}; {type(model).__name__} gives neither")
        return HIDDEN
    del output
    ahead = looks_ahead(model, ids, _NEEDS)
    return None if ahead is None else MASKED if ahead else NEXT


def _pairs(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    batch: EvalPositions,
    output: str,
    shared: int | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Row and outputs (N, V or d) of both models at these positions, a slice at a time, widened.

    Of a vocabulary the first ``shared`` ids are taken, where that is said.
    """
    # Columns before the first position of any row are not asked for.
    keep = batch.ids.shape[1] - int(batch.read.any(0).int().argmax())
    wanted = {"attention_mask": batch.mask, "position_ids": batch.positions, "logits_to_keep": keep}
    found = [getattr(call(model, batch.ids, **wanted), output) for model in (teacher, student)]
    device = found[1].device
    wide = wide_of(found[1])
    size = max(1, _SLICE // found[1].shape[-1])
    found = [out[..., :shared] for out in found]
    for row, read in enumerate(batch.read):
        for positions in read.nonzero()[:, 0].split(size):
            # A model that gave fewer columns gave the last ones.
            one, two = (
                out[row, (positions - (len(read) - out.shape[1])).to(out.device)].to(device, wide)
                for out in found
            )
            yield row, one, two


def wide_of(logits: Tensor) -> torch.dtype:
    """The widest type where these lie: float64, but for devices that have none."""
    return torch.float32 if logits.device.type == "mps" else torch.float64


def compare_distributions(teacher: Tensor, student: Tensor) -> dict[str, Any]:
    """Sums over positions of how two distributions over a vocabulary compare."""
    whole = ~(teacher.isnan().any(-1) | student.isnan().any(-1))
    same = (teacher.argmax(-1) == student.argmax(-1)) & whole
    given, got = teacher.log_softmax(-1), student.log_softmax(-1)
    # A token that the teacher rules out adds nothing, whatever the student says of it.
    terms = torch.where(given == -math.inf, 0.0, given.exp() * (given - got))
    return {"kl": float(terms.sum()), "top1": int(same.sum())}


def _states(teacher: Tensor, student: Tensor) -> dict[str, Any]:
    """The sum over positions of the cosine between two hidden states."""
    return {"cosine": float(F.cosine_similarity(teacher, student, dim=-1).sum())}


_COMPARED: tuple[tuple[str, Callable[[Tensor, Tensor], dict[str, Any]], dict[str, str]], ...] = (
    (
        "logits",
        compare_distributions,
        {"direction": "KL(teacher || student)", "unit": "nats per token"},
    ),
    ("last_hidden_state", _states, {"unit": "mean cosine"}),
)


@torch.no_grad()
def image_divergence(
    teacher: Any, student: Any, images: EvalImages, progress: Progress = SILENT
) -> Divergence:
    """Compare what two image classifiers say of the same images; each image is a window.

    Raises:
        InvalidInputError: a model gives no logits over classes, or the two have other classes.
    """
    teacher, student = model_of(teacher), model_of(student)
    if (names := [dict(model.config.id2label) for model in (teacher, student)])[0] != names[1]:
        raise InvalidInputError(
            f"{type(teacher).__name__} and {type(student).__name__} have different classes: "
            f"{len(names[0])} and {len(names[1])}, or other names"
        )
    rows: list[tuple[dict[str, float], int]] = []
    begin = time.perf_counter()
    with eval_mode(teacher, student), progress.phase("divergence", len(images)) as task:
        for pixels, _ in images.batches():
            one, two = (class_logits(model, pixels).double().cpu() for model in (teacher, student))
            rows += [(compare_distributions(a[None], b[None]), 1) for a, b in zip(one, two)]
            task.advance(len(pixels))
    recipe = {**images.recipe, "compared": "distribution over the classes", **_COMPARED[0][2]}
    recipe |= {"unit": "nats per image", "dtype": dtype_of(student)}
    recipe |= {"teacher_dtype": dtype_of(teacher)}
    return divergence_of(images.grouped(rows), recipe, time.perf_counter() - begin)
