"""How weights are learned: objectives on transformers' Trainer."""

from modwright.training.fitting import Fitted, Settings, accuracy, fit
from modwright.training.objectives import (
    CrossEntropy,
    Distillation,
    Objective,
    Reconstruction,
    soft_cross_entropy,
)
from modwright.training.trainer import AveragedWeights, ObjectiveTrainer, learn

__all__ = [
    "AveragedWeights",
    "CrossEntropy",
    "Distillation",
    "Fitted",
    "Objective",
    "ObjectiveTrainer",
    "Reconstruction",
    "Settings",
    "accuracy",
    "fit",
    "learn",
    "soft_cross_entropy",
]
