"""What a model is measured by: deterministic, offline, and each number with its recipe."""
