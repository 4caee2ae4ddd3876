"""What holds for every architecture: found by its file, tried on its small config."""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from models.tiny import TINY, tiny
from modwright.core.errors import InvalidInputError
from modwright.models import (
    FeatureMaps,
    architectures,
    create_model,
    import_weights,
    list_models,
    register_model,
    to_checkpoint_format,
)
from modwright.models.classifier import ImageClassifier
from modwright.models.registry import model_class
from modwright.recipes.run_log import auto_class
from warm_processes import run_python

TYPES = sorted(found.name for found in pkgutil.iter_modules(architectures.__path__))
CLASSIFIERS = [
    name for name in TYPES if issubclass(model_class(AutoConfig.for_model(name)), ImageClassifier)
]
FOLDER = Path(architectures.__path__[0])


def lively(name: str) -> Any:
    """A small model in which no branch is near nothing, as fresh scales would make it."""
    torch.manual_seed(0)
    built = tiny(name)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return built


@pytest.fixture(params=CLASSIFIERS)
def model(request: pytest.FixtureRequest) -> Any:
    return lively(request.param)


def images(model: Any, count: int = 2) -> torch.Tensor:
    return torch.randn(count, model.config.num_channels, *getattr(model.config, "size", (12, 12)))


def test_every_architecture_has_a_small_config() -> None:
    assert sorted(TINY) == TYPES


@pytest.mark.parametrize("name", TYPES)
def test_a_model_file_defines_no_part(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    parts = [found for found in classes if not found.endswith("Config") and "For" not in found]
    module = __import__(f"{architectures.__name__}.{name}", fromlist=["x"])
    modules = [c for c in parts if issubclass(getattr(module, c), nn.Module)]
    assert not modules, f"{name} defines {modules}: parts belong into nn/"


def test_no_function_stands_in_two_model_files() -> None:
    seen: dict[str, str] = {}
    for name in TYPES:
        for node in ast.parse((FOLDER / f"{name}.py").read_text()).body:
            if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
                continue
            body = ast.dump(ast.Module(body=node.body, type_ignores=[]))
            assert body not in seen, f"{node.name} of {name} stands in {seen[body]}, too"
            seen[body] = f"{name}.{node.name}"


def test_saved_and_reopened_in_a_new_process_they_are_the_same(tmp_path: Path) -> None:
    models = {name: lively(name) for name in TYPES}
    given = {name: images(model) for name, model in models.items()}
    autos = {name: ("AutoModel", auto_class(model)) for name, model in models.items()}
    assert {auto for _, auto in autos.values()} == {
        "AutoModelForImageClassification",
        "AutoModelForImageToImage",
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        told = {"autos": autos[name], "images": given[name]}
        torch.save(told, tmp_path / name / "given.pt")
    worker = Path(__file__).parent / "reload_worker.py"
    done = run_python([str(worker), str(tmp_path)], library=True)
    assert done.returncode == 0, done.stderr[-2000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: sums of several threads are rounded otherwise
    try:
        with torch.no_grad():
            for name, model in models.items():
                expected = model(given[name])[0]
                for auto in autos[name]:
                    assert torch.load(tmp_path / name / f"{auto}.pt").equal(expected), name
    finally:
        torch.set_num_threads(threads)


def test_layouts_round_trip_bit_by_bit(model: Any) -> None:
    twin = type(model)(model.config)
    layouts = model.state_dict_converters(model.config)
    for layout in layouts:
        weights = to_checkpoint_format(model, layout)
        import_weights(twin, weights, layout)
        own, others = model.state_dict(), twin.state_dict()
        assert all(others[name].equal(tensor) for name, tensor in own.items()), layout
        assert import_weights(twin, weights).checkpoint_format in layouts
        name = next(iter(weights))
        weights[f"{name}x"] = weights.pop(name)
        with pytest.raises(InvalidInputError, match=r"have no place|missing from the file"):
            import_weights(twin, weights, layout)


def test_the_classifier_can_be_replaced_and_left_out(model: Any) -> None:
    given = images(model)
    model.reset_classifier(7)
    assert model(given).logits.shape == (2, 7) and model.config.num_labels == 7
    model.reset_classifier(0)
    assert model(given).logits.shape == (2, model.num_features)
    features = model.forward_features(given)
    assert model.forward_head(features, pre_logits=True).equal(model(given).logits)


def test_without_pooling_features_stay_where_they_are(model: Any) -> None:
    given = images(model)
    model.reset_classifier(0, global_pool="")
    assert model(given).logits.shape == model.forward_features(given).shape


def test_feature_maps_have_the_channels_and_strides_that_they_say(model: Any) -> None:
    maps = FeatureMaps(model)
    given = images(model)
    info = maps.feature_info
    for found, width, stride in zip(maps(given), info.channels(), info.reduction(), strict=True):
        height, breadth = (side // stride for side in given.shape[2:])
        assert found.shape == (2, width, height, breadth)
    assert len(FeatureMaps(model, 1)(given)) == 1


def test_training_steps_and_recomputes(model: Any) -> None:
    given, labels = images(model), torch.tensor([0, 3])
    model.train()
    for module in model.modules():  # batch statistics and dropout would differ between passes
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    loss = model(given, labels).loss
    loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    left = [n for n, p in model.named_parameters() if p.requires_grad and n not in plain]
    assert not left, f"no gradient reaches {left}"
    model.zero_grad()
    model.set_grad_checkpointing()
    model(given, labels).loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain:
            assert torch.allclose(parameter.grad, plain[name], atol=1e-5), name


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_drop_path_at_rate_one_spares_the_first_block_alone(name: str) -> None:
    model = tiny(name, drop_path_rate=1.0)
    given = images(model)
    assert model.eval()(given).logits.equal(model(given).logits)
    out = model.train()(given).logits
    assert out.isfinite().all()


def test_a_trace_gives_the_same_numbers(model: Any) -> None:
    given = images(model)
    with torch.no_grad():
        exported = torch.export.export(model, (given,)).module()
        found = exported(given).logits
        assert torch.allclose(found, model(given).logits, atol=1e-5)


def test_what_is_no_image_is_refused(model: Any) -> None:
    with pytest.raises(InvalidInputError, match="images are"):
        model(torch.zeros(3, 8, 8))
    with pytest.raises(InvalidInputError, match="the model takes 3 channels, the images have 4"):
        model(torch.zeros(1, 4, *model.config.size))


def test_names_are_unique_and_wrong_ones_answered() -> None:
    assert len(list_models()) == len(set(list_models()))
    taken = list_models()[0]

    def again(**overrides: Any) -> Any: ...

    again.__name__ = taken
    with pytest.raises(InvalidInputError, match=f"a model called '{taken}' is registered already"):
        register_model(again)
    with pytest.raises(InvalidInputError, match=r"unknown model 'poolformer_s13'.*poolformer_s12"):
        create_model("poolformer_s13")
    with pytest.raises(
        InvalidInputError, match=r"unknown field of MetaFormerConfig 'depth'.*depths"
    ):
        create_model("poolformer_s12", depth=3)
    with pytest.raises(InvalidInputError, match="drop_path_rate lies between 0 and 1"):
        create_model("poolformer_s12", drop_path_rate=1.5)
    with pytest.raises(InvalidInputError, match="not shipped"):
        create_model("poolformer_s12", pretrained=True)


@pytest.mark.parametrize("name", list_models())
def test_every_variant_can_be_built(name: str) -> None:
    with torch.device("meta"):
        built = create_model(name, num_classes=3)
    assert isinstance(built, nn.Module)
    if isinstance(built, ImageClassifier):
        assert built.get_classifier().out_features == 3


@pytest.mark.parametrize("count", [-1, 2.0, True, "10", None])
def test_fault_A16_counts_are_whole_numbers(count: Any) -> None:
    for name in ("num_classes", "in_chans"):
        with pytest.raises(InvalidInputError, match=f"{name} is a whole number of at least"):
            create_model("poolformer_s12", **{name: count})
    with pytest.raises(InvalidInputError, match="in_chans is a whole number of at least 1, not 0"):
        create_model("poolformer_s12", in_chans=0)
    with pytest.raises(InvalidInputError, match="num_classes is a whole number"):
        tiny("metaformer").reset_classifier(count)
