"""Objectives, one a file: what is minimized, and what a training is asked for beside."""

from modwright.training.objectives.attention_maps import AttentionMaps
from modwright.training.objectives.base import (
    OBJECTIVES,
    Objective,
    as_objective,
    make_objective,
    objective,
)
from modwright.training.objectives.cross_entropy import CrossEntropy, soft_cross_entropy
from modwright.training.objectives.distillation import Distillation
from modwright.training.objectives.hidden_states import HiddenStates
from modwright.training.objectives.l1 import L1Loss
from modwright.training.objectives.next_token import NextToken
from modwright.training.objectives.two_heads import TwoHeads

__all__ = ["OBJECTIVES", "Objective", "as_objective", "make_objective", "objective"]
__all__ += ["AttentionMaps", "CrossEntropy", "Distillation", "HiddenStates", "L1Loss"]
__all__ += ["NextToken", "TwoHeads", "soft_cross_entropy"]
