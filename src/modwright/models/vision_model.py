"""What every model of images here has in common: config, checks, layouts, initialization."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from modwright.core.compat.transformers import is_wholly_loaded
from modwright.core.errors import CheckpointError, InvalidInputError, refusing
from modwright.core.modes import eval_mode
from modwright.models.source_configs import ConfigMap, same_value
from modwright.models.state_dict_converter import StateDictConverter
from modwright.nn.deploy import reparameterize_
from modwright.nn.grid_positions import LearnedGrid, LearnedTable
from modwright.nn.layouts import SpatialShape
from modwright.nn.relative_position_bias import RelativePositionBias
from modwright.nn.residual import ScaledResidual

__all__ = ["VisionConfig", "VisionModel", "check_count"]


_RAISED = (ValueError, TypeError, ArithmeticError, IndexError, RuntimeError)
"""What plain parts and torch say to sizes of which no model can be built."""


def _refuses(cls: type, name: str) -> None:
    """Lets a method that a class defines refuse what plain parts and arithmetic choke on."""
    work = vars(cls).get(name)
    if work is None:
        return

    @functools.wraps(work)
    def refusing_work(self: Any, *args: Any, **kwargs: Any) -> None:
        config = self if isinstance(self, PreTrainedConfig) else kwargs.get("config") or args[0]
        with refusing(kinds=_RAISED, where=lambda: _named(config)):
            work(self, *args, **kwargs)

    setattr(cls, name, refusing_work)


def _named(config: Any) -> str:
    """The architecture, and those of its fields that are most likely wrong."""
    values = {name: getattr(config, name, None) for name in type(config).field_names()}
    low = {
        name: value
        for name, value in values.items()
        if name != "num_labels" and any(_is_low(one) for one in _listed(value))
    }
    shown = ", ".join(f"{name} {value}" for name, value in low.items())
    return f"{config.model_type}, whose {shown} is below 1" if low else str(config.model_type)


def _listed(value: Any) -> Sequence[Any]:
    return (value or [0]) if isinstance(value, list | tuple) else [value]


def _is_low(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < 1


@strict
class VisionConfig(PreTrainedConfig):
    """Fields that all of them have.

    Fields are called as those of transformers' models are: ``hidden_size``, or ``hidden_sizes`` per
    stage, ``num_heads``, ``depths``. ``attribute_map`` of an architecture has the words of its
    paper or of timm for them: they can be read, set and given under those, too, and are written
    under the field's own name.

    Attributes:
        image_size: side of the image, or [height, width]. Models without positions take others.
        num_channels: of the image.
    """

    image_size: int | list[int] | tuple[int, ...] = 224
    num_channels: int = 3

    # Fields that files of older versions do not have -> the field whose value they had instead.
    stands_for: ClassVar[Mapping[str, str]] = {}

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

        Raises:
            InvalidInputError: a field is given under two names, with different values.

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
        _refuses(cls, "__post_init__")
        super().__init_subclass__(**kwargs)
        by_own_names = cls.__init__

        @functools.wraps(by_own_names)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            by_own_names(self, *args, **cls.canonical_fields(kwargs))

        cls.__init__ = __init__  # type: ignore[method-assign]

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("edits"):  # the config with edits takes them before they come here
            raise CheckpointError(
                "the checkpoint carries edits; open it with an Auto class of transformers after "
                f"`import modwright`, not as a {type(self).__name__}"
            )
        super().__post_init__(**kwargs)

    @property
    def size(self) -> SpatialShape:
        """(height, width)."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else (side[0], side[1])

    @staticmethod
    def check_multiples(step: int, height: int, width: int) -> None:
        """Refuses images whose sides are no multiples of ``step`` pixels."""
        if height % step or width % step:
            raise InvalidInputError(
                f"images must be multiples of {step} pixels, not {height} x {width}"
            )

    def per_stage(self, stages: int, *names: str) -> None:
        """Fields with an entry per stage: one number or name stands for all stages.

        Raises:
            InvalidInputError: a list has another number of entries.
        """
        for name in names:
            value = getattr(self, name)
            listed = list(value) if isinstance(value, list | tuple) else [value] * stages
            if len(listed) != stages:
                raise InvalidInputError(
                    f"{name} has {len(listed)} entries for {stages} stages of depths"
                )
            setattr(self, name, listed)

    @classmethod
    def field_names(cls) -> list[str]:
        """Names that its constructor takes and that mean something to a model of this kind."""
        inherited = {field.name for field in fields(PreTrainedConfig)}
        return sorted(["dtype", *(f.name for f in fields(cls) if f.name not in inherited)])


class VisionModel(PreTrainedModel):
    """A model that takes images (B, C, H, W).

    A subclass builds its parts and calls ``post_init()``.
    """

    config_class = VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]
    min_size = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What plain parts raise while a model is built from its config becomes a refusal.

        So it does on every road to a model: by name, by an Auto class, from a checkpoint, in an
        edit.
        """
        super().__init_subclass__(**kwargs)
        _refuses(cls, "__init__")

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

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's word for ``gradient_checkpointing_enable``."""
        if enable:
            self.gradient_checkpointing_enable()
        else:
            self.gradient_checkpointing_disable()

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
        """A tensor of another model of this kind, its positions resized to this one's grid.

        Args:
            name: of the tensor here.
            table: as it is stored there.
            old: the grid of a table of tokens, the window of a table of offsets; a square unless it
                is said.
        """
        module = self.get_submodule(name.rpartition(".")[0])
        tables = LearnedGrid | LearnedTable | RelativePositionBias
        return module.fit(table, old) if isinstance(module, tables) else table

    def no_weight_decay(self) -> set[str]:
        """Parameters that decay would only pull towards nothing: positions, tokens, scalars."""
        places = (LearnedGrid, LearnedTable, RelativePositionBias, ScaledResidual)
        names = {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if isinstance(module, places)
            for name, _ in module.named_parameters(recurse=False)
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
        """A normal distribution cut at two; architectures with another rule replace it."""
        nn.init.trunc_normal_(linear.weight, std=0.02)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)

    def initialize_conv(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        """torch's own rule; architectures with another one replace it."""
        conv.reset_parameters()


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is no whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInputError(f"{name} is a whole number of at least {least}, not {value!r}")
