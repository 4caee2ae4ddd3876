"""Training: objectives against their formulas, the trainer's groups, resuming, averaging."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labeled_images import digits, first, noise
from modwright.core.errors import InvalidInputError
from modwright.data.super_resolution import SuperResolutionDataset
from modwright.models import create_model
from modwright.training import (
    CrossEntropy,
    Distillation,
    EMACallback,
    L1Loss,
    ObjectiveTrainer,
    Settings,
    accuracy,
    fit,
    soft_cross_entropy,
)

BATCH = {"pixel_values": torch.randn(6, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}


class Remembering(nn.Module):
    """Gives logits of its own and keeps what it was shown."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.seen = nn.Parameter(logits), torch.empty(0)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        self.seen = pixel_values
        return SimpleNamespace(logits=self.logits)


def model(seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "layer_scale_init": 0.1, **fields}
    return create_model("poolformer_s12", num_classes=10, drop_path_rate=0.0, **sizes)


def test_plain_cross_entropy_is_torchs() -> None:
    shown = Remembering(torch.randn(6, 3)).train()
    loss, named = CrossEntropy(label_smoothing=0.1)(shown, BATCH)
    assert loss.equal(F.cross_entropy(shown.logits, BATCH["labels"], label_smoothing=0.1))
    assert shown.seen.equal(BATCH["pixel_values"]) and not named


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_targets_are_shares_of_both_labels(mixing: str) -> None:
    # With logits that are log-probabilities of one class the loss tells the shares apart.
    pixels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 16, 16)
    batch = {"pixel_values": pixels, "labels": torch.arange(6)}
    shown = Remembering(torch.full((6, 6), -30.0) + 30 * torch.eye(6)).train()
    for _ in range(5):
        loss, _ = CrossEntropy(**{mixing: 1.0})(shown, batch)
        other = (pixels != shown.seen).flatten(1).any(1)
        # the share of the other image: of its values for mixup, of its area for cutmix
        area = (pixels != shown.seen)[:, 0].float().mean((1, 2))
        if mixing == "cutmix":
            assert float(loss.detach()) == pytest.approx(
                30 * float(area.mean()), rel=1e-4, abs=1e-4
            )
        elif other.any():
            assert area[other].eq(1).all() and float(loss.detach()) >= 0
    shown.eval()
    loss, _ = CrossEntropy(**{mixing: 1.0})(shown, batch)
    assert shown.seen.equal(pixels) and float(loss.detach()) < 1e-6


def test_soft_targets_are_their_formula() -> None:
    logits, targets = torch.randn(5, 4), torch.randn(5, 4)
    wanted, given = (targets / 2).softmax(-1), (logits / 2).softmax(-1)
    naive = sum(-(w * g.log()).sum() for w, g in zip(wanted, given)) / 5
    assert torch.allclose(soft_cross_entropy(logits, targets, 2.0), naive, atol=1e-6)


def test_distillation_mixes_classes_and_teacher() -> None:
    teacher, student = Remembering(torch.randn(6, 3)), Remembering(torch.randn(6, 3))
    of_classes = F.cross_entropy(student.logits, BATCH["labels"])
    soft, named = Distillation(teacher, 0.25, 2.0, divergence="cross_entropy")(student, BATCH)
    expected = 4 * soft_cross_entropy(student.logits, teacher.logits, 2.0)
    assert torch.allclose(soft, 0.75 * of_classes + 0.25 * expected)
    assert set(named) == {"classes", "teacher"} and not named["teacher"].requires_grad
    hard, _ = Distillation(teacher, weight=1.0, hard=True)(student, BATCH)
    assert torch.allclose(hard, F.cross_entropy(student.logits, teacher.logits.argmax(-1)))
    hard.backward()
    assert student.logits.grad is not None and teacher.logits.grad is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), r"label_smoothing lies in \[0, 1\)"),
        (lambda: CrossEntropy(mixup=-1), "mixup is at least 0, not -1"),
        (lambda: Distillation(nn.Identity(), weight=2), "weight lies between 0 and 1, not 2"),
        (lambda: Distillation(nn.Identity(), temperature=0), "temperature is above 0, not 0"),
        (lambda: Settings(epochs=0), "epochs is above 0, not 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        make()


def test_what_has_one_axis_and_positions_do_not_decay(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    placed = model(positions=[False, True], image_size=32)
    trainer = ObjectiveTrainer(
        placed,
        TrainingArguments(str(tmp_path), report_to=[], use_cpu=True),
        objective=CrossEntropy(),
    )
    decayed = set(trainer.get_decay_parameter_names(placed))
    assert "stem.conv0.weight" in decayed
    assert not decayed & {"stem.conv0.bias", "norm.weight", "stages.0.blocks.0.ls1.gamma"}
    assert "stages.1.positions.table" not in decayed


def test_averages_follow_the_weights_and_are_put_back() -> None:
    layer, mean = nn.Linear(1, 1, bias=False), EMACallback(decay=0.5)
    expected = None
    for step, value in enumerate((1.0, 3.0, 5.0), start=1):
        nn.init.constant_(layer.weight, value)
        mean.on_step_end(None, SimpleNamespace(global_step=step), None, model=layer)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = value if expected is None else kept * expected + (1 - kept) * value
    assert float(mean.mean["weight"]) == pytest.approx(expected)
    with mean.applied_to(layer):
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == 5.0


def test_a_training_lowers_the_loss_and_can_be_had_again() -> None:
    data, settings = (
        first(digits(), 640, 500),
        Settings(epochs=6, batch_size=32, learning_rate=6e-3, seed=3),
    )
    wide = {"depths": [1, 1, 2], "hidden_sizes": [16, 32, 48], "stem": [3, 2, 1]}
    one, two = model(**wide), model(**wide)
    found = fit(one, data, None, settings)
    assert found.steps == 120 and found.losses[-1][1] < 0.5 * found.losses[0][1]
    assert found.accuracy == accuracy(one, data.test) > 0.6
    again = fit(two, data, None, settings)
    assert again.losses == found.losses and again.accuracy == found.accuracy
    assert not one.training


def test_a_training_that_was_stopped_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    train = first(digits(), 64)
    settings = Settings(epochs=4, batch_size=16, more={"logging_steps": 1})
    whole = model()
    losses = fit(whole, train, None, settings, output=tmp_path / "whole").losses
    halved = model()
    fit(halved, train, None, settings, output=tmp_path / "part")
    for step in (12, 16):  # as if it had been stopped after the second epoch
        for path in sorted((tmp_path / "part" / f"checkpoint-{step}").rglob("*"), reverse=True):
            path.unlink()
        (tmp_path / "part" / f"checkpoint-{step}").rmdir()
    resumed = model(seed=9)
    found = fit(resumed, train, None, settings, output=tmp_path / "part", resume=True).losses
    assert found == losses
    for name, tensor in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(tensor), name
    with pytest.raises(InvalidInputError, match="holds no checkpoint to resume from"):
        fit(model(), train, None, settings, output=tmp_path / "empty", resume=True)


def test_too_few_classes_are_refused() -> None:
    few = create_model("poolformer_s12", num_classes=3, depths=[1, 1], hidden_sizes=[8, 16])
    with pytest.raises(InvalidInputError, match="the model has 3 classes, the data 10"):
        fit(few, first(digits(), 8))


def test_averaged_weights_are_what_comes_out() -> None:
    images = noise(torch.randn(8, 3, 32, 32), torch.arange(8), "abcdefgh")
    plain, averaged = model(), model()
    fit(plain, images, None, Settings(epochs=2, batch_size=4))
    fit(averaged, images, None, Settings(epochs=2, batch_size=4, average=0.9))
    assert not plain.head.fc.weight.equal(averaged.head.fc.weight)


def test_pairs_of_images_are_learned_from_by_their_absolute_error() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "depths": [1], "num_heads": [4], "window": [2, 4]}
    small = torch.rand(8, 3, 4, 4)
    pairs = SuperResolutionDataset(
        "noise", small, small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    model = create_model("craft_x2", **sizes)
    batch = {"pixel_values": pairs.small, "labels": pairs.large}
    before, named = L1Loss()(model, batch)
    expected = (model(pairs.small).reconstruction - pairs.large).abs().mean()
    assert torch.isclose(before, expected) and not named
    settings = Settings(epochs=3, batch_size=4, learning_rate=3e-3)
    fitted = fit(model, pairs, settings=settings, objective=L1Loss())
    assert fitted.accuracy is None and fitted.steps == 6
    assert L1Loss()(model, batch)[0] < before
