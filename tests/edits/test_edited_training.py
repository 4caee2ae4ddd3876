"""Edited models train like any other: gradients, checkpointing, LoRA and the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from edit_cases import CASES, KINDS, attention_of, mlp_of

from helpers import edit, outputs, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.anatomy.families import family_of
from modwright.edits import factorize, keep_heads, remove, verify


def remodeled_llama(tiny: Any) -> Any:
    """A generic attention, a factor pair and an attention that is gone; nothing shared."""
    source = tiny.copy("tiny-llama")
    a = Anatomy.of(source)
    generator = torch.Generator().manual_seed(0)
    outer = torch.randn(48, 6, generator=generator) * 0.1
    inner = torch.randn(6, 96, generator=generator) * 0.1
    return edit(
        source,
        remove(attention_of(a, 0))
        + keep_heads(attention_of(a, 1), range(1, 6))
        + factorize(mlp_of(a, 2).down, outer, inner),
    ).model


def tokens() -> torch.Tensor:
    return torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(0))


def loss_of(model: Any) -> torch.Tensor:
    family = family_of(model.config, model)
    if family.is_causal():
        batch = tokens()
        loss: torch.Tensor = model(input_ids=batch, labels=batch).loss
        return loss
    inputs = family.inputs().random(4, 16, torch.Generator().manual_seed(0))
    return model(**inputs)[0].square().mean()


@pytest.mark.parametrize("case", ["identity", *KINDS])
def test_gradients_reach_every_parameter_and_checkpointing_keeps_them(
    tiny: Any, preset: str, case: str
) -> None:
    source = tiny.copy(preset)
    model = edit(source, CASES[case].change(Anatomy.of(source)), check=False).model
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for part in model.modules():
            if hasattr(part, "attention_dropout"):
                part.attention_dropout = 0.0
        torch.manual_seed(0)
        model.zero_grad()
        loss_of(model).backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        if "pooler" in name:
            continue
        assert gradient is not None and torch.isfinite(gradient).all(), name
        torch.testing.assert_close(gradient, found[1][name], msg=name)
        assert gradient.any() or "position" in name or "wpe" in name, name


def test_a_lora_step_is_learned_merged_saved_and_reloaded(tiny: Any, tmp_path: Path) -> None:
    import peft

    model = remodeled_llama(tiny)
    before = snapshot(model)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"], lora_alpha=8)
    tuned = peft.get_peft_model(model, config).train()
    reached = {name.split(".lora_A")[0] for name, _ in tuned.named_parameters() if "lora_A" in name}
    assert len(reached) == 3 * 3
    assert any("layers.1.self_attn" in name for name in reached)
    assert not any("layers.0.self_attn" in name for name in reached)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=5.0)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(tuned.base_model.model).backward()
        optimizer.step()
    adapted = outputs(tuned.eval().base_model.model)
    merged = tuned.merge_and_unload()
    assert type(merged) is type(model)
    assert not unchanged(merged, before)
    torch.testing.assert_close(outputs(merged), adapted, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(outputs(back), outputs(merged))
    assert verify(back).ok


def test_an_adapter_is_loaded_onto_a_reloaded_model(tiny: Any, tmp_path: Path) -> None:
    import peft

    model = remodeled_llama(tiny)
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    back = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(outputs(back.base_model.model), outputs(tuned.base_model.model))


def test_a_trainer_step_changes_the_weights_that_come_back(tiny: Any, tmp_path: Path) -> None:
    model = remodeled_llama(tiny)
    before = snapshot(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=1,
        gradient_checkpointing=True,
        logging_strategy="no",
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens()]
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    assert trainer.train().global_step == 1
    trainer.save_model(str(tmp_path / "model"))
    trained = outputs(model.eval())
    assert {n for n, t in snapshot(model).items() if not torch.equal(t, before[n])} >= {
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.2.mlp.down_proj.reduce",
        "model.layers.0.mlp.up_proj.weight",
    }
    assert not list((tmp_path / "model").glob("pytorch_model*"))
    for directory in (tmp_path / "model", tmp_path / "run" / "checkpoint-1"):
        back = transformers.AutoModelForCausalLM.from_pretrained(directory)
        assert type(back) is type(model)
        assert torch.equal(outputs(back), trained)
    assert Anatomy.of(back).is_tied
    assert verify(back).ok
