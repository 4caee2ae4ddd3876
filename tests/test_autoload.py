"""``import modwright`` anywhere before opening lets Auto classes open edited checkpoints."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("autoload_worker.py")
MODEL, CONFIG = "ModwrightLlamaForCausalLM", "ModwrightLlamaConfig"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_edited_checkpoints_open_in_every_order_of_imports(tiny: Any, tmp_path: Path) -> None:
    from helpers import edit
    from modwright.anatomy import Anatomy
    from modwright.edits import remove

    model = tiny("tiny-llama")
    edit(model, remove(Anatomy.of(model).blocks[1].attention)).model.save_pretrained(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        timeout=240,
        check=True,
    )
    found = json.loads(done.stdout)

    without = found.pop("never")
    assert without.startswith("ValueError: ")
    assert "modwright_llama" in without
    assert found == {
        "modwright_first": MODEL,
        "transformers_first": MODEL,
        "modeling_utils_first": MODEL,
        "configs_alone_after_modwright": CONFIG,
        "configs_alone_before_modwright": CONFIG,
        "configs_half_imported": MODEL,
        "configs_half_imported_and_configs_alone": CONFIG,
        "another_thread_is_importing": MODEL,
        "modwright_twice": CONFIG,
    }


def test_importing_again_in_this_process_keeps_what_is_registered(tiny: Any) -> None:
    from transformers import AutoConfig, LlamaConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from modwright import _autoload
    from modwright.edits.remodeled import remodeled_config

    before = AutoConfig.for_model("modwright_llama")
    finders = list(sys.meta_path)
    _autoload.watch()
    _autoload.watch()
    assert sys.meta_path == finders
    assert type(AutoConfig.for_model("modwright_llama")) is type(before)
    assert type(before) is remodeled_config(LlamaConfig)
    assert "llama" in CONFIG_MAPPING
    assert "modwright_modwright_llama" not in CONFIG_MAPPING
    assert "modwright_" not in CONFIG_MAPPING


def test_the_watch_does_not_hide_modules() -> None:
    assert importlib.util.find_spec("transformers.models.auto.configuration_auto") is not None
