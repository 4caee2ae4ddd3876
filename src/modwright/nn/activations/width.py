"""Widths of feed-forward layers that have as many weights as each other."""

from __future__ import annotations

__all__ = ["equal_parameter_width"]


def equal_parameter_width(hidden_size: int, swiglu_width: int) -> int:
    """The width of an MLP of two matrices with the weights of one of three, as SwiGLU has them.

    Where no width gives exactly as many, the next one below.

    Raises:
        ValueError: a size is below 1.

    Example:
        >>> equal_parameter_width(2048, 5504)
        8256
        >>> 2 * 2048 * 8256 == 3 * 2048 * 5504
        True
    """
    for name, size in (("hidden_size", hidden_size), ("swiglu_width", swiglu_width)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    return 3 * hidden_size * swiglu_width // (2 * hidden_size)
