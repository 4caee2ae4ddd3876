"""What every model of images here has in common: config, checks, layouts, initialization."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from modwright.core.compat.transformers import is_wholly_loaded
from modwright.core.errors import CheckpointError, InvalidInputError, refusing, unknown_name
from modwright.core.modes import eval_mode
from modwright.models.source_configs import ConfigMap, same_value
from modwright.models.state_dict_converter import StateDictConverter
from modwright.nn.block import Block
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.layouts import SpatialShape
from modwright.nn.reparameterize import reparameterize_

__all__ = ["VisionConfig", "VisionModel", "check_count", "start_normal", "token_block"]


# What plain parts and torch say to sizes of which no model can be built.
_RAISED = (ValueError, TypeError, ArithmeticError, IndexError, RuntimeError)


def _named(config: Any) -> str:
    """The architecture, and those of its fields that are most likely wrong."""
    low = []
    for name in config.field_names():
        value = getattr(config, name, None)
        numbers = (value or [0]) if isinstance(value, list | tuple) else [value]
        if name != "num_labels" and any(type(one) is int and one < 1 for one in numbers):
            low.append(f"{name} {value}")
    return f"{config.model_type}, whose {', '.join(low)} is below 1" if low else config.model_type


class VisionConfig(PreTrainedConfig):
    """Fields that all of them have.

    Fields are called as transformers' are, and mean the same in all architectures: ``hidden_size``
    (channels) or ``hidden_sizes`` per stage, ``depths`` (blocks, or blocks per stage),
    ``num_heads``, ``patch_size`` (a side, in pixels), ``mlp_ratio`` (neurons per channel),
    ``qkv_bias`` (of the maps to queries, keys and values), ``layer_norm_eps``,
    ``layer_scale_init`` (start of a factor per channel; None has none), ``fused`` (the form for
    inference, without batch norms: see ``models.reparameterize``). One entry may stand for all
    stages. ``attribute_map`` has the words of the paper or of timm: fields can be read, set and
    given under those, too, and are written under their own names.

    Attributes:
        image_size: side of the image, or [height, width]. Models without positions take others.
        num_channels: of the image.
    """

    image_size: int | list[int] | tuple[int, ...] = 224
    num_channels: int = 3

    # Fields that files of older versions do not have -> the field whose value they had instead.
    stands_for: ClassVar[Mapping[str, str]] = {}
    size_hint: ClassVar[str] = ""
    inherited_fields: ClassVar[tuple[str, ...]] = ("dtype",)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config of what a file holds; those of older versions mean what they meant."""
        if "transformers_version" in config_dict:
            older = {k: v for k, v in cls.stands_for.items() if k not in config_dict}
            given = {k: config_dict[v] for k, v in older.items() if v in config_dict}
            config_dict = {**config_dict, **given}
        return super().from_dict(config_dict, **cls.canonical_fields(kwargs))

    @classmethod
    def canonical_fields(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the fields' own names; those of ``attribute_map`` stand for them.

        Example:
            >>> from modwright.models.architectures.tnt import TNTConfig
            >>> TNTConfig.canonical_fields({"outer_dim": 24, "num_heads": 3})
            {'hidden_size': 24, 'num_heads': 3}
        """
        found: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, value in given.items():
            own = cls.attribute_map.get(name, name)
            if own in found and not same_value(value, found[own]):
                raise InvalidInputError(
                    f"{cls.model_type}: {names[own]} and {name} are one field, given as "
                    f"{found[own]!r} and {value!r}"
                )
            found[own], names[own] = value, name
        return found

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Fields are taken under all their names; what arithmetic raises becomes a refusal."""
        super().__init_subclass__(**kwargs)
        by_own_names = cls.__init__

        @functools.wraps(by_own_names)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            with refusing(kinds=_RAISED, where=lambda: _named(self)):
                by_own_names(self, *args, **cls.canonical_fields(kwargs))

        cls.__init__ = __init__  # type: ignore[method-assign]

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("edits"):  # the config with edits takes them before they come here
            raise CheckpointError(
                "the checkpoint carries edits; open it with an Auto class of transformers after "
                f"`import modwright`, not as a {type(self).__name__}"
            )
        super().__post_init__(**kwargs)

    @classmethod
    def field_names(cls) -> list[str]:
        """Names that its constructor takes and that mean something to a model of this kind."""
        inherited = {field.name for field in fields(PreTrainedConfig)}
        own = (field.name for field in fields(cls) if field.name not in inherited)
        return sorted([*cls.inherited_fields, *own])

    @property
    def size(self) -> SpatialShape:
        """(height, width)."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else (side[0], side[1])

    @property
    def multiple(self) -> int:
        """What both sides of an image must be multiples of; ``patch_size`` where there is one."""
        return getattr(self, "patch_size", 1)

    @property
    def grid(self) -> SpatialShape:
        """Steps of ``multiple`` pixels in an image, (height, width)."""
        return self.size[0] // self.multiple, self.size[1] // self.multiple

    # What architectures check

    @staticmethod
    def require(holds: bool, otherwise: str) -> None:
        """Refuses a structure for which something does not hold."""
        if not holds:
            raise InvalidInputError(otherwise)

    def check_size(self, height: int, width: int) -> None:
        """Refuses images of a size that the model cannot take."""
        step = self.multiple
        if height % step or width % step:
            told = f"not {height} x {width}{self.size_hint}"
            raise InvalidInputError(f"images must be multiples of {step} pixels, {told}")

    def per_stage(self, stages: int, *names: str) -> None:
        """Makes lists of fields with an entry per stage, where one may stand for all."""
        for name in names:
            value = getattr(self, name)
            listed = list(value) if isinstance(value, list | tuple) else [value] * stages
            told = f"{name} has {len(listed)} entries for {stages} stages of depths"
            self.require(len(listed) == stages, told)
            setattr(self, name, listed)

    def check_names(self, **tables: Collection[str]) -> None:
        """Refuses a field that is no name of its table, nor a list of some, per stage or block."""
        for field, table in tables.items():
            names = getattr(self, field)
            names = names if isinstance(names, list | tuple) else [names]
            for listed in names:
                for name in listed if isinstance(listed, list | tuple) else [listed]:
                    if name not in table:
                        raise unknown_name(field, name, table)

    def check_divides(self, field: str, *widths: int) -> None:
        """Refuses a number that does not divide all widths; a list has one for each."""
        value = getattr(self, field)
        numbers = value if isinstance(value, list | tuple) else [value] * len(widths)
        for number, width in zip(numbers, widths):
            divides = number > 0 and width % number == 0
            self.require(divides, f"{field} {number} does not divide a width of {width}")


class VisionModel(PreTrainedModel):
    """A model that takes images (B, C, H, W). A subclass ends its building by ``post_init()``."""

    config_class = VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]
    min_size = 1
    image_free: tuple[str, ...] = ()  # positions that do not depend on the image's size

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What plain parts raise while a model is built becomes a refusal, on every road to it."""
        super().__init_subclass__(**kwargs)
        if build := vars(cls).get("__init__"):

            @functools.wraps(build)
            def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
                with refusing(kinds=_RAISED, where=lambda: _named(self.config)):
                    build(self, *args, **kwargs)

            cls.__init__ = __init__  # type: ignore[method-assign]

    def post_init(self) -> None:
        """Ends the building: fuses and initializes; notes which parameters are not trained."""
        if getattr(self.config, "fused", False):
            with eval_mode(self):
                reparameterize_(self)
        super().post_init()
        self.frozen = tuple(n for n, p in self.named_parameters() if not p.requires_grad)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """transformers' own; fixed tables stay out of training."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name in model.frozen:  # loading makes all of them trainable
            model.get_parameter(name).requires_grad_(False)
        return loaded

    def check_pixels(self, pixel_values: Tensor) -> None:
        """Refuses what cannot be a batch of images for this model."""
        if pixel_values.dim() != 4:
            shape = tuple(pixel_values.shape)
            raise InvalidInputError(f"images are (batch, channels, height, width), not {shape}")
        channels, height, width = pixel_values.shape[1:]
        if channels != self.config.num_channels:
            raise InvalidInputError(
                f"the model takes {self.config.num_channels} channels, the images have {channels}"
            )
        if min(height, width) < self.min_size:
            raise InvalidInputError(
                f"images must be at least {self.min_size} pixels high and wide, "
                f"not {height} x {width}"
            )
        self.config.check_size(height, width)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's word for ``gradient_checkpointing_enable``."""
        word = "enable" if enable else "disable"
        getattr(self, f"gradient_checkpointing_{word}")()

    @classmethod
    def state_dict_converters(cls, config: Any) -> dict[str, StateDictConverter]:
        """Layouts of other libraries, by name."""
        return {}

    @classmethod
    def config_maps(cls) -> dict[str, ConfigMap]:
        """What the fields of transformers' configs are here, by ``model_type``."""
        return {}

    @classmethod
    def config_from_state_dict(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fields of the config that a file of the paper's authors decides, not its name."""
        return {}

    def interpolate_pos_embed(
        self, name: str, table: Tensor, old: SpatialShape | None = None
    ) -> Tensor:
        """The tensor ``name`` of another model, its positions resized to this one's grid.

        ``old`` is the grid of a table of tokens, or the window of a table of offsets; a square
        unless it is said.
        """
        path = name.rpartition(".")[0]
        fit: Any = getattr(self.get_submodule(path), "fit", None)
        return table if fit is None or path in self.image_free else fit(table, old)

    def no_weight_decay(self) -> set[str]:
        """Parameters that decay would only pull towards nothing: positions, tokens, scalars."""
        names = {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if module is not self
            for name in getattr(module, "no_weight_decay", ())
        }
        return names | {name for name, _ in self.named_parameters() if name.endswith("_token")}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if is_wholly_loaded(module):
            return  # also what reset_parameters writes without torch's initializers
        if isinstance(module, nn.Linear):
            self.initialize_linear(module)
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            self.initialize_conv(module)
        elif isinstance(getattr(module, "reset_parameters", None), type(self._init_weights)):
            module.reset_parameters()  # type: ignore[operator]

    def initialize_linear(self, linear: nn.Linear) -> None:
        """:func:`start_normal`; architectures with another rule replace it."""
        start_normal(linear)

    def initialize_conv(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        """torch's own rule; architectures with another one replace it."""
        conv.reset_parameters()


def start_normal(layer: nn.Linear | nn.Conv1d | nn.Conv2d, std: float = 0.02) -> None:
    """Weights from a normal distribution cut at two, no biases."""
    nn.init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is no whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInputError(f"{name} is a whole number of at least {least}, not {value!r}")


def token_block(
    hidden_size: int,
    mixer: nn.Module | None,
    mlp_ratio: float,
    drop_path: float = 0.0,
    *,
    eps: float = 1e-5,
    mlp: nn.Module | None = None,
    **more: Any,
) -> Block:
    """A block of tokens: layer norms, and an MLP of ``mlp_ratio`` unless it is given."""
    mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio)) if mlp is None else mlp
    norm = functools.partial(nn.LayerNorm, hidden_size, eps=eps)
    return Block(hidden_size, mixer, mlp, norm, drop_path=drop_path, **more)
