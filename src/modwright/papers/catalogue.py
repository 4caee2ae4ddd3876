"""Records of papers, read from YAML and held to one rule: no status without its evidence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import AfterValidator, Field

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.options import make_options

if TYPE_CHECKING:  # its place differs between Python 3.10 and later ones
    from importlib.resources.abc import Traversable

__all__ = ["CATEGORIES", "STATUSES", "Paper", "load_papers", "paper", "papers"]

CATEGORIES: tuple[str, ...] = ("analysis", "calibration", "cost", "diagrams", "models", "nn")
CATEGORIES += ("papers", "recipes", "surgery", "tasks", "training")
STATUSES = ("planned", "partial", "works")


def _one_line(text: str) -> str:
    if not text.strip() or "\n" in text:
        raise ValueError("must be one line of text")
    return text


def _arxiv_id(text: str) -> str:
    if re.fullmatch(r"\d{4}\.\d{4,5}", text) is None:
        raise ValueError("must be an id such as '2406.15786'")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Lines = tuple[Line, ...]

_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclasses.dataclass(frozen=True)
class Paper:
    """One paper: what it does to a model, what implements it here, and what was measured.

    ``status`` is ``works`` only for a record that names golden files, an acceptance test, a page,
    a command and the figure that the command gave; ``partial`` when something of it can be used;
    ``planned`` before that. Paths are relative to the root of the repository.

    Args:
        slug: Name of the record, the one used in paths and on the command line.
        title, arxiv, year: Title, identifier such as ``"2406.15786"``, and year of version one.
        category: Packages that the paper touches, the most important first.
        summary: One sentence on what the method does to a model.
        status: One of ``STATUSES``.
        modules: Modules that implement it.
        golden: Folders of reference vectors.
        acceptance: File of the acceptance test.
        page: Page of the documentation.
        command: Command that reproduces ``figure``.
        figure: What was measured here, with its setting.
        paper_figure: Headline figure of the paper, with its setting.
        not_shown: What the measurement here cannot show.
        note: What a reader must know beside, for example what is not from the paper.
    """

    slug: Line
    title: Line
    arxiv: Annotated[str, AfterValidator(_arxiv_id)]
    year: Annotated[int, Field(ge=1990, le=2100)]
    category: Annotated[Lines, Field(min_length=1)]
    summary: Line
    status: Line
    modules: Lines
    golden: Lines
    acceptance: Line | None
    page: Line | None
    command: Line | None
    figure: Line | None
    paper_figure: Line | None
    not_shown: Line | None
    note: Line | None

    @property
    def url(self) -> str:
        """Where the paper can be read: ``'https://arxiv.org/abs/2406.15786'``."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain JSON values, tuples as lists.

        Example:
            >>> record = paper("modegpt").to_dict()
            >>> record["arxiv"], record["modules"]
            ('2408.09632', ['modwright.surgery.modegpt'])
        """
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}


@cache
def papers() -> tuple[Paper, ...]:
    """All records of the catalogue, sorted by slug.

    Example:
        >>> papers()[0].slug
        'applications-survey'
    """
    return load_papers(resources.files("modwright.papers") / "records")


def paper(slug: str) -> Paper:
    """The record named ``slug``; where there is none, the refusal names the nearest.

    Example:
        >>> paper("llm-drop").title
        'What Matters in Transformers? Not All Attention is Needed'
    """
    by_slug = {record.slug: record for record in papers()}
    if slug not in by_slug:
        raise unknown_name("paper", slug, by_slug)
    return by_slug[slug]


def load_papers(directory: Traversable) -> tuple[Paper, ...]:
    """Read every ``*.yaml`` of ``directory``, sorted by slug.

    Raises:
        InvalidInputError: A record is malformed, or claims a status without the evidence for it.
    """
    files = [item for item in directory.iterdir() if item.name.endswith(".yaml")]
    return tuple(_load(item) for item in sorted(files, key=lambda item: item.name[:-5]))


def _load(item: Traversable) -> Paper:
    slug = item.name.removesuffix(".yaml")
    name = f"paper record {slug!r}"
    try:
        raw = yaml.load(item.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise InvalidInputError(
            f"paper record {item.name!r} is not YAML{where}: {problem}"
        ) from error
    if not isinstance(raw, Mapping):
        raise InvalidInputError(f"{name} must map fields to values")
    record = make_options(Paper, name, raw, word="field")
    if record.slug != slug:
        raise InvalidInputError(f"{name}: slug {record.slug!r} differs from the file name")
    for word in record.category:
        if word not in CATEGORIES:
            raise unknown_name(f"category in {name}:", word, CATEGORIES)
    if record.status not in STATUSES:
        raise unknown_name(f"status in {name}:", record.status, STATUSES)
    _check_evidence(record, name)
    return record


def _check_evidence(record: Paper, name: str) -> None:
    """Refuse a status that the record does not prove, in either direction."""
    if record.status == "planned":
        claimed = [field for field in ("modules", "command", "figure") if getattr(record, field)]
        if claimed:
            raise InvalidInputError(
                f"{name}: status 'planned' cannot have {', '.join(claimed)}; set the status to "
                "'partial' or 'works'"
            )
        return
    needed = ["modules"]
    if record.status == "works":
        needed += ["golden", "acceptance", "page", "command", "figure"]
    missing = [field for field in needed if not getattr(record, field)]
    if "golden" in missing and "golden" in (record.note or "").lower():
        missing.remove("golden")
    if missing:
        hint = "; without golden files the note must say why" if "golden" in missing else ""
        raise InvalidInputError(
            f"{name}: status {record.status!r} lacks {', '.join(missing)}{hint}"
        )
