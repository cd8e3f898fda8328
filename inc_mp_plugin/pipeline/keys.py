"""The keys of a recipe, each with its meaning."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from inc_mp_plugin.core.literals import (
    Accelerator,
    Attention,
    KVCache,
    NoiseModel,
    Objective,
    Strategy,
    Yardstick,
)
from inc_mp_plugin.core.results import VERIFY_CONFIDENCE
from inc_mp_plugin.pipeline.own_loss import AUTO
from inc_mp_plugin.pipeline.sections import (
    CalibrationSection,
    ModelSection,
    RequestSection,
    RunSection,
    Section,
    Threshold,
    TimingSection,
    ValidationSection,
)

Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Keys(Section):
    """The keys of a recipe, with their defaults."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: ModelSection
    """The model, and the base format that it runs in."""
    calibration: CalibrationSection
    """The samples that plans are made from."""
    strategy: Strategy = "ip_mse"
    """How the plan is made: the exact program, other prices in it (eagl, alps), or a baseline."""
    seed: int = 0
    """Seed of the random baseline's order, and of the labels that are drawn."""
    objective: Objective = "memory"
    """The gain that the plan makes largest."""
    device: Accelerator = "gaudi2"
    """The accelerator that modelled times are of."""
    formats: tuple[str, ...] = ("fp8_e4m3",)
    """The lower formats that ops may have: fp8_e4m3, fp8_e5m2, bf16, fp16."""
    tau: Threshold | None = None
    """Largest normalized RMSE of the loss."""
    kl: Threshold | None = None
    """Largest KL divergence, nats per token (per sample of a classifier)."""
    gain_fraction: Fraction | None = None
    """The least gain, as a part of the largest: the plan of least cost that has it."""
    budget: Fraction | None = None
    """What the plan may cost in bytes, time or bit operations, as a part of everything in the base format."""
    constraint: Yardstick | None = None
    """What gain_fraction and budget make least; the yardstick with a threshold, else kl, if not given."""
    loss: str = AUTO
    """The loss that transformers trains such a model with, or your own, module:function."""
    noise: NoiseModel = "uniform"
    """The model of rounding errors: the paper's, its mean over mantissas, or the errors that scales make."""
    scale_method: str | None = None
    """The scales of measured noise and of INC's files, by INC's name; the first target's if not given."""
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The upper end of this interval of the prediction is held to the threshold; with ip_mse alone."""
    verify: bool = False
    """Plans are measured on held-out samples, as long as the threshold surely holds."""
    verify_confidence: Annotated[float, Field(gt=0, lt=1)] = VERIFY_CONFIDENCE
    """Level of the intervals of what is measured."""
    targets: tuple[str, ...] = ("cpu-qdq",)
    """The consumers that must run the plan: cpu-qdq, cpu-bf16, optimum-habana, vllm, vllm-gaudi."""
    kv_cache: KVCache = "bf16"
    """The format of the KV cache on a Gaudi."""
    attention: Attention = "eager"
    """How optimum-habana runs attention."""
    reuse_cache: bool = False
    """True if optimum-habana runs with a reused cache."""
    request: RequestSection | None = None
    """The request that time is priced for."""
    timing: TimingSection | None = None
    """How time is measured, for empirical_time."""
    validation: ValidationSection | None = None
    """Held-out samples, on which the plan and random plans are measured."""
    run: RunSection = RunSection()
    """What finding the plan may cost."""
