"""How weights are learned: objectives on transformers' Trainer."""

from modwright.training.fitting import Settings, TrainResult, accuracy, fit
from modwright.training.objectives import (
    CrossEntropy,
    Distillation,
    L1Loss,
    Objective,
    soft_cross_entropy,
)
from modwright.training.parametrization import (
    Parametrization,
    Standard,
    parametrization_of,
    register_parametrization,
)
from modwright.training.trainer import EMACallback, ObjectiveTrainer, learn

__all__ = ["CrossEntropy", "Distillation", "EMACallback", "L1Loss", "Objective", "ObjectiveTrainer"]
__all__ += ["Parametrization", "Standard", "parametrization_of", "register_parametrization"]
__all__ += ["Settings", "TrainResult", "accuracy", "fit", "learn", "soft_cross_entropy"]
