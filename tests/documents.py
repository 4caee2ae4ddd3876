"""Reads the fenced blocks of Markdown pages and runs them."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["ROOT", "Block", "blocks_of", "check_setup", "pages", "run_blocks", "shell_lines"]

ROOT = Path(__file__).parents[1]
LANGUAGES = {"python", "bash", "console", "yaml", "json", "toml", "text", "mermaid"}
TAGS = {"slow", "setup"}

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<info>.*)$")
_TARGET = re.compile(r"^([A-Za-z][\w-]*):", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, what its info string says, and its text."""

    page: Path
    line: int
    language: str
    tags: frozenset[str]
    text: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    """The Markdown pages that readers see."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """All fenced blocks of a page, in order.

    Raises:
        ValueError: a fence that does not close, an unknown language or tag.
    """
    lines = (page.read_text(encoding="utf-8") if text is None else text).splitlines()
    found: list[Block] = []
    numbered = iter(enumerate(lines, start=1))
    for number, line in numbered:
        opening = _FENCE.match(line)
        if opening is not None:
            found.append(_block(page, number, opening, numbered))
    return found


def _block(
    page: Path, number: int, opening: re.Match[str], rest: Iterator[tuple[int, str]]
) -> Block:
    indent, marks = len(opening["indent"]), opening["marks"]
    where = f"{page.name}:{number}"
    language, *tags = opening["info"].split() or ["text"]
    if language not in LANGUAGES:
        raise ValueError(f"{where}: language {language!r}; known: {sorted(LANGUAGES)}")
    if not TAGS.issuperset(tags):
        raise ValueError(f"{where}: tags {tags}; known: {sorted(TAGS)}")
    body: list[str] = []
    for _, line in rest:
        if line.strip().startswith(marks) and not line.strip().strip(marks[0]):
            return Block(page, number, language, frozenset(tags), "\n".join(body) + "\n")
        body.append(line[indent:] if line[:indent].isspace() else line)
    raise ValueError(f"{where}: the block does not end")


def shell_lines(block: Block) -> list[str]:
    """The commands of a block. In a ``console`` block those after ``$``; the rest is output."""
    text = block.text.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    if block.language == "console":
        lines = [line.removeprefix("$").strip() for line in lines if line.startswith("$")]
    return [line for line in lines if line and not line.startswith("#")]


def check_setup(block: Block, makefile: str) -> None:
    """A block for setting up is not run: its syntax is checked, and that make has the targets."""
    subprocess.run(["bash", "-n"], input=_shell_text(block), text=True, check=True)
    targets = set(_TARGET.findall(makefile))
    for line in shell_lines(block):
        for part in re.split(r"&&|;|\|", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["make"]:
                named = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
                missing = set(named) - targets
                assert not missing, f"{block.place}: the Makefile has no {', '.join(missing)}"


def _shell_text(block: Block) -> str:
    # <this repository> stands for what readers put there.
    return re.sub(r"<([\w ]+)>", r"\1", "\n".join(shell_lines(block)) + "\n")


def run_blocks(
    blocks: Sequence[Block], module: ModuleType, modwright: Callable[[Sequence[str]], int]
) -> None:
    """Runs Python blocks in one namespace and ``modwright`` commands in the working directory."""
    for block in blocks:
        if "setup" in block.tags:
            continue
        if block.language == "python":
            # Empty lines in front make the line numbers of a traceback those of the page.
            code = compile("\n" * block.line + block.text, str(block.page), "exec")
            exec(code, module.__dict__)
        elif block.language in ("bash", "console"):
            for line in shell_lines(block):
                _run_command(line, block, modwright)


def _run_command(line: str, block: Block, modwright: Callable[[Sequence[str]], int]) -> None:
    words = shlex.split(line, comments=True)
    place = f"{block.place}: {line}"
    out: Any = contextlib.nullcontext()
    if ">" in words:
        at = words.index(">")
        file = Path(words[at + 1])
        words, out = words[:at], contextlib.redirect_stdout(_Kept(file))
    if words[:3] == ["python", "-m", "modwright"]:
        words = words[2:]
    assert words and words[0] == "modwright", (
        f"{place}: only modwright can be run here; tag `setup`"
    )
    said = io.StringIO()
    with out, contextlib.redirect_stderr(said):
        code = modwright(words[1:])
    assert code == 0, f"{place}: exit code {code}: {said.getvalue()}"


class _Kept(io.StringIO):
    """A stream that lands in a file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def write(self, text: str) -> int:
        with self.file.open("a", encoding="utf-8") as stream:
            return stream.write(text)
