"""Models of images are known by their modules: a user's own as those of this library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

import modwright
from anatomy.test_between import check_every_parameter_is_in_one_part
from helpers import edit, outputs
from models.tiny import TINY, tiny
from modwright.anatomy import Anatomy, Family, register_family
from modwright.anatomy.families import BY_MODULES, MODEL_TYPES, families, family_of
from modwright.anatomy.families.recognition import recognized
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.core.registry import registries_restored
from modwright.cost import count, forward_macs, inspect
from modwright.edits import keep_neurons, remove
from modwright.models.vision_model import token_block
from modwright.nn.block import BlockSequence
from modwright.nn.layouts import to_feature_map, to_tokens
from modwright.nn.stems.conv_stem import PatchMerging
from modwright.nn.token_mixers.window_attention import WindowAttention


class OwnConfig(PreTrainedConfig):
    """Not one of this library's configs: it says what its model needs."""

    model_type = "users_pyramid"
    image_size: int = 16
    num_channels: int = 3
    widths: list[int] | tuple[int, ...] = (8, 16)
    depths: list[int] | tuple[int, ...] = (2, 1)


class Own(PreTrainedModel):
    """Stages and the ways between them take turns in one list, under names of its own."""

    config_class = OwnConfig
    main_input_name = "pixel_values"

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        first, second = config.widths
        self.patches = nn.Conv2d(config.num_channels, first, 2, 2)
        self.levels = nn.ModuleList(
            [
                _level(first, config.depths[0]),
                PatchMerging(first, second),
                _level(second, config.depths[1]),
            ]
        )
        self.last = nn.LayerNorm(second)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def forward(self, pixel_values: Tensor, **ignored: Any) -> BaseModelOutput:
        x = self.patches(pixel_values)
        for level in self.levels:
            shape = (x.shape[2], x.shape[3])
            whole = isinstance(level, BlockSequence)
            x = to_feature_map(level(to_tokens(x), shape), shape) if whole else level(x)
        return BaseModelOutput(last_hidden_state=self.last(to_tokens(x)))


def _level(width: int, depth: int) -> BlockSequence:
    return BlockSequence(
        [token_block(width, WindowAttention(width, 2, (2, 2)), 2.0) for _ in range(depth)]
    )


@pytest.fixture
def own() -> Iterator[Any]:
    AutoConfig.register(OwnConfig.model_type, OwnConfig, exist_ok=True)
    AutoModel.register(OwnConfig, Own, exist_ok=True)
    torch.manual_seed(0)
    yield Own(OwnConfig()).eval()


def test_no_list_names_the_architectures_of_this_library() -> None:
    assert not set(TINY) & set(families())
    assert set(BY_MODULES.names()) == {"vision", "hierarchical_vision"}


STAGED = {"craft", "fmvit", "metaformer", "smt", "sret", "swin_transformer"}


@pytest.mark.parametrize("kind", sorted(set(TINY) - {"residual_network"}))
def test_a_model_and_its_config_alone_have_one_family(kind: str) -> None:
    model = tiny(kind)
    wanted = "hierarchical_vision" if kind in STAGED else "vision"
    assert Anatomy.of(model).family.name == wanted
    assert family_of(type(model.config)(**TINY[kind])).name == wanted


def test_a_users_own_architecture_is_opened_counted_and_edited(own: Any, tmp_path: Path) -> None:
    anatomy = Anatomy.of(own)
    assert anatomy.family.name == "hierarchical_vision"
    assert [b.at("attention").address for b in anatomy.blocks] == [
        f"blocks.{i}.attention" for i in range(3)
    ]
    assert list(anatomy.outer) == ["patches", "last", "between.1.norm", "between.1.map"]
    check_every_parameter_is_in_one_part(own)
    counted = count(own)
    assert counted.parameters == sum(p.numel() for p in own.parameters())
    assert counted.prefill_macs == forward_macs(own, 1, 3, 16, 16)
    assert "16 x 16 pixels" in inspect(own).image
    change = remove("blocks.0.attention") + keep_neurons(anatomy.blocks[1].mlp, range(9))
    result = edit(own, change).model
    assert family_of(result.config).name == "hierarchical_vision", "its config tells it, too"
    result.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(outputs(again), outputs(result))
    assert Anatomy.of(again).blocks[1].mlp.intermediate_size == 9


def test_what_is_registered_by_name_goes_before(own: Any) -> None:
    with registries_restored():

        @register_family
        class Named(Family):
            name = "named"
            model_types = (OwnConfig.model_type,)
            outer = {"blocks": "levels"}
            block = {"attention": "mixer", "mlp": "mlp"}

        assert family_of(own.config).name == "named"
    assert family_of(own.config).name == "hierarchical_vision"


def test_a_users_family_may_know_its_models_by_their_modules() -> None:
    class Odd(nn.Module):
        pass

    class OddConfig:
        model_type = "odd"

    with registries_restored():

        @register_family
        class ByOdd(Family):
            name = "by_odd"
            model_types = ()
            outer = {"blocks": "levels"}
            block = {}

            @classmethod
            def recognizes(cls, model: nn.Module) -> bool:
                return isinstance(model, Odd)

        assert isinstance(family_of(OddConfig(), Odd()), ByOdd)
        with pytest.raises(InvalidInputError, match="called 'by_odd' is registered already"):

            @register_family
            class Other(Family):
                name = "by_odd"
                model_types = ()

    assert "by_odd" not in BY_MODULES.names() and "odd" not in MODEL_TYPES.names()


def test_a_network_of_convolutions_is_told_by_its_modules() -> None:
    model = tiny("residual_network")
    with pytest.raises(UnsupportedArchitecture, match="it has no attention and no MLP") as refusal:
        Anatomy.of(model)
    assert "\n" not in str(refusal.value)
    from transformers import ResNetConfig, ResNetModel

    sizes = {"depths": [1], "hidden_sizes": [8], "embedding_size": 8}
    with pytest.raises(UnsupportedArchitecture, match="a network of convolutions"):
        Anatomy.of(ResNetModel(ResNetConfig(**sizes, layer_type="basic")))


def test_models_of_transformers_are_not_built_to_be_looked_at() -> None:
    config = AutoConfig.for_model("rwkv", hidden_size=8, num_hidden_layers=1)
    assert recognized(config, None, BY_MODULES.all().values()) is None
    with pytest.raises(UnsupportedArchitecture, match="models of images that consist of"):
        family_of(config)
    assert modwright.register_family is register_family
