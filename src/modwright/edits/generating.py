"""What a model that keeps recurrent states can be asked to generate, from which cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from modwright.core.errors import InvalidInputError
from modwright.edits.cache_state import StateLayer
from modwright.edits.hf_adapters import cache_among, states_in

__all__ = ["check_cache", "generate_with_states"]

_ASSISTANCE = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def generate_with_states(base: Any) -> Callable[..., Any]:
    """The ``generate`` of a stock class, for an edited model of it, which may keep states.

    Assisted generation takes back tokens that the model does not agree with, and no state can be
    taken back; so a model with one is refused on either side, before anything runs. A step of such
    a model is not compiled by itself where the cache is static, as states are replaced in it.
    """

    @wraps(base.generate)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = next((module for _, module in states_in(self)), None)
        if kept is not None:
            given = kwargs.get("generation_config", args[1] if len(args) > 1 else None)
            if (why := _assistance(kwargs, given, self.generation_config)) is not None:
                raise InvalidInputError(
                    f"{kept.handover.name} keeps a state, which cannot be rolled back to fewer "
                    f"tokens, so the model takes no part in assisted generation ({why})"
                )
            kwargs.setdefault("disable_compile", True)
        return base.generate(self, *args, **kwargs)

    return generate


def check_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses a cache with states of another number of sequences than a model is called with.

    The attentions before the first state would say it in torch's words.
    """
    cache = cache_among(kwargs)
    reads = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    read = next((tensor for tensor in reads if tensor is not None), None)
    if cache is None or read is None:
        return
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, StateLayer):
            layer.check_batch(read.shape[0])


def _assistance(kwargs: dict[str, Any], given: Any, own: Any) -> str | None:
    """The option that asks for assisted generation; None where none does."""
    if getattr(given, "is_assistant", None):
        return "it is the assistant_model of another"
    config = own if given is None else given
    found = {name: kwargs.get(name, getattr(config, name, None)) for name in _ASSISTANCE}
    return next((name for name, value in found.items() if value not in (None, False)), None)
