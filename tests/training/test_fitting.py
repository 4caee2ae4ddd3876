"""What one call of `fit` sees to around the training itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from labeled_images import noise
from modwright.core.errors import InvalidInputError
from modwright.data import Data
from modwright.models import create_model
from modwright.training import Settings, fit

SMALL: dict[str, Any] = {"depths": [1], "hidden_sizes": [8]}


def images(count: int, *classes: str, side: int = 32) -> Data:
    torch.manual_seed(0)
    labels = torch.arange(count) % len(classes)
    return noise(torch.randn(count, 3, side, side), labels, classes)


def test_fault_A8_classes_are_called_as_those_of_the_images() -> None:
    model = create_model("poolformer_s12", num_classes=3, **SMALL)
    fit(model, images(6, "blue", "green", "red"), None, Settings(epochs=1))
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    fit(model, images(6, "amber", "blue", "green"), None, Settings(epochs=1))
    assert model.config.id2label == {0: "amber", 1: "blue", 2: "green"}
    assert model.config.label2id == {"amber": 0, "blue": 1, "green": 2}
    fit(model, images(6, "no", "yes"), None, Settings(epochs=1))
    assert model.config.id2label == {0: "no", 1: "yes", 2: "LABEL_2"}


class Masks(TrainerCallback):
    """Keeps half of the stem's weights at zero."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            kwargs["model"].stem.conv0.weight[:, :, ::2] = 0


def test_fault_A24_the_mean_is_of_corrected_weights() -> None:
    model = create_model("poolformer_s12", num_classes=2, **SMALL)
    settings = Settings(epochs=3, batch_size=4, average=0.9)
    fit(model, images(8, "a", "b"), None, settings, callbacks=[Masks()])
    weight = model.stem.conv0.weight
    assert weight[:, :, ::2].eq(0).all() and not weight[:, :, 1::2].eq(0).any()


def batch_norm(side: int) -> nn.Module:
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 8], "branch": "basic", "stem_width": 8}
    model: nn.Module = create_model("resnet18", num_classes=2, image_size=side, **sizes)
    return model


def test_fault_B6_one_image_left_over_is_known_before_the_start() -> None:
    # Maps of one place: stem and stages make 8 pixels 2, then 1
    left_over = images(9, "a", "b", side=8)
    model = batch_norm(8)
    model.min_size = 1
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(InvalidInputError, match="batches of one image"):
        fit(model, left_over, None, Settings(epochs=1, batch_size=1))
    assert all(buffer.equal(before[name]) for name, buffer in model.named_buffers())
    said: list[str] = []
    four = Settings(epochs=2, batch_size=4)
    assert fit(model, left_over, None, four, log=said.append).steps == 4
    assert said[0] == (
        "the last batch of an epoch is left out: of 9 rows in batches of 4 it holds one, which a "
        "BatchNorm cannot be trained on"
    )
    assert len(said) == 2 and said[1].startswith("the training: ")
    with pytest.warns(UserWarning, match="the last batch of an epoch is left out"):
        fit(model, left_over, None, four)
    larger = images(9, "a", "b")  # where maps are larger, one image can be trained on
    assert fit(batch_norm(32), larger, None, Settings(epochs=1, batch_size=4)).steps == 3
    without = create_model("poolformer_s12", num_classes=2, **SMALL)
    assert fit(without, larger, None, Settings(epochs=1, batch_size=4)).steps == 3
