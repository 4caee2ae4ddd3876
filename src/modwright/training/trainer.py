"""transformers' Trainer with an objective of ours, and averaged weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from modwright.anatomy.projection import linear_layer
from modwright.core.compat.transformers import has_adapters
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.edits.apply import own_tensors
from modwright.training.objectives import Objective
from modwright.training.parametrization import (
    Parametrization,
    Standard,
    check_groups,
    decayed_names,
    parametrization_of,
)

__all__ = ["EMACallback", "ObjectiveTrainer", "learn"]

_MEAN = "mean_weights.safetensors"


def learn(model: nn.Module, apart_from: Sequence[nn.Module] = ()) -> None:
    """Makes a model ready to be trained: what learns is its own, and something learns.

    A model that was edited shares unchanged tensors with its source, and so does a student with the
    teacher that it was made of: those are copied. Parameters that a teacher shares were frozen
    for the teacher's sake, and learn here; where all parameters are frozen, all learn. Others stay
    as they are, and so do tables that the model never trains.

    Args:
        model: changed in place. Parameters that it shared are new objects afterwards, so optimizers
            and masks are made later.
        apart_from: teachers, which keep their tensors; the model itself is refused.

    Warns:
        UserWarning: factor pairs or stacked experts stay frozen beside PEFT adapters.

    Example:
        >>> import modwright
        >>> from modwright.edits import Plan, apply, remove
        >>> teacher = modwright.open("preset:tiny-llama").model.requires_grad_(False)
        >>> anatomy = modwright.Anatomy.of(teacher)
        >>> plan = Plan.of(anatomy, "by hand", remove(anatomy.blocks[0].attention))
        >>> student = apply(teacher, plan).model
        >>> learn(student, apart_from=[teacher])
        >>> all(p.requires_grad for p in student.parameters())
        True
        >>> any(p.requires_grad for p in teacher.parameters())
        False
    """
    if any(teacher is model for teacher in apart_from):
        raise InvalidInputError("the model is its own teacher; give the objective a copy of it")
    never = set(getattr(model, "frozen", ()))
    of_teachers = {id(p) for teacher in apart_from for p in teacher.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if name not in never]
    all_frozen = not any(p.requires_grad for _, p in named)
    thawed = [name for name, p in named if all_frozen or id(p) in of_teachers]
    own_tensors(model, *apart_from)
    for name in thawed:
        parameter = model.get_parameter(name)
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    left = _frozen_beside_adapters(model) if has_adapters(model) else []
    if left:
        more = f" and {len(left) - 3} more" * (len(left) > 3)
        warnings.warn(
            "PEFT has no adapters for parts that are no linear layers, so these stay frozen: "
            f"{', '.join(left[:3])}{more}",
            stacklevel=2,
        )


def _frozen_beside_adapters(model: nn.Module) -> list[str]:
    """Factor pairs and stacked experts that do not learn in a model that has PEFT adapters."""
    left = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        stacked = any(p.dim() == 3 and len(p) > 1 for p in own)
        frozen = not any(p.requires_grad for p in own) and ".base_layer" not in name
        layer = linear_layer(module, name)
        if frozen and (stacked or (layer is not None and layer.is_factored)):
            left.append(name)
    return left


class ObjectiveTrainer(Trainer):
    """Minimizes an objective. Resuming, mixed precision, logging and processes are transformers'.

    What the model shares with others becomes its own before the first step: see :func:`learn`.
    Schedules multiply the learning rate of each group, so groups keep their ratios. All arguments
    but these are those of ``transformers.Trainer``.

    Args:
        objective: called with the model and a batch.
        one_cycle: learning rates rise to their heights over the first part of the steps and fall
            to nothing (torch's OneCycleLR) instead of following the schedule of the arguments.
        parametrization: makes the optimizer's groups, or the name of one that does; None takes the
            objective's own ``parametrization``, else
            :class:`~modwright.training.parametrization.Standard`.
    """

    optimizer_cls_and_kwargs: Any

    def __init__(
        self,
        model: Any,
        *args: Any,
        objective: Objective,
        one_cycle: bool = False,
        parametrization: Parametrization | str | None = None,
        **kwargs: Any,
    ) -> None:
        self.parametrization = parametrization_of(parametrization, objective)
        teacher = getattr(objective, "teacher", None)
        learn(model, () if teacher is None else (teacher,))
        super().__init__(model, *args, **kwargs)
        self.objective, self.one_cycle = objective, one_cycle
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
        loss, named = self.objective(model, inputs)
        for name, value in named.items():
            # Read when it is logged: reading a number waits for the device.
            self.named.setdefault(name, []).append(value.detach())
        if self.args.n_gpu > 1:
            loss = loss.mean()
        return (loss, None) if return_outputs else loss

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
        if made is None:
            target = self.model if model is None else model
            kind, options = before or self.get_optimizer_cls_and_kwargs(self.args, target)
            if _takes_groups(kind, options):
                given = (self.args.learning_rate, self.args.weight_decay)
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


class EMACallback(TrainerCallback):
    """Keeps a running mean of the weights while a model is trained.

    With every checkpoint the mean is stored, too; :meth:`restore` takes it from there. In each step
    ``decay`` of it is kept; the first count for more, as step n keeps (1 + n) / (10 + n) at most.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.mean: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        step = state.global_step
        kept = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name not in self.mean or not tensor.is_floating_point():
                    self.mean[name] = tensor.detach().clone()
                else:
                    self.mean[name].lerp_(tensor, 1 - kept)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        from safetensors.torch import save_file

        whole = {name: tensor.contiguous() for name, tensor in self.mean.items()}
        save_file(whole, Path(args.output_dir, f"checkpoint-{state.global_step}", _MEAN))

    def restore(self, checkpoint: Path) -> None:
        """Takes the mean that was stored with a checkpoint, which must have one."""
        from safetensors.torch import load_file

        if not (checkpoint / _MEAN).is_file():
            raise CheckpointError(f"{checkpoint} holds no mean of the weights")
        self.mean = load_file(checkpoint / _MEAN)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Puts the mean into a model while the context lasts."""
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.mean)
        try:
            yield
        finally:
            model.load_state_dict(before)
