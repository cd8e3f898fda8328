"""Plans of several strategies, compared: what an experiment of the papers gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inc_mp_plugin.core.literals import Objective, Source, Unit
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import KLPoint


@dataclass(frozen=True, slots=True)
class AnswerChange:
    """Answers to the documents of a task, paired with those of the base model.

    `flips` is the share of documents that are answered otherwise, `accuracy` the change of the share of right
    answers, and `margin` that of the margin, in nats: the log-probability of the right answer minus that of
    the best wrong one, or the log-probability itself where a document has no wrong ones. Each is a mean over
    documents; `margin_rms` is the root mean square change of the margin.
    """

    documents: int
    flips: float
    accuracy: float
    accuracy_interval: Interval
    margin: float
    margin_interval: Interval
    margin_rms: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan of an experiment.

    `level` is what it was asked for: a fraction of the largest gain, or of the NRMSE of everything in the
    lower format, a threshold, or a share of all ops. `seed` tells draws (of `random`, and of perturbed
    scales) apart. `gain` is None where it is not known.

    `predicted` is its loss MSE, with `interval`; None where the loss was not priced. `measured` is that on
    held-out samples, with `measured_interval`. `kl` is its KL divergence, None where it was not measured;
    `predicted_kl` is that in nats per token where it was priced and not measured.
    `scores` are what tasks gave, {"task/metric": value}, and `answers` tell how its answers differ from the
    base model's, {task: change}.
    """

    strategy: str
    seed: int
    level: float
    gain: float | None
    quantized: tuple[str, ...]
    predicted: float | None = None
    interval: Interval | None = None
    measured: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    measured_interval: Interval | None = None
    kl: KLPoint | None = None
    answers: Mapping[str, AnswerChange] = field(default_factory=dict)
    predicted_kl: float | None = None

    @property
    def covered(self) -> bool:
        """True if the measured loss MSE lies in the predicted interval."""
        if self.interval is None or self.measured is None:
            return False
        return self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True, slots=True)
class Experiment:
    """Plans of several strategies for one objective, measured as `name` says.

    `loss_ms` is E[g^2] of the held-out samples, `base_scores` are those of the model in its base format,
    `ops` all ops that could be lowered, in graph order.
    """

    name: str
    objective: Objective
    unit: Unit
    source: Source
    largest_gain: float
    samples: int
    loss_ms: float
    ops: tuple[str, ...]
    trials: tuple[Trial, ...]
    base_scores: Mapping[str, float] = field(default_factory=dict)
