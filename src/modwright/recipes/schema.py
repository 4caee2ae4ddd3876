"""What a recipe says. Unknown keys are refused; resolving writes every default out."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticKnownError

from modwright.core.errors import InvalidInputError
from modwright.data.texts import default_texts
from modwright.metrics.registry import (
    Metric,
    in_order,
    make_metric,
    metric_names,
    metric_type,
    old_keys,
)
from modwright.recipes.steps.base import STEPS
from modwright.surgery import make_method

__all__ = ["EXPORT", "METHOD", "Data", "Evaluate", "NameOrMapping", "Recipe", "Step", "Strict"]


class Strict(BaseModel):
    """A mapping of a recipe: unknown keys are refused, and values of another type."""

    # Strict: `windows: true` and `windows: "4"` are slips of the pen, not one and four.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def valid_keys(cls) -> list[str]:
        """What may stand in this mapping, as messages name it."""
        return list(cls.model_fields)


Bos = Annotated[
    Literal["auto", True, False],
    Field(
        description="special tokens of each window: auto for those that the tokenizer adds by "
        "itself, true for BOS, false for none"
    ),
]


def _name_or_mappings(value: Any) -> Any:
    if isinstance(value, str | dict) or (isinstance(value, list) and value):
        return value
    raise PydanticKnownError("string_type")


NameOrMappings = Annotated[
    Any,
    BeforeValidator(_name_or_mappings),
    WithJsonSchema({"anyOf": [{"type": kind} for kind in ("string", "object", "array")]}),
]


class Data(Strict):
    """Calibration data: text, cut into windows, or images."""

    data: NameOrMappings = Field(
        default=default_texts(),
        description="a text by name (lee and others), a text file, a folder of text files, a file "
        "of rows (jsonl, csv, parquet), or datasets:NAME; {text: NAME}; a list of these, which are "
        "taken in turn; {images: FOLDER} for a model that reads them",
    )
    split: str = "train"
    column: str = "text"
    encoding: str = "utf-8"
    windows: int = Field(default=32, ge=1, description="how many windows of tokens")
    length: int = Field(default=512, ge=2, description="tokens of a window")
    seed: int | None = Field(default=None, description="null takes the first windows")
    batch_size: int = Field(default=4, ge=1)
    bos: Bos = "auto"


class Evaluate(Strict):
    """What is measured before the first step and after each, by the names of metrics.

    Each metric stands as a key with a mapping of its options; true takes the defaults, null or
    false leaves it out. Those that are measured unless a recipe says otherwise are left out, too,
    where the model cannot have them. One that a recipe names is refused then, unless its mapping
    says ``required: false``.
    """

    length: int = Field(default=512, ge=1, description="tokens for MACs and key/value cache")
    metrics: dict[str, Any] = Field(
        default_factory=dict,
        description="not written out: each metric is a key of its own beside length",
    )

    @classmethod
    def valid_keys(cls) -> list[str]:
        return ["length", *metric_names()]

    @model_validator(mode="before")
    @classmethod
    def _metrics_beside_length(cls, value: Any) -> Any:
        """Metrics stand beside ``length``: ``{perplexity: {windows: 3}, speed: null}``."""
        if not isinstance(value, dict):
            return value
        own = {name: value[name] for name in ("length",) if name in value}
        given = value["metrics"] if set(value) == {"length", "metrics"} else value
        metrics = {str(name): v for name, v in given.items() if name != "length"}
        return {**own, "metrics": metrics}

    @cached_property
    def named(self) -> dict[str, Any]:
        """What was said of each metric, by its name of today.

        Raises:
            InvalidInputError: a metric stands under its old name and its new one.
        """
        aliases, found = old_keys(), dict[str, Any]()
        for key, said in self.metrics.items():
            name = aliases.get(key, key)
            if name in found:
                raise InvalidInputError(f"{key}: names the metric {name} a second time; keep one")
            found[name] = said
        return found

    @cached_property
    def built(self) -> dict[str, Metric]:
        """The metrics that are measured, with their options, in the order of reports.

        Raises:
            InvalidInputError: an unknown metric or option, or an invalid value.
        """
        found = {}
        for name in self.named:
            metric_type(name)
        for kind in in_order():
            beside = not kind.defaults_from or kind.defaults_from in found
            said = self.named.get(kind.name, kind.by_default and beside)
            if said is None or said is False:
                continue
            options = {k: v for k, v in self._options(kind.name, said).items() if k != "required"}
            found[kind.name] = make_metric(kind.name, options)
        return found

    def is_required(self, name: str) -> bool:
        """Whether a metric was asked for, so that a model that cannot have it is refused.

        Recipes with a key of older versions are read as those versions read them: what is measured
        by default is never required.
        """
        said = self.named.get(name)
        is_old = bool(old_keys().keys() & self.metrics.keys())
        default = not (is_old and metric_type(name).by_default)
        return bool(said.get("required", default)) if isinstance(said, dict) else said is True

    def resolved(self) -> dict[str, Any]:
        """The mapping of a recipe with every default written out."""
        found: dict[str, Any] = {"length": self.length}
        for name, metric in self.built.items():
            options = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(metric).items()  # type: ignore[call-overload]
            }
            found[name] = options if self.is_required(name) else {**options, "required": False}
        for kind in in_order():
            if kind.by_default and kind.name not in found:
                found[kind.name] = None
        return found

    def _options(self, name: str, said: Any) -> dict[str, Any]:
        """The options of a metric; those that are not said are another's, where it takes them."""
        own = dict(said) if isinstance(said, dict) else {}
        kind = metric_type(name)
        other = self.named.get(kind.defaults_from) if kind.defaults_from else None
        if not isinstance(other, dict):
            return own
        shared = {field.name for field in fields(kind)} & {  # type: ignore[arg-type]
            field.name
            for field in fields(metric_type(kind.defaults_from))  # type: ignore[arg-type]
        }
        shared -= set(kind.own_options)
        return {**{k: v for k, v in other.items() if k in shared}, **own}


METHOD, EXPORT = "method", "export"


class Step(Strict):
    """One method with its options; calibration data of its own if it likes.

    Or one of ``{train: {...}}``, ``{heal: {...}}`` and ``{export: TARGET}``.
    """

    kind: str = Field(default=METHOD, description="not written out: the key of a step tells it")
    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    calibration: Data | None = None

    @cached_property
    def built(self) -> Any:
        """The method with its options, or what another kind of step makes of its own.

        Raises:
            InvalidInputError: an unknown method or option, or an invalid value.
        """
        if self.kind != METHOD:
            return STEPS[self.kind].of(self.options["given"])
        return make_method(self.method, self.options)

    @classmethod
    def valid_keys(cls) -> list[str]:
        return [METHOD, "calibration", "options (or each option by its own name)", *STEPS.names()]

    @model_validator(mode="before")
    @classmethod
    def _options_beside_method(cls, value: Any) -> Any:
        """Options stand beside ``method``: ``{method: llm_drop, n: 4}``; ``{train: {...}}``."""
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in STEPS:
            ((kind, given),) = value.items()
            return {"kind": kind, "method": kind, "options": {"given": given}}
        if not isinstance(value, dict) or "options" in value:
            return value
        own = {name: value[name] for name in ("method", "calibration") if name in value}
        options = {name: v for name, v in value.items() if name not in own}
        return {**own, "options": options}


def _name_or_mapping(value: Any) -> Any:
    if isinstance(value, str | dict):
        return value
    raise PydanticKnownError("string_type")


NameOrMapping = Annotated[Any, BeforeValidator(_name_or_mapping)]
Model = Annotated[NameOrMapping, WithJsonSchema({"type": "string"})]


class Recipe(Strict):
    """A model, steps, and what to measure."""

    model: Model = Field(
        description="directory, GGUF file, packaged name, preset:NAME or hub id; {checkpoint: DIR, "
        "num_classes: 3} for a fresh classifier of images; or a model from scratch, such as "
        "{compose: llama, hidden_size: 128, parts: {'mlp[*]': {part: NAME}}}"
    )
    output: str = Field(default="", description="directory to write; the command line may give it")
    title: str = ""
    plugins: list[str] = Field(
        default=[],
        description="files, relative to the recipe, or modules that register parts, methods, "
        "families and so on",
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        default=None, description="type of the weights; null keeps the source's"
    )
    device: str | None = Field(
        default=None, description="where the model runs: cpu, cuda, cuda:1; null: the CPU"
    )
    seed: int = 0
    threads: int | None = Field(default=None, ge=1, description="CPU threads; null: torch chooses")
    max_shard_size: str = Field(
        default="5GB",
        pattern=r"^\d+(\.\d+)? ?([kK]|M|G|T)B$",
        description="most of one weight file, such as 200MB or 5GB",
    )
    calibration: Data = Data()
    steps: list[Step] = Field(
        min_length=1, description="methods one after the other, such as {method: llm_drop, n: 4}"
    )
    evaluate: Evaluate = Evaluate()
