"""What README and docs show can be typed as it stands there; what they link to is there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from documents import (
    ROOT,
    Block,
    blocks_of,
    check_setup,
    expected_output,
    pages,
    run_blocks,
    shell_lines,
)
from modwright.checkpoint.source import STAND_INS
from modwright.cli.entry import run_command
from modwright.core.plugins import plugins_restored
from modwright.core.registry import registries_restored
from modwright.recipes.load import parse_recipe
from modwright.surgery import method_names
from stand_ins import SMALLER, stand_ins

PAGES = pages()
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def is_slow(block: Block) -> bool:
    return "slow" in block.tags


ON_REAL_MODELS = [page for page in PAGES if any(is_slow(block) for block in blocks_of(page))]


DEEP = {"docs/howto/evaluate.md", "docs/papers/emoe.md"}
"""Pages that name late blocks of the real model."""


DRAWN = {"docs/howto/fine-tune-on-images.md": ("shapes",)}
"""Folders that the recipes of a page read and that its blocks make."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A new directory with the examples, and a module for the blocks of one page.

    What a page registers is forgotten afterwards.
    """
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    with registries_restored(), plugins_restored():
        yield module


@pytest.mark.slow
@pytest.mark.contract("L3")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_run_as_they_stand(
    page: Path, desk: ModuleType, shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks; small models with the real tokenizers stand for the packaged ones.

    Speeds are of no interest here: no pairs of runs are timed until their ratio is sharp.
    """
    monkeypatch.setattr("modwright.cost.speed._MOST_PAIRS", 4)
    if page in ON_REAL_MODELS:
        models = stand_ins(shared_dir, few=name(page) not in DEEP)
        monkeypatch.setenv(STAND_INS, str(models))
    run_blocks(blocks_of(page), desk, run_command)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("page", ON_REAL_MODELS, ids=name)
def test_blocks_run_on_the_real_models(page: Path, desk: ModuleType) -> None:
    run_blocks(blocks_of(page), desk, run_command)


@pytest.mark.parametrize("page", ON_REAL_MODELS, ids=name)
def test_what_a_page_shows_of_a_real_model_is_not_compared(page: Path) -> None:
    """Slow blocks show no output: a small model would print another."""
    for block in blocks_of(page):
        assert not (is_slow(block) and expected_output(block)), block.place


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_that_names_a_packaged_model_is_run_on_a_small_one(page: Path) -> None:
    """Where no block is slow the real model would be opened."""
    named = [
        block.place
        for block in blocks_of(page)
        if block.language in ("python", "bash", "console", "yaml")
        and not block.tags & {"setup", "peer"}
        and any(model in block.text for model in SMALLER)
    ]
    assert not named or page in ON_REAL_MODELS, f"{named}: tag the blocks that open it with slow"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_for_setting_up_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks_of(page):
        if "setup" in block.tags and block.language != "python":
            check_setup(block, makefile)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_yaml_blocks_are_recipes(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for those with plugins, which are there only while the page is run."""
    for folder in DRAWN.get(name(page), ()):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path)
    for block in blocks_of(page):
        if block.language == "yaml":
            tree = yaml.safe_load(block.text)
            if isinstance(tree, dict) and "steps" in tree and "plugins" not in tree:
                parse_recipe({"model": "smollm2-135m", **tree}, name=block.place)


def anchors(page: Path) -> set[str]:
    """Headings as links name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = set()
    for heading in HEADING.findall(text):
        kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.add(kept.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        assert target.is_relative_to(ROOT), f"{name(page)} links out of the project: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name(page)} links to {link}"


# The reader of pages itself

PAGE = """\
Text.

```python
x = 1
```

1. In a list:

   ```bash slow
   # a comment
   modwright papers \\
     llm-drop
   ```

````text
```python
not a block of its own
```
````

~~~
plain
~~~

```console
$ modwright --version
modwright 1
```

```yaml title="a.yaml" slow
x: 1
```
"""


def read(text: str) -> list[Block]:
    return blocks_of(Path("page.md"), text)


def test_blocks_are_found() -> None:
    found = read(PAGE)
    assert [(b.line, b.language, sorted(b.tags)) for b in found] == [
        (3, "python", []),
        (9, "bash", ["slow"]),
        (15, "text", []),
        (21, "text", []),
        (25, "console", []),
        (30, "yaml", ["slow"]),
    ]
    assert found[0].text == "x = 1\n"
    assert shell_lines(found[1]) == ["modwright papers    llm-drop"]
    assert "```python" in found[2].text
    assert shell_lines(found[4]) == ["modwright --version"]
    assert expected_output(found[4]) == {"modwright --version": "modwright 1\n"}
    assert [block.title for block in found] == ["", "", "", "", "", "a.yaml"]
    assert read("") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```python\nx\n", "page.md:1: the block does not end"),
        ("\n```pyhton\n```\n", "page.md:2: language 'pyhton'"),
        ("```bash sloww\n```\n", "page.md:1: tags"),
    ],
)
def test_broken_pages_are_noticed(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(text)


def test_blocks_share_a_namespace_and_a_directory(desk: ModuleType) -> None:
    run_blocks(
        read("```python\nx = 20\n```\n```bash\nmodwright schema > s.json\n```\n"), desk, run_command
    )
    run_blocks(read("```python\nx += 1\nassert open('s.json').read(1) == '{'\n```\n"), desk, list)
    assert desk.x == 21


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```bash\nmodwright papers nonesuch\n```\n", "page.md:1: .*exit code 2.*'nonesuch'"),
        ("```bash\nls\n```\n", "only modwright and python files can be run here"),
        ("```bash\npython -c 1\n```\n", "only modwright and python files can be run here"),
        ('```python title="a.py"\n1 / 0\n```\n```bash\npython a.py\n```\n', "ZeroDivision"),
        (
            "```console\n$ modwright --version\nmodwright ...3\n```\n",
            "does not print what the page shows, but:\nmodwright",
        ),
        ("```python\nassert False, 'wrong'\n```\n", "wrong"),
    ],
)
def test_blocks_that_fail_are_noticed(text: str, told: str, desk: ModuleType) -> None:
    with pytest.raises(AssertionError, match=told):
        run_blocks(read(text), desk, run_command)


def test_shown_output_is_compared_with_gaps(desk: ModuleType) -> None:
    run_blocks(
        read("```console\n$ modwright --version\nmodwright   0...\n```\n"), desk, run_command
    )
    page = '```python title="a.py"\nprint(1, 2)\n```\n```console\n$ python a.py\n1 2\n```\n'
    run_blocks(read(page), desk, run_command)


def test_blocks_for_other_tools_are_not_run(desk: ModuleType) -> None:
    run_blocks(read("```bash peer\nothertool x\n```\n```python peer\n1 / 0\n```\n"), desk, list)
    with pytest.raises(SyntaxError):
        run_blocks(read("```python peer\n1 /\n```\n"), desk, list)


def test_setup_blocks_are_checked() -> None:
    makefile = "PYTHON := x\n.PHONY: demo\ndemo: y\n\techo\n"
    (block,) = read("```bash setup\ngit clone <this repository> && make demo # twice\n```\n")
    check_setup(block, makefile)
    (block,) = read("```bash setup\nmake demon\n```\n")
    with pytest.raises(AssertionError, match="no demon"):
        check_setup(block, makefile)


def test_a_page_leaves_nothing_registered() -> None:
    """Pages register methods and families; they must not be there for other tests."""
    assert "drop_last_mlp" not in method_names()
