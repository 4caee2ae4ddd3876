"""transformers' own tests of a model pass on edited classes wherever they pass on the stock class.

What is left out stands in left_out.yaml, with the reason. A line there that no longer fails is a
failure itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from edits_of_suite import EDITS
from suite import STOCK, model_types, names_of_tests, outcome

LEFT_OUT = yaml.safe_load(Path(__file__).with_name("left_out.yaml").read_text(encoding="utf-8"))
IN_CI = {("llama", "both"), ("gpt2", "narrowed"), ("bert", "removed")}


def reason_against(model_type: str, edit: str, name: str) -> str | None:
    """Why a test is left out, if it is."""
    for line in LEFT_OUT:
        if (
            re.fullmatch(line["test"], name)
            and model_type in line.get("families", [model_type])
            and edit in line.get("edits", [edit])
        ):
            return str(line["reason"])
    return None


def cases() -> Iterator[Any]:
    for model_type in model_types():
        for edit in EDITS:
            for name in names_of_tests():
                reason = reason_against(model_type, edit, name)
                marks = [pytest.mark.xdist_group(f"{model_type}-{edit}")]
                if (model_type, edit) not in IN_CI:
                    marks.append(pytest.mark.full)
                if reason:
                    marks.append(pytest.mark.xfail(reason=reason, strict=True))
                values = (model_type, edit, name)
                yield pytest.param(*values, id="-".join(values), marks=marks)


@pytest.mark.parametrize(("model_type", "edit", "name"), cases())
def test_suite(model_type: str, edit: str, name: str) -> None:
    how, told = outcome(model_type, edit, name)
    if how == "passed":
        return
    stock, _ = outcome(model_type, STOCK, name)
    if stock != "passed":
        pytest.skip(f"the stock class has {stock}")
    pytest.fail(f"{how}, while the stock class passes: {told}", pytrace=False)
