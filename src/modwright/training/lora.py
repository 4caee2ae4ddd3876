"""Low-rank adapters (arXiv 2106.09685), injected before a training and merged after it.

Linear layers that stand in transformers' own modules get PEFT's adapters. Everything else that
multiplies by a matrix gets ours, which changes the matrix itself: factor pairs, stacked experts,
and layers in components, whose code may read a weight instead of calling the layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from modwright.anatomy import Anatomy
from modwright.anatomy.projection import linear_layer
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.core.options import make_options
from modwright.training.parametrization import matching_modules

__all__ = ["Adapters", "Lora", "LowRankDelta", "inject_lora"]

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Lora:
    """Which matrices get adapters, and of which rank.

    Attributes:
        r: the rank; a matrix that is thinner gets less.
        alpha: what is added is multiplied by alpha / r; None for 2 r.
        target: "all-linear", every matrix in the blocks; a selector, such as ``mlp[*]``; or the
            ends of names of modules, separated by commas: ``q_proj, v_proj``.
        modules_to_save: what learns whole beside the adapters, as ``learns`` says it: a fresh
            classifier, ``classifier.*``.

    Raises:
        InvalidInputError: a number that is not above 0.

    Example:
        >>> Lora.of({"r": 8}).scale
        2.0
    """

    r: int = 16
    alpha: float | None = None
    target: str = ALL_LINEAR
    modules_to_save: str = ""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InvalidInputError(f"lora: r is 1 or more, not {self.r}")
        if self.alpha is not None and not self.alpha > 0:
            raise InvalidInputError(f"lora: alpha is above 0, not {self.alpha}")

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> Lora:
        """From the mapping of a recipe."""
        given = dict(options or {})
        if isinstance(given.get("alpha"), int) and not isinstance(given["alpha"], bool):
            given["alpha"] = float(given["alpha"])
        return make_options(cls, "lora", given)

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return (2 * self.r if self.alpha is None else self.alpha) / self.r


class LowRankDelta(nn.Module):
    """W -> W + scale B A, for matrices (..., out, in) of any stack; B begins at 0.

    Args:
        weight: that it is added to; behind the matrices may stand axes of one entry, as 1 x 1
            convolutions have.
        r: the rank, at most the shorter side.
        scale: of what is added.

    Example:
        >>> weight = torch.randn(4, 6, 5)
        >>> delta = LowRankDelta(weight, 2, 1.0)
        >>> tuple(delta.a.shape), tuple(delta.b.shape), bool((delta(weight) == weight).all())
        ((4, 2, 5), (4, 6, 2), True)
    """

    def __init__(self, weight: Tensor, r: int, scale: float) -> None:
        super().__init__()
        shape = weight.shape[:-2] if _is_pointwise(weight) else weight.shape
        *stack, out_features, in_features = shape
        r = min(r, out_features, in_features)
        wide = torch.promote_types(weight.dtype, torch.float32)
        here: dict[str, Any] = {"dtype": wide, "device": weight.device}
        self.scale = scale
        self.a = nn.Parameter(torch.empty(*stack, r, in_features, **here))
        self.b = nn.Parameter(torch.zeros(*stack, out_features, r, **here))
        nn.init.uniform_(self.a, -1 / math.sqrt(in_features), 1 / math.sqrt(in_features))

    def forward(self, weight: Tensor) -> Tensor:
        delta = (self.b @ self.a).mul(self.scale).view_as(weight)
        return weight + delta.to(weight.dtype)


@dataclass(frozen=True)
class Adapters:
    """What was injected.

    Attributes:
        of_peft: names of modules that have PEFT's adapters.
        own: (name of a module, name of its parameter) that have ours.
        left: names of parameters in the targets that have none: they are no matrices.
    """

    model: Any
    of_peft: tuple[str, ...]
    own: tuple[tuple[str, str], ...]
    left: tuple[str, ...]

    @torch.no_grad()
    def merge(self) -> None:
        """Writes what was learned into the weights, and takes the adapters out.

        What the model has in one memory with others is copied first.
        """
        for path in self.of_peft:
            layer = self.model.get_submodule(path)
            base = layer.get_base_layer()
            base.weight = nn.Parameter(base.weight.clone(), base.weight.requires_grad)
            layer.merge(safe_merge=True)
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, base)
        for path, name in self.own:
            module: Any = self.model.get_submodule(path)
            stored = module.parametrizations[name].original
            flag, merged = stored.requires_grad, getattr(module, name).clone()
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            setattr(module, name, nn.Parameter(merged, flag))
        if self.of_peft:
            vars(self.model).pop("peft_config", None)


def inject_lora(model: Any, lora: Lora, *, seed: int = 0, whole: Collection[str] = ()) -> Adapters:
    """Puts adapters into a model in place; nothing but them learns afterwards.

    Before its first step the model says what it said before.

    Args:
        model: of transformers, or one of ours, perhaps edited.
        lora: where and how.
        seed: of the first values of the adapters.
        whole: names of parameters that learn, too; what they are of gets no adapter.

    Raises:
        InvalidInputError: nothing matches the target, or PEFT is missing.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> adapters = inject_lora(model, Lora(r=2, target="mlp[0]"))
        >>> adapters.of_peft[0], sum(p.numel() for p in model.parameters() if p.requires_grad)
        ('model.layers.0.mlp.gate_proj', 864)
        >>> adapters.merge()
    """
    peft_names, own, left = [], [], []
    for path, module in _targets(model, lora.target):
        matrices = [n for n in _matrices(module, path) if f"{path}.{n}" not in whole]
        if matrices and _is_of_peft(model, path, module):
            peft_names.append(path)
            continue
        own += [(path, name) for name in matrices]
        left += [
            f"{path}.{name}"
            for name, p in module.named_parameters(recurse=False)
            if p.dim() > 1 and name not in matrices and f"{path}.{name}" not in whole
        ]
    if not peft_names and not own:
        raise InvalidInputError(f"lora: {lora.target!r} matches no matrix of the model")
    learns = [parameter for name, parameter in model.named_parameters() if name in whole]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if peft_names:
            _inject_peft(model, peft_names, lora)
        for path, name in own:
            module = model.get_submodule(path)
            delta = LowRankDelta(getattr(module, name), lora.r, lora.scale)
            parametrize.register_parametrization(module, name, delta)
    for parameter in learns:  # PEFT freezes all but its own
        parameter.requires_grad_(True)
    return Adapters(model, tuple(peft_names), tuple(own), tuple(left))


def _inject_peft(model: Any, names: list[str], lora: Lora) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InvalidInputError("lora needs the package peft: pip install peft") from error
    transposed = {type(model.get_submodule(name)) is Conv1D for name in names}
    if len(transposed) > 1:
        raise InvalidInputError("lora: linear layers and transposed ones are not adapted together")
    exactly = "|".join(re.escape(name) for name in names)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.scale * lora.r,
        target_modules=f"({exactly})",
        fan_in_fan_out=True in transposed,
    )
    inject_adapter_in_model(config, model)


def _targets(model: Any, target: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a target means, by name."""
    if target == ALL_LINEAR:
        inside = {id(module) for module in _in_blocks(model)}
        chosen = [(n, m) for n, m in model.named_modules() if id(m) in inside]
    elif "[" in target:
        inside = {id(module) for module in matching_modules(model, target)}
        chosen = [(n, m) for n, m in model.named_modules() if id(m) in inside]
    else:
        ends = [word.strip() for word in target.split(",") if word.strip()]
        chosen = [
            (n, m)
            for n, m in model.named_modules()
            if any(n == end or n.endswith(f".{end}") for end in ends)
        ]
    yield from chosen


def _in_blocks(model: Any) -> Iterator[nn.Module]:
    """What stands in the blocks; without known blocks, all but the head."""
    try:
        for block in Anatomy.of(model).blocks:
            yield from block.module.modules()
    except UnsupportedArchitecture:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        yield from (module for module in model.modules() if module is not head)


def _matrices(module: nn.Module, path: str) -> Iterator[str]:
    """Names of a module's own parameters that it multiplies by."""
    if isinstance(module, nn.Embedding):
        return
    layer = linear_layer(module, path)
    if layer is not None:
        yield from (name for name, tensor in layer.parameters().items() if tensor.dim() > 1)
        return
    if not isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and len(parameter) > 1:  # stacked experts
                yield name


def _is_of_peft(model: nn.Module, path: str, module: nn.Module) -> bool:
    """A layer as torch or transformers has it, which transformers' own code calls."""
    if type(module) not in (nn.Linear, Conv1D):
        return False
    parent = model.get_submodule(path.rpartition(".")[0])
    return type(parent).__module__.startswith("transformers.")


def _is_pointwise(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[-2:] == (1, 1)
