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

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The model, and the base format it runs in.

    Random weights need only a configuration, in which `config` may change values, and `tokenizer` may be
    that of another model: such a model serves to measure time, and nothing else. `merge_adapters` merges the
    adapter that `name_or_path` is the folder of into its base model. Weights are "in_memory"
    where `mp.tune` wrote the recipe: the measurements are in the folder, the model is not.
    """

    name_or_path: str
    dtype: Dtype = "bf16"
    trust_remote_code: bool = False
    weights: Weights = "trained"
    config: dict[str, Any] = {}
    tokenizer: str | None = None
    merge_adapters: bool = False

    @model_validator(mode="after")
    def _config_is_of_random_weights(self) -> ModelSection:
        if self.config and self.weights == "trained":
            message = (
                "config changes the model's shape, so that trained weights do not fit; add weights: random"
            )
            raise ValueError(message)
        return self


class DataSection(Section):
    """Samples: a file (JSON lines, Parquet, CSV, text), a folder, or the name of a dataset on a hub.

    `split` and `subset` choose a part of a dataset, `column` the column of texts or messages.
    """

    data: Path
    split: str | None = None
    subset: str | None = None
    column: str | None = None
    samples: Count = 64

    def excerpt(self, skip: int = 0) -> Excerpt:
        """Return the samples, after `skip` others."""
        source = DataSource(self.data, self.split, self.subset, self.column)
        return Excerpt(source, self.samples, skip)


class CalibrationSection(DataSection):
    """Samples for sensitivities and for INC's scales, and the shape of all batches, held-out ones, too.

    `pack` joins texts to samples of full length; the loss is of all `labels`, or of the answers alone.
    """

    sequence_length: Annotated[int, Field(gt=1)] = 512
    batch_size: Count = 8
    pack: bool = False
    labels: Labels = "all"

    @property
    def shape(self) -> BatchShape:
        """The shape of batches."""
        return BatchShape(self.sequence_length, self.batch_size, self.pack, self.labels)


class ValidationSection(DataSection):
    """Held-out samples, never those of the calibration, and the number of random plans to compare.

    A plan is reported on the first `samples` of the data; a closed loop reads as many after them. `through`
    says what lowers ops there: "inc", INC itself; "hooks", which round as INC on a CPU does and measure many
    plans together; or "auto", INC for the plan and hooks for all other plans.
    """

    random_plans: Annotated[int, Field(ge=3)] = 20
    seed: int = 0
    through: Measuring = "auto"


class RunSection(Section):
    """The cost of finding a plan, and nothing of the plan that would be found with unlimited samples.

    `estimator` and `draws` are those of the KL divergence; see `Estimate`. `memory` tells if the activations
    of all blocks are kept, or those of one; see `measure_sensitivity`. `parallel` tells what is spread over
    several processes: the samples, or with "fsdp" the weights of the model, too. `device_map: auto` keeps the
    weights that do not fit a card in memory, and the rest on a disk.
    """

    estimator: Estimator = "sample"
    draws: Count = 1
    memory: Memory = "auto"
    parallel: Parallel = "samples"
    device_map: DeviceMap | None = None


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
