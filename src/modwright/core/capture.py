"""Reads and writes tensors inside a model while it runs; the only place that registers hooks.

A hook point names a tensor by a module and the side of it that the tensor passes. What is read or
written has its channels in the last axis, wherever the module keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from modwright.core.compat.transformers import attention_settings, set_attention
from modwright.core.errors import InvalidInputError

__all__ = ["Call", "HookPoint", "StopForward", "capture", "capture_attention", "channels_last"]
__all__ += ["eager_attention", "first_tensor", "intervene", "on_forward", "on_tensors"]
__all__ += ["token_positions"]

K = TypeVar("K", bound=Hashable)
Side = Literal["input", "output"]


@dataclass(frozen=True)
class HookPoint:
    """Where a tensor can be read while the model runs: an input or output of a module.

    ``axis`` is where its channels lie: last, or 1 where it is a map (b, C, h, w). ``item`` is which
    of several outputs is meant: attentions give their weights beside what they return.
    """

    module: nn.Module
    side: Side
    axis: int = -1
    item: int = 0


class Call(NamedTuple):
    """One call of a module; ``output`` is None where it is seen before the module runs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class StopForward(Exception):
    """What ``see`` raises to end a pass early: nobody needs what would come after."""


@contextmanager
def on_forward(
    modules: Mapping[K, nn.Module], see: Callable[[K, Call], None], side: Side = "output"
) -> Iterator[None]:
    """Calls ``see(name, call)`` before ("input") or after ("output") one of the modules runs.

    A module may have several names. ``see`` changes nothing; what it raises ends the model's pass.
    """

    def hook(name: K) -> Callable[..., None]:
        return lambda module, args, kwargs, output=None: see(name, Call(args, kwargs, output))

    with ExitStack() as stack:
        for name, module in modules.items():
            register: Any = module.register_forward_hook
            if side == "input":
                register = module.register_forward_pre_hook
            stack.callback(register(hook(name), with_kwargs=True).remove)
        yield


@contextmanager
def on_tensors(
    points: Mapping[K, HookPoint], see: Callable[[K, Tensor], None], *, gradients: bool = False
) -> Iterator[None]:
    """Calls ``see(name, tensor)`` whenever a tensor passes one of the points.

    The tensor is a view of the model's own, channels last, and ``see`` changes nothing in it. It is
    detached unless ``gradients`` keeps it in the graph. A module that gives none is passed over.
    """

    def read(name: K, call: Call) -> None:
        value = _tensor_at(call, points[name])
        if value is not None:
            see(name, channels_last(value if gradients else value.detach(), points[name].axis))

    with ExitStack() as stack:
        for side in ("input", "output"):
            there = {name: point.module for name, point in points.items() if point.side == side}
            stack.enter_context(on_forward(there, read, side))
        yield


@contextmanager
def capture(
    points: Mapping[K, HookPoint],
    *,
    gradients: bool = False,
    copy: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[dict[K, Tensor]]:
    """The tensors that passed the points last, by name; it fills while the model runs.

    Args:
        points: by any name.
        gradients: tensors stay in the graph of a model that learns; detached otherwise.
        copy: tensors of their own, which a later step of the model in place cannot change.
        device: where tensors go; where they are by default.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True))
        >>> with capture({"conv": HookPoint(model[0], "output", axis=1)}, copy=True) as seen:
        ...     answer = model(torch.randn(2, 3, 4, 5))
        >>> tuple(seen["conv"].shape), bool((seen["conv"] < 0).any())
        ((2, 4, 5, 8), True)
    """
    seen: dict[K, Tensor] = {}

    def keep(name: K, value: Tensor) -> None:
        seen[name] = value.to(value.device if device is None else device, copy=copy)

    with on_tensors(points, keep, gradients=gradients):
        yield seen


@contextmanager
def intervene(point: HookPoint, f: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Puts ``f`` of what passes a hook point in its place, in every pass within the block.

    What the module is called with, or gives, is changed there alone: a residual connection around
    it keeps what it had. The whole stream passes a block's ``resid_pre`` and ``resid_post``. While
    a model decodes with a cache, ``f`` sees the new positions alone; :func:`token_positions` says
    which they are. Afterwards the model is as it was.

    Args:
        point: of a module that gives a tensor there.
        f: of a copy of the tensor (b, ..., d), channels last; it may work in place. What it returns
            has the same shape and gets the tensor's dtype and device.

    Raises:
        InvalidInputError: while the model runs, for a point without a tensor or another shape.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with intervene(HookPoint(model[0], "output"), torch.zeros_like):
        ...     silenced = model(torch.randn(4, 2))
        >>> torch.equal(silenced, model[1].bias.expand(4, 1))
        True
    """

    def replaced(call: Call) -> Tensor:
        value = _tensor_at(call, point)
        name = type(point.module).__name__
        if value is None:
            raise InvalidInputError(f"intervene: no tensor passes the {point.side} of a {name}")
        seen = channels_last(value, point.axis)
        given = f(seen.clone())
        if not isinstance(given, Tensor) or given.shape != seen.shape:
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InvalidInputError(
                f"intervene: the function gives {got} for {tuple(seen.shape)} at the {point.side} "
                f"of a {name}; it must keep the shape"
            )
        return (given if seen is value else given.movedim(-1, point.axis)).to(value)

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        new = replaced(Call(args, kwargs, None))
        if len(args) > point.item:
            return (*args[: point.item], new, *args[point.item + 1 :]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: new}

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return _with_tensor(output, point.item, replaced(Call(args, kwargs, output)))

    with ExitStack() as stack:
        register: Any = point.module.register_forward_hook
        hook: Any = after
        if point.side == "input":
            register, hook = point.module.register_forward_pre_hook, before
        stack.callback(register(hook, with_kwargs=True).remove)
        yield


@contextmanager
def token_positions(model: nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Which positions of their sequences the tokens of the current pass stand at.

    It gives a function without arguments, for use while the model runs: positions (b, t), counted
    from the first real token; those of padding are below 0. They are right in every step of
    decoding with a cache, where a pass has the newest token alone.

    Args:
        model: the whole model, which is called with ``input_ids`` or what stands for them.

    Example:
        >>> import modwright
        >>> opened = modwright.open("preset:tiny-llama")
        >>> seen = []
        >>> def first_to_zero(h):
        ...     seen.append(where().tolist())
        ...     return h.masked_fill((where() == 0)[..., None], 0)
        >>> point = opened.anatomy.blocks[0].resid_post
        >>> with token_positions(opened.model) as where, intervene(point, first_to_zero):
        ...     _ = opened.model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2)
        >>> seen
        [[[0, 1, 2]], [[3]]]
    """
    now: list[Tensor] = []

    def see(name: str, call: Call) -> None:
        now[:] = [_positions(call)]  # at once: a cache grows while the pass goes on

    def positions() -> Tensor:
        if not now:
            raise InvalidInputError("token_positions: the model has not run")
        return now[0]

    with on_forward({"model": model}, see, "input"):
        yield positions


def _positions(call: Call) -> Tensor:
    tokens, given = first_tensor(call), call.kwargs
    if tokens is None:
        raise InvalidInputError("token_positions: the model is called without tokens")
    count = tokens.shape[1]
    mask, told = given.get("attention_mask"), given.get("position_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= count:
        real = mask.to(tokens.device).long()
        return (real.cumsum(1) - 1).masked_fill(real == 0, -1)[:, mask.shape[1] - count :]
    if isinstance(told, Tensor) and told.dim() == 2:
        return told.to(tokens.device).expand(len(tokens), count)
    cache = given.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    return torch.arange(past, past + count, device=tokens.device).expand(len(tokens), count)


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """The model computes its attention weights as tensors, where it can, while the block lasts.

    Fused functions never hold them. Afterwards every part of the model has its own setting again.
    """
    before = attention_settings(model)
    try:
        for config, _ in before:
            set_attention(config, "eager")
        yield
    finally:
        for config, name in before:
            set_attention(config, name)


@contextmanager
def capture_attention(
    model: nn.Module,
    points: Mapping[K, HookPoint],
    *,
    gradients: bool = False,
    copy: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[dict[K, Tensor]]:
    """Attention weights (b, heads, t, s) by name; the model runs with eager attention meanwhile.

    What gives no weights is left out. Other arguments are those of :func:`capture`.

    Args:
        model: what the points lie in.
        points: of attentions: :attr:`modwright.anatomy.Attention.weights`.

    Example:
        >>> import modwright
        >>> opened = modwright.open("preset:tiny-llama")
        >>> attentions = {b.index: b.attention.weights for b in opened.anatomy.blocks}
        >>> with capture_attention(opened.model, attentions) as seen:
        ...     answer = opened.model(input_ids=torch.ones(1, 5, dtype=torch.long))
        >>> tuple(seen[0].shape), bool(torch.allclose(seen[0].sum(-1), torch.ones(1, 6, 5)))
        ((1, 6, 5, 5), True)
    """
    with (
        eager_attention(model),
        capture(points, gradients=gradients, copy=copy, device=device) as seen,
    ):
        yield seen


def _tensor_at(call: Call, point: HookPoint) -> Tensor | None:
    if not point.item:
        return first_tensor(call, point.side)
    given = call.args if point.side == "input" else call.output
    given = given.to_tuple() if hasattr(given, "to_tuple") else given
    several = isinstance(given, tuple | list) and len(given) > point.item
    value = given[point.item] if several else None
    return value if isinstance(value, Tensor) else None


def _with_tensor(output: Any, item: int, value: Tensor) -> Any:
    """What a module gave, with another tensor among it."""
    if isinstance(output, Tensor):
        return value
    if hasattr(output, "to_tuple"):
        key = [name for name, one in output.items() if one is not None][item]
        return type(output)(**{**output, key: value})
    parts = [*output[:item], value, *output[item + 1 :]]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def first_tensor(call: Call, side: Side = "input") -> Tensor | None:
    """What a module works on, or gives: its first argument, or the first part of its output."""
    if side == "input":
        named = call.kwargs.get("hidden_states", next(iter(call.kwargs.values()), None))
        value = call.args[0] if call.args else named
    else:
        # Also transformers' outputs, which are dictionaries that take a number.
        several = isinstance(call.output, tuple | list) or hasattr(call.output, "to_tuple")
        value = call.output[0] if several and len(call.output) else call.output
    return value if isinstance(value, Tensor) else None


def channels_last(value: Tensor, axis: int) -> Tensor:
    """A view with the channels, which lie at ``axis``, in the last axis."""
    return value if axis in (-1, value.dim() - 1) else value.movedim(axis, -1)
