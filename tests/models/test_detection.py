"""Files find their model: by variant, by classes; what does not fit is named."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.models import create_model, to_checkpoint_format
from modwright.models.detection import detect_variant, import_named, variants_of
from modwright.models.importing import read_weights


@pytest.fixture(scope="module")
def small() -> Any:
    torch.manual_seed(0)
    return create_model("poolformer_s12", num_classes=7)


@pytest.fixture(scope="module")
def official(small: Any) -> dict[str, torch.Tensor]:
    return to_checkpoint_format(small, "official")


def test_a_paper_names_the_variants_of_its_architecture() -> None:
    assert variants_of("deit_tiny_patch16_224") == ["deit_tiny_patch16_224"]
    assert {"t2t_vit_7", "t2t_vit_t_14"} <= set(variants_of("t2t-vit"))
    assert variants_of("t2t_vit") == variants_of("t2t-vit")
    with pytest.raises(
        InvalidInputError, match=r"unknown model 'metaforma'.*did you mean 'metaformer'"
    ):
        variants_of("metaforma")


def test_the_variant_and_the_classes_are_found(official: Any, small: Any) -> None:
    found = import_named("poolformer_s12", official)
    assert (found.variant, found.checkpoint_format) == ("poolformer_s12", "official")
    assert found.model.config.num_labels == 7 and found.fresh == ()
    assert found.tensors == len(official)
    for name, tensor in small.state_dict().items():
        assert found.model.state_dict()[name].equal(tensor), name


def test_of_a_paper_the_variant_that_fits_is_taken(official: Any) -> None:
    large = create_model("craft_x3")
    found = import_named("craft", to_checkpoint_format(large, "official"))
    assert (found.variant, found.checkpoint_format) == ("craft_x3", "official")
    for name, tensor in large.state_dict().items():
        assert found.model.state_dict()[name].equal(tensor), name
    # one that pools and one that does nothing have the same tensors
    with pytest.raises(
        InvalidInputError, match=r"fits 2 models alike.* metaformer_id_s12, poolformer_s12"
    ):
        import_named("metaformer", official)


def test_other_classes_get_a_fresh_classifier(official: Any, small: Any) -> None:
    found = import_named("poolformer_s12", official, num_classes=3)
    assert found.model.config.num_labels == 3
    assert found.fresh == ("head.fc.bias", "head.fc.weight")
    assert found.model.state_dict()["norm.weight"].equal(small.norm.weight)
    assert import_named("poolformer_s12", official, num_classes=0).fresh == ()


def test_what_does_not_fit_is_named(official: Any) -> None:
    lacking = dict(official)
    first = lacking.pop(next(iter(official)))
    with pytest.raises(
        InvalidInputError,
        match=r"no model of metaformer fits the file; the nearest, \w+_s12 in the format "
        r"official: missing from the file: 1 \(stem",
    ):
        detect_variant("metaformer", lacking)
    with pytest.raises(
        InvalidInputError, match=r"poolformer_s12 .* without a place in the model: 1 \(more\)"
    ):
        detect_variant("poolformer_s12", {**official, "more": first})
    with pytest.raises(
        InvalidInputError, match=r"poolformer_m36 .* missing from the file: \d+ \(.*, …\)"
    ):
        detect_variant("poolformer_m36", official)
    with pytest.raises(
        InvalidInputError, match=r"unknown format 'offical'.*did you mean 'official'"
    ):
        detect_variant("poolformer_s12", official, "offical")


def test_files_of_every_kind_are_read(official: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(official, tmp_path / "a.safetensors")
    torch.save(official, tmp_path / "a.bin")
    script = {"state_dict": official, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(script, tmp_path / "a.pth.tar")
    for name in ("a.safetensors", "a.bin", "a.pth.tar"):
        found = read_weights(tmp_path / name)
        assert found.keys() == official.keys()
        assert all(found[key].equal(tensor) for key, tensor in official.items())


class Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm"),))


def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "harm").exists()


def test_a_directory_of_transformers_is_read_in_shards_too(tmp_path: Path) -> None:
    from transformers import PoolFormerConfig, PoolFormerForImageClassification

    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
    theirs = PoolFormerForImageClassification(PoolFormerConfig(**sizes, num_labels=5))
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in ("whole", "shards"):
        tensors = read_weights(tmp_path / folder)
        fields = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
        found = import_named("poolformer_s12", tensors, **fields)
        assert found.checkpoint_format == "transformers" and found.model.config.num_labels == 5
        back = to_checkpoint_format(found.model, "transformers")
        assert all(back[name].equal(t) for name, t in theirs.state_dict().items())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        read_weights(tmp_path / "empty")
