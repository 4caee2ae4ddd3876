"""The model card of a result: how to load it, what it costs and loses, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from modwright.report.data import Report
from modwright.report.markdown import bullets, fenced, inline, runtime_support, stage_table
from modwright.report.summary import summary_sentences
from modwright.report.tables import recipe_yaml

__all__ = ["model_card"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CAUSAL = "AutoModelForCausalLM"
_PROMPT = "The capital of France is"


def model_card(report: Report, location: str = ".") -> str:
    """A README.md for the folder of the result, with the front matter that model hubs read.

    Args:
        report: of the run that made it; the last stage is the model that the folder holds.
        location: what the loading lines open: the folder, or its name on a hub.

    Example:
        >>> from modwright.report import Stage
        >>> card = model_card(Report("example", stages=[Stage("before")]))
        >>> card.startswith("---")
        True
    """
    name = report.model.get("name") or report.title
    parts = [
        _front_matter(report),
        f"# {inline(str(name))}, edited with modwright",
        fenced(_loading(report, location), "python"),
    ]
    if not report.after.plain:
        parts.append(
            "Stock transformers does not have its layers, so `import modwright` must stand "
            "before the loading lines; without it transformers refuses the checkpoint."
        )
    shown = [report.before] if report.before is report.after else [report.before, report.after]
    parts += ["## Before and after", stage_table(report, shown)]
    parts.append("In brackets: the change against the model as it came.")
    parts.append(bullets(summary_sentences(report)))
    parts += ["## How it was made", _steps(report)]
    if report.recipe:
        parts.append(fenced(recipe_yaml(report), "yaml"))
    if report.reproduce:
        parts += ["To make it again:", fenced(report.reproduce, "bash")]
    if report.after.servable:
        parts += ["## Where it runs", runtime_support(report.after)]
    parts += ["## Limits", bullets(_limits(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _auto_class(report: Report) -> str:
    """The class that opens the result: as the report says, else by what could be measured."""
    given = report.model.get("auto_class")
    if given:
        return str(given)
    spoke = any(stage.quality is not None or stage.sample is not None for stage in report.stages)
    return _CAUSAL if spoke else "AutoModel"


def _front_matter(report: Report) -> str:
    source, name = str(report.model.get("source") or ""), report.model.get("name")
    fields: dict[str, Any] = {}
    base = source if _HUB_ID.fullmatch(source) else name
    if base:
        fields["base_model"] = base
    fields["library_name"] = "modwright"
    if _auto_class(report) == _CAUSAL:
        fields["pipeline_tag"] = "text-generation"
    methods = [str(stage.method) for stage in report.stages[1:]]
    fields["tags"] = list(dict.fromkeys(["modwright", *methods]))
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def _loading(report: Report, location: str) -> str:
    auto, is_causal = _auto_class(report), _auto_class(report) == _CAUSAL
    lines = [f"from transformers import {auto}, AutoTokenizer", ""]
    if not report.after.plain:
        lines.insert(0, "import modwright  # registers the edited architecture")
    lines += [
        f"folder = {_quoted(location)}",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder)",
        "",
    ]
    sample = next((s.sample for s in reversed(report.stages) if s.sample is not None), {})
    prompt = sample.get("prompt") or _PROMPT
    settings = sample.get("settings") or {}
    if is_causal and settings.get("chat"):
        lines += [
            f'messages = [{{"role": "user", "content": {_quoted(prompt)}}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        lines.append(f'inputs = tokenizer({_quoted(prompt)}, return_tensors="pt")')
    if not is_causal:
        return "\n".join([*lines, "print(model(**inputs)[0].shape)"])
    tokens = settings.get("max_new_tokens", 40)
    return "\n".join(
        [
            *lines,
            f"output = model.generate(**inputs, do_sample=False, max_new_tokens={tokens})",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    )


def _quoted(text: str) -> str:
    """A Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _steps(report: Report) -> str:
    steps = report.stages[1:]
    if not steps:
        return "No step changed the model."
    said = [f"{stage.name}: {stage.title}" if stage.title else stage.name for stage in steps]
    return bullets(said)


def _limits(report: Report) -> list[str]:
    lines = []
    measures = list(_measures(report))
    if not measures:
        lines.append("Quality was not measured.")
    else:
        lines.append(
            f"Quality was measured as {' and as '.join(measures)} only; other languages, tasks and "
            "longer contexts can have lost more."
        )
    if report.after.speed is None:
        lines.append("Speed was not timed.")
    else:
        lines.append("Speed was timed on one machine; other hardware can gain less or more.")
    lines.append(
        "What the edits did to the model's knowledge, its refusals and its biases was not measured."
    )
    lines.append("The license of the base model holds for these weights too.")
    return lines


def _measures(report: Report) -> Iterator[str]:
    """What quality was measured as, and on what."""
    for group, words in (("quality", "perplexity"), ("agreement", "agreement with the base model")):
        recipes = [values["recipe"] for values in _groups(report, group) if "recipe" in values]
        if recipes:
            data = recipes[0].get("data")
            yield f"{words} on one text{f' ({data})' if data else ''}"
    for values in _groups(report, "harness"):
        recipe = values.get("recipe") or {}
        tasks = ", ".join(recipe.get("tasks") or ())
        yield f"scores of {recipe.get('harness', 'the harness')} ({tasks})"
        return


def _groups(report: Report, group: str) -> list[dict[str, Any]]:
    """The measurements of one kind, of every stage that has them."""
    return [values for stage in report.stages if (values := getattr(stage, group)) is not None]
