"""Complete architectures: a config and a thin assembly of parts of ``modwright.nn``.

Every model is a ``PreTrainedModel`` of transformers, with timm's words for what vision users do
with it: ``create_model``, ``list_models``, ``forward_features``, ``reset_classifier``.
"""

from modwright.models.classifier import FeatureMaps
from modwright.models.importing import import_weights, to_checkpoint_format
from modwright.models.registry import create_model, list_models, register_model

__all__ = [
    "FeatureMaps",
    "create_model",
    "import_weights",
    "list_models",
    "register_model",
    "to_checkpoint_format",
]
