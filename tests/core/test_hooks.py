"""Forward hooks are registered in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import modwright

SOURCE = Path(modwright.__file__).parent
ALLOWED = {"core/capture.py"}


def test_fault_A4_hooks_are_registered_in_one_place() -> None:
    """A second reading of activations would not know where channels lie."""
    found = {
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        if str(path.relative_to(SOURCE)) not in ALLOWED
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith(("register_forward", "register_full_backward", "register_module_"))
    }
    assert not found
