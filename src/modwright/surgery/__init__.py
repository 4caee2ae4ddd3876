"""Methods: each decides on edits of a model and writes nothing. Files here are discovered."""

from modwright.surgery.method import (
    Decision,
    Method,
    Requirements,
    WithoutData,
    after_prerequisite,
    apply,
    make_method,
    method_names,
    method_type,
    plain_options,
    plan,
    register_method,
    unsupported_reason,
)

__all__ = ["Decision", "Method", "Requirements", "WithoutData", "after_prerequisite", "apply"]
__all__ += ["make_method", "method_names", "method_type", "plain_options", "plan"]
__all__ += ["register_method", "unsupported_reason"]
