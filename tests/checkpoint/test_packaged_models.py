"""The packaged real models: equal to what transformers loads, and within their memory.

Memory is measured in a process of its own, which first opens a tiny model of each kind, so that
imports and first-use costs lie below the baseline. The figure is the growth of VmHWM, the most
memory ever resident. It counts mapped pages of files too, so it is the stricter of the possible
figures; only where a whole file is read through a mapping to be converted is the growth of
RssAnon taken instead (sampled by a thread), since those pages belong to the file and are given
back whenever memory is wanted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertModel

from modwright import checkpoint

from .test_gguf import assert_same_tensors, llama_file

pytestmark = [pytest.mark.slow, pytest.mark.models]


@pytest.fixture(scope="module")
def smollm2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "smollm2"
    return checkpoint.open("smollm2-135m").save(out)


def test_smollm2_is_bit_equal_to_transformers(smollm2_dir: Path) -> None:
    opened = checkpoint.open("smollm2-135m")
    path = opened.source.path
    assert path is not None
    theirs = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name)
    assert type(opened.model).__name__ == "LlamaForCausalLM"
    assert_same_tensors(opened.model, theirs)
    assert opened.model.lm_head.weight is opened.model.model.embed_tokens.weight
    assert opened.model.generation_config == theirs.generation_config
    again = checkpoint.open(smollm2_dir)
    assert_same_tensors(again.model, theirs)
    text = "The quick brown fox"
    assert again.tokenizer(text)["input_ids"] == opened.tokenizer(text)["input_ids"]
    assert again.tokenizer.chat_template == opened.tokenizer.chat_template


def test_minilm_is_bert_with_its_files(tmp_path: Path) -> None:
    opened = checkpoint.open("minilm")
    assert type(opened.model) is BertModel
    assert "1_Pooling/config.json" in opened.source.files
    out = opened.save(tmp_path / "out")
    assert opened.source.path is not None
    for name in opened.source.files:
        assert (out / name).read_bytes() == (opened.source.path / name).read_bytes()
    assert_same_tensors(checkpoint.open(out).model, BertModel.from_pretrained(out))
    assert opened.tokenizer("hello world")["input_ids"] == [101, 7592, 2088, 102]


MEASURE = """
import json, sys, threading, time
import torch, transformers
import modwright.checkpoint as checkpoint

torch.set_num_threads(1)
source, warm, dtype, out = sys.argv[1:]


def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


checkpoint.open(warm, dtype=dtype or None).save(out + "-warm")
peak = before_anon = status("RssAnon")
running = True


def sample():
    global peak
    while running:
        peak = max(peak, status("RssAnon"))
        time.sleep(0.002)


watcher = threading.Thread(target=sample)
watcher.start()
before = status("VmRSS")
model = checkpoint.open(source, dtype=dtype or None).model
with torch.no_grad():
    total = sum(parameter.sum().item() for parameter in model.parameters())
running = False
watcher.join()
figures = {
    "weights": checkpoint.weights_bytes(model),
    "resident": checkpoint.peak_rss_bytes() - before,
    "anonymous": peak - before_anon,
    "largest": max(parameter.nbytes for parameter in model.parameters()),
}
before, high = status("VmRSS"), checkpoint.peak_rss_bytes()
checkpoint.save(model, out, max_shard_size="50MB")
figures["saving"] = max(0, checkpoint.peak_rss_bytes() - max(before, high))
print(json.dumps(figures))
"""


def measure(source: Any, warm: Path, dtype: str, out: Path) -> dict[str, int]:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(warm), dtype, str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, int] = json.loads(result.stdout.splitlines()[-1])
    return figures


@pytest.mark.contract("G2")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gguf_opens_within_a_tenth_more_than_its_weights(dtype: str, tmp_path: Path) -> None:
    figures = measure("smollm2-135m", llama_file(tmp_path), dtype, tmp_path / "out")
    assert figures["weights"] == 134_515_008 * getattr(torch, dtype).itemsize
    assert figures["weights"] * 0.9 < figures["resident"] <= figures["weights"] * 1.1, figures
    assert figures["saving"] <= max(50_000_000, figures["largest"]) * 1.1, figures


@pytest.mark.contract("G2")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_directory_opens_within_a_tenth_more_than_its_weights(
    dtype: str, smollm2_dir: Path, tmp_path: Path
) -> None:
    warm = checkpoint.open(llama_file(tmp_path)).save(tmp_path / "warm")
    figures = measure(smollm2_dir, warm, dtype, tmp_path / "out")
    grown = figures["anonymous" if dtype else "resident"]
    assert figures["weights"] * 0.9 < grown <= figures["weights"] * 1.1, figures
    assert figures["saving"] <= max(50_000_000, figures["largest"]) * 1.1, figures
