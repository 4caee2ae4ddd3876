from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modwright.core.errors import ModwrightError
from modwright.papers import CATEGORIES, STATUSES, Paper, load_papers, paper, papers

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "src" / "modwright" / "papers" / "records"

COMPLETE = {
    "slug": "some-paper",
    "title": "Some Paper",
    "arxiv": "2401.00010",
    "year": 2024,
    "category": ["surgery"],
    "summary": "Removes a part of the model.",
    "status": "works",
    "modules": ["modwright.surgery.some_paper"],
    "golden": ["tests/golden/some-paper"],
    "acceptance": "tests/surgery/test_some_paper.py",
    "page": "docs/papers/some-paper.md",
    "command": "modwright edit some_paper MODEL -o OUT",
    "figure": "perplexity 1.0 on a text",
    "paper_figure": "perplexity 0.9 on another text",
    "not_shown": None,
    "note": None,
}


def load_one(directory: Path, *, without: str | None = None, **changes: object) -> Paper:
    record = {**COMPLETE, **changes}
    if without is not None:
        del record[without]
    (directory / "some-paper.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    (loaded,) = load_papers(directory)
    return loaded


def test_there_are_44_records_sorted_by_slug() -> None:
    slugs = [record.slug for record in papers()]
    assert len(slugs) == 44
    assert slugs == sorted(slugs)
    assert slugs == sorted(file.stem for file in RECORDS.iterdir())
    assert papers() is papers()


def test_arxiv_ids_are_well_formed_unique_and_agree_with_the_year() -> None:
    ids = [record.arxiv for record in papers()]
    assert all(re.fullmatch(r"\d{4}\.\d{4,5}", arxiv) for arxiv in ids)
    assert len(set(ids)) == len(ids)
    assert all(record.year == 2000 + int(record.arxiv[:2]) for record in papers())


@pytest.mark.parametrize("record", papers(), ids=lambda record: record.slug)
def test_record_is_valid_and_its_files_exist_when_it_works(record: Paper) -> None:
    assert record.status in STATUSES
    assert record.category and set(record.category) <= set(CATEGORIES)
    assert len(set(record.category)) == len(record.category)
    if record.status != "works":
        return
    for module in record.modules:
        path = ROOT / "src" / Path(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module
    for folder in record.golden:
        assert list((ROOT / folder).glob("*.safetensors")), folder
    for file in (record.acceptance, record.page):
        assert file is not None and (ROOT / file).is_file(), file


def test_summaries_are_one_sentence_each_and_unique() -> None:
    summaries = [record.summary for record in papers()]
    assert len(set(summaries)) == len(summaries)
    for summary in summaries:
        assert summary.endswith("."), summary
        assert not re.search(r"[.!?]\s", summary), summary
        assert summary[0].isupper() and 40 <= len(summary) <= 260, summary


def test_titles_are_unique() -> None:
    assert len({record.title for record in papers()}) == len(papers())


def test_only_papers_without_figures_of_their_own_have_none() -> None:
    without = {record.slug for record in papers() if record.paper_figure is None}
    assert without == {"applications-survey", "circuit-diagrams", "inference-survey"}


@pytest.mark.parametrize(
    "slug",
    ["attention-to-mamba", "depth-reparam", "dimap", "fmvit", "local-learning", "mohd"],
)
def test_rebuilt_methods_say_that_they_implement_the_idea(slug: str) -> None:
    note = paper(slug).note
    assert note is not None and "Implements the published idea" in note


def test_unknown_paper_names_the_nearest() -> None:
    with pytest.raises(ModwrightError, match=r"unknown paper 'llmdrop'.*did you mean 'llm-drop'"):
        paper("llmdrop")


def test_json_carries_every_field_as_plain_values() -> None:
    listed = json.loads(json.dumps([record.to_dict() for record in papers()]))
    keys = {field.name for field in dataclasses.fields(Paper)}
    for entry, record in zip(listed, papers(), strict=True):
        assert set(entry) == keys
        assert entry["modules"] == list(record.modules)
        assert entry["arxiv"] == record.arxiv


def test_complete_record_works(tmp_path: Path) -> None:
    loaded = load_one(tmp_path)
    assert loaded.to_dict() == COMPLETE
    assert loaded.url == "https://arxiv.org/abs/2401.00010"


@pytest.mark.parametrize("field", ["acceptance", "page", "command", "figure"])
def test_works_without_its_evidence_is_refused(tmp_path: Path, field: str) -> None:
    with pytest.raises(ModwrightError, match=rf"'some-paper': status 'works' lacks {field}$"):
        load_one(tmp_path, **{field: None})


def test_a_shipped_record_edited_to_works_without_figure_is_refused(tmp_path: Path) -> None:
    raw = yaml.safe_load((RECORDS / "llm-drop.yaml").read_text(encoding="utf-8"))
    raw |= {"status": "works", "command": "modwright run", "figure": None}
    (tmp_path / "llm-drop.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(ModwrightError, match="'llm-drop': status 'works' lacks figure"):
        load_papers(tmp_path)


def test_all_missing_evidence_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModwrightError, match="lacks modules, page, figure"):
        load_one(tmp_path, modules=[], page=None, figure=None)


@pytest.mark.parametrize("note", [None, "Second edition."])
def test_works_without_golden_needs_a_note_about_it(tmp_path: Path, note: str | None) -> None:
    with pytest.raises(ModwrightError, match="lacks golden; without golden files the note"):
        load_one(tmp_path, golden=[], note=note)
    load_one(tmp_path, golden=[], note="No golden vectors: no reference exists.")


def test_partial_needs_modules_only(tmp_path: Path) -> None:
    loaded = load_one(
        tmp_path, status="partial", golden=[], acceptance=None, page=None, command=None, figure=None
    )
    assert loaded.status == "partial"
    with pytest.raises(ModwrightError, match="status 'partial' lacks modules"):
        load_one(tmp_path, status="partial", modules=[])


def test_planned_may_not_claim_results(tmp_path: Path) -> None:
    with pytest.raises(ModwrightError, match="'planned' cannot have modules, command, figure"):
        load_one(tmp_path, status="planned")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Paper)])
def test_every_field_is_required(tmp_path: Path, field: str) -> None:
    with pytest.raises(ModwrightError, match=rf"'some-paper': needs the field {field}$"):
        load_one(tmp_path, without=field)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"figures": "typo"}, r"unknown field.*'figures'.*did you mean 'figure'"),
        ({"status": "done"}, r"unknown status.*'done'; valid values: planned, partial, works"),
        ({"category": ["surgry"]}, r"unknown category.*'surgry'.*did you mean 'surgery'"),
        ({"category": []}, "category: must have at least one entry"),
        ({"category": "surgery"}, "category: must be a list"),
        ({"arxiv": 2401.0001}, r"arxiv: must be text, not 2401\.0001"),
        ({"arxiv": "cs/0401001"}, "arxiv: must be an id such as '2406.15786', not 'cs/0401001'"),
        ({"year": "2024"}, "year: must be a whole number, not '2024'"),
        ({"year": 2204}, "year: must be 2100 or less, not 2204"),
        ({"title": None}, "title: must be text"),
        ({"figure": "two\nlines"}, "figure: must be one line of text"),
        ({"modules": [1]}, "modules.0: must be text, not 1"),
        ({"slug": "other-paper"}, "differs from the file name"),
    ],
)
def test_malformed_values_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModwrightError, match=message) as caught:
        load_one(tmp_path, **changes)
    assert "some-paper" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1\nb: 2", "'broken.yaml' is not YAML in line"), ("- a", "'broken' must map fields")],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ModwrightError, match=message) as caught:
        load_papers(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_catalogue_loads_without_heavy_libraries() -> None:
    script = (
        "import sys, modwright.papers as p\n"
        "p.papers()\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
