"""Methods: each decides on edits of a model and writes nothing. Files here are discovered."""

from modwright.surgery.method import (
    Method,
    Needs,
    WithoutData,
    apply,
    make_method,
    method_names,
    method_type,
    plan,
    ready_for,
    register_method,
    why_not,
)

__all__ = [
    "Method",
    "Needs",
    "WithoutData",
    "apply",
    "make_method",
    "method_names",
    "method_type",
    "plan",
    "ready_for",
    "register_method",
    "why_not",
]
