"""Plants each fault in a copy of the source and runs the tests that reach it: ``make mutants``.

First every test file runs once on a copy that tells which faults' places it reaches. Then, for each
fault, the files that reach it run until one fails, those of its own module first; two faults at
once. What the tests of CI let live is tried with ``--full``. The table is results.md. The exit
status is 1 if a fault survives CI.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutants.matching import Mutant, load, mutated, probed  # noqa: E402

RESULTS = Path(__file__).with_name("results.md")
RECORD = ROOT / "out" / "mutants-record.json"
PROBE = """
import os
_known = set()
def reached(name):
    if name not in _known:
        _known.add(name)
        with open(os.environ["MUTANTS_REACHED"], "a") as file:
            file.write(name + "\\\\n")
""".replace("\\\\", "\\")
HEAD = """# Planted faults

`make mutants` writes this table. Each fault of `tests/mutants/*.yaml` was put into a copy of the
source; the test files that reach it ran until one failed: those of its module first, then those of
its package, then the others, the quickest first.

| fault | package | what it breaks | killed by | selection | seconds |
|---|---|---|---|---|--:|
"""
SURVIVED = "SURVIVED"
LOT = 60.0
"""Seconds of files that one process runs: it collects all of its files before the first test."""


@dataclass
class Ran:
    """How a run of pytest ended: what failed, in seconds; ``late`` if it was stopped."""

    failed: list[str]
    seconds: float
    passed: bool
    late: bool = False


@dataclass
class Record:
    """Which faults each test file reaches, and what it takes.

    Args:
        reached: file to names of faults.
        seconds: file to seconds.
        broken: tests that fail on the source as it is; they kill nothing.
        idle: files of which no test ran.
    """

    reached: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def files(self, mutant: Mutant) -> list[list[str]]:
        """Files that reach the fault, in the lots in which they are run: first that of the tests of
        its module, then those of its package, then the others; in each the quickest first."""
        found = [file for file, names in self.reached.items() if mutant.id in names]
        package, _, name = mutant.module.rpartition("/")
        own = f"tests/{package}/test_{name}"

        def near(file: str) -> int:
            return 0 if file.startswith(own) else 1 if file.startswith(f"tests/{package}/") else 2

        lots: list[list[str]] = []
        for file in sorted(found, key=lambda file: (near(file), self.seconds[file])):
            lot = lots[-1] if lots and near(lots[-1][0]) == near(file) else None
            if lot is None or sum(self.seconds[other] for other in lot) > LOT:
                lots.append(lot := [])
            lot.append(file)
        return lots


def copied(folder: Path, changed: dict[str, str]) -> Path:
    """A copy of the source in which some files have another text: what goes on the path."""
    source = folder / "src"
    shutil.copytree(ROOT / "src" / "modwright", source / "modwright")
    for path, text in changed.items():
        (source / path).write_text(text, encoding="utf-8")
    return source


def tested(source: Path, words: Sequence[str], limit: float, **environment: str) -> Ran:
    """Runs pytest with that source; after ``limit`` seconds it is stopped."""
    # A test that is stopped leaves what it mounted.
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as scratch:
        Path(scratch).chmod(0o755)  # tests that give up their rights must find their files
        quiet = ["-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", f"--basetemp={scratch}/pytest"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *quiet, *words],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(source),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        start, late = time.monotonic(), False
        try:
            out, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            for place in re.findall(rf"{scratch}\S*", Path("/proc/mounts").read_text()):
                subprocess.run(["umount", place], check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", out, re.MULTILINE)
    if process.returncode not in (0, 1, 5) and not failed and not late:
        failed = [f"pytest ended with {process.returncode}"]
    return Ran(failed, time.monotonic() - start, " passed" in out, late)


# Recording


def test_files(acceptance: bool) -> list[str]:
    """Every test file, longest first, as tests/data/durations.json knows it."""
    known = json.loads((ROOT / "tests/data/durations.json").read_text(encoding="utf-8"))
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    left_out = ["tests/with_timm/", "tests/with_transformers/", "tests/test_mutants.py"]
    left_out += [] if acceptance else ["tests/acceptance/"]
    kept = [file for file in sorted(found) if not file.startswith(tuple(left_out))]
    return sorted(kept, key=lambda file: -known.get(file, 0))


def record(mutants: list[Mutant], files: Iterable[str], workers: int, more: list[str]) -> Record:
    """Runs each file by itself on a source that tells what is reached."""
    result = Record()
    by_path: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        by_path.setdefault(mutant.path, []).append(mutant)
    changed = {
        path: probed((ROOT / "src" / path).read_text(encoding="utf-8"), group)
        for path, group in by_path.items()
    }
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        source, plain = copied(folder / "probed", changed), copied(folder / "plain", {})
        (source / "mutants_probe.py").write_text(PROBE, encoding="utf-8")

        def one(file: str) -> None:
            reached = folder / (file.replace("/", "-") + ".reached")
            reached.touch()
            ran = tested(source, [file, *more], 1800, MUTANTS_REACHED=str(reached))
            result.reached[file] = sorted(set(reached.read_text(encoding="utf-8").split()))
            result.seconds[file] = round(ran.seconds, 1)
            if not ran.passed and not ran.failed:
                result.idle.append(file)
            if ran.failed:  # a probe may be in the way: what counts is a copy without any
                result.broken += tested(plain, [file, *more], 1800).failed
            say(f"{file}: {len(result.reached[file])} faults, {ran.seconds:.0f} s")

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, files))
    for test in result.broken:
        say(f"fails without a fault, so it kills none: {test}")
    return result


# Trying


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    mutant: Mutant
    killed_by: str
    selection: str
    seconds: float

    def __str__(self) -> str:
        mutant = self.mutant
        cells = [f"`{mutant.id}`", mutant.package, mutant.breaks, self.killed_by, self.selection]
        return "| " + " | ".join([*cells, f"{self.seconds:.0f}"]) + " |"


def tried(
    mutant: Mutant, lots: list[list[str]], broken: list[str], limit: float, full: bool
) -> Row:
    """Plants the fault and runs the files on it, until a test fails or the time is over."""
    selection = "full" if full else "CI"
    if not lots:
        return Row(mutant, f"{SURVIVED}: no test reaches it", selection, 0)
    text = (ROOT / "src" / mutant.path).read_text(encoding="utf-8")
    words = ["-x", *["--full"] * full]
    words += [word for test in broken for word in ("--deselect", test)]
    left = limit
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        source = copied(Path(name), {mutant.path: mutated(text, mutant)})
        for lot in lots:
            ran = tested(source, [*words, *lot], left)
            left -= ran.seconds
            if ran.failed:
                return Row(mutant, f"`{ran.failed[0]}`", selection, limit - left)
            if ran.late or left <= 0:
                return Row(mutant, f"{SURVIVED} {limit:.0f} s", selection, limit - left)
    return Row(mutant, SURVIVED, selection, limit - left)


def try_all(
    mutants: list[Mutant], known: Record, limit: float, full: bool, workers: int
) -> list[Row]:
    writing = Lock()

    def one(mutant: Mutant) -> Row:
        row = tried(mutant, known.files(mutant), known.broken, limit, full)
        with writing:
            write_table([row])
        say(f"{mutant.id} ({row.selection}): {row.killed_by}, {row.seconds:.0f} s")
        return row

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, mutants))


def write_table(rows: Iterable[Row]) -> None:
    """Writes the rows; lines of faults that were not tried now stay."""
    lines = {str(row).split(" | ")[0]: str(row) for row in rows}
    if RESULTS.exists():
        for line in RESULTS.read_text(encoding="utf-8").splitlines():
            if line.startswith("| `"):
                lines.setdefault(line.split(" | ")[0], line)
    known = {f"| `{mutant.id}`" for mutant in load()}
    kept = [line for name, line in sorted(lines.items()) if name in known]
    RESULTS.write_text(HEAD + "\n".join(kept) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="ID", help="these faults alone")
    parser.add_argument("--files", nargs="+", metavar="FILE", help="try these test files alone")
    parser.add_argument(
        "--recorded", action="store_true", help=f"use what the last run recorded: {RECORD.name}"
    )
    parser.add_argument("--limit", type=float, default=600, help="seconds for a fault")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    mutants = [mutant for mutant in load() if not options.only or mutant.id in options.only]
    if options.recorded:
        known = Record(**json.loads(RECORD.read_text(encoding="utf-8")))
    else:
        files = options.files or test_files(acceptance=False)
        known = record(mutants, files, options.workers, [])
        if not options.files:
            RECORD.parent.mkdir(exist_ok=True)
            RECORD.write_text(json.dumps(asdict(known)), encoding="utf-8")
    start = time.monotonic()
    rows = try_all(mutants, known, options.limit, False, options.workers)
    living = [row.mutant for row in rows if SURVIVED in row.killed_by]
    if living and not options.files:
        # Files that only the full selection runs, and the measurements of papers.
        more = {*known.idle, *set(test_files(True)) - set(test_files(False))}
        extra = record(living, sorted(more), options.workers, ["--full"])
        known.reached.update(extra.reached)
        known.seconds.update(extra.seconds)
        known.broken += extra.broken
        try_all(living, known, 2 * options.limit, True, options.workers)
    say(f"{len(mutants)} faults in {(time.monotonic() - start) / 60:.0f} minutes")
    for mutant in living:
        say(f"CI lets it live: {mutant.id}: {mutant.breaks}")
    return 1 if living else 0


if __name__ == "__main__":
    sys.exit(main())
