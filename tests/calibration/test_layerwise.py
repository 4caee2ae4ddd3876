"""A walk block by block computes what the model computes, whatever the model and the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from layerwise_cases import (
    Everything,
    Interrupted,
    StopsAfter,
    equal_statistics,
    rows,
    three_rows,
    walk,
    without_mask,
)
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from helpers import edit, number_of_hooks, random_data, snapshot, unchanged
from modwright.anatomy import Anatomy, Block
from modwright.calibration import (
    BlockDistance,
    CalibrationData,
    SecondMoments,
    Similarity,
    TokenWindows,
    from_tensors,
    recording,
)
from modwright.calibration.layerwise import calibrate
from modwright.core.errors import InvalidInputError
from modwright.data.text import Batch, from_sequences
from modwright.edits import Change, keep_heads, keep_neurons, remove, replace_attention
from modwright.surgery import make_method


@contextmanager
def listening(*places: tuple[nn.Module, Callable[..., None]]) -> Iterator[None]:
    """Calls ``(module, args, kwargs, output)`` listeners for as long as it is open."""
    with ExitStack() as stack:
        for module, listener in places:
            handle = module.register_forward_hook(listener, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def own_streams(model: Any, data: CalibrationData) -> tuple[list[Tensor], Tensor]:
    """From the model's own forward: the output of every block, and what follows the last one."""
    anatomy = Anatomy.of(model)
    outputs: list[list[Tensor]] = [[] for _ in anatomy.blocks]
    final: list[Tensor] = []

    def keep(index: int) -> Callable[..., None]:
        def listener(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            outputs[index].append((out[0] if isinstance(out, tuple) else out).flatten(0, 1))

        return listener

    def before_norm(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        final.append(args[0].flatten(0, 1))

    places = [(block.module, keep(i)) for i, block in enumerate(anatomy.blocks)]
    norm = anatomy.outer.get("final_norm")
    if norm is not None:
        places.append((norm.module, before_norm))
    with listening(*places):
        for batch in data:
            model.base_model(**batch.tensors())
    streams = [torch.cat(parts) for parts in outputs]
    return streams, torch.cat(final) if final else streams[-1]


def check_streams(model: Any, statistics: Any, data: CalibrationData) -> None:
    outputs, final = own_streams(model, data)
    for index, stream in enumerate(outputs):
        assert torch.equal(statistics[index]["resid_post"], stream), index
    assert torch.equal(statistics[len(outputs) - 1]["resid_post"], final)


def test_every_stream_is_the_one_of_the_models_own_forward(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    plain = from_tensors(without_mask(three_rows(model)))
    before = snapshot(model)
    statistics = walk(model, Everything(), data=plain)
    check_streams(model, statistics, plain)
    assert unchanged(model, before)
    for index in range(1, len(statistics)):
        before_block = statistics[index]["resid_pre"]
        assert torch.equal(before_block, statistics[index - 1]["resid_post"])


def _absent(anatomy: Anatomy) -> Change:
    return remove(anatomy.blocks[0].attention) + remove(anatomy.blocks[1].mlp)


def _empty(anatomy: Anatomy) -> Change:
    return remove(anatomy.blocks[2].attention) + remove(anatomy.blocks[2].mlp)


def _other_parts(anatomy: Anatomy) -> Change:
    uneven = range(1, anatomy.blocks[1].attention.num_heads)
    return (
        replace_attention(anatomy.blocks[0].attention)
        + keep_heads(anatomy.blocks[1].attention, uneven)
        + keep_neurons(anatomy.blocks[2].mlp, range(10, 30))
    )


@pytest.mark.parametrize("change", [_absent, _empty, _other_parts])
def test_edited_models_walk(tiny: Any, preset: str, change: Callable[[Anatomy], Change]) -> None:
    source = tiny(preset)
    model = edit(source, change(Anatomy.of(source)), check=False).model
    plain = from_tensors(without_mask(three_rows(model)))
    check_streams(model, walk(model, Everything(), data=plain), plain)

    similarity = walk(model, Similarity())
    for block in Anatomy.of(model).blocks:
        there = {name for name, _ in block.sublayers()} | {"block", "tokens"}
        assert similarity[block.index].keys() == there
    grams = walk(model, SecondMoments())
    for block in Anatomy.of(model).blocks:
        assert ("attention" in grams[block.index]) == (block.attention is not None)
        assert ("mlp" in grams[block.index]) == (block.mlp is not None)


@pytest.mark.contract("D4")
@torch.no_grad()
def test_every_argument_of_a_block_is_the_models_own(tiny: Any, reader: str) -> None:
    model = tiny(reader)
    data = from_sequences(rows((9, 6)), 0, side="left", batch_size=2)
    calls: list[dict[str, Any]] = []

    def listener(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        calls.append({**kwargs, **{f"argument {i}": value for i, value in enumerate(args)}})

    modules = [block.module for block in Anatomy.of(model).blocks]
    mask = data.batches[0].attention_mask
    with listening(*((module, listener) for module in modules)):
        model.base_model(
            input_ids=data.batches[0].input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        )
        own, calls = calls, []
        walk(model, Everything(), data=data)
        walked = calls[-len(modules) :]  # the calls before these recorded the arguments
    assert len(own) == len(walked) == len(modules)
    for mine, theirs in zip(own, walked):
        assert mine.keys() == theirs.keys()
        for name in mine:
            check_same(mine[name], theirs[name], name)


def check_same(mine: Any, theirs: Any, name: str) -> None:
    if isinstance(mine, Tensor):
        assert torch.equal(mine, theirs), name
    elif isinstance(mine, tuple):
        assert len(mine) == len(theirs), name
        for one, two in zip(mine, theirs):
            check_same(one, two, name)
    else:
        assert mine == theirs, name


class WarmLayer(LlamaDecoderLayer):
    """A layer of tomorrow: it needs an argument that no layer has today."""

    def forward(self, hidden_states: Tensor, *, warmth: Tensor, **kwargs: Any) -> Any:
        return super().forward(hidden_states * warmth, **kwargs)


class WarmModel(LlamaModel):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        given = {"attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        warmth = torch.tensor(0.5)
        return super().forward(input_ids, use_cache=use_cache, warmth=warmth, **given)


@pytest.mark.contract("D4")
def test_arguments_that_nobody_knows_of_are_passed_on(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.model.__class__ = WarmModel
    for layer in model.model.layers:
        layer.__class__ = WarmLayer
    data = from_sequences(rows(), 0, batch_size=2)
    plain = TokenWindows(tuple(Batch(b.input_ids) for b in data), data.recipe)
    check_streams(model, walk(model, Everything(), data=plain), plain)


def test_a_bare_backbone_walks_without_a_cache(tiny: Any, decoder: str) -> None:
    whole = tiny(decoder)
    bare = whole.base_model
    caches: list[Any] = []

    def listener(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        caches.extend(v for k, v in kwargs.items() if k in ("cache", "past_key_values"))

    with listening((Anatomy.of(bare).blocks[1].module, listener)):
        statistics = walk(bare, Similarity(), Everything())
    assert caches == [None] * len(caches)
    assert equal_statistics(statistics, walk(whole, Similarity(), Everything()))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("collector", [Similarity(), Similarity(drop_norm=False), SecondMoments()])
def test_padding_counts_for_nothing(
    tiny: Any, reader: str, side: str, collector: Similarity | SecondMoments
) -> None:
    model, sequences = tiny(reader), rows((9, 4, 12))
    alone = walk(model, collector, data=from_sequences(sequences, 0, batch_size=1))
    padded = walk(model, collector, data=from_sequences(sequences, 0, side=side, batch_size=3))
    for one, many in zip(alone, padded):
        assert one.keys() == many.keys()
        for name, value in one.items():
            scale = float(value.abs().max())
            assert torch.allclose(value, many[name], rtol=0, atol=2e-5 * scale), name
    assert int(padded[0]["tokens"]) == 25


def test_gaps_count_no_padding(tiny: Any, reader: str) -> None:
    model, sequences = tiny(reader), rows((9, 4, 12))
    alone = walk(model, BlockDistance(3), data=from_sequences(sequences, 0, batch_size=1))
    padded = walk(model, BlockDistance(3), data=from_sequences(sequences, 0, batch_size=3))
    for one, many in zip(alone, padded):
        assert torch.allclose(one["gaps"], many["gaps"], rtol=2e-5)


# What a walk leaves as it was


class _Breaks:
    """A collector whose watch fails at the second block."""

    history = 1

    def start(self, block: Block) -> Any:
        if block.index == 1:
            raise ZeroDivisionError
        return Everything().start(block)

    def describe(self) -> dict[str, Any]:
        return {"collector": "breaks"}

    def bytes(self, block: Block) -> int:
        return 0


def test_a_failure_leaves_the_model_as_it_was(tiny: Any, dense_mlps: str) -> None:
    model = tiny.copy(dense_mlps)
    model.train()
    blocks = Anatomy.of(model).blocks
    own = blocks[2].module.forward
    blocks[2].module.forward = own  # as accelerate's hooks do
    before, hooks = snapshot(model), number_of_hooks(model)
    with pytest.raises(ZeroDivisionError):
        walk(model, SecondMoments(), _Breaks())
    with pytest.raises(Interrupted):
        walk(model, SecondMoments(), progress=StopsAfter(3))
    assert [("forward" in b.module.__dict__) for b in blocks] == [False, False, True, False]
    assert blocks[2].module.__dict__["forward"] is own
    assert number_of_hooks(model) == hooks
    assert model.training and all(module.training for module in model.modules())
    assert unchanged(model, before)


def test_a_failure_while_arguments_are_recorded(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.copy("tiny-llama")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(recording, "_shared", fail)
    with pytest.raises(ZeroDivisionError):
        walk(model, Similarity())
    assert all("forward" not in block.module.__dict__ for block in Anatomy.of(model).blocks)


def test_no_gradients_are_kept(tiny: Any) -> None:
    statistics = walk(tiny("tiny-llama"), Everything())
    assert not any(value.requires_grad for value in statistics[3].values())


# What is refused


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_at_their_block(
    tiny: Any, dense_mlps: str, bad: float
) -> None:
    model = tiny.copy(dense_mlps)
    mlp = Anatomy.of(model).blocks[2].mlp
    assert mlp is not None
    next(mlp.down.module.parameters()).data[0, 0] = bad
    with pytest.raises(InvalidInputError, match="after block 2 are not finite; check the weights"):
        walk(model, Similarity())


def test_no_data_is_refused(tiny: Any) -> None:
    empty = TokenWindows((), {"tokens": 0})
    with pytest.raises(InvalidInputError, match="no calibration data"):
        walk(tiny("tiny-llama"), Similarity(), data=empty)


def test_fault_B20_collectors_that_give_the_same_names_share_a_walk(tiny: Any) -> None:
    model = tiny("tiny-llama")
    together = walk(model, Similarity(), SecondMoments(), BlockDistance(2))
    for collector in (Similarity(), SecondMoments(), BlockDistance(2)):
        kind = collector.describe()["collector"]
        for both, alone in zip(together, walk(model, collector)):
            assert all(torch.equal(both[f"{kind}/{name}"], alone[name]) for name in alone)
    assert together.column("similarity/block") == together.column("block")
    with pytest.raises(
        InvalidInputError, match=r"'attention'.*grams/attention, similarity/attention"
    ):
        together.column("attention")


def test_fault_B20_methods_plan_from_a_shared_walk(tiny: Any) -> None:
    """Each finds its own statistics beside another's of the same names."""
    model = tiny("tiny-llama")
    method = make_method("llm_drop", {"n": 2, "target": "joint"})
    together, alone = walk(model, SecondMoments(), Similarity()), walk(model, Similarity())
    plans = [method.plan_from(Anatomy.of(model), found) for found in (together, alone)]
    assert plans[0].reasons["order"] == plans[1].reasons["order"]


@pytest.mark.parametrize("twin", [Similarity(), Similarity(drop_norm=False)])
def test_fault_B20_one_collector_twice_is_refused_before_anything_runs(
    tiny: Any, twin: Similarity
) -> None:
    progress = StopsAfter()
    with pytest.raises(InvalidInputError, match="the collector 'similarity' is given 2 times"):
        walk(tiny("tiny-llama"), Similarity(), twin, progress=progress)
    assert progress.done == 0


def test_collectors_do_not_see_each_others_hook_points(tiny: Any) -> None:
    model = tiny("tiny-llama")
    together = walk(model, Everything("attention"), Similarity())
    apart = walk(model, Everything("attention"))
    assert torch.equal(together[1]["sublayer_input"], apart[1]["sublayer_input"])
    assert {"attention", "mlp", "sublayer_input"} <= together[1].keys()


def test_progress_counts_every_batch_of_every_block(tiny: Any) -> None:
    progress = StopsAfter()
    walk(tiny("tiny-llama"), Similarity(), progress=progress, label="looking")
    assert (progress.label, progress.done, progress.total) == ("looking", 8, 8)


class FromElsewhere:
    """Blocks of a model whose layers hold no values until they are asked for."""

    def __init__(self, whole: Any, hollow: Anatomy) -> None:
        self.whole, self.hollow = whole, hollow

    def __len__(self) -> int:
        return len(self.hollow.blocks)

    @contextmanager
    def block(self, index: int) -> Iterator[Block]:
        block = self.hollow.blocks[index]
        block.module.to_empty(device="cpu")
        block.module.load_state_dict(Anatomy.of(self.whole).blocks[index].module.state_dict())
        yield block
        block.module.to("meta")


def test_fault_B20_statistics_of_other_weights_in_the_blocks_are_not_taken(
    tiny: Any, tmp_path: Path
) -> None:
    def collect(whole: Any) -> Any:
        hollow = tiny.copy("tiny-llama")
        for layer in hollow.model.layers:
            layer.to("meta")
        anatomy = Anatomy.of(hollow)
        source = FromElsewhere(whole, anatomy)
        data = random_data(whole, count=2, batch_size=2)
        return calibrate(anatomy, data, [Similarity()], directory=tmp_path, blocks=source)

    whole, other = tiny("tiny-llama"), tiny.copy("tiny-llama")
    found = collect(whole)
    direct = calibrate(whole, random_data(whole, count=2, batch_size=2), [Similarity()])
    assert found.column("block") == direct.column("block")
    assert collect(whole).column("block") == found.column("block")
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight.mul_(2)
    with pytest.raises(InvalidInputError, match="holds statistics of another model"):
        collect(other)
