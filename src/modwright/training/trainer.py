"""transformers' Trainer with an objective of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from modwright.core import distributed
from modwright.core.compat.torch import on_tensors_of
from modwright.core.errors import InvalidInputError
from modwright.training.batches import inputs_of, logits_of, unwrapped
from modwright.training.callbacks import MaskCallback, NoStepLeft, NotFinite, ObjectiveCallback
from modwright.training.learning import Learns, learn
from modwright.training.objectives.base import Objective, as_objective
from modwright.training.objectives.next_token import UNASKED
from modwright.training.parametrization import (
    Parametrization,
    Standard,
    check_groups,
    decayed_names,
    parametrization_of,
)
from modwright.training.sharding import Sharded, check_sharding, sharding_note
from modwright.training.teachers import with_teacher

__all__ = ["ObjectiveTrainer"]

_PARTS = "objective_parts"
_PARTS_FILE = "objective.safetensors"


class ObjectiveTrainer(Trainer):
    """Minimizes an objective. Resuming, mixed precision, logging and processes are transformers'.

    What the model shares with others becomes its own before the first step: see :func:`learn`.
    Schedules multiply the learning rate of each group, so groups keep their ratios. All arguments
    but these are those of ``transformers.Trainer``.

    Args:
        objective: an :class:`~modwright.training.objectives.Objective`, or a function of the model
            and a batch. Its own parameters are in the optimizer while the training lasts, and in
            its checkpoints by themselves.
        learns: what learns: see :func:`~modwright.training.learning.learn`.
        one_cycle: learning rates rise to their heights over the first part of the steps and fall
            to nothing (torch's OneCycleLR) instead of following the schedule of the arguments.
        parametrization: makes the optimizer's groups, or the name of one that does; None takes the
            objective's own ``parametrization``, else
            :class:`~modwright.training.parametrization.Standard`.
        sharded: several processes share the weights while they train (FSDP2, on any device).
    """

    optimizer_cls_and_kwargs: Any

    def __init__(
        self,
        model: Any,
        *args: Any,
        objective: Any,
        learns: Learns | None = None,
        one_cycle: bool = False,
        parametrization: Parametrization | str | None = None,
        sharded: bool = False,
        **kwargs: Any,
    ) -> None:
        self.objective: Objective = with_teacher(as_objective(objective))
        self.parametrization = parametrization_of(parametrization, objective)
        self.objective.prepare(model)
        self.sharded = sharded and distributed.size() > 1
        if self.sharded:
            check_sharding(model, self.objective.parts)
        self.shards: Sharded | None = None
        self.left_at: int | None = None  # the step of the state that a model in parts fell back to
        seed = getattr(kwargs.get("args", args[0] if args else None), "seed", 0)
        masks = MaskCallback(model)
        learned = learn(model, learns, self.objective.teachers(), seed=seed)
        noted = [sharding_note(self.sharded)] if sharded else []
        config = getattr(model, "config", None)
        caches = getattr(config, "use_cache", None)  # transformers' Trainer turns it off for good

        def finish() -> None:
            learned.finish()
            masks.apply()
            if config is not None and caches is not None:
                config.use_cache = caches

        self.learned = replace(learned, notes=(*noted, *learned.notes), finish=finish)
        self.losses: list[Tensor] = []  # of the batches since the last step
        callbacks = kwargs.pop("callbacks", None) or []
        first: TrainerCallback = ObjectiveCallback(self.objective, self.losses)
        super().__init__(model, *args, callbacks=[first, masks, *callbacks], **kwargs)
        self.one_cycle = one_cycle
        self.averaged: Callable[[Any], AbstractContextManager[None]] = lambda model: nullcontext()
        self.loss_only = False  # of the evaluation that is going on
        self.label_names = ["labels"]
        self.learning_rates: list[float] = []  # of the groups, before any schedule
        self.named: dict[str, list[Tensor]] = {}
        # An objective's loss is a mean, whatever the model would do with counts of items.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        learns = model.training and torch.is_grad_enabled()
        if learns and type(self.objective).step is not Objective.step:
            loss, named = self.objective.step(model, inputs, self.backward)
            loss = loss.detach().requires_grad_()  # its backward pass, later, does nothing
        else:
            loss, named = self.objective(model, inputs)
        if self.args.n_gpu > 1:
            loss = loss.mean()
        if learns:
            self.losses.append(loss.detach())
            for name, value in named.items():
                # Read when it is logged: reading a number waits for the device.
                self.named.setdefault(name, []).append(value.detach())
        if not return_outputs:
            return loss
        if self.loss_only:
            return loss, {}
        return loss, {"logits": logits_of(model(**inputs_of(inputs)), model)}

    def backward(self, loss: Tensor) -> None:
        """The backward pass of one loss of an objective that has its own step."""
        if self.args.n_gpu > 1:
            loss = loss.mean()
        self.accelerator.backward(loss / self.current_gradient_accumulation_steps)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """Rows of tokens without labels are labels themselves."""
        self.loss_only = prediction_loss_only
        if "labels" not in inputs and "input_ids" in inputs:
            ids, mask = inputs["input_ids"], inputs.get("attention_mask")
            labels = ids if mask is None else ids.masked_fill(~mask.bool(), UNASKED)
            inputs = {**inputs, "labels": labels}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Of averaged weights, where there are some."""
        with self.averaged(unwrapped(self.model)):
            return super().evaluate(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """With the objective's own parameters beside those of the model, for so long."""
        parts: Any = self.objective.parts
        if parts is None:
            with self._in_one_piece_again():
                return super().train(*args, **kwargs)
        model: Any = self.model
        setattr(model, _PARTS, parts.to(next(model.parameters()).device))
        try:
            return super().train(*args, **kwargs)
        finally:
            delattr(model, _PARTS)

    @contextmanager
    def _in_one_piece_again(self) -> Iterator[None]:
        """Gathers a sharded model where all processes end at the same step."""
        together = True
        try:
            yield
        except BaseException as error:
            together = isinstance(error, NotFinite | NoStepLeft)
            raise
        finally:
            if self.shards is not None:
                if together:
                    self.left_at = None
                self.shards.end(gather=together)
                self.shards = None

    def _shard(self, made: Any) -> None:
        """Now, when a checkpoint was read and no optimizer is made."""
        if made is not None:
            raise InvalidInputError("fsdp: an optimizer made before holds the whole model")
        given = self.optimizer_cls_and_kwargs
        kind, _ = given or self.get_optimizer_cls_and_kwargs(self.args, self.model)
        if not str(kind.__module__).startswith("torch.optim."):
            raise InvalidInputError(f"fsdp: {kind.__name__} is no optimizer of torch's own")
        self.shards, self.left_at = Sharded(self.model), int(self.state.global_step)
        # What it wraps a model in would take care of the gradients a second time.
        prepare: Any = self.accelerator.prepare_model
        self.accelerator.prepare_model = partial(prepare, evaluation_mode=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.shards is None:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        state = on_tensors_of(cast(Any, self.model).state_dict(), distributed.whole)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            apart = {name: tensor.detach().clone() for name, tensor in state.items()}
            save_file(apart, folder / "model.safetensors", {"format": "pt"})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards is not None and not self.args.should_save:
            cast(Any, self.optimizer).state_dict()  # the main process needs this one's part
        super()._save_optimizer_and_scheduler(output_dir)

    @contextmanager
    def _without_parts(self) -> Iterator[None]:
        model: Any = self.model
        if not hasattr(model, _PARTS):
            yield
            return
        delattr(model, _PARTS)
        try:
            yield
        finally:
            setattr(model, _PARTS, self.objective.parts)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with self._without_parts():
            super()._save(output_dir, state_dict)
        if self.objective.parts is not None and self.args.should_save:
            file = Path(output_dir or str(self.args.output_dir), _PARTS_FILE)
            tensors = self.objective.parts.state_dict().items()
            save_file({name: tensor.contiguous() for name, tensor in tensors}, file)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._without_parts():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.objective.parts is not None:
            self.objective.parts.load_state_dict(
                load_file(Path(resume_from_checkpoint, _PARTS_FILE))
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means of the objective's named numbers since the last time."""
        named = self.named.items()
        means = {name: float(torch.stack(values).double().mean()) for name, values in named}
        self.named.clear()
        super().log({**logs, **means}, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: transformers would walk through all modules in each step for an estimate."""
        return 0

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed_names(model)

    def create_optimizer(self, model: Any = None) -> Any:
        before = self.optimizer_cls_and_kwargs
        made: Any = self.optimizer
        if self.sharded and self.shards is None:
            self._shard(made)
        if made is None:
            target = self.model if model is None else model
            kind, options = before or self.get_optimizer_cls_and_kwargs(self.args, target)
            if _takes_groups(kind, options):
                given = (self.args.learning_rate, self.args.weight_decay)
                groups = self.objective.groups(target, *given)
                if groups is None:
                    groups = self.parametrization.groups(target, *given)
                check_groups(target, groups)
                options = {**options, "params": _split_by_mesh(groups)}
                self.optimizer_cls_and_kwargs = kind, options
            elif self.parametrization != Standard():
                raise InvalidInputError(
                    f"{getattr(kind, '__name__', kind)} makes groups of its own, so it takes no "
                    "parametrization"
                )
        try:
            optimizer = super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = before
        if self.shards is not None:
            self.shards.share_state(optimizer)
        if made is None or not self.learning_rates:
            self.learning_rates = [float(group["lr"]) for group in optimizer.param_groups]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        made: Any = getattr(self, "lr_scheduler", None)
        optimizer = self.optimizer if optimizer is None else optimizer
        rates = self.learning_rates or [float(group["lr"]) for group in optimizer.param_groups]
        if made is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        if not self.one_cycle:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            _scale_bounds(scheduler, rates, self.args)
            return scheduler
        self.lr_scheduler: Any = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps=num_training_steps
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler


def _takes_groups(kind: Any, options: Mapping[str, Any]) -> bool:
    """Whether an optimizer takes groups; GaLore, LOMO, Muon and the like make their own."""
    of_torch = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    return of_torch and not options.keys() & {"params", "model", "optimizer_dict"}


def _split_by_mesh(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups whose parameters lie on one mesh of devices each: a fused step takes no others."""
    split: list[dict[str, Any]] = []
    for group in groups:
        by_mesh: dict[Any, list[Tensor]] = {}
        for parameter in group["params"]:
            by_mesh.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
        split += [{**group, "params": parameters} for parameters in by_mesh.values() or [[]]]
    return split


def _scale_bounds(scheduler: Any, rates: list[float], arguments: Any) -> None:
    """Gives the bounds of schedules that follow a metric the ratios of the groups, too."""
    factors = [rate / arguments.learning_rate if arguments.learning_rate else 1.0 for rate in rates]
    if set(factors) == {1.0}:
        return
    asked = arguments.lr_scheduler_kwargs or {}
    for name in ("min_lr", "max_lr"):
        bounds = getattr(scheduler, f"{name}s", None)
        if bounds is not None and not isinstance(asked.get(name), list | tuple):
            setattr(scheduler, f"{name}s", [b * f for b, f in zip(bounds, factors, strict=True)])
            scheduler.eps = 0.0  # a step that is small for one group is small for none
