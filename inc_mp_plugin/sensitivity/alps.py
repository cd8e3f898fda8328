"""ALPS (arXiv 2301.13330): the measured loss when one op alone runs in the lower precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial as bind
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import ALPS, OpValues
from inc_mp_plugin.model.batches import batch_size
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.outcome import Outcome
from inc_mp_plugin.model.plain_batches import plain_batches
from inc_mp_plugin.model.wrappers import unwrapped
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.pace import Work
from inc_mp_plugin.runtime.progress import say, steps, tracked
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
from inc_mp_plugin.sensitivity.plan_runs import PlanRuns
from inc_mp_plugin.sensitivity.rounding import CASTS, Cast, Rounding, observe_rounding

if TYPE_CHECKING:
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.scales.methods import Scales

Formats = Mapping[str, str]
_BASE = "base"
_SHORTER = (
    "each runs all calibration samples: fewer samples (calibration.samples) take less, and strategy=eagl "
    "needs none"
)


def measure_alps(
    ops: Sequence[str],
    formats: Sequence[str],
    score: Callable[[Formats], float],
    partial: Partial,
    *,
    unit: str = "loss",
) -> OpValues:
    """Measure the value of keeping each op: how much worse the score is with this op alone in a lower format.

    ::

        value(op, format) = score({op: format}) - score({})

    Of several processes, each scores a share of the ops, one after the other, and all get all values.

    Args:
        ops: their names.
        formats: the lower formats.
        score: takes {op: format}; returns the score of a model with these ops in these formats and all other
            ops in the base format. Lower is better. In the paper, the model is fine-tuned briefly before.
        partial: where scores are kept until all are there; after an interrupt only missing scores are
            measured. Each process needs one of its own.
        unit: of the score.

    Raises:
        NonFiniteError: a score is NaN or infinite; the text names the op.
    """
    trials = _trials(ops, formats)
    mine = {key: trials[key] for key in ranks.share(list(trials))}
    scores = _scores(mine, score, partial)
    everywhere = ranks.exchange_arrays({key: np.array(value) for key, value in scores.items()})
    partial.remove()
    return _values(ops, formats, {key: float(v) for part in everywhere for key, v in part.items()}, unit)


def _trials(ops: Sequence[str], formats: Sequence[str]) -> dict[str, Formats]:
    """List all trials: every op in the base format, and each op alone in each lower format."""
    return {_BASE: {}, **{_key(f, op): {op: f} for f in formats for op in ops}}


def _scores(
    trials: Mapping[str, Formats], score: Callable[[Formats], float], partial: Partial
) -> dict[str, float]:
    scores = {key: float(value) for key, value in partial.load().items() if key in trials}
    if scores:
        say(f"alps: going on after {len(scores)} of {len(trials)} scores that were measured before")
    missing = [key for key in trials if key not in scores]
    with tracked(missing, "ALPS, each op alone", done=len(scores), shorter=_SHORTER) as keys:
        for key in keys:
            scores[key] = _checked(score(trials[key]), key)
            partial.save({name: np.array(value) for name, value in scores.items()})
    return scores


def _checked(score: float, key: str) -> float:
    if not np.isfinite(score):
        format_name, _, op = key.partition(" ")
        where = f"{op} in {format_name}" if op else "every op in the base format"
        message = f"the score is {score} with {where}; it must be a number"
        raise NonFiniteError(message)
    return score


def measure_alps_without_training(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any],
    loss_fn: LossFunction | None,
    *,
    formats: Sequence[str],
    partial: Partial,
    scales: Scales | None = None,
) -> OpValues:
    """Measure ALPS without training: how much the mean loss rises with each op alone rounded.

    All ops run side by side, where the model's blocks are a chain: what runs before an op, runs once for
    all. Of several processes, each runs batches of its own, and the values are those of all samples.

    Args:
        model: in its base format; leaves as it came.
        graph: from `capture`.
        batches: calibration batches.
        loss_fn: as in `measure_sensitivity`.
        formats: the lower formats: all of them FP8, or all of them BF16 or FP16.
        partial: as in `measure_alps`.
        scales: how INC scales to FP8; needed for FP8 formats.

    Returns:
        Values in the unit of the loss, of the ops that a sample reached. With a value below 0, the loss of
        these samples falls.

    Raises:
        InputError: there is no format; an FP8 format has no scales; or a format is not FP8, BF16 or FP16.
        NonFiniteError: a loss is NaN or infinite; the text names the op.
    """
    model, batches = unwrapped(model), plain_batches(batches)
    with tracked(batches, "Maxabs of inputs", noun="batch") as calibration:
        rounder: Rounding | Cast | None
        if formats and set(formats) <= CASTS:
            rounder = Cast(observe_maxabs(model, graph, calibration, loss_fn))
        else:
            rounder = observe_rounding(model, graph, calibration, loss_fn, scales=scales, formats=formats)
    if rounder is None:
        message = "no format to round to was given; give FP8 formats with scales, or bf16 or fp16"
        raise InputError(message)
    ops = [op.name for op in graph.ops if (op.name, 0) in rounder.maxabs]

    def run(batch: Any) -> Outcome:
        return Outcome(sample_losses(model, batch, loss_fn), None)

    with as_measured(model), torch.no_grad():
        runs = PlanRuns(model, graph, rounder, as_used=True)
        totals = _total_losses(runs, _trials(ops, formats), batches, run, partial=partial)
    samples = np.array(sum(batch_size(batch) for batch in batches))
    everywhere = ranks.exchange_arrays({"samples": samples, **{k: np.array(v) for k, v in totals.items()}})
    count = sum(int(part["samples"]) for part in everywhere)
    means = {key: sum(float(part[key]) for part in everywhere) / count for key in totals}
    partial.remove()
    return _values(ops, formats, means, "loss")


def _total_losses(
    runs: PlanRuns,
    trials: Mapping[str, Formats],
    batches: Sequence[Any],
    run: Callable[[Any], Outcome],
    *,
    partial: Partial,
) -> dict[str, float]:
    """Add up the losses of all samples for each trial; after an interrupt, go on at the next batch."""
    kept, keys = partial.load(), list(trials)
    done = {key: int(kept.get(f"{key} batches", 0)) for key in keys}
    totals = {key: float(kept[key]) if done[key] else 0.0 for key in keys}
    if kept:
        say(f"alps: going on after {min(done.values())} of {len(batches)} batches that were measured before")
    size = runs.at_once(bind(run, batches[0])) if batches else 1
    groups = [keys[start : start + size] for start in range(0, len(keys), size)]
    due = [[k for k in group if done[k] <= n] for group in groups for n in range(len(batches))]
    total = sum(runs.steps([trials[key] for key in row]) for row in due)
    work = Work(f"ALPS, each of {len(keys) - 1} ops alone", total, noun="run", shorter=_SHORTER)
    with steps(work) as advance:
        for number, row in zip(cycle(range(len(batches))), due, strict=False):
            results = runs.results([trials[k] for k in row], bind(run, batches[number]), advance)
            for members, result in results if row else ():
                for key in (row[member] for member in members):
                    totals[key] = _checked(totals[key] + float(result.losses.double().sum()), key)
                    done[key] = number + 1
            counts = {f"{key} batches": np.array(count) for key, count in done.items()}
            partial.save({**{key: np.array(value) for key, value in totals.items()}, **counts})
    return totals


def _values(ops: Sequence[str], formats: Sequence[str], scores: Mapping[str, float], unit: str) -> OpValues:
    values = {f: {op: scores[_key(f, op)] - scores[_BASE] for op in ops} for f in formats}
    return OpValues(ALPS, unit, values)


def _key(format_name: str, op: str) -> str:
    return f"{format_name} {op}"
