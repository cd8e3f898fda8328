"""Trials of an experiment, measured on held-out samples; the time that it takes is said first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from inc_mp_plugin.core.experiment import Experiment, Trial
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.evaluate.interval import mean_ratio_interval
from inc_mp_plugin.evaluate.validate import KLMeasurement
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.runtime.pace import counted, duration
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.solver.uncertainty import predict

# Forward passes that a plan takes (docs/pages/large.md): side by side, alone, and of one op alone.
_TOGETHER, _ALONE, _ONE_OP = 1.13, 1.40, 0.69
_SHORTER = "fewer --points, --draws or --samples, or --quick, take less"


def say_time(
    run: Run, name: str, trials: Sequence[Trial], *, more_plans: int = 0, alps_samples: int = 0
) -> None:
    """Say how many plans an experiment measures and how long that takes, by a measured forward pass.

    Args:
        run: of the folder.
        name: of the experiment.
        trials: those of its plans that are known.
        more_plans: number of those that are not known yet.
        alps_samples: calibration samples that each op runs on alone, for ALPS; 0 if nothing is left to run.
    """
    meter = run.meter
    plans = len(meter.missing([trial.quantized for trial in trials])) + more_plans
    if not plans and not alps_samples:
        say(f"{name}: everything was measured before")
        return
    forward_s, texts = meter.forward_s(), [counted(plans, "plan")]
    seconds = plans * forward_s * (_TOGETHER if meter.through == "hooks" else _ALONE)
    if alps_samples:
        ops = len(run.losses.ops)
        texts.append(f"ALPS with each of {ops} ops alone on {counted(alps_samples, 'sample')}")
        seconds += ops * _ONE_OP * forward_s * alps_samples / meter.samples.samples
    say(f"{name}: {' and '.join(texts)}, about {duration(seconds)} ({_SHORTER})")


def measured_experiment(run: Run, gains: Gains, name: str, trials: Sequence[Trial]) -> Experiment:
    """Measure the loss MSE and the KL divergence of every trial, all together; equal plans once.

    Args:
        run: of the folder.
        gains: that the plans were made for.
        name: of the experiment.
        trials: its plans.
    """
    run.meter.measure([trial.quantized for trial in trials], f"Plans of {name}", _SHORTER)
    return experiment_of(run, gains, name, [_measured(run, trial) for trial in trials])


def experiment_of(run: Run, gains: Gains, name: str, trials: Sequence[Trial]) -> Experiment:
    """Put trials together; losses are those of calibration where nothing was measured.

    Args:
        run: of the folder.
        gains: that the plans were made for.
        name: of the experiment.
        trials: its plans.
    """
    losses = run.losses.sensitivity.loss if name == "choices" else run.meter.losses(())
    return Experiment(
        name=name,
        objective=gains.objective,
        unit=gains.unit,
        source=gains.source,
        largest_gain=gains.largest,
        samples=len(losses),
        loss_ms=float((losses**2).mean()),
        ops=run.losses.ops,
        trials=tuple(trials),
    )


def _measured(run: Run, trial: Trial) -> Trial:
    """Return a trial with what was measured, and predictions with intervals for as many samples."""
    meter, costs = run.meter, run.losses
    changes = (meter.losses(trial.quantized) - meter.losses(())) ** 2
    formats, base = dict.fromkeys(trial.quantized, meter.format), run.recipe.model.dtype
    value, interval = trial.predicted, trial.interval
    if costs.loss is not None:
        value, fresh = predict(costs.loss, formats, base, measured=len(changes))
        interval = fresh or interval

    def predicted_kl(_: object) -> tuple[float, Interval | None] | None:
        return None if costs.kl is None else predict(costs.kl, formats, base, measured=len(changes))

    kl = KLMeasurement(meter.divergence, predicted_kl)
    return replace(
        trial,
        predicted=value,
        interval=interval,
        measured=float(changes.mean()),
        measured_interval=mean_ratio_interval(changes, np.ones_like(changes), meter.verify_confidence),
        kl=kl.point(trial.quantized, meter.verify_confidence),
        predicted_kl=None,
    )
