"""How weights are learned: objectives on transformers' Trainer."""

from modwright.training.fitting import TrainResult, Settings, accuracy, fit
from modwright.training.objectives import (
    CrossEntropy,
    Distillation,
    Objective,
    L1Loss,
    soft_cross_entropy,
)
from modwright.training.trainer import EMACallback, ObjectiveTrainer, learn

__all__ = [
    "EMACallback",
    "CrossEntropy",
    "Distillation",
    "TrainResult",
    "Objective",
    "ObjectiveTrainer",
    "L1Loss",
    "Settings",
    "accuracy",
    "fit",
    "learn",
    "soft_cross_entropy",
]
