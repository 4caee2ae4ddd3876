"""Runs a recipe of training: images, model, steps, then a checkpoint with its curves."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback

from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import rehearse, save
from modwright.core import distributed
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError, ModwrightError, VerificationError
from modwright.core.files import read_json, write_file
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.edits.remodeled import is_plain
from modwright.recipes.facts import auto_class, environment, versions
from modwright.recipes.run_directory import RunDirectory, alone, file_stamps
from modwright.recipes.run_log import RunLog
from modwright.recipes.run_result import is_complete, output_path
from modwright.recipes.settings import torch_settings
from modwright.recipes.training_parts import MODEL
from modwright.recipes.training_schema import (
    TrainingRecipe,
    objective_of,
    pictures_of,
    settings_of,
)
from modwright.report.plots import training_curves
from modwright.tasks.pictures import Pictures
from modwright.training import Settings, TrainResult, fit
from modwright.training.checkpoints import newest_checkpoint, remove_incomplete

__all__ = ["TrainingRunResult", "train"]

_TOLD = "training.json"


@dataclass(frozen=True)
class TrainingRunResult:
    """What a training left.

    Attributes:
        output: the directory.
        info: what training.json holds.
        done_before: the result stood there already.
    """

    output: Path
    info: Mapping[str, Any]
    done_before: bool = False


@dataclass(frozen=True)
class _Prepared:
    model: Any
    train: Pictures
    test: Pictures
    objective: Any
    settings: Settings


def _unheard(message: str) -> None:
    pass


def train(
    recipe: TrainingRecipe,
    output: str | Path | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    log: Callable[[str], None] = _unheard,
) -> TrainingRunResult:
    """Trains as a recipe says and writes the checkpoint with ``training.json`` and ``curves.svg``.

    Checkpoints on the way are kept in ``<output>.work`` until the output stands; a training that
    was stopped goes on from the newest, to the losses and weights of one that was not. Where
    ``torchrun`` or ``accelerate launch`` started several processes, every one calls this, and they
    share the images of each step.

    Args:
        recipe: what to do.
        output: where to; the recipe's own place by default.
        force: replace an output that stands there.
        progress: told of every step.
        log: told in a sentence what is done next.

    Raises:
        ModwrightError: anything refused or failed; the output is not touched then.
    """
    place = output_path(recipe, output)
    full = {**recipe.model_dump(mode="json"), "output": ""}
    force = force or RunDirectory(place).may_replace(full)
    with distributed.init_distributed():
        if not distributed.is_main():
            progress, log = SILENT, _unheard
        if is_complete(place, full, force, _TOLD):
            log(f"{place} holds the result of this recipe already; --force makes it again")
            distributed.main_process_only(lambda: RunDirectory(place).clean_up(full))
            info = json.loads((place / _TOLD).read_text(encoding="utf-8"))
            return TrainingRunResult(place, info, done_before=True)
        return _Training(recipe, full, place, force, progress, log).go()


class _Training:
    def __init__(
        self,
        recipe: TrainingRecipe,
        full: dict[str, Any],
        place: Path,
        force: bool,
        progress: Progress,
        log: Callable[[str], None],
    ) -> None:
        self.recipe, self.full, self.place = recipe, full, place
        self.work, self.run_log = RunDirectory(place), RunLog(place)
        self.force, self.progress, self.log = force, progress, self.run_log.listener(log)
        self.checkpoints = self.work.root / "checkpoints"
        self.events = self.work.root / "tensorboard"

    def go(self) -> TrainingRunResult:
        with alone(self.work, self.run_log), torch_settings(self.recipe):
            with distributed.fail_together():
                ready = self._prepare()
                if distributed.is_main():
                    self._begin(ready)
                goes_on = distributed.broadcast(newest_checkpoint(self.checkpoints) is not None)
            fitted = fit(
                ready.model,
                ready.train,
                ready.test,
                ready.settings,
                ready.objective,
                self.checkpoints,
                resume=goes_on,
                measure_epochs=self.recipe.measure_epochs,
                progress=self.progress,
                log=self.log,
                callbacks=self._callbacks(),
            )
            info = self._info(ready, fitted)
            distributed.main_process_only(lambda: self._save(ready.model, info))
            return TrainingRunResult(self.place, info)

    def _prepare(self) -> _Prepared:
        """Refuses now what would fail after hours."""
        if self.recipe.tensorboard and find_spec("tensorboard") is None:
            raise InvalidInputError("tensorboard: true needs the package: pip install tensorboard")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the log says them
            learned, measured = pictures_of(self.recipe)
        named = self.recipe.model.get("id2label")
        if named is not None:  # names that the user gives to the classes of the images
            learned, measured = (_renamed(part, named) for part in (learned, measured))
        torch.manual_seed(self.recipe.seed)
        model = MODEL.make(self.recipe.model, learned)
        objective = objective_of(self.recipe)
        _try(model, learned, "model")
        if hasattr(objective, "teacher"):
            _try(objective.teacher, learned, "objective.teacher")
            _require_classes(objective.teacher, learned)
        if distributed.is_main():
            rehearse(model, self.place, force=self.force)
        return _Prepared(model, learned, measured, objective, self._settings())

    def _settings(self) -> Settings:
        asked = settings_of(self.recipe)
        saving: dict[str, Any] = {"save_total_limit": 2}
        if self.recipe.checkpoint_every is not None:
            saving |= {"save_strategy": "steps", "save_steps": self.recipe.checkpoint_every}
        return Settings(**{**vars(asked), "more": {**saving, **asked.more}})

    def _begin(self, ready: _Prepared) -> None:
        """From here on the training leaves traces. What another one left is removed."""
        depends = {
            "versions": versions(),
            "processes": distributed.size(),
            "pictures": [_digest(ready.train), _digest(ready.test)],
            "model": _stamps(self.recipe.model, "checkpoint", "checkpoint_path"),
            "teacher": _stamps(self.recipe.objective, "teacher"),
        }
        known = self.work.root / "depends.json"
        same = self.work.belongs_to(self.full) and read_json(known) == depends
        if not same:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            shutil.rmtree(self.events, ignore_errors=True)
        broken = remove_incomplete(self.checkpoints)
        self.run_log.begin(goes_on=same)
        info = yaml.safe_dump(self.full, sort_keys=False, allow_unicode=True).rstrip()
        self.run_log.write("recipe, resolved:\n" + info)
        self.work.acquire(self.full, force=self.force)
        write_file(known, json.dumps(depends), kept_in=self.work.root)
        count = sum(p.numel() for p in ready.model.parameters() if p.requires_grad)
        who = f"{type(ready.model).__name__} with {count:,} parameters"
        self.log(f"{who} learns from {len(ready.train)} images ({ready.train.name})")
        for note in [*ready.train.notes, *_other_names(ready), *broken]:
            self.log(note)
        newest = newest_checkpoint(self.checkpoints)
        if newest is not None:
            self.log(f"goes on from step {newest.name.rpartition('-')[2]}")

    def _callbacks(self) -> list[TrainerCallback]:
        if not self.recipe.tensorboard or not distributed.is_main():
            return []
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        return [TensorBoardCallback(SummaryWriter(str(self.events)))]

    def _info(self, ready: _Prepared, fitted: TrainResult) -> dict[str, Any]:
        return {
            "title": self.recipe.title or f"{type(ready.model).__name__} on {ready.train.name}",
            "accuracy": fitted.accuracy,
            "steps": fitted.steps,
            "seconds": fitted.seconds,
            "parameters": fitted.parameters,
            "auto_class": auto_class(ready.model),
            "plain": is_plain(ready.model),
            "pictures": {
                "train": [ready.train.name, len(ready.train)],
                "test": [ready.test.name, len(ready.test)],
                "classes": list(ready.train.classes),
                "notes": list(ready.train.notes),
            },
            "log": [dict(entry) for entry in fitted.log],
            "recipe": self.full,
            "versions": versions(),
            "environment": environment(ready.model),
            "processes": distributed.size(),
        }

    def _save(self, model: Any, info: dict[str, Any]) -> None:
        self.log(f"writing {self.place}")
        files: dict[str, str | bytes] = {
            "README.md": _card(info, self.place.name),
            "recipe.yaml": yaml.safe_dump(self.full, sort_keys=False, allow_unicode=True),
            _TOLD: json.dumps(info, indent=2, ensure_ascii=False) + "\n",
        }
        curves = training_curves(info["log"])
        if curves is not None:
            files["curves.svg"] = curves.svg
        for event in sorted(self.events.glob("*")):
            files[f"tensorboard/{event.name}"] = event.read_bytes()
        save(model.cpu(), self.place, force=self.force, files=files, check=_reads_back(model))
        self.work.remove()
        self.run_log.write("done")


def _reads_back(model: Any) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        again = open_checkpoint(folder).model.state_dict()
        for name, tensor in model.state_dict().items():
            if not torch.equal(tensor, again[name].to(tensor.dtype)):
                raise VerificationError(f"{name} reads back from {folder.name} as something else")

    return check


@torch.no_grad()
def _try(model: Any, images: Pictures, what: str) -> None:
    """One image through a model, so that another size or another task is seen before work."""
    try:
        with eval_mode(model):
            found = model(pixel_values=images.pixels[:1].to(model.dtype))
    except (ModwrightError, ValueError, TypeError, RuntimeError) as error:
        info = str(error).strip().splitlines()[0]
        raise InvalidInputError(f"{what}: does not take images of {images.name}: {info}") from None
    if getattr(found, "logits", None) is None or found.logits.dim() != 2:
        raise InvalidInputError(f"{what}: {type(model).__name__} is no classifier of images")
    known, shown = found.logits.shape[1], len(images.classes)
    if known < shown:
        more = "; num_classes gives it others" if what == "model" else ""
        raise InvalidInputError(f"{what}: has {known} classes, the images {shown}{more}")


def _renamed(images: Pictures, named: Mapping[Any, str]) -> Pictures:
    given = {int(index): str(name) for index, name in named.items()}
    if sorted(given) != list(range(len(images.classes))):
        raise InvalidInputError(f"model.id2label: names the classes 0 to {len(images.classes) - 1}")
    return replace(images, classes=tuple(given[i] for i in sorted(given)))


def _names(model: Any, count: int) -> list[str] | None:
    """Names of a model's first classes; None where it was given none."""
    names = [str(model.config.id2label.get(i)) for i in range(count)]
    return None if names == [f"LABEL_{i}" for i in range(count)] else names


def _other_names(ready: _Prepared) -> list[str]:
    """What is said of class names that the images' replace."""
    old, new = _names(ready.model, len(ready.train.classes)), list(ready.train.classes)
    if old is None or old == new:
        return []
    return [f"classes were {', '.join(old)} and are now those of the images: {', '.join(new)}"]


def _require_classes(teacher: Any, images: Pictures) -> None:
    """Refuses a teacher whose answers mean other classes than the images' labels."""
    info, classes = _names(teacher, len(images.classes)), list(images.classes)
    if info is not None and info != classes:
        raise InvalidInputError(
            f"objective.teacher: its classes are {', '.join(info)}; those of the images are "
            f"{', '.join(classes)}"
        )


def _digest(images: Pictures) -> str:
    return sha256_of(images.labels, images.pixels)


def _stamps(options: Mapping[str, Any], *keys: str) -> list[Any]:
    positions = [Path(options[key]).expanduser() for key in keys if options.get(key)]
    return [file_stamps(place) for place in positions if place.exists()]


def _card(info: Mapping[str, Any], name: str) -> str:
    """The model card: how it is opened, how good it is, and the command that made it."""
    (train_name, train_count), (test_name, test_count) = (
        info["pictures"][split] for split in ("train", "test")
    )
    return f"""---
library_name: transformers
tags: [modwright]
---
# {info["title"]}

```python
import modwright  # makes the architecture known to transformers
from transformers import {info["auto_class"]}

model = {info["auto_class"]}.from_pretrained("{name}")
```

{info["parameters"]:,} trained parameters, {info["steps"]} steps on {train_count} images
({train_name}). Accuracy on {test_count} others ({test_name}): {100 * info["accuracy"]:.2f} %.
Images are prepared as the key `data` of `recipe.yaml` says, with `modwright.tasks.pictures`.

`training.json` holds losses and settings, `curves.svg` draws them. Made by
`modwright train recipe.yaml -o {name}`.
"""
