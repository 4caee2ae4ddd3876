"""Records of papers, read from YAML and held to one rule: no status without its evidence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from modwright.core.errors import Refused, unknown_name

if TYPE_CHECKING:  # its place differs between Python 3.10 and later ones
    from importlib.resources.abc import Traversable

__all__ = ["CATEGORIES", "STATUSES", "Paper", "load_papers", "paper", "papers"]

CATEGORIES = (
    "analysis",
    "calibration",
    "cost",
    "diagrams",
    "models",
    "nn",
    "papers",
    "recipes",
    "surgery",
    "tasks",
    "training",
)
STATUSES = ("planned", "partial", "works")

_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclasses.dataclass(frozen=True)
class Paper:
    """One paper: what it does to a model, what implements it here, and what was measured.

    ``status`` is ``works`` only for a record that names golden files, an acceptance test, a page,
    a command and the figure that the command gave; ``partial`` when something of it can be used;
    ``planned`` before that. Paths are relative to the root of the repository.

    Args:
        slug: Name of the record, the one used in paths and on the command line.
        title: Title of the paper.
        arxiv: Identifier on arXiv, for example ``"2406.15786"``.
        year: Year of the first version.
        category: Rooms of the package that the paper touches, the most important first.
        summary: One sentence on what the method does to a model.
        status: One of ``STATUSES``.
        rooms: Modules that implement it.
        golden: Folders of reference vectors.
        acceptance: File of the acceptance test.
        page: Page of the documentation.
        command: Command that reproduces ``figure``.
        figure: What was measured here, with its setting.
        paper_figure: Headline figure of the paper, with its setting.
        not_shown: What the measurement here cannot show.
        note: What a reader must know beside, for example what is not from the paper.
    """

    slug: str
    title: str
    arxiv: str
    year: int
    category: tuple[str, ...]
    summary: str
    status: str
    rooms: tuple[str, ...]
    golden: tuple[str, ...]
    acceptance: str | None
    page: str | None
    command: str | None
    figure: str | None
    paper_figure: str | None
    not_shown: str | None
    note: str | None

    @property
    def url(self) -> str:
        """Where the paper can be read.

        Example:
            >>> paper("llm-drop").url
            'https://arxiv.org/abs/2406.15786'
        """
        return f"https://arxiv.org/abs/{self.arxiv}"

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON values, tuples as lists.

        Example:
            >>> record = paper("modegpt").to_json()
            >>> record["arxiv"], record["rooms"]
            ('2408.09632', ['modwright.surgery.modegpt'])
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def papers() -> tuple[Paper, ...]:
    """All records of the catalogue, sorted by slug.

    Example:
        >>> papers()[0].slug
        'applications-survey'
    """
    return _catalogue()


def paper(slug: str) -> Paper:
    """The record named ``slug``.

    Raises:
        Refused: There is no such record; the message names the nearest.

    Example:
        >>> paper("llm-drop").title
        'What Matters in Transformers? Not All Attention is Needed'
    """
    by_slug = {record.slug: record for record in papers()}
    if slug not in by_slug:
        raise unknown_name("paper", slug, by_slug)
    return by_slug[slug]


def load_papers(directory: Traversable) -> tuple[Paper, ...]:
    """Read and check every ``*.yaml`` of ``directory``, sorted by slug.

    Raises:
        Refused: A record is malformed, or claims a status without the evidence for it.
    """
    files = [item for item in directory.iterdir() if item.name.endswith(".yaml")]
    return tuple(_load(item) for item in sorted(files, key=lambda item: item.name[:-5]))


@cache
def _catalogue() -> tuple[Paper, ...]:
    return load_papers(resources.files("modwright.papers") / "records")


def _load(item: Traversable) -> Paper:
    slug = item.name.removesuffix(".yaml")
    try:
        raw = yaml.load(item.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise Refused(f"paper record {item.name!r} is not YAML{where}: {problem}") from error
    if not isinstance(raw, Mapping):
        raise Refused(f"paper record {slug!r} must map fields to values")
    record = _build(slug, raw)
    _check_values(record, slug)
    _check_evidence(record)
    return record


def _build(slug: str, raw: Mapping[Any, Any]) -> Paper:
    for key in raw:
        if key not in _FIELDS:
            raise unknown_name(f"field of paper record {slug!r}:", key, _FIELDS)
    missing = [name for name in _FIELDS if name not in raw]
    if missing:
        raise Refused(f"paper record {slug!r} lacks the fields: {', '.join(missing)}")
    return Paper(**{name: read(slug, name, raw[name]) for name, read in _FIELDS.items()})


def _text(slug: str, name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise Refused(
            f"paper record {slug!r}: {name} must be one line of text (quoted if it reads as a "
            f"number), got {value!r}"
        )
    return value


def _text_or_none(slug: str, name: str, value: object) -> str | None:
    return None if value is None else _text(slug, name, value)


def _texts(slug: str, name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Refused(f"paper record {slug!r}: {name} must be a list, got {value!r}")
    return tuple(_text(slug, name, entry) for entry in value)


def _year(slug: str, name: str, value: object) -> int:
    if not isinstance(value, int) or not 1990 <= value <= 2100:
        raise Refused(f"paper record {slug!r}: {name} must be a year, got {value!r}")
    return value


_READERS: dict[str, Callable[[str, str, object], Any]] = {
    "str": _text,
    "str | None": _text_or_none,
    "tuple[str, ...]": _texts,
    "int": _year,
}
# Annotations are strings in this module, so a field's declared type finds its reader.
_FIELDS = {f.name: _READERS[str(f.type)] for f in dataclasses.fields(Paper)}


def _check_values(record: Paper, slug: str) -> None:
    if record.slug != slug:
        raise Refused(f"paper record {slug!r}: slug {record.slug!r} differs from the file name")
    if not _ARXIV.fullmatch(record.arxiv):
        raise Refused(
            f"paper record {slug!r}: arxiv {record.arxiv!r} is not an id such as '2406.15786'"
        )
    if not record.category:
        raise Refused(f"paper record {slug!r}: category is empty; name at least one room")
    for word in record.category:
        if word not in CATEGORIES:
            raise unknown_name(f"category in paper record {slug!r}:", word, CATEGORIES)
    if record.status not in STATUSES:
        raise unknown_name(f"status in paper record {slug!r}:", record.status, STATUSES)


def _check_evidence(record: Paper) -> None:
    """Refuse a status that the record does not prove, in either direction."""
    if record.status == "planned":
        claimed = [name for name in ("rooms", "command", "figure") if getattr(record, name)]
        if claimed:
            raise Refused(
                f"paper record {record.slug!r}: status 'planned' cannot have {', '.join(claimed)}; "
                "set the status to 'partial' or 'works'"
            )
        return
    needed = ["rooms"]
    if record.status == "works":
        needed += ["golden", "acceptance", "page", "command", "figure"]
    missing = [name for name in needed if not getattr(record, name)]
    if "golden" in missing and _golden_is_waived(record):
        missing.remove("golden")
    if missing:
        hint = "; without golden files the note must say why" if "golden" in missing else ""
        raise Refused(
            f"paper record {record.slug!r}: status {record.status!r} lacks "
            f"{', '.join(missing)}{hint}"
        )


def _golden_is_waived(record: Paper) -> bool:
    return record.note is not None and "golden" in record.note.lower()
