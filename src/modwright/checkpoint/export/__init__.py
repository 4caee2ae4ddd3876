"""A model as files for other programs: one module per target, discovered by its name ``to_*``."""

from modwright.checkpoint.export.comparing import ParityReport
from modwright.checkpoint.export.exporting import Exported, export
from modwright.checkpoint.export.serving import RuntimeSupport, runtime_support
from modwright.checkpoint.export.target import (
    Target,
    make_target,
    register_target,
    target_names,
    target_type,
)

__all__ = [
    "Exported",
    "ParityReport",
    "RuntimeSupport",
    "Target",
    "export",
    "make_target",
    "register_target",
    "runtime_support",
    "target_names",
    "target_type",
]
