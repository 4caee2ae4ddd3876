"""Runs a recipe of training: images, model, steps, then a checkpoint with its curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import rehearse, save
from modwright.core import distributed
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.core.files import read_json, write_file
from modwright.core.plugins import plugin_digests
from modwright.core.progress import SILENT, Progress
from modwright.data import Data, make_data
from modwright.edits.remodeled import is_plain
from modwright.recipes.classifying import PROCESSOR, other_names, require_images
from modwright.recipes.run_directory import file_stamps
from modwright.recipes.run_log import auto_class, environment, versions
from modwright.recipes.runner import Listener, Runner, unheard
from modwright.recipes.training_schema import TrainingRecipe, make_model
from modwright.report.plots import training_curves
from modwright.training import Settings, TrainResult, fit
from modwright.training.checkpoints import newest_checkpoint, remove_incomplete
from modwright.training.objectives import make_objective
from modwright.training.teachers import with_teacher

__all__ = ["TrainingRunResult", "train"]

_FITTED = ("accuracy", "steps", "seconds", "parameters")


@dataclass(frozen=True)
class TrainingRunResult:
    """What a training left."""

    output: Path
    info: Mapping[str, Any]  # what training.json holds
    done_before: bool = False  # the result stood there already


def train(
    recipe: TrainingRecipe,
    output: str | Path | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
    log: Listener = unheard,
) -> TrainingRunResult:
    """Trains as a recipe says and writes the checkpoint with ``training.json`` and ``curves.svg``.

    Checkpoints on the way are kept in ``<output>.work`` until the output stands; a training that
    was stopped goes on from the newest, to the losses and weights of one that was not. Several
    processes that a launcher started share the images of each step. Arguments are those of `run`.

    Raises:
        ModwrightError: anything refused or failed; the output is not touched then.
    """
    with distributed.init_distributed():
        full = recipe.model_dump(mode="json")
        return _Training(recipe, full, output, force, progress, log).go()


class _Training(Runner):
    info = "training.json"

    def go(self) -> TrainingRunResult:
        if self.stands():
            info = json.loads((self.place / self.info).read_text(encoding="utf-8"))
            return TrainingRunResult(self.place, info, done_before=True)
        self.checkpoints = self.work.root / "checkpoints"
        self.events = self.work.root / "tensorboard"
        with self.alone():
            with distributed.fail_together():
                self._prepare()
                if distributed.is_main():
                    self._begin_or_go_on()
                goes_on = distributed.broadcast(newest_checkpoint(self.checkpoints) is not None)
            fitted = fit(
                self.model,
                self.data,
                None,
                self._settings(),
                self.objective,
                self.checkpoints,
                resume=goes_on,
                measure_epochs=self.recipe.measure_epochs,
                progress=self.progress,
                log=self.log,
                callbacks=self._callbacks(),
            )
            info = self._info(fitted)
            distributed.main_process_only(lambda: self._save(info))
            return TrainingRunResult(self.place, info)

    def _prepare(self) -> None:
        """Refuses now what would fail after hours."""
        if self.recipe.tensorboard and find_spec("tensorboard") is None:
            raise InvalidInputError("tensorboard: true needs the package: pip install tensorboard")
        self.data = make_data(self.recipe.data)
        if self.data.test is None:
            raise InvalidInputError(f"data: {self.data.name} holds out nothing to measure on")
        named = self.recipe.model.get("id2label")
        if named is not None:  # names that the user gives to the classes of the images
            self.data = _renamed(self.data, named)
        torch.manual_seed(self.recipe.seed)
        self.model = make_model(self.recipe.model, self.data, self.recipe.seed)
        self.objective = with_teacher(make_objective(self.recipe.objective))
        require_images(self.model, self.data, "model")
        for teacher in self.objective.teachers():
            require_images(teacher, self.data, "objective.teacher")
            if other := other_names(teacher, self.data):
                raise InvalidInputError(
                    f"objective.teacher: its classes are {other}; those of the images are "
                    f"{', '.join(self.data.labels)}"
                )
        if distributed.is_main():
            rehearse(self.model, self.place, force=self.force)

    def _settings(self) -> Settings:
        asked = self.recipe.settings.model_dump()
        more: dict[str, Any] = {"save_total_limit": 2}
        if self.recipe.checkpoint_every is not None:
            more |= {"save_strategy": "steps", "save_steps": self.recipe.checkpoint_every}
        return Settings(**{**asked, "more": {**more, **asked["more"]}})

    def _begin_or_go_on(self) -> None:
        """From here on the training leaves traces. What another one left is removed."""
        ((_, options),) = self.recipe.objective.items()
        depends = {
            "versions": versions(),
            "plugins": plugin_digests(),
            "processes": distributed.size(),
            "data": self.data.digest,
            "model": _stamps(self.recipe.model, "checkpoint", "checkpoint_path"),
            "teacher": _stamps(options, "teacher"),
        }
        known = self.work.root / "depends.json"
        same = self.work.belongs_to(self.full) and read_json(known) == depends
        if not same:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            shutil.rmtree(self.events, ignore_errors=True)
        broken = remove_incomplete(self.checkpoints)
        self.begin(goes_on=same)
        write_file(known, json.dumps(depends), kept_in=self.work.root)
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        who = f"{type(self.model).__name__} with {count:,} parameters"
        self.log(f"{who} learns from {self.data.describe()}")
        notes = list(self.data.notes)
        if old := other_names(self.model, self.data):
            new = ", ".join(self.data.labels)
            notes.append(f"classes were {old} and are now those of the images: {new}")
        for note in notes + broken:
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

    def _info(self, fitted: TrainResult) -> dict[str, Any]:
        return {
            "title": self.recipe.title or f"{type(self.model).__name__} on {self.data.name}",
            **{name: getattr(fitted, name) for name in _FITTED},
            "auto_class": auto_class(self.model),
            "plain": is_plain(self.model),
            "data": self.data.facts(),
            "log": [dict(entry) for entry in fitted.log],
            "recipe": self.full,
            "versions": versions(),
            "environment": environment(self.model),
            "processes": distributed.size(),
        }

    def _save(self, info: dict[str, Any]) -> None:
        self.log(f"writing {self.place}")
        files: dict[str, str | bytes] = {
            "README.md": _card(info, self.place.name),
            "recipe.yaml": self.text,
            self.info: json.dumps(info, indent=2, ensure_ascii=False) + "\n",
        }
        if self.data.processor:
            told = json.dumps(self.data.processor, indent=2)
            files[PROCESSOR] = told + "\n"
        curves = training_curves(info["log"])
        if curves is not None:
            files["curves.svg"] = curves.svg
        for event in sorted(self.events.glob("*")):
            files[f"tensorboard/{event.name}"] = event.read_bytes()
        model = self.model.cpu()

        def check(folder: Path) -> None:
            again = open_checkpoint(folder).model.state_dict()
            for name, tensor in model.state_dict().items():
                if not torch.equal(tensor, again[name].to(tensor.dtype)):
                    raise VerificationError(
                        f"{name} reads back from {folder.name} as something else"
                    )

        save(model, self.place, force=self.force, files=files, check=check)
        self.end()


def _renamed(images: Data, named: Mapping[Any, str]) -> Data:
    given = {int(index): str(name) for index, name in named.items()}
    if sorted(given) != list(range(len(images.labels))):
        raise InvalidInputError(f"model.id2label: names the classes 0 to {len(images.labels) - 1}")
    return replace(images, labels=tuple(given[i] for i in sorted(given)))


def _stamps(options: Mapping[str, Any], *keys: str) -> list[Any]:
    positions = [Path(options[key]).expanduser() for key in keys if options.get(key)]
    return [file_stamps(place) for place in positions if place.exists()]


def _card(info: Mapping[str, Any], name: str) -> str:
    """The model card: how it is opened, how good it is, and the command that made it."""
    data = info["data"]
    rows, source = data["rows"], ", ".join(filter(None, (data["source"], data["license"])))
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

{info["parameters"]:,} trained parameters, {info["steps"]} steps on {rows["train"]:,} images of
{data["name"]} ({source or "of one's own"}). Accuracy on {rows["test"]:,} others:
{100 * info["accuracy"]:.2f} %. Images are prepared as the key `data` of `recipe.yaml` says, with
`modwright.data.make_data`.

`training.json` holds losses and settings, `curves.svg` draws them. Made by
`modwright train recipe.yaml -o {name}`.
"""
