"""Names and arguments of parts in stored edits of earlier versions, as they are called now."""

from __future__ import annotations

from typing import Any

from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["converted"]

_MIXERS: dict[str, tuple[tuple[str, str], ...]] = {
    "pool": (("kernel_size", "pool_size"),),
    "identity": (),
    "depthwise": (("hidden_size", "hidden_size"), ("kernel_size", "kernel_size")),
    "spatial_fc": (("places", "num_tokens"),),
}
"""Mixer of a "token_mixer" -> its arguments then and now. Its host knows the grid by itself."""

_WITH_TENSORS = ("depthwise", "spatial_fc")
_HELD = ("token_mixer", "bare_token_mixer")
_RENAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "bare_attention": ("attention", {}),
    "grid_attention": ("attention", {}),
    "zero_attention": ("absent_attention", {"whole": True}),
}


def converted(part: Any, kwargs: Any) -> tuple[Any, Any]:
    """The name and the arguments that a stored edit has now; most are as they are stored.

    Before version 0.2 a mixer of an image model was an argument of the part "token_mixer", which
    held it under the name ``mixer``: there its tensors lie in a checkpoint of that time.

    Example:
        >>> converted("token_mixer", {"mixer": "pool", "hidden_size": 48, "kernel_size": 5})
        ('pool', {'pool_size': 5})
    """
    if not isinstance(kwargs, dict) or not isinstance(part, str):
        return part, kwargs
    if part in _RENAMED:
        name, more = _RENAMED[part]
        return name, {**kwargs, **more}
    if part not in _HELD or "mixer" not in kwargs:
        return part, kwargs
    name = kwargs["mixer"]
    if not isinstance(name, str) or name not in _MIXERS:
        raise unknown_name("token mixer", name, _MIXERS)
    stored = {"kernel_size": 3, **kwargs}
    missing = next((then for then, _ in _MIXERS[name] if then not in stored), None)
    if missing is not None:
        raise InvalidInputError(f"part 'token_mixer': {name} needs {missing}")
    given: dict[str, Any] = {now: stored[then] for then, now in _MIXERS[name]}
    return name, given | ({"host": {"within": "mixer"}} if name in _WITH_TENSORS else {})
