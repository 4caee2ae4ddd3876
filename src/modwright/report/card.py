"""The model card of a result: how to load it, what it costs and loses, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import yaml

from modwright.metrics.registry import in_order
from modwright.report.data import Report
from modwright.report.document import Block, recipe_block, serving_blocks, stage_table
from modwright.report.pages import markdown
from modwright.report.summary import summary_sentences
from modwright.report.tables import sample_of

__all__ = ["model_card"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CAUSAL = "AutoModelForCausalLM"


def model_card(report: Report, location: str = ".") -> str:
    """A README.md for the folder of the last stage's model, with the front matter that hubs read.

    Args:
        location: what the loading lines open: the folder, or its name on a hub.

    Example:
        >>> from modwright.report import Stage
        >>> card = model_card(Report("example", stages=[Stage("before")]))
        >>> card.startswith("---")
        True
    """
    before, after = report.before, report.after
    told = [Block("code", _loading(report, location), "python")]
    if not after.plain:
        why = (
            "Stock transformers does not have its layers, so `import modwright` must stand "
            "before the loading lines; without it transformers refuses the checkpoint."
        )
        told.append(Block("text", why))
    table = stage_table(report, [before] if before is after else [before, after])
    sentences = Block("bullets", summary_sentences(report))
    steps = [f"{s.name}: {s.title}" if s.title else s.name for s in report.stages[1:]]
    made = [Block("bullets", steps or ["No step changed the model."])]
    if report.recipe:
        made.append(recipe_block(report))
    if report.reproduce:
        made += [Block("text", "To make it again:"), Block("code", report.reproduce, "bash")]
    told += [
        Block("section", [table, sentences], "Before and after"),
        Block("section", made, "How it was made"),
        Block("section", serving_blocks(after), "Where it runs"),
        Block("section", [Block("bullets", _limits(report))], "Limits"),
    ]
    name = report.model.get("name") or report.title
    page = markdown([Block("section", told, f"{name}, edited with modwright")], 1)
    return f"{_front_matter(report)}\n\n{page}"


def _auto_class(report: Report) -> str:
    """The class that opens the result: as the report says, else by what could be measured."""
    of_text = {metric.name for metric in in_order() if metric.of_text}
    spoke = any(of_text & stage.measured.keys() for stage in report.stages)
    return str(report.model.get("auto_class") or (_CAUSAL if spoke else "AutoModel"))


def _front_matter(report: Report) -> str:
    source, name = str(report.model.get("source") or ""), report.model.get("name")
    base = source if _HUB_ID.fullmatch(source) else name
    fields: dict[str, Any] = {"base_model": base} if base else {}
    fields["library_name"] = "modwright"
    if _auto_class(report) == _CAUSAL:
        fields["pipeline_tag"] = "text-generation"
    methods = [str(stage.method) for stage in report.stages[1:]]
    fields["tags"] = list(dict.fromkeys(["modwright", *methods]))
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _loading(report: Report, location: str) -> str:
    quoted = partial(json.dumps, ensure_ascii=False)
    auto = _auto_class(report)
    samples = (sample_of(stage) for stage in reversed(report.stages))
    sample = next((found for found in samples if found is not None), {})
    prompt = quoted(sample.get("prompt") or "The capital of France is")
    settings = sample.get("settings") or {}
    lines = [] if report.after.plain else ["import modwright  # registers the edited architecture"]
    lines += [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f"folder = {quoted(location)}",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder)",
        "",
    ]
    if auto == _CAUSAL and settings.get("chat"):
        lines += [
            f'messages = [{{"role": "user", "content": {prompt}}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        lines.append(f'inputs = tokenizer({prompt}, return_tensors="pt")')
    if auto == _CAUSAL:
        tokens = settings.get("max_new_tokens", 40)
        lines += [
            f"output = model.generate(**inputs, do_sample=False, max_new_tokens={tokens})",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    else:
        lines.append("print(model(**inputs)[0].shape)")
    return "\n".join(lines)


def _limits(report: Report) -> list[str]:
    measures = " and as ".join(_measures(report))
    timed = any(
        not metric.is_quality and not metric.of_text and metric.name in report.after.measured
        for metric in in_order()
    )
    return [
        f"Quality was measured as {measures} only; other languages, tasks and longer contexts can "
        "have lost more."
        if measures
        else "Quality was not measured.",
        "Speed was timed on one machine; other hardware can gain less or more."
        if timed
        else "Speed was not timed.",
        "What the edits did to the model's knowledge, its refusals and its biases was not "
        "measured.",
        "The license of the base model holds for these weights too.",
    ]


def _measures(report: Report) -> Iterator[str]:
    """What quality was measured as, and on what."""
    for metric in in_order():
        found = [
            stage.measured[metric.name] for stage in report.stages if metric.name in stage.measured
        ]
        if found and metric.is_quality:
            yield metric.described(found[0])
