"""What a model is measured by: deterministic, offline, and each number with its recipe.

Every metric registers itself; recipes, commands, reports and tables take it from the registry.
"""

from modwright.metrics.registry import (
    Metric,
    Result,
    Subject,
    make_metric,
    metric,
    metric_names,
    metric_type,
)

__all__ = ["Metric", "Result", "Subject", "make_metric", "metric", "metric_names", "metric_type"]
