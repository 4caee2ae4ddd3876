"""What a recipe says. Unknown keys are refused; resolving writes every default out."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Data", "Evaluate", "Generate", "PerplexityOf", "Recipe", "Speed", "Step"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """Calibration text and how it is cut into windows."""

    data: str = Field(default="lee-background", description="name, text file, directory, dataset")
    split: str = "train"
    column: str = "text"
    encoding: str = "utf-8"
    windows: int = Field(default=32, ge=1, description="how many windows of tokens")
    length: int = Field(default=512, ge=2, description="tokens of a window")
    seed: int | None = Field(default=None, description="null takes the first windows")
    batch_size: int = Field(default=4, ge=1)
    bos: bool = False


class PerplexityOf(_Strict):
    """Held-out text for perplexity."""

    data: str = "lee"
    split: str = "train"
    column: str = "text"
    encoding: str = "utf-8"
    windows: int = Field(default=6, ge=1)
    length: int = Field(default=512, ge=2)
    stride: int | None = Field(default=None, ge=1)
    bos: bool = False
    batch_size: int = Field(default=1, ge=1)


class Generate(_Strict):
    """A sample before and after."""

    prompt: str = "What is the capital of France? Answer in one sentence."
    max_new_tokens: int = Field(default=40, ge=1)
    chat: bool | None = None


class Speed(_Strict):
    """Timing of prefill and decoding."""

    batch: int = Field(default=1, ge=1)
    prompt: int = Field(default=128, ge=1)
    new_tokens: int = Field(default=32, ge=1)
    repeats: int = Field(default=3, ge=1)


class Evaluate(_Strict):
    """What is measured before the first step and after each; null leaves a measurement out."""

    perplexity: PerplexityOf | None = PerplexityOf()
    generate: Generate | None = Generate()
    speed: Speed | None = Speed()
    length: int = Field(default=512, ge=1, description="tokens for MACs and key/value cache")


class Step(_Strict):
    """One method with its options; calibration data of its own if it likes."""

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    calibration: Data | None = None

    @model_validator(mode="before")
    @classmethod
    def _options_beside_method(cls, value: Any) -> Any:
        """Options stand beside ``method``: ``{method: llm_drop, n: 4}``."""
        if not isinstance(value, dict) or "options" in value:
            return value
        own = {name: value[name] for name in ("method", "calibration") if name in value}
        options = {name: v for name, v in value.items() if name not in own}
        return {**own, "options": options}


class Recipe(_Strict):
    """A model, steps, and what to measure."""

    model: str = Field(description="directory, GGUF file, packaged name, preset:NAME or hub id")
    output: str = Field(default="", description="directory to write; the command line may give it")
    title: str = ""
    dtype: str | None = Field(
        default=None, description="float32, bfloat16, float16; null keeps the source's"
    )
    seed: int = 0
    threads: int | None = Field(default=None, ge=1, description="CPU threads; null: torch chooses")
    max_shard_size: str = "5GB"
    calibration: Data = Data()
    steps: list[Step] = Field(min_length=1)
    evaluate: Evaluate = Evaluate()
