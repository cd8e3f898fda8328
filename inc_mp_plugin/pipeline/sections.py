"""The sections of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inc_mp_plugin.core.literals import TimedDevice, Weights

Count = Annotated[int, Field(gt=0)]
Threshold = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dtype = Literal["fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The model, and the base format it runs in.

    Random weights need only a configuration, in which `config` may change values, and `tokenizer` may be
    that of another model: such a model serves to measure time, and nothing else. Weights are "in_memory"
    where `mp.tune` wrote the recipe: the measurements are in the folder, the model is not.
    """

    name_or_path: str
    dtype: Dtype = "bf16"
    trust_remote_code: bool = False
    weights: Weights = "trained"
    config: dict[str, Any] = {}
    tokenizer: str | None = None

    @model_validator(mode="after")
    def _config_is_of_random_weights(self) -> ModelSection:
        if self.config and self.weights == "trained":
            message = (
                "config changes the model's shape, so that trained weights do not fit; add weights: random"
            )
            raise ValueError(message)
        return self


class CalibrationSection(Section):
    """Samples for sensitivities and for INC's scales: JSON lines of texts or messages, .gz or not."""

    data: Path
    samples: Count = 64
    sequence_length: Annotated[int, Field(gt=1)] = 512
    batch_size: Count = 8


class ValidationSection(Section):
    """Held-out samples, never those of the calibration, and the number of random plans to compare.

    A plan is reported on the first `samples` of the data; a closed loop reads as many after them.
    """

    data: Path
    samples: Count = 64
    random_plans: Annotated[int, Field(ge=3)] = 20
    seed: int = 0


class RequestSection(Section):
    """The request that time is priced for: TTFT + output_tokens x TPOT, of `batch_size` prompts at once."""

    prompt_tokens: Annotated[int, Field(gt=1)]
    output_tokens: Annotated[int, Field(ge=0)] = 0
    batch_size: Count = 1


class TimingSection(Section):
    """The device that time is measured on, and the length of the measurement; see `TimingSettings`."""

    device: TimedDevice = "cpu"
    repeats: Annotated[int, Field(ge=3)] = 15
    most_repeats: Annotated[int, Field(ge=3)] = 300
    precision: Threshold = 0.02
    budget_s: Threshold | None = None
    every_group: bool = False
