"""Fixtures that every room shares: tiny models of every family, and a process to reload them in."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from covering import covering

os.environ["HF_HUB_OFFLINE"] = "1"

RELOAD_WORKER = Path(__file__).parent / "edits" / "reload_worker.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="another tree of golden vectors, laid out as tests/golden",
    )
    parser.addoption(
        "--full",
        action="store_true",
        help="whole products instead of covering tests, and pages on real models",
    )
    parser.addoption(
        "--few",
        type=int,
        metavar="N",
        help="at most so many cases of a test on each family, on layout classes too",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("full"):
        kept = set(covering(_without(items, "full"), _presets(), config.getoption("few")))
        kept -= measured_before(config, items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def _without(items: list[pytest.Item], mark: str) -> list[pytest.Item]:
    return [item for item in items if item.get_closest_marker(mark) is None]


def measured_before(config: pytest.Config, items: list[pytest.Item]) -> set[pytest.Item]:
    """Acceptance tests that evidence stands for. A file that is named on the command line runs."""
    named = {Path(word.partition("::")[0]).name for word in config.args}
    found = {
        (item.path.relative_to(config.rootpath).as_posix(), item.nodeid.partition("::")[2]): item
        for item in items
        if item.path.parent.name == "acceptance" and item.path.name not in named
    }
    if not found:
        return set()
    from evidence import measured_again

    return {found[key] for key in found.keys() - measured_again(found)}


@pytest.fixture(scope="session")
def golden_dirs(pytestconfig: pytest.Config) -> list[Path]:
    """The trees of golden vectors: our own and those of ``--golden-dir``."""
    extra = pytestconfig.getoption("golden_dir")
    return [Path(__file__).parent / "golden", *map(Path, extra)]


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    """No bars and load tables in captured output: a failing test shows what failed."""
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _same_draws_every_time() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


# Every family, by registering


@cache
def _presets() -> dict[str, str]:
    """Preset name -> model type, one entry for each preset of each registered family.

    Families whose blocks have no MLP have tests of their own.
    """
    from modwright.anatomy.families import families

    return {
        name: family.model_types[0]
        for family in dict.fromkeys(families().values())
        if family.__module__.startswith("modwright.") and "mlp" in family.block
        for name in family.presets
    }


def _config(preset: str, **changed: Any) -> Any:
    from transformers import AutoConfig

    from modwright.anatomy.families import families

    model_type = _presets()[preset]
    fields = {**families()[model_type].presets[preset], **changed}
    return AutoConfig.for_model(model_type, **fields)


@cache
def _is_decoder(preset: str) -> bool:
    from modwright.anatomy.families import family_of

    return family_of(_config(preset)).is_causal()


@cache
def _reads_text(preset: str) -> bool:
    from modwright.anatomy.families import family_of

    return family_of(_config(preset)).inputs().is_text


@cache
def _has_plain_heads(preset: str) -> bool:
    import torch
    from transformers import AutoModel

    from modwright.anatomy import Anatomy

    with torch.device("meta"):
        blocks = Anatomy.of(AutoModel.from_config(_config(preset))).blocks
    return all(block.attention.q_norm is None for block in blocks)


@cache
def _has_dense_mlps(preset: str) -> bool:
    return not hasattr(_config(preset), "num_local_experts")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``preset`` is every preset of every registered family; ``decoder`` those that generate.

    ``reader`` is those that read text, ``plain_heads`` those that do not normalize their queries,
    ``dense_mlps`` those that have MLPs and no mixtures of experts.
    """
    if "preset" in metafunc.fixturenames:
        metafunc.parametrize("preset", sorted(_presets()))
    if "decoder" in metafunc.fixturenames:
        metafunc.parametrize("decoder", sorted(filter(_is_decoder, _presets())))
    if "reader" in metafunc.fixturenames:
        metafunc.parametrize("reader", sorted(filter(_reads_text, _presets())))
    if "dense_mlps" in metafunc.fixturenames:
        metafunc.parametrize("dense_mlps", sorted(filter(_has_dense_mlps, _presets())))
    if "plain_heads" in metafunc.fixturenames:
        metafunc.parametrize("plain_heads", sorted(filter(_has_plain_heads, _presets())))


@pytest.fixture(scope="session")
def family_presets() -> dict[str, str]:
    """Preset name -> model type of every registered family."""
    return dict(_presets())


class TinyModels:
    """Builds presets with seed 0.

    Norms and biases, which start as ones and zeros, get some noise, and weights are wider than
    usual: a part that is forgotten or mixed up then shows in the outputs.
    """

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}
        self._types: dict[str, Any] = {}

    def __call__(self, preset: str, auto: str = "", dtype: Any = None, **changed: Any) -> Any:
        """The model of a preset, in eval mode. It is shared: a test that changes it takes copy().

        Args:
            preset: name of a preset of any family.
            auto: Auto class; by default the causal language model, or the bare model of an encoder.
            dtype: of the weights; float32 by default.
            changed: config fields in place of the preset's.
        """
        key = repr((preset, auto, dtype, sorted(changed.items())))
        if key not in self._built:
            self._built[key] = self._build(preset, auto, dtype, changed)
        frozen = [n for n, p in self._built[key].named_parameters() if not p.requires_grad]
        assert not frozen, f"an earlier test froze {frozen[0]} of the shared {preset}"
        was, now = self._types.setdefault(key, self._built[key].dtype), self._built[key].dtype
        assert was == now, f"an earlier test made {now} of the shared {preset}"
        return self._built[key]

    def copy(self, preset: str, auto: str = "", dtype: Any = None, **changed: Any) -> Any:
        """A deep copy that the test may change."""
        return copy.deepcopy(self(preset, auto, dtype, **changed))

    def auto_class(self, preset: str) -> str:
        return "AutoModelForCausalLM" if _is_decoder(preset) else "AutoModel"

    def classifier(self, preset: str) -> str:
        """The Auto class with a head for labels."""
        return f"AutoModelFor{'Sequence' if _reads_text(preset) else 'Image'}Classification"

    def config(self, preset: str, **changed: Any) -> Any:
        return _config(preset, **changed)

    def _build(self, preset: str, auto: str, dtype: Any, changed: dict[str, Any]) -> Any:
        import torch
        import transformers

        config = _config(preset, **changed)
        for name in ("initializer_range", "init_std"):
            if hasattr(config, name):
                setattr(config, name, 0.1)
        if dtype is torch.float64 and hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # grouped products know no doubles
        kind = getattr(transformers, auto or self.auto_class(preset))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind.from_config(config, dtype=dtype or torch.float32).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.1)
        return model


@pytest.fixture(scope="session")
def tiny() -> TinyModels:
    """A factory of tiny models of every family; see :class:`TinyModels`."""
    return TinyModels()


# Another process


class FreshProcess:
    """One Python process that never saw the models of this one; it loads what was saved."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(RELOAD_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, directory: Path, auto: str, **wanted: Any) -> dict[str, Any]:
        """What the worker says of the checkpoint in ``directory``; see reload_worker.py."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"directory": str(directory), "auto": auto, **wanted}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that reloads checkpoints died"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="session")
def fresh_process() -> Iterator[Callable[..., dict[str, Any]]]:
    """Loads checkpoints in a new process, started once for a session."""
    process = FreshProcess()
    yield process
    process.close()


# A model with words


@pytest.fixture(scope="session")
def wordy_model(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny Llama, a tokenizer of words and its files; leave it as it is."""
    from wordy import write_checkpoint

    return write_checkpoint(tiny("tiny-llama"), tmp_path_factory.mktemp("wordy") / "wordy-llama")


@pytest.fixture(scope="session")
def wordy_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of words that the tokenizer of ``wordy_model`` knows."""
    from wordy import write_text

    return write_text(tmp_path_factory.mktemp("text") / "words.txt")
