"""Reads the fenced blocks of Markdown pages and runs them.

What stands behind the language of a block says how it is run: ``slow`` blocks name a packaged
model, for which a small one stands in (without ``--full``); ``setup`` blocks never run (their
syntax is checked), and neither do ``peer`` blocks, which are for another tool. ``title="NAME"``
makes a block a file of that name, for the blocks below it. In a ``console`` block the lines that do
not start with ``$`` are what the command prints; ``...`` stands for any text.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from warm_processes import run_python

__all__ = ["ROOT", "Block", "blocks_of", "check_setup", "pages", "run_blocks", "shell_lines"]
__all__ += ["expected_output"]

ROOT = Path(__file__).parents[1]
LANGUAGES = {"python", "bash", "console", "yaml", "json", "toml", "text", "mermaid"}
TAGS = {"slow", "setup", "peer"}

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
    title: str = ""

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
    language, *rest_of_info = shlex.split(opening["info"]) or ["text"]
    titles = [word[6:] for word in rest_of_info if word.startswith("title=")]
    tags = [word for word in rest_of_info if not word.startswith("title=")]
    if language not in LANGUAGES:
        raise ValueError(f"{where}: language {language!r}; known: {sorted(LANGUAGES)}")
    if not TAGS.issuperset(tags):
        raise ValueError(f"{where}: tags {tags}; known: {sorted(TAGS)}")
    body: list[str] = []
    for _, line in rest:
        if line.strip().startswith(marks) and not line.strip().strip(marks[0]):
            text = "\n".join(body) + "\n"
            return Block(page, number, language, frozenset(tags), text, "".join(titles))
        body.append(line[indent:] if line[:indent].isspace() else line)
    raise ValueError(f"{where}: the block does not end")


def shell_lines(block: Block) -> list[str]:
    """The commands of a block. In a ``console`` block those after ``$``; the rest is output."""
    text = block.text.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    if block.language == "console":
        lines = [line.removeprefix("$").strip() for line in lines if line.startswith("$")]
    return [line for line in lines if line and not line.startswith("#")]


def expected_output(block: Block) -> dict[str, str]:
    """Command of a ``console`` block -> what it prints; commands that show nothing are left out."""
    told: dict[str, str] = {}
    command = ""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$"):
            command = line.removeprefix("$").strip()
        elif command:
            told[command] = told.get(command, "") + line + "\n"
    return {command: text for command, text in told.items() if text.strip()}


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
        if block.tags & {"setup", "peer"}:
            if block.language == "python":
                compile(block.text, str(block.page), "exec")
            continue
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            # Empty lines in front make the line numbers of a traceback those of the page.
            code = compile("\n" * block.line + block.text, str(block.page), "exec")
            exec(code, module.__dict__)
        elif block.language in ("bash", "console"):
            expected = expected_output(block) if block.language == "console" else {}
            for line in shell_lines(block):
                printed = _run_command(line, block, modwright)
                _compare(f"{block.place}: {line}", expected.get(line, ""), printed)


def _run_command(line: str, block: Block, modwright: Callable[[Sequence[str]], int]) -> str:
    """What the command prints on stdout."""
    words = shlex.split(line, comments=True)
    place = f"{block.place}: {line}"
    file = None
    if ">" in words:
        at = words.index(">")
        words, file = words[:at], Path(words[at + 1])
    if words[:3] == ["python", "-m", "modwright"]:
        words = words[2:]
    if words[:1] == ["modwright"]:
        code, printed, said = _run_modwright(words[1:], modwright)
    else:
        assert words[:1] == ["python"] and words[1:2] and words[1].endswith(".py"), (
            f"{place}: only modwright and python files can be run here; tag `setup`"
        )
        done = run_python(words[1:], library=True)
        code, printed, said = done.returncode, done.stdout, done.stderr
    assert code == 0, f"{place}: exit code {code}: {said}"
    if file is not None:
        file.write_text(printed, encoding="utf-8")
    return printed


def _run_modwright(
    arguments: Sequence[str], modwright: Callable[[Sequence[str]], int]
) -> tuple[int, str, str]:
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = modwright(arguments)
    return code, printed.getvalue(), said.getvalue()


def _compare(place: str, expected: str, printed: str) -> None:
    """As doctest does it: runs of white space are alike, ``...`` is any text."""
    if not expected:
        return
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    wanted, got = expected.strip() + "\n", printed.strip() + "\n"
    assert doctest.OutputChecker().check_output(wanted, got, flags), (
        f"{place} does not print what the page shows, but:\n{printed}"
    )
