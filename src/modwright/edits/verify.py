"""The promises that every edited model keeps, checked on a few tokens and by a new process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy
from modwright.anatomy.coerce import cache_keyword, model_of
from modwright.anatomy.families import family_of
from modwright.anatomy.inputs import Images, Inputs, Tokens
from modwright.core.errors import UnsupportedArchitecture, VerificationError
from modwright.core.modes import eval_mode
from modwright.core.subprocesses import open_in_new_process
from modwright.edits.hf_adapters import states_in
from modwright.edits.remodeled import is_plain
from modwright.edits.state_checks import chunks_are_the_whole, padding_leaves_states_alone

__all__ = ["Check", "Reopened", "Verification", "check_reopens", "probe_batch", "verify"]


@dataclass(frozen=True)
class Check:
    """One promise: its name, whether it held, and what was seen."""

    name: str
    held: bool
    seen: str


@dataclass(frozen=True)
class Verification:
    """All checks that apply to a model."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.held for check in self.checks)

    @property
    def failure(self) -> str:
        """The broken promises in one line; empty when all hold."""
        return "; ".join(f"{c.name} does not hold: {c.seen}" for c in self.checks if not c.held)

    def __str__(self) -> str:
        return "; ".join(
            f"{c.name}: {'ok' if c.held else 'BROKEN'} ({c.seen})" for c in self.checks
        )


def probe_batch(
    model: nn.Module, rows: int = 2, length: int = 12, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs to look at what a model computes; of several rows the last is left-padded.

    A third of that row is padding. No row is longer than the positions that the model has. Images
    come in their own size and in the dtype of the weights, as no model needs to convert them then.
    Of a family that is not known, what its config says is read.

    Example:
        >>> import modwright
        >>> batch = probe_batch(modwright.open("preset:tiny-llama").model, length=6)
        >>> batch["attention_mask"].tolist()
        [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    """
    inputs = _inputs_of(model)
    length = min(length, _limit(model, length))
    batch = inputs.random(rows, length, torch.Generator().manual_seed(seed))
    if inputs.is_text:
        mask = torch.ones_like(batch["input_ids"])
        if rows > 1:
            mask[-1, : length // 3] = 0
        batch["attention_mask"] = mask
    near = next(model.parameters())
    return {
        name: tensor.to(near.device, near.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in batch.items()
    }


def _limit(model: Any, otherwise: int) -> int:
    found: int = getattr(model.config, "max_position_embeddings", None) or otherwise
    return found


def _inputs_of(model: Any) -> Inputs:
    config = model.config
    try:
        return family_of(config, model).inputs()
    except UnsupportedArchitecture:
        if model.main_input_name != "pixel_values":
            return Tokens(config.vocab_size)
        size = config.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        return Images(getattr(config, "num_channels", 3), size, size)


def _short_batch(model: nn.Module) -> dict[str, Tensor]:
    """A probe of at most half of the model's positions, so that there is room to decode."""
    return probe_batch(model, length=max(2, min(12, _limit(model, 24) // 2)))


@torch.no_grad()
def verify(model: Any, new_tokens: int = 8) -> Verification:
    """Checks a model without changing it.

    All outputs are finite. Where attention is causal, no position sees a later one, and decoding a
    batch with a left-padded row with a cache gives the logits of decoding without. Recurrent
    components compute the same whether their tokens come at once or in chunks, with padding before
    them or without. In encoders, padding has no influence. In models of images, no image depends on
    others in its batch.

    Example:
        >>> import modwright
        >>> verify(modwright.open("preset:tiny-llama")).ok
        True
    """
    model = model_of(model)
    with eval_mode(model):
        family = family_of(model.config, model)
        generates = getattr(model, "can_generate", lambda: False)()
        checks: list[Callable[[nn.Module], Check]] = [_finite]
        if not family.inputs().is_text:
            checks.append(_rows_are_apart)
        elif not (family.is_causal() and generates):
            checks.append(_padding_is_ignored)
        else:
            checks += [_causal, lambda m: _cached_is_uncached(m, new_tokens)]
        if _reads_in_chunks(model, family.is_causal()):
            checks += [_chunks_are_the_whole, _padding_leaves_states_alone]
        return Verification(tuple(check(model) for check in checks))


def _outputs(model: nn.Module, **inputs: Any) -> Tensor:
    result: Any = model(**inputs, return_dict=True)[0]
    last: Tensor = result[-1] if isinstance(result, tuple) else result  # of all feature maps
    return last.float()


def _tolerance(reference: Tensor, model: nn.Module) -> float:
    """Rounding of the weights' dtype, in units of the outputs' spread."""
    eps = torch.finfo(next(model.parameters()).dtype).eps
    return max(float(reference.std()), 1e-3) * max(1e-4, 16 * eps)


def _finite(model: nn.Module) -> Check:
    odd = int((~torch.isfinite(_outputs(model, **_short_batch(model)))).sum())
    return Check("finite outputs", not odd, f"{odd} values are not")


def _causal(model: Any) -> Check:
    ids = _short_batch(model)["input_ids"][:1]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.config.vocab_size
    before, after = _outputs(model, input_ids=ids), _outputs(model, input_ids=other)
    moved = float((before[:, :-1] - after[:, :-1]).abs().max())
    held = moved <= _tolerance(before, model)
    return Check("causality", held, f"earlier logits moved by {moved:.1e}")


@contextmanager
def _every_expert(model: nn.Module) -> Iterator[bool]:
    """Lets all experts of split MLPs work; says whether there are any.

    Which come first at a near tie turns on rounding, and no cache is to blame for that.
    """
    found = (getattr(module, "every_expert", None) for module in model.modules())
    contexts = [context for context in found if callable(context)]
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield bool(contexts)


def _cached_is_uncached(model: Any, new_tokens: int) -> Check:
    batch = _short_batch(model)
    length = batch["input_ids"].shape[1]
    new_tokens = max(1, min(new_tokens, _limit(model, length + new_tokens) - length))
    with _every_expert(model) as has_experts:
        result = model.generate(
            **batch,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        cached = torch.stack([step.float() for step in result.logits], dim=1)
        grown = torch.nn.functional.pad(batch["attention_mask"], (0, new_tokens), value=1)
        whole = _outputs(
            model,
            input_ids=result.sequences,
            attention_mask=grown,
            position_ids=(grown.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        )
    uncached = whole[:, length - 1 : -1]
    off = float((cached - uncached).abs().max())
    how = ", all experts at work" if has_experts else ""
    return Check(
        "cached decoding = uncached",
        off <= _tolerance(uncached, model),
        f"largest difference {off:.1e} over {new_tokens} tokens, one row left-padded{how}",
    )


def _reads_in_chunks(model: Any, causal: bool) -> bool:
    """There are recurrent components, a cache to keep their states in, and no stock mixers beside
    them with states, which transformers starts anew at each chunk."""
    takes = inspect.signature(model.forward).parameters
    if not causal or cache_keyword(model) not in takes or not any(True for _ in states_in(model)):
        return False
    return not Anatomy.of(model).stock_mixers


def _chunks_are_the_whole(model: Any) -> Check:
    padded = family_of(model.config, model).masks_single_tokens  # the first chunk is one token
    return _check_of_states(model, "any chunking = the whole", chunks_are_the_whole, padded)


def _padding_leaves_states_alone(model: nn.Module) -> Check:
    return _check_of_states(model, "states ignore left padding", padding_leaves_states_alone)


def _check_of_states(
    model: Any, name: str, check: Callable[..., tuple[bool, str]], padded: bool = True
) -> Check:
    batch = _short_batch(model)
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    with _every_expert(model):
        return Check(name, *check(model, batch, lambda x: _tolerance(x, model)))


def _rows_are_apart(model: nn.Module) -> Check:
    batch = _short_batch(model)
    together = _outputs(model, **batch)
    alone = _outputs(model, **{name: tensor[:1] for name, tensor in batch.items()})
    moved = float((together[:1] - alone).abs().max())
    held = moved <= _tolerance(together, model)
    return Check(
        "each image by itself", held, f"outputs moved by {moved:.1e} without the other image"
    )


def _padding_is_ignored(model: nn.Module) -> Check:
    """Hides the middle of a row: pooled heads read its first token or its last."""
    ids = _short_batch(model)["input_ids"]
    third = ids.shape[1] // 3
    mask = torch.ones_like(ids)
    mask[1, third : 2 * third] = 0
    hidden = mask == 0
    before = _outputs(model, input_ids=ids, attention_mask=mask)
    after = _outputs(model, input_ids=torch.where(hidden, 1, ids), attention_mask=mask)
    off = (before - after).abs()
    if off.shape[:2] == hidden.shape:  # else a pooled head: one vector per row
        off = off[~hidden]
    moved = float(off.max())
    held = moved <= _tolerance(before, model)
    return Check("padding has no influence", held, f"outputs moved by {moved:.1e}")


@dataclass(frozen=True)
class Reopened:
    """How a new process saw the checkpoint."""

    model_class: str
    opened_with: str
    plain: bool

    def __str__(self) -> str:
        who = "stock transformers" if self.plain else "transformers after `import modwright`"
        return f"a new process with {who} opened it as {self.model_class}; outputs are bit-equal"


def _names_in(tree: Any) -> set[str]:
    """All words in plain values: whatever an edit names is among them."""
    if isinstance(tree, dict):
        return _names_in([*tree, *tree.values()])
    if isinstance(tree, list | tuple):
        return {name for one in tree for name in _names_in(one)}
    return {tree} if isinstance(tree, str) else set()


@torch.no_grad()
def check_reopens(model: Any, directory: Path) -> Reopened:
    """Opens ``directory`` with Auto classes in a new process and compares outputs and names.

    Threads are the same there, so that sums are taken in the same order. What code outside of the
    package registered, a family or a part, is known there.
    """
    plain = is_plain(model) and type(model).__module__.startswith("transformers.")
    edits = getattr(model.config, "edits", None)
    probe = {name: t.cpu() for name, t in probe_batch(model).items()}
    with eval_mode(model):
        live = model(**{name: t.to(model.device) for name, t in probe.items()})[0].cpu()
    opened = open_in_new_process(
        directory,
        [probe],
        library="left out" if plain else "imported",
        what="the saved checkpoint",
        used=_names_in([model.config.model_type.removeprefix("modwright_"), edits]),
    )
    (output,) = opened.outputs
    if opened.names != tuple(sorted(name for name, _ in model.named_parameters())):
        raise VerificationError("the reopened checkpoint has other parameters than the live model")
    if not torch.equal(output, live):
        off = float((output.float() - live.float()).abs().max())
        raise VerificationError(
            f"the reopened checkpoint computes something else (off by {off:.1e})"
        )
    return Reopened(opened.model_class, opened.opener, plain)
