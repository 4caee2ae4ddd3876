"""Components as hosts call them: what they are handed, what they return, what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache, StaticCache

from helpers import edit
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy, OpaqueMixer
from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace, part_names
from modwright.edits.hf_adapters import Adapted, host, keeps_state, padding_in, states_in
from modwright.edits.registry import build_part
from modwright.nn.component import COMPONENTS, component, component_of
from modwright.nn.layouts import call_in_layout, to_feature_map, to_tokens

LENGTH = 5
REAL = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()


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


def adapted(name: str, role: str = "attention", pairs: bool = True) -> Any:
    module: Any = host(COMPONENTS[name].make(), COMPONENTS[name], role, pairs)
    module.layer_idx = 0
    return module


def visible(real: Tensor = REAL, seen: int = 0, total: int | None = None) -> Tensor:
    """A causal mask of scores (B, 1, L, S) over ``seen`` tokens before, all real, and the new."""
    length = real.shape[1]
    columns = torch.ones(len(real), total or seen + length, dtype=torch.bool)
    columns[:, seen : seen + length] = real
    causal = torch.ones(length, columns.shape[1], dtype=torch.bool).tril(seen)
    return (causal & columns.unsqueeze(1)).unsqueeze(1)


def additive(mask: Tensor, lowest: float) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, lowest)


MASKS: dict[str, tuple[Any, int, bool]] = {
    "rows": (REAL.long(), 0, False),
    "rows of truth values": (REAL, 0, False),
    "rows with tokens before": (nn.functional.pad(REAL.long(), (3, 0), value=1), 3, False),
    "rows of a static cache": (nn.functional.pad(REAL.long(), (3, 4), value=1), 3, True),
    "scores": (visible(), 0, False),
    "scores with tokens before": (visible(seen=3), 3, False),
    "scores of a static cache": (visible(seen=3, total=12), 3, True),
    "scores of an empty static cache": (visible(total=12), 0, True),
    "scores for several heads": (visible().expand(-1, 3, -1, -1), 0, False),
    "one row of scores": (REAL.view(2, 1, 1, LENGTH), 0, False),
    "added to scores": (additive(visible(seen=3), torch.finfo(torch.float32).min), 3, False),
    "added to scores, infinite": (additive(visible(), -torch.inf), 0, False),
    "added to scores, as older models do": (additive(visible(), -1e4) - 3.0, 0, False),
    "a window of 2": (visible() & torch.ones(LENGTH, LENGTH).triu(-1).bool(), 0, False),
    "sees later tokens": (REAL.view(2, 1, 1, LENGTH).expand(2, 1, LENGTH, LENGTH), 0, False),
}


@pytest.mark.parametrize("name", MASKS)
def test_the_padding_is_read_from_a_mask_of_any_form(name: str) -> None:
    mask, seen, static = MASKS[name]
    found = padding_in(mask, 2, LENGTH, seen, static=static)
    assert found is not None and found.dtype == torch.bool and torch.equal(found, REAL)


def test_one_new_token_is_read_from_its_column() -> None:
    new = torch.tensor([[True], [False]])
    for mask, static in ((visible(new, seen=4), False), (visible(new, seen=4, total=9), True)):
        assert torch.equal(padding_in(mask, 2, 1, 4, static=static), new)


def test_a_block_mask_is_asked_for_each_token() -> None:
    def see(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & REAL[b, k]

    mask = create_block_mask(see, 2, None, LENGTH, LENGTH, device="cpu")
    assert torch.equal(padding_in(mask, 2, LENGTH), REAL)


def test_without_a_mask_all_tokens_are_real() -> None:
    assert padding_in(None, 2, LENGTH) is None


def test_a_mask_of_one_row_stands_for_the_batch() -> None:
    assert padding_in(visible()[:1], 2, LENGTH).tolist() == [[True] * LENGTH] * 2


@pytest.mark.parametrize("shape", [(2, 4), (2, 5, 5), (5,), (2, 1, 5, 4)])
def test_a_mask_that_tells_no_padding_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="does not tell which of 5 tokens are real"):
        padding_in(torch.ones(shape, dtype=torch.bool), 2, LENGTH)


def test_packed_sequences_are_refused() -> None:
    apart = torch.tensor([0, 0, 1, 1, 1])
    mask = visible(torch.ones_like(REAL)) & (apart == apart.unsqueeze(1))
    with pytest.raises(InvalidInputError, match="several packed sequences"):
        padding_in(mask, 2, LENGTH)
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
    adapted("asks")(x, (1, 5), position_embeddings=())  # as blocks of image models tell it


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
    assert isinstance(adapted(name, role, pairs=False)(torch.zeros(1, 2, 4)), Tensor)


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
    component("keys", "token_mixer", state="keys")(type("K", (Plain,), {}))
    component("channel_state", "channel_mixer", state="recurrent")(State)
    for name, role, told in (
        ("plain", "mlp", "is a token_mixer, which stands at attention, not at mlp"),
        ("plain_channels", "attention", "is a channel_mixer, which stands at mlp"),
        ("norm_like", "mlp", "is a norm, which stands inside another part"),
        ("maps", "attention", "reads feature maps"),
        ("keys", "attention", "keeps keys and values"),
        ("channel_state", "mlp", "asks for state, which no host hands over at mlp"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            host(COMPONENTS[name].make(), COMPONENTS[name], role, True)


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
    module = adapted("plain_channels", "mlp", pairs=False)
    x = torch.randn(2, 4, 3, 5)
    found = call_in_layout(module, x, (3, 5), "map")
    torch.testing.assert_close(found, to_feature_map(module.inner(to_tokens(x)), (3, 5)))
    component("of_both", "channel_mixer", reads="either")(type("Both", (Plain,), {}))
    assert not hasattr(adapted("of_both", "mlp"), "layout")


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
