"""Open a model from anywhere, carry its files over, write outputs whole or not at all."""

from modwright.checkpoint.auxiliary_files import auxiliary_files, copy_auxiliary_files
from modwright.checkpoint.export import Exported, export, target_names
from modwright.checkpoint.fresh_classifier import with_classes
from modwright.checkpoint.memory import (
    available_bytes,
    peak_rss_bytes,
    require_memory,
    weights_bytes,
)
from modwright.checkpoint.opening import Checkpoint, check_finite, open
from modwright.checkpoint.saving import rehearse, save
from modwright.checkpoint.source import (
    ALIASES,
    Source,
    alias_names,
    locate,
    preset_names,
    register_preset,
)
from modwright.core.files import whole_directory

__all__ = [
    "ALIASES",
    "Checkpoint",
    "Exported",
    "Source",
    "alias_names",
    "auxiliary_files",
    "available_bytes",
    "check_finite",
    "copy_auxiliary_files",
    "export",
    "locate",
    "open",
    "peak_rss_bytes",
    "preset_names",
    "register_preset",
    "rehearse",
    "require_memory",
    "save",
    "target_names",
    "weights_bytes",
    "whole_directory",
    "with_classes",
]
