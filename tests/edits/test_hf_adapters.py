"""Components as hosts call them: what they are handed, what they return, what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from helpers import edit
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy, OpaqueMixer
from modwright.anatomy.projection import component_module
from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace, part_names
from modwright.edits.hf_adapters import (
    Adapted,
    Handover,
    component_builder,
    host,
    keeps_state,
    states_in,
)
from modwright.edits.registry import build_part, make_part
from modwright.edits.remodeled import edits_of
from modwright.nn import AttentionShape, GroupedAttention, Opaque
from modwright.nn.component import COMPONENTS, component, component_of
from modwright.nn.layouts import call_in_layout, to_feature_map, to_tokens
from modwright.nn.token_mixers.pooling import IdentityMixer

from .masks import LENGTH, REAL, visible


class Asks(nn.Module):
    """Notes what it is handed."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        padding_mask: Tensor | None = None,
        position_embeddings: Any = None,
        spatial_shape: Any = None,
    ) -> Any:
        self.handed = (padding_mask, position_embeddings, spatial_shape)
        return self.inner(x), x.sum(1) + (0 if state is None else state)


class Plain(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        component("asks", "token_mixer", state="recurrent")(Asks)
        component("plain", "token_mixer")(type("PlainMixer", (Plain,), {}))
        component("plain_channels", "channel_mixer")(type("PlainChannels", (Plain,), {}))
        yield


def adapted(name: str, role: str = "attention", convention: str = "transformers") -> Any:
    component = COMPONENTS[name]
    module: Any = host(component.make(), component, role, convention)
    module.layer_idx = 0
    return module


def test_packed_sequences_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="several packed sequences"):
        adapted("asks")(
            torch.zeros(1, 5, 4),
            cu_seq_lens_q=torch.tensor([0, 2, 5]),
            position_embeddings=(),
            spatial_shape=(1, 5),
        )


def test_it_is_handed_what_it_asks_for_and_returns_a_pair() -> None:
    module, x = adapted("asks"), torch.randn(2, LENGTH, 4)
    angles = (torch.zeros(1), torch.ones(1))
    y, weights = module(
        hidden_states=x,
        attention_mask=visible(),
        position_embeddings=angles,
        spatial_shape=(1, 5),
        use_cache=True,
        output_attentions=False,
        anything=3,
    )
    assert weights is None and torch.equal(y, module.inner(x))
    padding, positions, shape = module.handed
    assert torch.equal(padding, REAL) and positions is angles and shape == (1, 5)


@pytest.mark.parametrize("name", ["cache", "past_key_values", "layer_past"])
def test_the_state_goes_through_the_cache_under_any_name(name: str) -> None:
    module, cache, x = adapted("asks"), DynamicCache(), torch.randn(2, LENGTH, 4)
    told: dict[str, Any] = {"position_embeddings": (), "spatial_shape": (1, 5)}
    for first, last in ((0, 2), (2, 5)):
        module(x[:, first:last], REAL[:, :last], **{name: cache}, **told)
        assert torch.equal(module.handed[0], REAL[:, first:last])
    torch.testing.assert_close(cache.layers[0].state, x.sum(1))
    assert cache.get_seq_length() == LENGTH
    module(x, **{name: None}, **told)
    assert cache.get_seq_length() == LENGTH


def test_what_the_host_has_not_is_named() -> None:
    x = torch.zeros(1, 5, 4)
    with pytest.raises(InvalidInputError, match="asks asks for position_embeddings"):
        adapted("asks")(x)
    with pytest.raises(InvalidInputError, match="asks asks for spatial_shape"):
        adapted("asks")(x, position_embeddings=())
    own = adapted("asks", convention="modwright")
    own(x, (1, 5), position_embeddings=())  # as blocks of image models tell it
    assert own.handed == (None, (), (1, 5))


def test_a_padding_reader_without_state_cannot_tell_new_tokens_of_a_static_cache() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
            return x

    component("reads", "token_mixer")(Reads)
    cache = StaticCache.__new__(StaticCache)
    with pytest.raises(InvalidInputError, match="which tokens of a static cache are new"):
        adapted("reads")(torch.zeros(1, 2, 4), visible()[:1, :, :2, :2], cache=cache)
    y, _ = adapted("reads")(torch.zeros(1, 2, 4), REAL[:1, :2], cache=DynamicCache())
    assert y.shape == (1, 2, 4)


@pytest.mark.parametrize(("name", "out"), [("plain", tuple), ("plain_channels", Tensor)])
def test_hosts_take_pairs_from_attentions_alone(name: str, out: type) -> None:
    role = "attention" if name == "plain" else "mlp"
    assert isinstance(adapted(name, role)(torch.zeros(1, 2, 4)), out)
    for convention in ("timm", "modwright"):
        assert isinstance(adapted(name, role, convention)(torch.zeros(1, 2, 4)), Tensor)


def test_the_component_itself_stands_there() -> None:
    """Its class and the names of its tensors are its own, and copies and pickles are alike."""
    module = adapted("asks")
    assert isinstance(module, Asks) and type(module).__name__ == "Asks"
    assert [name for name, _ in module.named_parameters()] == ["inner.weight", "inner.bias"]
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert keeps_state(twin) and twin.handover == module.handover and twin.layer_idx == 0
    assert [path for path, _ in states_in(nn.ModuleDict({"a": nn.Linear(1, 1), "b": module}))] == [
        "b"
    ]


def test_what_stands_there_is_known_as_its_component() -> None:
    def made(width: int = 4) -> nn.Module:
        return nn.Linear(width, width)

    component("made", "token_mixer")(made)
    for name in ("asks", "made"):
        assert component_of(adapted(name)) is COMPONENTS[name]
    assert component_of(nn.Linear(2, 2)) is None


def test_a_component_keeps_what_it_calls_as_it_likes() -> None:
    """Of its class the adapter replaces ``forward`` alone."""
    own = set(vars(Adapted)) - set(vars(type("Nothing", (), {})))
    assert own == {"forward", "__annotations__"}


def test_components_of_other_kinds_and_wishes_are_refused() -> None:
    class State(Plain):
        def forward(self, x: Tensor, state: Any = None) -> Any:
            return x, state

    component("norm_like", "norm")(type("N", (Plain,), {}))
    component("maps", "token_mixer", reads="map")(type("M", (Plain,), {}))
    component("channel_maps", "channel_mixer", reads="map")(type("C", (Plain,), {}))
    component("keys", "token_mixer", state="keys")(type("K", (Plain,), {}))
    component("channel_state", "channel_mixer", state="recurrent")(State)
    for name, role, told in (
        ("plain", "mlp", "is a token_mixer, which stands at attention, not at mlp"),
        ("plain_channels", "attention", "is a channel_mixer, which stands at mlp"),
        ("norm_like", "mlp", "is a norm, which stands inside another part"),
        ("maps", "attention", "reads feature maps .*the tokens there lie on no grid"),
        ("channel_maps", "mlp", "reads feature maps .*and mlp reads tokens"),
        ("keys", "attention", "keeps keys and values"),
        ("channel_state", "mlp", "asks for state, which no host hands over at mlp"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            host(COMPONENTS[name].make(), COMPONENTS[name], role)


def test_a_recurrent_component_that_returns_no_state_is_told_so() -> None:
    class Forgets(nn.Module):
        def forward(self, x: Tensor, state: Any = None) -> Tensor:
            return x

    component("forgets", "token_mixer", state="recurrent")(Forgets)
    with pytest.raises(InvalidInputError, match=r"its forward returns \(y, state\), not a Tensor"):
        adapted("forgets")(torch.zeros(1, 2, 4))


def test_a_state_without_its_sequences_first_is_refused() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor, state: Any = None) -> Any:
            return x, x.new_zeros(7, len(x))

    component("wrong", "token_mixer", state="recurrent")(Wrong)
    with pytest.raises(InvalidInputError, match="1 sequences in its first axis"):
        adapted("wrong")(torch.zeros(1, 2, 4), cache=DynamicCache())


class Turned(nn.Module):
    """Needs what rotary hosts compute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        cos, _ = position_embeddings
        out: Tensor = self.inner(x) * cos.mean(-1, keepdim=True)
        return out


def placed(model: Any, address: str, name: str) -> Change:
    width = Anatomy.of(model).hidden_size
    part = COMPONENTS[name].make(width)
    values = {f"{address}.{n}": t for n, t in part.state_dict().items()}
    return Change((Replace(address, name, {"width": width}),), values)


def test_angles_come_from_hosts_that_turn_queries_and_keys(tiny: Any) -> None:
    component("turned", "token_mixer", causal=True)(Turned)
    applied = edit(tiny("tiny-llama"), placed(tiny("tiny-llama"), "blocks.1.attention", "turned"))
    assert applied.verification is not None and applied.verification.ok
    with pytest.raises(InvalidInputError, match="turned asks for position_embeddings, and the mod"):
        edit(tiny("tiny-gpt2"), placed(tiny("tiny-gpt2"), "blocks.1.attention", "turned"))


@pytest.mark.families("tiny-llama", "tiny-gpt2", "tiny-bert", "tiny-mixtral", "tiny-vit")
def test_channel_mixers_stand_at_the_mlp_of_every_family(tiny: Any, preset: str) -> None:
    source = tiny(preset)
    applied = edit(source, placed(source, "blocks.1.mlp", "plain_channels"))
    assert applied.verification is not None and applied.verification.ok
    part = Anatomy.of(applied.model).blocks[1].at("mlp")
    assert isinstance(part, OpaqueMixer) and component_of(part.module) is not None


@pytest.mark.parametrize("architecture", ["vision_transformer", "t2t_vit"])
def test_image_models_tell_the_shape_of_their_tokens(architecture: str) -> None:
    class Shaped(Plain):
        def forward(self, x: Tensor, spatial_shape: tuple[int, int]) -> Tensor:
            assert 0 <= x.shape[1] - spatial_shape[0] * spatial_shape[1] <= 2  # class tokens first
            return super().forward(x)

    component("shaped", "token_mixer")(Shaped)
    source = tiny_image_model(architecture)
    block = Anatomy.of(source).blocks[-1]
    assert block.attention is not None
    width = block.attention.hidden_size
    part = Shaped(width)
    address = f"{block.address}.attention"
    values = {f"{address}.{n}": t for n, t in part.state_dict().items()}
    applied = edit(source, Change((Replace(address, "shaped", {"width": width}),), values))
    assert applied.verification is not None and applied.verification.ok


@torch.no_grad()
def test_blocks_of_feature_maps_hand_tokens_to_what_reads_tokens() -> None:
    module = adapted("plain_channels", "mlp", "modwright")
    x = torch.randn(2, 4, 3, 5)
    found = call_in_layout(module, x, (3, 5), "map")
    torch.testing.assert_close(found, to_feature_map(module.inner(to_tokens(x)), (3, 5)))


def test_edits_place_components_by_name(tiny: Any) -> None:
    assert {"plain", "plain_channels", "attention"} <= set(part_names())
    with pytest.raises(InvalidInputError, match=r"unknown part 'plane'.*did you mean 'plain'"):
        build_part("plane", None, {})
    with pytest.raises(InvalidInputError, match=r"part 'plain'.*unexpected keyword"):
        build_part("plain", None, {"wide": 3})
    source = tiny("tiny-llama")
    change = placed(source, "blocks.1.attention", "plain")
    applied = edit(source, change + placed(source, "blocks.2.mlp", "plain_channels"))
    assert applied.verification is not None and applied.verification.ok
    blocks = Anatomy.of(applied.model).blocks
    assert isinstance(blocks[1].at("attention"), OpaqueMixer) and blocks[1].attention is None
    assert isinstance(blocks[2].at("mlp"), OpaqueMixer) and blocks[2].mlp is None
    with pytest.raises(InvalidInputError, match="stands at attention, not at mlp"):
        edit(source, placed(source, "blocks.0.mlp", "plain"))


# Components that read maps, and the three conventions


def pooled(x: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """What a pooling makes of tokens, written out."""
    before, positions = x[:, :prefix], x[:, prefix:]
    maps = positions.transpose(1, 2).unflatten(2, grid)
    mixed = nn.functional.avg_pool2d(maps, 3, 1, 1, count_include_pad=False) - maps
    mean = positions.mean(1, keepdim=True)
    return torch.cat([mean - before, mixed.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("convention", ["transformers", "timm", "modwright"])
def test_a_mixer_of_maps_stands_among_tokens_in_every_convention(
    convention: str, prefix: int
) -> None:
    x = torch.randn(2, prefix + 6, 4)
    told = {"layout": "tokens"} if convention == "modwright" else {"grid": [2, 3], "prefix": prefix}
    pool = COMPONENTS["pool"]
    module: Any = host(pool.make(), pool, "attention", convention, told)
    out = module(x, (2, 3)) if convention == "modwright" else module(x)
    mixed = out[0] if convention == "transformers" else out
    torch.testing.assert_close(mixed, pooled(x, (2, 3), prefix))
    assert component_of(module) is pool and torch.equal(copy.deepcopy(module)(x, (2, 3))[0], out[0])


def test_blocks_of_maps_call_mixers_of_either_layout() -> None:
    x, grid = torch.randn(2, 4, 2, 3), (2, 3)
    own = {"layout": "map"}
    pool, plain = COMPONENTS["pool"], COMPONENTS["plain"]
    mixed = host(pool.make(), pool, "attention", "modwright", own)(x, grid)
    assert torch.equal(mixed, pool.make()(x))
    linear: Any = host(plain.make(), plain, "attention", "modwright", own)
    assert linear.layout == "map"
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(linear(x, grid).flatten(2).transpose(1, 2), linear.inner(tokens))
    asks: Any = host(Asks(), COMPONENTS["asks"], "attention", "modwright", own)
    told = asks(x, grid, position_embeddings=())  # one with a state
    assert torch.equal(told.flatten(2).transpose(1, 2), asks.inner(tokens))


@pytest.mark.parametrize("convention", ["transformers", "timm"])
def test_a_mixer_of_maps_without_a_grid_is_refused(convention: str, tiny: Any) -> None:
    pool = COMPONENTS["pool"]
    with pytest.raises(InvalidInputError, match=r"pool reads feature maps .* lie on no grid"):
        host(pool.make(), pool, "attention", convention)
    with pytest.raises(InvalidInputError, match=r"pool reads feature maps .* lie on no grid"):
        edit(tiny("tiny-llama"), Change((Replace("blocks.0.attention", "pool"),)))


def test_the_attention_follows_each_convention() -> None:
    shape = AttentionShape(8, 2, 2, 4, 4, scaling=0.5, causal=False)
    attention = COMPONENTS["attention"]
    plain, x = GroupedAttention(shape), torch.randn(2, 6, 8)
    whole = plain(x)[0]

    def following(convention: str) -> Any:
        return host(copy.deepcopy(plain), attention, "attention", convention)

    assert type(following("transformers")) is GroupedAttention
    timm, own = following("timm"), following("modwright")
    for module in (timm, own):
        assert isinstance(module, GroupedAttention) and component_of(module) is attention
        assert not isinstance(module, Opaque)  # it is read as the attention that it is
    assert torch.equal(timm(x), whole) and torch.equal(own(x, (2, 3)), whole)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    assert torch.equal(timm(x, is_causal=True), plain(x, causal)[0])
    assert torch.equal(timm(x, attn_mask=causal), plain(x, causal)[0])
    assert torch.equal(pickle.loads(pickle.dumps(timm))(x), whole)


def test_a_component_may_lie_below_a_name_of_an_older_checkpoint() -> None:
    depthwise = COMPONENTS["depthwise"]
    told = {"grid": [2, 3], "prefix": 1, "within": "mixer"}
    x, made = torch.randn(1, 7, 4), depthwise.make(hidden_size=4)
    module: Any = host(copy.deepcopy(made), depthwise, "attention", "timm", told)
    assert set(module.state_dict()) == {"mixer.conv.weight", "mixer.conv.bias"}
    assert component_of(module) is depthwise and component_module(module) is module.mixer
    plain = host(made, depthwise, "attention", "timm", {"grid": [2, 3], "prefix": 1})
    assert torch.equal(module(x), plain(x))


def test_a_name_means_what_stands_at_the_place(tiny: Any) -> None:
    """ "identity" is an activation, a token mixer, and what stands for a norm that goes."""
    source = tiny("tiny-llama")
    model = edit(source, Change((Replace("blocks.1.attention", "identity"),))).model
    assert isinstance(model.model.layers[1].self_attn, IdentityMixer)
    assert edits_of(model.config)[0].to_dict()["part"] == "identity"
    assert type(build_part("identity", None, {})) is nn.Identity
    with pytest.raises(InvalidInputError, match="'twice' is a norm and a projection; say which"):
        component("twice", "norm")(type("N", (Plain,), {}))
        component("twice", "projection")(type("P", (Plain,), {}))
        build_part("twice", None, {})


def test_where_nothing_is_registered_a_component_has_what_stood_there_too() -> None:
    class Around(nn.Module):
        def __init__(self, current: nn.Module, config: Any) -> None:
            super().__init__()
            self.inner, self.told = current, config

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out

    told = Handover("around", "token_mixer", (), recurrent=False, pairs=True)
    build, stood, x = (
        component_builder(Around, None, Adapted, told),
        nn.Linear(4, 4),
        torch.ones(1, 4),
    )
    made: Any = make_part(build, None, "config", {}, stood)
    assert made.inner is stood and made.told == "config"
    assert torch.equal(made(x)[0], stood(x)) and made(x)[1] is None
