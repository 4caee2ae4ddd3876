"""Makes the images of the tutorial again: `python docs/make_images.py [NAME ...]`.

After `make demo`, `python docs/make_images.py --demo out/demo` makes that of its report.

The commands are those of docs/tutorial.md: all its blocks run in order in an empty directory, and
what a command printed becomes the image below it. The report is opened in a headless Chromium.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent
IMAGES = DOCS / "images" / "tutorial"
TUTORIAL = DOCS / "tutorial.md"
sys.path.insert(0, str(DOCS.parent / "tests"))

from documents import Block, blocks_of, shell_lines  # noqa: E402

IMAGE = re.compile(r"^\[!\[.*?\]\(images/tutorial/([\w-]+)\.(svg|png)\)")
COLUMNS = 100
REPORT = "first/report.html"
# Rich's own page asks for a font of the net; this one takes what the reader has.
FONTS = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'


@dataclass(frozen=True)
class Shot:
    """An image of the tutorial, and the block above it."""

    name: str
    kind: str
    block: Block


def shots(page: Path = TUTORIAL) -> Iterator[Shot]:
    """The images of a page, in order, each with the nearest block of commands above it."""
    blocks = [block for block in blocks_of(page) if block.language == "bash"]
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        found = IMAGE.match(line)
        if found is not None:
            above = [block for block in blocks if block.line < number]
            yield Shot(found[1], found[2], above[-1])


def run(command: str, folder: Path) -> str:
    """What a command prints, with its colors."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": str(COLUMNS),
        "FORCE_COLOR": "1",
        "COLORTERM": "truecolor",
        "TERM": "xterm-256color",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command}: exit code {done.returncode}")
    # Before it is drawn: in a finished image the letters would be spread over the old width.
    return done.stdout.replace(f"{folder.resolve()}{os.sep}", "")


def terminal(title: str, lines: list[tuple[str, str]]) -> str:
    """An SVG of a terminal: commands, and what each printed."""
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command, printed in lines:
        console.print(Text("$ ", style="green").append(command, style="bold white"))
        # Lines longer than the terminal go on below, as in one; soft wrapping would cut them off.
        console.print(Text.from_ansi(printed.rstrip("\n")), overflow="fold")
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = form.replace("Fira Code, monospace", FONTS).replace("arial", "sans-serif")
    return console.export_svg(title=title, code_format=form, unique_id=title)


def take_screenshot(page: Path, image: Path, width: int = 1280, height: int = 1560) -> None:
    """A PNG of the top of a page, of few colors so that it stays small."""
    from PIL import Image

    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("the image of the report needs chromium on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        subprocess.run(
            [
                browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                f"--user-data-dir={folder}/profile",
                f"--window-size={width},{height}",
                f"--screenshot={file}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        with Image.open(file) as found:
            few = found.convert("RGB").quantize(96, dither=Image.Dither.NONE)
            few.save(image, optimize=True)


def make(names: list[str], out: Path) -> None:
    """Runs the tutorial and writes the named images; all where none is named."""
    wanted = {shot.block.line: shot for shot in shots() if not names or shot.name in names}
    last = max(wanted)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for block in blocks_of(TUTORIAL):
            if block.line > last:
                break
            if block.title:
                (folder / block.title).write_text(block.text, encoding="utf-8")
            shot = wanted.get(block.line)
            if shot is not None and shot.kind == "png":
                take_screenshot(folder / REPORT, out / f"{shot.name}.png")
            elif block.language == "bash" and "setup" not in block.tags:
                lines = [(line, run(line, folder)) for line in shell_lines(block)]
                if shot is not None:
                    svg = terminal(shot.name, lines)
                    (out / f"{shot.name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    if sys.argv[1:2] == ["--demo"]:
        take_screenshot(Path(sys.argv[2]) / Path(REPORT).name, IMAGES.parent / "report.png")
    else:
        make(sys.argv[1:], IMAGES)
