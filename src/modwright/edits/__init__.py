"""The only writer of structure: declarative edits, kept in the config and replayed on load."""

from modwright.edits.apply import Applied, TensorDiff, apply
from modwright.edits.change import (
    Change,
    arrange,
    factorize,
    keep_heads,
    remove,
    replace_attention,
    replace_mlp,
    untie,
)
from modwright.edits.compose import compose
from modwright.edits.edit import (
    FORMAT,
    Edit,
    Remove,
    ReorderBlocks,
    Replace,
    RevertEdit,
    edits_from_list,
)
from modwright.edits.experts import (
    expert_shape,
    keep_expert_neurons,
    keep_experts,
    merge_experts,
    replace_mixture,
    split_mlp,
)
from modwright.edits.masks import mask
from modwright.edits.neurons import keep_neurons
from modwright.edits.plan import Plan
from modwright.edits.registry import part_names, register_part
from modwright.edits.verify import Verification, verify

__all__ = ["FORMAT", "Applied", "Change", "Edit", "Plan", "Remove", "ReorderBlocks", "Replace"]
__all__ += ["RevertEdit", "TensorDiff", "Verification", "apply", "arrange", "compose"]
__all__ += [
    "edits_from_list",
    "expert_shape",
    "factorize",
    "keep_expert_neurons",
    "keep_experts",
    "keep_heads",
]
__all__ += ["keep_neurons", "mask", "merge_experts", "part_names", "register_part", "remove"]
__all__ += ["replace_attention", "replace_mixture", "replace_mlp", "split_mlp", "untie", "verify"]
