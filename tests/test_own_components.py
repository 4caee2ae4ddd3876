"""Components are open: what one file registers stands in every model, and all else takes it.

A new component enters `own_components.TOYS`, and nothing of the package names any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

import modwright
import toy_components
from anatomy.test_deit import built as deit
from anatomy.test_swin import built as swin
from helpers import outputs
from models.tiny import TINY
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy, Mlp
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.edits import compose
from modwright.edits.verify import check_reopens
from own_components import CHECKS, TOYS, Placed, is_the_same_in_another_process, placed_in

SOURCE = Path(modwright.__file__).parent
OF_TRANSFORMERS = {"deit": deit, "swin": partial(swin, "swin"), "swinv2": partial(swin, "swinv2")}
IMAGE_MODELS = [*sorted(set(TINY) - {"residual_network"}), *OF_TRANSFORMERS]
OPAQUE_MLPS = {"fmvit", "smt"}
"""Their MLPs have a convolution inside, and show no activation."""


def _image_cases() -> list[Any]:
    """Without --full every architecture takes each toy in turn, and two take all."""
    cases = []
    for i, architecture in enumerate(IMAGE_MODELS):
        for j, toy in enumerate(TOYS):
            runs = architecture in ("metaformer", "vision_transformer") or (i + j) % 4 == 0
            marks = [] if runs else [pytest.mark.full]
            cases.append(pytest.param(architecture, toy, marks=marks, id=f"{architecture}-{toy}"))
    return cases


@cache
def image_model(architecture: str) -> Any:
    """With values at which no branch is near nothing, as fresh scales of residuals make it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stock = OF_TRANSFORMERS.get(architecture)
        model = tiny_image_model(architecture) if stock is None else stock()
        with torch.no_grad():
            for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


FIRST = ("swin", "swinv2", "duoformer")
"""Where it stands in the first block: later ones differ, or read its first token alone."""


@pytest.fixture(scope="module")
def placed(tiny: Any) -> Callable[[str, str], Placed]:
    """``placed(preset or architecture, toy)``: made once for all that looks at it."""

    @cache
    def make(name: str, toy: str) -> Placed:
        source = image_model(name) if name in IMAGE_MODELS else tiny(name)
        return placed_in(source, toy, at=0 if name in FIRST else 1)

    return make


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("toy", TOYS)
def test_what_holds_of_every_component_in_every_family(
    placed: Any, preset: str, toy: str, check: str
) -> None:
    CHECKS[check](placed(preset, toy))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("architecture", "toy"), _image_cases())
def test_what_holds_of_every_component_in_image_models(
    placed: Any, architecture: str, toy: str, check: str
) -> None:
    if architecture in OPAQUE_MLPS and toy in ("toy_hinge", "toy_share"):
        with pytest.raises(InvalidInputError, match="shows no activation"):
            placed(architecture, toy)
        return
    CHECKS[check](placed(architecture, toy))


@pytest.mark.parametrize("toy", TOYS)
def test_a_checkpoint_opens_in_another_process(
    placed: Any, preset: str, toy: str, fresh_process: Any, tmp_path: Path
) -> None:
    is_the_same_in_another_process(placed(preset, toy), fresh_process, tmp_path)


@pytest.mark.parametrize(("architecture", "toy"), _image_cases())
def test_a_checkpoint_of_an_image_model_opens_in_another_process(
    placed: Any, architecture: str, toy: str, fresh_process: Any, tmp_path: Path
) -> None:
    if architecture in OPAQUE_MLPS and toy in ("toy_hinge", "toy_share"):
        pytest.skip("it stands in no MLP there")
    is_the_same_in_another_process(placed(architecture, toy), fresh_process, tmp_path)


@pytest.mark.parametrize("toy", TOYS)
def test_a_process_is_told_which_file_registers_it(placed: Any, toy: str, tmp_path: Path) -> None:
    """Nothing is imported by hand there."""
    model = placed("tiny-llama", toy).model
    save(model, tmp_path / "saved")
    assert "bit-equal" in str(check_reopens(model, tmp_path / "saved"))


def test_models_are_composed_of_them_from_scratch(preset: str) -> None:
    """Arguments that the stock part answers are filled; start values are their own."""
    parts: dict[str, Any] = {"attention[1]": "toy_memory", "mlp[2]": ("toy_turn", {"shift": 3})}
    if isinstance(Anatomy.of(compose(preset)).blocks[0].mlp, Mlp):
        hinge = {"activation": "toy_hinge", "activation_kwargs": {"start": 0.6}}
        parts["mlp[0]"] = ("feed_forward", hinge)
    model = compose(preset, parts)
    assert torch.equal(outputs(model), outputs(compose(preset, parts)))
    blocks = Anatomy.of(model).blocks
    memory, turn = blocks[1].at("attention").module, blocks[2].at("mlp").module
    assert 0.3 < memory.decay.std() < 0.8 and memory.decay.abs().max() <= 1
    reach = len(memory.decay) ** -0.5  # of torch's rule; those of hosts have a spread of 0.02
    assert 0.5 * reach < memory.inner.weight.std() * 3**0.5 and memory.inner.weight.max() <= reach
    assert turn.shift == 3 and 0.6 < turn.scale.std() < 1.4
    if "mlp[0]" in parts:
        assert blocks[0].mlp.parameters()["act.slope"] == torch.tensor(0.6)


def test_a_mixer_that_sees_later_tokens_stands_in_encoders_and_image_models_alone(
    tiny: Any,
) -> None:
    for source in (tiny("tiny-bert"), tiny("tiny-vit"), image_model("metaformer")):
        assert placed_in(source, "toy_mean").applied.verification.ok
    with pytest.raises(VerificationError, match="causality does not hold"):
        placed_in(tiny("tiny-llama"), "toy_mean")


@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_the_mask_of_moved_windows_is_no_padding(kind: str) -> None:
    """It tells which tokens of a window lie together; every second block moves them."""
    with pytest.raises(InvalidInputError, match="it is that of moved windows") as refused:
        placed_in(image_model(kind), "toy_memory")
    assert "\n" not in str(refused.value)


def test_no_line_of_the_package_knows_them() -> None:
    names = [name for name in vars(toy_components) if name.startswith("Toy")]
    assert len(names) == 5
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in (*names, *TOYS) if word in text], path
