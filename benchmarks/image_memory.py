"""Peak memory of learning from an image folder, by the number of its files.

JPEG files of 96 x 96 in ten class folders are written to a temporary folder. Then a new process for
each number of files makes the data and reads every row to learn from, augmented, in batches of 32,
as a training does. "Peak" is the highest resident memory of the process (VmHWM of
/proc/self/status), "extra" what of it lies above the memory that was held before the folder was
looked at, with all libraries loaded; "kept" is what all rows would take if they were kept.

    python benchmarks/image_memory.py --files 100 1000 10000 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modwright.data import Data, make_data

SIDE, CLASSES, BATCH = 96, 10, 32
AUGMENT = ["random_resized_crop", "hflip", "rand_augment", "random_erasing"]


def write_files(folder: Path, count: int) -> None:
    """Class folders in ``train``, and one image of each class in ``val``."""
    draw = np.random.default_rng(count)
    for number in range(count + CLASSES):
        split, index = ("train", number) if number < count else ("val", number - count)
        place = folder / split / f"class-{index % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place / f"{index}.jpg")


def resident(field: str) -> int:
    """Kilobytes of this process: VmRSS now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} here")


def of_folder(folder: Path, image_size: int) -> Data:
    return make_data({"images": str(folder), "image_size": image_size, "augment": AUGMENT})


def read_all(data: Data) -> int:
    """Bytes of the pixels of all rows to learn from, which are dropped batch by batch."""
    batches = data.batches("train", BATCH)
    return sum(batch["pixel_values"].nbytes for batch in batches)


def measure(folder: Path, warm: Path, image_size: int) -> None:
    """In a process of its own: prints megabytes."""
    torch.set_num_threads(1)
    read_all(of_folder(warm, image_size))  # what libraries take once
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = resident("VmRSS")
    kept = read_all(of_folder(folder, image_size))
    peak = resident("VmHWM")
    found = {"peak": peak / 1000, "extra": (peak - before) / 1000, "kept": kept / 1e6}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folders", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folders:
        measure(*given.folders, given.image_size)
        return
    seen: dict[int, list[dict[str, float]]] = {count: [] for count in given.files}
    with tempfile.TemporaryDirectory() as root:
        for count in (CLASSES, *given.files):
            write_files(Path(root, str(count)), count)
        for _ in range(given.repeats):  # in turns
            for count, runs in seen.items():
                folders = [str(Path(root, str(of))) for of in (count, CLASSES)]
                size = ["--image-size", str(given.image_size)]
                command = [sys.executable, __file__, *size, "--folders", *folders]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"rows of {given.image_size} x {given.image_size}, medians of {given.repeats}")
    print("| files | peak | extra | all rows, if they were kept |\n|---|---|---|---|")
    for count, runs in seen.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        cells = [f"{middle['peak']:,.0f} MB", f"{middle['extra']:,.1f} MB"]
        print(f"| {count:,} | {' | '.join(cells)} | {middle['kept']:,.1f} MB |")


if __name__ == "__main__":
    main()
