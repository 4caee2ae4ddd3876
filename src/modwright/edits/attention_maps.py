"""``output_attentions`` of an edited model: one entry a layer, whatever stands there.

transformers records attention maps by the class of its own attentions. Where another part stands it
records nothing, and the maps behind it would move up by a place. The source of this module goes
into standalone checkpoints, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from modwright.core.capture import Call, on_forward

__all__ = ["forward_with_all_maps"]


def forward_with_all_maps(
    base: Any, replaced_in: Callable[[Any], tuple[int, Mapping[int, nn.Module]]]
) -> Any:
    """The forward of a stock class, for an edited model of it; None stands where there is no map.

    Args:
        base: the stock class.
        replaced_in: number of layers of a model, and what stands for attentions that were
            replaced, by layer.

    Example:
        >>> import modwright
        >>> from modwright.surgery import make_method
        >>> model = modwright.open("preset:tiny-llama").model
        >>> model = modwright.apply(model, make_method("drop", {"parts": "attention[1]"})).model
        >>> model.set_attn_implementation("eager")
        >>> found = model(torch.tensor([[3, 4]]), output_attentions=True).attentions
        >>> [weights is None for weights in found]
        [False, True, False, False]
    """

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("output_attentions", getattr(self.config, "output_attentions", False)):
            return base.forward(self, *args, **kwargs)
        maps: dict[int, Tensor | None] = {}

        def note(index: int, call: Call) -> None:
            several = isinstance(call.output, tuple) and len(call.output) > 1
            maps[index] = call.output[1] if several and isinstance(call.output[1], Tensor) else None

        layers, replaced = replaced_in(self)
        as_tuple = kwargs.get("return_dict", getattr(self.config, "return_dict", True)) is False
        if as_tuple:
            kwargs["return_dict"] = True
        with on_forward(replaced, note):
            out = base.forward(self, *args, **kwargs)
        if out.get("attentions") is not None:
            own = iter(out.attentions)
            # A fused attention gives no maps, and transformers then an empty tuple.
            found = [
                maps.get(index) if index in replaced else next(own, None) for index in range(layers)
            ]
            out["attentions"] = tuple(found)
        return out.to_tuple() if as_tuple else out

    return forward
