"""How weights are learned: objectives on transformers' Trainer, teachers, adapters, healing."""

from modwright.training.callbacks import EMACallback
from modwright.training.fitting import Settings, accuracy, fit
from modwright.training.heal import heal
from modwright.training.heal_options import Heal
from modwright.training.heal_result import HealResult
from modwright.training.learning import learn
from modwright.training.loop import TrainingInterrupted, TrainResult, train
from modwright.training.objectives import (
    AttentionMaps,
    CrossEntropy,
    Distillation,
    HiddenStates,
    L1Loss,
    NextToken,
    Objective,
    TwoHeads,
    make_objective,
    objective,
    soft_cross_entropy,
)
from modwright.training.options import Training
from modwright.training.parametrization import (
    Parametrization,
    Standard,
    parametrization_of,
    register_parametrization,
)
from modwright.training.teachers import StoredTeacher, store_teacher
from modwright.training.trainer import ObjectiveTrainer

__all__ = ["AttentionMaps", "CrossEntropy", "Distillation", "EMACallback", "Heal", "HealResult"]
__all__ += [
    "HiddenStates",
    "L1Loss",
    "NextToken",
    "Objective",
    "ObjectiveTrainer",
    "Parametrization",
    "Settings",
    "Standard",
]
__all__ += ["StoredTeacher", "TrainResult", "Training", "TrainingInterrupted", "TwoHeads"]
__all__ += ["accuracy", "fit", "heal", "learn", "make_objective", "objective", "parametrization_of"]
__all__ += ["register_parametrization", "soft_cross_entropy", "store_teacher", "train"]
