"""Folding replaces parts by what their method ``fuse`` gives."""

from __future__ import annotations

from torch import nn

from modwright.nn.reparameterize import reparameterize_


class Half(nn.Module):
    def fuse(self) -> nn.Module:
        return nn.Linear(2, 2)


def test_parts_are_replaced_by_what_they_fuse_to() -> None:
    whole = nn.Sequential(Half(), nn.Sequential(Half(), nn.ReLU()))
    names = [type(part).__name__ for part in reparameterize_(whole).modules()]
    assert names == ["Sequential", "Linear", "Sequential", "Linear", "ReLU"]


def test_a_submodule_that_is_called_fuse_is_no_method() -> None:
    holder = nn.Module()
    holder.fuse = nn.Linear(2, 2)
    whole = nn.Sequential(holder)
    assert reparameterize_(whole)[0] is holder and isinstance(holder.fuse, nn.Linear)
