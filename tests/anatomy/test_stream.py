"""Who writes to the residual stream and who reads it: every family's lists, held to behavior."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import outputs, worst
from modwright.anatomy import Anatomy, Projection

PRE_LAYER_NORM = ("tiny-gpt2", "tiny-gpt-neox", "tiny-opt", "tiny-vit")


def test_every_map_of_a_block_either_writes_or_reads(tiny: Any, preset: str) -> None:
    anatomy = Anatomy.of(tiny(preset))
    stream = anatomy.stream
    touched = [w.address for w in stream.writers] + [r.part.address for r in stream.readers]
    assert len(set(touched)) == len(touched)
    maps = [
        projection.address
        for block in anatomy.blocks
        for _, sublayer in block.sublayers()
        for projection in sublayer.projections().values()
    ]
    assert {address for address in touched if address.startswith("blocks.")} == set(maps)
    width = anatomy.hidden_size
    for writer in stream.writers:
        stored = writer.parameters()
        assert "weight" in stored or not isinstance(writer, Projection)
        for name, axis in writer.output_axes.items():
            assert name not in stored or stored[name].shape[axis] == width, writer
    for reader in stream.readers:
        for name, axis in reader.part.input_axes.items():
            assert reader.part.parameters()[name].shape[axis] == width, reader


@pytest.mark.parametrize("pre_norm", PRE_LAYER_NORM)
def test_a_constant_on_what_is_written_changes_nothing(tiny: Any, pre_norm: str) -> None:
    """LayerNorm takes the mean away, so the axes are right if nothing moves, and only then."""
    model = tiny.copy(pre_norm, dtype=torch.float64, tie_word_embeddings=False)
    before = outputs(model)
    anatomy = Anatomy.of(model)
    for writer in anatomy.stream.writers:
        for name, axis in writer.output_axes.items():
            stored = writer.parameters()
            if name in stored:
                per_entry = torch.randn_like(stored[name].select(axis, 0)).unsqueeze(axis)
                anatomy.write(f"{writer.address}.{name}", stored[name] + per_entry)
    assert worst(outputs(model), before) < 1e-6
    for writer in anatomy.stream.writers[-1:]:
        weight = writer.parameters()["weight"]
        anatomy.write(f"{writer.address}.weight", weight + torch.randn_like(weight))
    assert worst(outputs(model), before) > 1e-2


@pytest.mark.parametrize("pre_norm", PRE_LAYER_NORM)
def test_readers_read_through_their_norms(tiny: Any, pre_norm: str) -> None:
    """Another gain of a norm is undone in its readers, and in them alone."""
    model = tiny.copy(pre_norm, dtype=torch.float64, tie_word_embeddings=False)
    before = outputs(model)
    anatomy = Anatomy.of(model)
    stream = anatomy.stream
    for norm in stream.norms:
        readers = [reader.part for reader in stream.readers if reader.norm is norm]
        if not readers:
            assert norm is stream.last_norm and not stream.is_complete
            continue
        scale = torch.rand(anatomy.hidden_size, dtype=torch.float64) + 0.5
        for name, value in norm.parameters().items():
            norm.write(name, value * scale)
        for part in readers:
            weight = part.parameters()["weight"]
            anatomy.write(f"{part.address}.weight", weight / scale)
    assert worst(outputs(model), before) < 1e-6


def test_post_norms_write_to_the_stream(tiny: Any) -> None:
    for preset in ("tiny-bert", "tiny-opt-post"):
        stream = Anatomy.of(tiny(preset)).stream
        assert not stream.norms and len(stream.norms_within) >= 8
        assert all(reader.norm is None for reader in stream.readers)
    names = [norm.address for norm in Anatomy.of(tiny("tiny-bert")).stream.norms_within]
    assert names[0] == "embed_norm"


def test_a_table_of_another_width_is_read_by_the_map_after_it(tiny: Any) -> None:
    anatomy = Anatomy.of(tiny("tiny-opt", word_embed_proj_dim=24))
    stream = anatomy.stream
    assert [writer.address for writer in stream.writers][:2] == ["positions", "project_in"]
    assert stream.last_reader is not None and stream.last_reader.part.address == "project_out"
    assert "head" not in [reader.part.address for reader in stream.readers]


def test_a_head_that_is_no_part_leaves_the_readers_incomplete(tiny: Any) -> None:
    labels = Anatomy.of(tiny("tiny-gpt2", tiny.classifier("tiny-gpt2"))).stream
    assert not labels.is_complete and labels.last_reader is None
    bare = Anatomy.of(tiny("tiny-gpt2", "AutoModel")).stream
    assert bare.last_reader is None, "what a bare model returns, somebody reads"
    whole = Anatomy.of(tiny("tiny-gpt2")).stream
    assert whole.is_complete and whole.last_reader is not None
    assert whole.last_reader.part.address == "head"
    assert whole.last_norm is not None and whole.last_norm.address == "final_norm"
