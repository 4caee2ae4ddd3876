"""The remodeled SmolLM2 trains with the usual tools, and what they changed comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import modwright
from modwright.edits import Change, Plan, factorize, keep_heads, keep_neurons, remove

pytestmark = [pytest.mark.slow, pytest.mark.models]


@pytest.fixture(scope="module")
def remodeled() -> Any:
    """SmolLM2 without an attention and an MLP, with fewer heads, neurons and a factor pair."""
    anatomy = modwright.open("smollm2-135m").anatomy
    blocks = anatomy.blocks
    down = blocks[4].mlp.down
    u, s, vh = torch.linalg.svd(down.weight, full_matrices=False)
    change: Change = (
        remove(blocks[25].attention)
        + remove(blocks[17].mlp)
        + keep_heads(blocks[10].attention, [0, 1, 2, 4])
        + keep_neurons(blocks[11].mlp, range(1024))
        + factorize(down, u[:, :64] * s[:64], vh[:64])
    )
    return modwright.apply(anatomy.model, Plan.of(anatomy, "by hand", change)).model


def _batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 49152, (2, 24), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


def _reopened(model: Any, place: Path) -> Any:
    from transformers import AutoModelForCausalLM

    modwright.save(model, place)
    return AutoModelForCausalLM.from_pretrained(place).eval()


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    model.eval()
    result: torch.Tensor = model(input_ids=_batch()["input_ids"]).logits
    return result


def test_one_lora_step(remodeled: Any, tmp_path: Path) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    before = _logits(remodeled)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"])
    tuned = get_peft_model(copy.deepcopy(remodeled), config)
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):  # the first step moves B alone; the second reaches A as well
        tuned.train()
        tuned(**_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    merged = tuned.merge_and_unload()
    trained = _logits(merged)
    assert not torch.equal(trained, before)
    assert torch.equal(_logits(_reopened(merged, tmp_path / "lora")), trained)


def test_one_full_trainer_step(remodeled: Any, tmp_path: Path) -> None:
    import copy

    from transformers import Trainer, TrainingArguments

    model = copy.deepcopy(remodeled)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    row = {name: value[0] for name, value in _batch().items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=[row, row])
    trainer.train()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])]
    for part in ("layers.10.self_attn.q_proj", "layers.11.mlp.up_proj", "layers.4.mlp.down_proj"):
        assert any(part in name for name in moved), part
    trained = _logits(model)
    assert torch.equal(_logits(_reopened(model, tmp_path / "full")), trained)
