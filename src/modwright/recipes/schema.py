"""What a recipe says. Unknown keys are refused; resolving writes every default out."""

from __future__ import annotations

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

from modwright.surgery import make_method

__all__ = ["Data", "Evaluate", "Generate", "HarnessTasksOf", "PerplexityOf", "Recipe", "Speed"]
__all__ += ["Step", "Strict"]


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


class Data(Strict):
    """Calibration text and how it is cut into windows."""

    data: str = Field(
        default="lee-background",
        description="lee, lee-background, fortunes, a text file, a folder of text files, a file of "
        "rows (jsonl, csv, parquet), or datasets:NAME",
    )
    split: str = "train"
    column: str = "text"
    encoding: str = "utf-8"
    windows: int = Field(default=32, ge=1, description="how many windows of tokens")
    length: int = Field(default=512, ge=2, description="tokens of a window")
    seed: int | None = Field(default=None, description="null takes the first windows")
    batch_size: int = Field(default=4, ge=1)
    bos: Bos = "auto"


class PerplexityOf(Strict):
    """Held-out text for perplexity."""

    data: str = "lee"
    split: str = "train"
    column: str = "text"
    encoding: str = "utf-8"
    windows: int = Field(default=6, ge=1)
    length: int = Field(default=512, ge=2)
    stride: int | None = Field(default=None, ge=1)
    bos: Bos = "auto"
    batch_size: int = Field(default=1, ge=1)


class Generate(Strict):
    """A sample before and after."""

    prompt: str = "What is the capital of France? Answer in one sentence."
    max_new_tokens: int = Field(default=40, ge=1)
    chat: bool | None = None


class Speed(Strict):
    """Timing of prefill and decoding."""

    batch: int = Field(default=1, ge=1)
    prompt: int = Field(default=128, ge=1)
    new_tokens: int = Field(default=32, ge=1)
    repeats: int = Field(default=3, ge=1, description="timed runs, or pairs of runs, at least")
    max_seconds: float = Field(
        default=20,
        ge=0,
        description="more pairs are timed so long, until the intervals of their ratios are narrow",
    )


class HarnessTasksOf(Strict):
    """Tasks of the evaluation harness (lm-eval); needs the extra ``text``."""

    tasks: list[str] = Field(
        min_length=1, description="names of tasks, groups or tags, or paths of task files"
    )
    include_path: str | None = Field(default=None, description="a directory of one's own tasks")
    limit: int | None = Field(
        default=None, ge=1, description="documents of each task; null takes all"
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, description="examples before each question; null: as the task says"
    )
    batch_size: int = Field(default=1, ge=1)


class Evaluate(Strict):
    """What is measured before the first step and after each; null leaves a measurement out."""

    perplexity: PerplexityOf | None = PerplexityOf()
    agreement: bool = Field(
        default=False,
        description="after each step also how far it is from the baseline, on the windows "
        "of perplexity",
    )
    harness: HarnessTasksOf | None = None
    generate: Generate | None = Generate()
    speed: Speed | None = Speed()
    length: int = Field(default=512, ge=1, description="tokens for MACs and key/value cache")


class Step(Strict):
    """One method with its options; calibration data of its own if it likes."""

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    calibration: Data | None = None

    @cached_property
    def built(self) -> Any:
        """The method with its options.

        Raises:
            InvalidInputError: an unknown method or option, or an invalid value.
        """
        return make_method(self.method, self.options)

    @classmethod
    def valid_keys(cls) -> list[str]:
        return ["method", "calibration", "options (or each option by its own name)"]

    @model_validator(mode="before")
    @classmethod
    def _options_beside_method(cls, value: Any) -> Any:
        """Options stand beside ``method``: ``{method: llm_drop, n: 4}``."""
        if not isinstance(value, dict) or "options" in value:
            return value
        own = {name: value[name] for name in ("method", "calibration") if name in value}
        options = {name: v for name, v in value.items() if name not in own}
        return {**own, "options": options}


def _name_or_mapping(value: Any) -> Any:
    if isinstance(value, str | dict):
        return value
    raise PydanticKnownError("string_type")


Model = Annotated[
    Any,
    BeforeValidator(_name_or_mapping),
    WithJsonSchema({"type": "string"}),
]


class Recipe(Strict):
    """A model, steps, and what to measure."""

    model: Model = Field(
        description="directory, GGUF file, packaged name, preset:NAME or hub id; or a model from "
        "scratch, such as {compose: llama, hidden_size: 128, parts: {'mlp[*]': {part: NAME}}}"
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
