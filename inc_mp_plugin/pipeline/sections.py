"""The sections of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inc_mp_plugin.core.literals import (
    DeviceMap,
    Estimator,
    Labels,
    Measuring,
    Memory,
    Parallel,
    TimedDevice,
    Weights,
)
from inc_mp_plugin.model.data.shape import BatchShape
from inc_mp_plugin.model.data.source import DataSource, Excerpt

Count = Annotated[int, Field(gt=0)]
Threshold = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dtype = Literal["fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSection(Section):
    """The model, and the base format it runs in.

    A model of random weights serves to measure time, and nothing else.
    """

    name_or_path: str
    """Folder of the model, or of an adapter, or a name on a hub."""
    dtype: Dtype = "bf16"
    """The base format."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    weights: Weights = "trained"
    """The model's own; or random, which need its configuration alone; in_memory where `mp.tune` wrote."""
    config: dict[str, Any] = {}
    """Values of the configuration to change, of random weights."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer; the model's if not given."""
    merge_adapters: bool = False
    """Merge the adapter that name_or_path is the folder of into its base model."""

    @model_validator(mode="after")
    def _config_is_of_random_weights(self) -> ModelSection:
        if self.config and self.weights == "trained":
            message = (
                "config changes the model's shape, so that trained weights do not fit; add weights: random"
            )
            raise ValueError(message)
        return self


class DataSection(Section):
    """Samples of a dataset."""

    data: Path
    """A file (JSON lines, Parquet, CSV, text), a folder, or the name of a dataset on a hub."""
    split: str | None = None
    """The split of a dataset to take."""
    subset: str | None = None
    """The subset of a dataset to take."""
    column: str | None = None
    """The column of texts or messages; text, messages or prompt and completion if not given."""
    samples: Count = 64
    """Their number."""

    def excerpt(self, skip: int = 0) -> Excerpt:
        """Return the samples, after `skip` others."""
        source = DataSource(self.data, self.split, self.subset, self.column)
        return Excerpt(source, self.samples, skip)


class CalibrationSection(DataSection):
    """Samples for sensitivities and for INC's scales, and the shape of all batches, held-out ones, too."""

    sequence_length: Annotated[int, Field(gt=1)] = 512
    """Tokens at most."""
    batch_size: Count = 8
    """Samples that run together."""
    pack: bool = False
    """Join texts to samples of full length."""
    labels: Labels = "all"
    """The tokens that the loss is of: all, or those of answers."""

    @property
    def shape(self) -> BatchShape:
        """The shape of batches."""
        return BatchShape(self.sequence_length, self.batch_size, self.pack, self.labels)


class ValidationSection(DataSection):
    """Held-out samples, never those of the calibration, and the number of random plans to compare.

    A plan is reported on the first `samples` of the data; a closed loop reads as many after them.
    """

    random_plans: Annotated[int, Field(ge=3)] = 20
    """Plans to compare predicted with measured values of."""
    seed: int = 0
    """Seed of the random plans."""
    through: Measuring = "auto"
    """What lowers ops: INC, hooks that round as a CPU or a server does, or INC for the plan alone (auto)."""


class RunSection(Section):
    """The cost of finding a plan, and nothing of the plan that would be found with unlimited samples."""

    estimator: Estimator = "sample"
    """Gradients of the KL divergence: of each sample, or of each batch: cheaper, with more scatter."""
    draws: Count = 1
    """Labels drawn for each position."""
    memory: Memory = "auto"
    """Keep the activations of all blocks (high), or of one at a time (low), or as memory allows (auto)."""
    parallel: Parallel = "samples"
    """What several processes share out: samples, or the weights, too (fsdp)."""
    device_map: DeviceMap | None = None
    """With auto, weights that do not fit the card stay in memory, or on disk."""


class RequestSection(Section):
    """The request that time is priced for: TTFT + output_tokens x TPOT, of `batch_size` prompts at once."""

    prompt_tokens: Annotated[int, Field(gt=1)]
    """Tokens of a prompt."""
    output_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that follow it."""
    batch_size: Count = 1
    """Prompts at once."""


class TimingSection(Section):
    """The device that time is measured on, and the length of the measurement."""

    device: TimedDevice = "cpu"
    """The device."""
    repeats: Annotated[int, Field(ge=3)] = 15
    """Pairs of measurements of a group, at first."""
    most_repeats: Annotated[int, Field(ge=3)] = 300
    """The most pairs of a group that is not precise enough."""
    precision: Threshold = 0.02
    """The standard error of all gains together that is enough, as a part of them."""
    budget_s: Threshold | None = None
    """The time after which no further round starts, seconds."""
    every_group: bool = False
    """Measure groups of one structure each, not once for all."""
