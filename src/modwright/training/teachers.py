"""Teachers: a live model, or its best answers in a file. They stay as they are.

Axes: B rows of a batch, T tokens of a row, N tokens of all rows, k answers that are stored of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modwright.anatomy.coerce import model_of
from modwright.checkpoint import open as open_checkpoint
from modwright.core.digest import sha256_of
from modwright.core.errors import CheckpointError, InvalidInputError, first_line
from modwright.core.files import require_new, write_file
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.core.reading import require_regular
from modwright.data.text import tokenizer_of
from modwright.training.batches import Batch, inputs_of, logits_of

__all__ = [
    "SOURCE",
    "LiveTeacher",
    "StoredTeacher",
    "Teacher",
    "TopK",
    "as_teacher",
    "model_of_teacher",
]
__all__ += ["store_teacher", "tokenizer_digest", "with_teacher"]

SOURCE = "source"
"""The teacher that a recipe opened, whatever steps came before."""

_FORMAT = "1"
_O = TypeVar("_O")


@dataclass(frozen=True)
class TopK:
    """The k likeliest answers at each of some tokens, and what is left for all others.

    Attributes:
        log_probs: (..., k) at the temperature of the file, the likeliest first.
        index: (..., k) which tokens of the vocabulary they are.
        rest: (...) the probability of all others together.
        vocab_size: of the teacher.
    """

    log_probs: Tensor
    index: Tensor
    rest: Tensor
    vocab_size: int

    @classmethod
    def of_logits(cls, logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
        """Of logits (..., K).

        Example:
            >>> best = TopK.of_logits(torch.tensor([[0.0, 9.0, 1.0]]), 2)
            >>> best.index.tolist(), best.vocab_size
            ([[1, 2]], 3)
        """
        all_of_them = (logits.float() / temperature).log_softmax(-1)
        best = all_of_them.topk(k, dim=-1)
        rest = (1 - best.values.double().exp().sum(-1)).clamp(min=0).float()
        return cls(best.values, best.indices, rest, logits.shape[-1])

    def __getitem__(self, where: Any) -> TopK:
        """Those at some of the tokens, as an index of their axes."""
        return TopK(self.log_probs[where], self.index[where], self.rest[where], self.vocab_size)

    def flatten(self, first: int, last: int) -> TopK:
        """With one axis for those that :meth:`torch.Tensor.flatten` would put together."""
        whole = self.log_probs.flatten(first, last), self.index.flatten(first, last)
        return TopK(*whole, self.rest.flatten(), self.vocab_size)

    def argmax(self, axis: int = -1) -> Tensor:
        """The likeliest answer of each."""
        return self.index[..., 0]


@runtime_checkable
class Teacher(Protocol):
    """What is learned from."""

    def answers(self, batch: Batch) -> Tensor | TopK:
        """Logits (B, K) or (B, T, K) of a batch, or the best of them."""

    def modules(self) -> tuple[nn.Module, ...]:
        """The models that answer, which stay bit-equal."""

    def check(self, temperature: float) -> None:
        """Refuses a temperature that it cannot answer at."""


@dataclass(frozen=True)
class LiveTeacher:
    """A model that answers every batch, in evaluation mode and without gradients."""

    model: Any

    def answers(self, batch: Batch) -> Tensor:
        return logits_of(self.output(batch), self.model).detach()

    @torch.no_grad()
    def output(self, batch: Batch) -> Any:
        """All that the model gives for a batch; it moves to where the batch lies."""
        inputs = inputs_of(batch)
        here = next((t.device for t in inputs.values()), None)
        if here is not None and next(self.model.parameters()).device != here:
            self.model.to(here)
        with eval_mode(self.model):
            return self.model(**inputs)

    def modules(self) -> tuple[nn.Module, ...]:
        return (self.model,)

    def check(self, temperature: float) -> None:
        """It answers at any."""


class StoredTeacher:
    """Answers that a teacher gave before, in a file that :func:`store_teacher` wrote.

    Rows are found by their tokens, in whatever order and batches they come.

    Args:
        path: of the file.

    Raises:
        CheckpointError: there is no such file, or it holds no stored answers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        require_regular(self.path)
        try:
            self._file = safe_open(str(self.path), "pt")
            facts = self._file.metadata() or {}
            if facts.get("format") != _FORMAT or facts.get("holds") != "answers of a teacher":
                raise CheckpointError(f"{self.path} holds no answers of a teacher")
            self.k, self.length = int(facts["k"]), int(facts["length"])
            self.vocab_size = int(facts["vocab_size"])
            self.temperature = float(facts["temperature"])
            self.tokenizer_sha256, self.data_sha256 = facts["tokenizer"], facts["data"]
            self._ends = self._file.get_tensor("ends").tolist()
            named = self._file.get_tensor("rows").numpy()
        except CheckpointError:
            raise
        except Exception as error:  # safetensors has no common base for what is wrong with a file
            raise CheckpointError(
                f"{self.path} holds no answers of a teacher: {first_line(error)}"
            ) from error
        self._rows = {row.tobytes().hex(): index for index, row in enumerate(named)}

    def answers(self, batch: Batch) -> TopK:
        ids = batch["input_ids"]
        real = _real(batch)
        shape = (*ids.shape, self.k)
        log_probs, index = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
        rest = torch.zeros(ids.shape)
        for row, (tokens, mask) in enumerate(zip(ids.cpu(), real.cpu())):
            start, stop = self._span(tokens[mask])
            for full, name in ((log_probs, "log_probs"), (index, "index"), (rest, "rest")):
                full[row, mask] = self._file.get_slice(name)[start:stop].to(full.dtype)
        where = ids.device
        return TopK(log_probs.to(where), index.to(where), rest.to(where), self.vocab_size)

    def _span(self, tokens: Tensor) -> tuple[int, int]:
        """Where the answers at the tokens of a row lie in the file."""
        found = self._rows.get(_row_digest(tokens))
        if found is None:
            raise InvalidInputError(self._other_data(f"of {len(tokens)} tokens"))
        return self._ends[found], self._ends[found + 1]

    def _other_data(self, said: str) -> str:
        return (
            f"{self.path} holds a teacher's answers on other data: a row {said} is not in it; its "
            f"{len(self._rows)} rows have up to {self.length} tokens"
        )

    def modules(self) -> tuple[nn.Module, ...]:
        return ()

    def check(self, temperature: float) -> None:
        if temperature != self.temperature:
            raise InvalidInputError(
                f"{self.path} holds answers at temperature {self.temperature:g}, not at "
                f"{temperature:g}"
            )

    def check_data(self, tokenizer: Any, rows: Iterable[Batch]) -> None:
        """Refuses data that the teacher has not answered, in one line.

        Args:
            tokenizer: that made the tokens.
            rows: of the data set, each with ``input_ids`` (T,).

        Raises:
            InvalidInputError: another tokenizer, another length, other data.
        """
        if tokenizer_digest(tokenizer) != self.tokenizer_sha256:
            raise InvalidInputError(
                f"{self.path} holds a teacher's answers on tokens of another tokenizer"
            )
        lengths, unknown = set[int](), 0
        for row in rows:
            tokens = row["input_ids"][_real(row)]
            lengths.add(len(tokens))
            unknown += _row_digest(tokens) not in self._rows
        if lengths and max(lengths) > self.length:
            raise InvalidInputError(
                f"{self.path} holds a teacher's answers on rows of {self.length} tokens, and these "
                f"have {max(lengths)}"
            )
        if unknown:
            raise InvalidInputError(
                f"{self.path} holds a teacher's answers on other data: {unknown} rows are not in it"
            )

    def __repr__(self) -> str:
        return f"StoredTeacher({self.path}, top {self.k} of {len(self._rows)} rows)"


def store_teacher(
    teacher: Any,
    data: Sequence[Batch],
    path: str | Path,
    *,
    tokenizer: Any,
    k: int = 64,
    temperature: float = 1.0,
    force: bool = False,
    progress: Progress = SILENT,
) -> StoredTeacher:
    """Writes the k best answers of a teacher at every token of some data.

    The file holds log-probabilities, which tokens they are of, and what is left for all others,
    with digests of the tokenizer and of the data. It takes 8 k bytes a token.

    Args:
        teacher: a model, an opened checkpoint or the path of one.
        data: rows with ``input_ids`` (T,), perhaps ``attention_mask``.
        path: of the file to write; its name ends in .safetensors.
        tokenizer: that made the tokens.
        k: answers of each token, up to the size of the vocabulary.
        temperature: that the answers are taken at.
        force: replaces a file that is there.
        progress: told of every row.

    Raises:
        InvalidInputError: a number out of its range, or data without tokens.
        CheckpointError: the file is there, or cannot be written.
    """
    place = Path(path).expanduser()
    if place.suffix != ".safetensors":
        raise InvalidInputError(f"{place.name}: the name of a stored teacher ends in .safetensors")
    require_new(place, force)
    if not temperature > 0:
        raise InvalidInputError(f"temperature is above 0, not {temperature}")
    if not len(data) or any("input_ids" not in data[i] for i in range(len(data))):
        raise InvalidInputError("a teacher's answers are stored at tokens: rows with input_ids")
    live = LiveTeacher(model_of_teacher(as_teacher(teacher)))
    found: list[TopK] = []
    with progress.phase("teacher", len(data)) as task:
        for index in range(len(data)):
            row = data[index]
            batch = {name: tensor[None] for name, tensor in inputs_of(row).items()}
            logits = live.answers(batch)[0][_real(row).to(live.model.device)]
            if not 1 <= k <= logits.shape[-1]:
                raise InvalidInputError(f"k is {k}; valid values: 1 to {logits.shape[-1]}")
            found.append(TopK.of_logits(logits.cpu(), k, temperature))
            task.advance()
    digests = [_row_digest(data[i]["input_ids"][_real(data[i])]) for i in range(len(data))]
    facts = {
        "holds": "answers of a teacher",
        "format": _FORMAT,
        "k": str(k),
        "temperature": repr(float(temperature)),
        "vocab_size": str(found[0].vocab_size),
        "length": str(max(len(one.rest) for one in found)),
        "tokenizer": tokenizer_digest(tokenizer),
        "data": sha256_of("".join(sorted(digests))),
    }
    ends = torch.tensor([0, *(len(one.rest) for one in found)]).cumsum(0)
    tensors = {
        "log_probs": torch.cat([one.log_probs for one in found]),
        "index": torch.cat([one.index for one in found]).int(),
        "rest": torch.cat([one.rest for one in found]),
        "ends": ends,
        "rows": torch.tensor([list(bytes.fromhex(one)) for one in digests], dtype=torch.uint8),
    }
    write_file(place, lambda partial: save_file(tensors, partial, metadata=facts))
    return StoredTeacher(place)


def as_teacher(given: Any) -> Teacher:
    """A teacher of a model, of an opened checkpoint, of a path, or of a file of stored answers.

    Raises:
        InvalidInputError: "source", where no recipe has opened one.
        CheckpointError: the path cannot be opened.
    """
    if isinstance(given, LiveTeacher | StoredTeacher):
        return given
    if isinstance(given, str | Path):
        if given == SOURCE:
            raise InvalidInputError(
                "the teacher 'source' is the model that a recipe opened, and there is none here; "
                "give a model or a path"
            )
        if str(given).endswith(".safetensors"):
            return StoredTeacher(given)
        return LiveTeacher(open_checkpoint(given).model)
    if isinstance(given, nn.Module) or not isinstance(given, Teacher):
        return LiveTeacher(given if isinstance(given, nn.Module) else model_of(given))
    return given


def model_of_teacher(teacher: Teacher) -> Any:
    """The model of a teacher; refuses one that has none."""
    models = teacher.modules()
    if not models:
        raise InvalidInputError(
            f"{teacher!r} holds logits alone; what is asked for needs the teacher itself"
        )
    return models[0]


def opened(teacher: Any) -> Teacher:
    """The teacher of an objective, which is open; refuses a name that nobody opened."""
    if isinstance(teacher, str | Path):
        raise InvalidInputError(
            f"the teacher {str(teacher)!r} is not open; give a model, or call with_teacher first"
        )
    found: Teacher = teacher
    return found


def with_teacher(objective: _O, source: Any = None) -> _O:
    """The objective with its teacher opened: of a path, of a file, or the ``source``.

    One without a teacher, or with an open one, is given back as it is.

    Example:
        >>> import modwright
        >>> from modwright.training.objectives import Distillation
        >>> baseline = modwright.open("preset:tiny-llama").model
        >>> with_teacher(Distillation("source"), baseline).teacher.model is baseline
        True
    """
    given = getattr(objective, "teacher", None)
    if not isinstance(given, str | Path) or not dataclasses.is_dataclass(objective):
        return objective
    if given == SOURCE and source is not None:
        given = source
    return dataclasses.replace(objective, teacher=as_teacher(given))  # type: ignore[type-var]


def tokenizer_digest(tokenizer: Any) -> str:
    """Of which token has which id."""
    return sha256_of(dict(tokenizer_of(tokenizer).get_vocab()))


def _real(batch: Batch) -> Tensor:
    """Which tokens of a batch, or of a row, are no padding."""
    mask = batch.get("attention_mask")
    ids = batch["input_ids"]
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def _row_digest(tokens: Tensor) -> str:
    return sha256_of(tokens.cpu().long())
