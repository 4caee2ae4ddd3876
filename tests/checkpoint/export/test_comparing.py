"""Inputs that exported files are compared on."""

from __future__ import annotations

from typing import Any

from modwright.checkpoint.export.comparing import probe


def test_fault_A15_probes_have_every_input_of_the_tokenizer(tiny: Any) -> None:
    bert = probe(tiny("tiny-bert"), 2, 6)
    assert bert["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert "token_type_ids" not in probe(tiny("tiny-gpt2"), 2, 6)
    assert "token_type_ids" not in probe(tiny("tiny-llama"), 2, 6)
