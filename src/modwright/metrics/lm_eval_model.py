"""A live model as lm-eval sees it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from modwright.core.progress import Progress, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["counted_model"]


@cache
def counted_model() -> Any:
    """The class of :class:`_Counted` over lm-eval's own, which is imported then."""
    from lm_eval.models.huggingface import HFLM

    return type("CountedModel", (_Counted, HFLM), {})


# lm-eval is an extra and slow to import, so its class is put below when it is needed.
_Base: Any = object


class _Counted(_Base):
    """HFLM over a model in memory, which tells its progress and whether its logits are numbers.

    The tokenizer is copied: the harness may give it a padding token, and a checkpoint saved later
    must not have that. ``finite`` is False once a logit was NaN, which the harness would take for
    the first answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        progress: Progress,
    ) -> None:
        own = copy.deepcopy(tokenizer)
        super().__init__(model, backend="causal", tokenizer=own, batch_size=batch_size)
        self.progress, self.finite = progress, True
        self._windows: Task | None = None

    def _model_call(self, inps: Tensor, *rest: Any, **more: Any) -> Tensor:
        logits: Tensor = super()._model_call(inps, *rest, **more)
        self.finite = self.finite and not bool(logits.isnan().any())
        return logits

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        with self._counting("harness: answers", len(requests)):
            return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        with self._counting("harness: texts", len(requests)):
            return super().generate_until(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        tokens = (len(self.tok_encode(request.args[0])) for request in requests)
        windows = sum(math.ceil(count / self.max_length) for count in tokens)
        with self.progress.phase("harness: windows of text", windows) as self._windows:
            found = super().loglikelihood_rolling(requests, disable_tqdm=True)
        self._windows = None
        return found

    def _loglikelihood_tokens(self, requests: Any, *rest: Any, **more: Any) -> Any:
        found = super()._loglikelihood_tokens(requests, *rest, **more)
        if self._windows is not None:
            self._windows.advance(len(requests))
        return found

    @contextmanager
    def _counting(self, name: str, total: int) -> Iterator[None]:
        """A phase that goes on with every request that is answered."""
        with self.progress.phase(name, total) as task:
            # Stands where the harness keeps answers in a cache, and hears of each.
            self.set_cache_hook(SimpleNamespace(add_partial=lambda *answer: task.advance()))
            yield
        self.set_cache_hook(SimpleNamespace(add_partial=lambda *answer: None))
