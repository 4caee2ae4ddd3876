"""A sample of what a model writes, and a number that says when it repeats itself."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field

from modwright.anatomy.coerce import model_of
from modwright.core.errors import InvalidInputError
from modwright.core.formatting import share_text
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.data.special_tokens import SpecialTokens, special_tokens
from modwright.data.text import require_count, tokenizer_of
from modwright.metrics.column import StageLike
from modwright.metrics.forward import dtype_of, position_limit
from modwright.metrics.registry import Metric, Subject, metric
from modwright.metrics.windows import AtLeastOne

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["REPEATS", "GenerationMetric", "Sample", "generate_sample", "repetition"]

REPEATS = 0.5

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Sample:
    """What a model wrote after a prompt.

    Attributes:
        prompt: as given, without the chat template.
        text: the new text only, without special tokens.
        new_tokens: how many tokens were generated, an end token included.
        seconds: of the whole generation, the prompt's forward pass included.
        settings: JSON-able: decoding, limits, seed, chat, end and padding ids, dtype.
    """

    prompt: str
    text: str
    new_tokens: int
    seconds: float
    tokens_per_second: float
    settings: dict[str, Any]

    @property
    def repetition(self) -> float:
        """The share of its 4-grams that have stood before in it."""
        return repetition(self.text)


def generate_sample(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int = 40,
    seed: int = 0,
    chat: bool | None = None,
) -> Sample:
    """Let a model continue a prompt, greedily and with its cache.

    What the checkpoint's own generation config says about sampling and penalties is left aside, so
    that samples of two models are comparable; its end tokens are kept.

    Args:
        model: a transformers model that can generate from a prompt alone, or what holds it.
        tokenizer: the model's own, or the opened checkpoint that has it.
        prompt: plain text; with ``chat`` it becomes one user message.
        max_new_tokens: the most tokens to write.
        seed: for models whose layers are random at inference.
        chat: whether to use the tokenizer's chat template; None uses it where there is one.

    Raises:
        InvalidInputError: the model cannot generate, an empty prompt, no chat template, no room for
            the prompt and the new tokens.

    Example:
        ``generate_sample(model, tokenizer, "The capital of France is").text``
    """
    model, tokenizer = model_of(model), tokenizer_of(tokenizer)
    can = getattr(model, "can_generate", None)
    if can is None or not can() or getattr(model.config, "is_encoder_decoder", False):
        raise InvalidInputError(
            f"{type(model).__name__} cannot continue a prompt; a causal language model can"
        )
    require_count("max_new_tokens", max_new_tokens)
    chat = tokenizer.chat_template is not None if chat is None else chat
    ids = _prompt_ids(tokenizer, prompt, chat)
    longest, used = position_limit(model), ids.shape[1]
    if longest is not None and used + max_new_tokens > longest:
        valid = f"1..{longest - used}" if longest > used else "none, the prompt itself is too long"
        raise InvalidInputError(
            f"max_new_tokens is {max_new_tokens} after a prompt of {used} tokens, and the model "
            f"has {longest} positions; valid values: {valid}"
        )
    ids = ids.to(model.device)
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    pad = tokenizer.pad_token_id
    if pad is None:
        # Only one sequence is generated, so this id is never seen; without one transformers warns.
        pad = ends[0] if isinstance(ends, list) else ends if ends is not None else 0
    settings = {
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
        "use_cache": True,
        "eos_token_id": ends,
        "pad_token_id": pad,
    }
    devices = [model.device] if model.device.type == "cuda" else []
    begin = time.perf_counter()
    rng = torch.random.fork_rng(devices)
    with eval_mode(model), torch.no_grad(), _greedy(model, settings), rng:
        torch.manual_seed(seed)
        output = model.generate(ids, attention_mask=torch.ones_like(ids))
    seconds = time.perf_counter() - begin
    new = output[0, used:]
    return Sample(
        prompt=prompt,
        text=tokenizer.decode(new, skip_special_tokens=True),
        new_tokens=len(new),
        seconds=seconds,
        tokens_per_second=len(new) / seconds,
        settings={**settings, "seed": seed, "chat": chat, "dtype": dtype_of(model)},
    )


def repetition(text: str) -> float:
    """The share of a text's 4-grams that have stood before in it: 0 is none, towards 1 is a loop.

    Words and single punctuation marks count as words; fewer than four give 0. Ordinary prose of a
    hundred words stays near 0; a model that repeats a phrase soon passes one half.

    Example:
        >>> round(repetition("on and on and on and on and on and on"), 2)
        0.75
    """
    words = _WORD.findall(text)
    grams = list(zip(words, words[1:], words[2:], words[3:]))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> torch.Tensor:
    """Token ids (1, T) of the prompt, special tokens included."""
    if chat and tokenizer.chat_template is None:
        raise InvalidInputError(
            "this tokenizer has no chat template; valid values of chat: False, None"
        )
    if not prompt:
        raise InvalidInputError("the prompt is empty; give at least one word")
    if chat:
        try:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it may raise what it likes
            told = str(error).split("\n")[0]
            raise InvalidInputError(f"the chat template of this tokenizer fails: {told}") from error
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].long()
    if not chat:  # a template writes the special tokens itself, and the text goes on after them
        ids = SpecialTokens(special_tokens(tokenizer, prompt).before).around(ids)
    if not ids.shape[1]:
        raise InvalidInputError(
            "the prompt gives no token with this tokenizer; give at least one word"
        )
    return ids


@contextmanager
def _greedy(model: PreTrainedModel, settings: dict[str, Any]) -> Iterator[None]:
    """Stand a plain greedy generation config in for the model's own."""
    from transformers import GenerationConfig

    wanted = {name: value for name, value in settings.items() if name != "decoding"}
    own = model.generation_config
    # generate() fills every unset field from the model's config, and warns of unused ones.
    model.generation_config = GenerationConfig(do_sample=False, num_beams=1, **wanted)
    try:
        yield
    finally:
        model.generation_config = own


@metric(
    "generation",
    unit="",
    direction=None,
    title="Sample",
    columns=(),
    must_be_finite=(),
    by_default=True,
    is_quality=False,
    of_text=True,
    old_key="generate",
    old_field="sample",
    order=95,
    rules=(
        ("repeats itself", f"at least {share_text(REPEATS)} of the sample's 4-grams are repeated"),
    ),
)
@dataclass(frozen=True)
class GenerationMetric(Metric):
    """A sample of what the model writes, before and after.

    Attributes:
        prompt: what it goes on with; of several the sample that repeats itself most is shown, and
            all are stored.
        max_new_tokens: the most tokens to write.
        chat: whether to use the tokenizer's chat template; null uses it where there is one.
    """

    prompt: str | Annotated[tuple[str, ...], Field(min_length=1)] = (
        "What is the capital of France? Answer in one sentence."
    )
    max_new_tokens: AtLeastOne = 40
    chat: bool | None = None

    def unsupported(self, subject: Subject) -> str | None:
        if not subject.writes_text:
            return f"needs a model that writes text, with its tokenizer, and {subject.name} is none"
        return None

    def measure(self, subject: Subject, progress: Progress = SILENT) -> StoredSample:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        made = []
        with progress.phase("sample", len(prompts)) as task:
            for prompt in prompts:
                sample = generate_sample(
                    subject.model,
                    subject.tokenizer,
                    prompt,
                    max_new_tokens=self.max_new_tokens,
                    chat=self.chat,
                )
                made.append(sample)
                task.advance()
        worst = max(made, key=lambda one: (not one.text.strip(), one.repetition))
        each = tuple(WrittenText(one.prompt, one.text, one.repetition) for one in made)
        several = each if len(each) > 1 else ()
        return StoredSample(worst.prompt, worst.text, worst.repetition, worst.settings, several)

    def memory_estimate(self, anatomy: Any) -> int:
        from modwright.cost import kv_cache_bytes, state_bytes

        positions = self.max_new_tokens + _PROMPT
        return int(kv_cache_bytes(anatomy, positions) + state_bytes(anatomy))

    @classmethod
    def sample_of(cls, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
        return values

    @classmethod
    def problem_of(cls, values: Mapping[str, Any]) -> str | None:
        for key in ("prompt", "text"):
            if not isinstance(values.get(key, ""), str):
                return f"{key}: must be text, not {values[key]!r}"
        share = values.get("repetition")
        if isinstance(share, bool) or not isinstance(share, int | float | None):
            return f"repetition: must be a number, not {share!r}"
        return None

    @classmethod
    def stage_sentences(cls, stage: StageLike) -> Iterator[str]:
        sample = stage.measured.get(cls.name)
        if sample is None:
            return
        where = "before" if stage.method is None else f"after step {stage.name}"
        share = sample.get("repetition")
        if not str(sample.get("text") or "").strip():
            yield f"The sample written {where} is empty: 0 words followed the prompt."
        elif share is not None and share >= REPEATS:
            yield (
                f"The sample repeats itself: {share_text(share)} of the 4-grams written "
                f"{where} occur earlier in the same text."
            )

    @classmethod
    def lines(cls, values: Mapping[str, Any]) -> Iterator[str]:
        yield f"after {values.get('prompt', '')!r}: {str(values.get('text') or '').strip()}"


@dataclass(frozen=True)
class WrittenText:
    """What was written after a prompt."""

    prompt: str
    text: str
    repetition: float


@dataclass(frozen=True)
class StoredSample(WrittenText):
    """What a report stores: of several the one that repeats itself most, and all of them."""

    settings: dict[str, Any]
    samples: tuple[WrittenText, ...] = ()


# Tokens that a prompt may have, for estimates.
_PROMPT = 64
