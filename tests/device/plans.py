"""Part c: whole plans, measured end to end, against the sum of their groups; and against other strategies.

At four thresholds the program plans with the measured gains of groups, with modelled ones (MACs, roofline),
and with memory; Random and Prefix stand beside it. Of every plan: its time against the sum of its groups'
gains, and its loss against the loss that was predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

import inc_mp_plugin as mp
from device.groups import groups_of
from device.machine import Part
from device.timed import FORMATS, Timed, request_of
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.core.timings import TimedConfiguration
from inc_mp_plugin.gain.empirical import candidates, empirical_gains
from inc_mp_plugin.gain.paired_timing import Candidate
from inc_mp_plugin.model.losses import language_model_loss

SAMPLES, TOKENS = 8, 512
# Thresholds, in parts of the normalized RMSE that is predicted with everything in FP8.
PARTS_OF_ALL = (0.3, 0.5, 0.7, 0.9)
PRECISE = 0.03  # the standard error of a sum, in parts of the sum


def samples_of(timed: Timed) -> list[dict[str, Any]]:
    """Random tokens: what they are changes no time, and a model of random weights knows no others."""
    tokens = request_of(timed.part).prompt_tokens if timed.part.cpu else TOKENS
    words = timed.model.config.vocab_size
    ids = torch.randint(0, words, (SAMPLES, tokens), device=timed.part.device)
    return [{"input_ids": pair} for pair in ids.split(2)]


def gains_of(timed: Timed, budget_s: float) -> dict[str, Gains]:
    """The gains of a prompt by every objective."""
    groups = groups_of(timed)
    passes = timed.passes(request_of(timed.part, whole=False), graphs=True)
    timing = timed.measure(passes, candidates(groups, FORMATS[0]), graphs=True, budget_s=budget_s)
    gains = [
        empirical_gains(groups, timing, timed.graph, FORMATS[0]),
        mp.mac_gains(timed.graph, FORMATS, "h100"),
        mp.roofline_gains(timed.graph, FORMATS, "h100"),
        mp.memory_gains(timed.graph, FORMATS),
    ]
    return {each.objective: each for each in gains}


def plans_of(gains: dict[str, Gains], losses: Sensitivity) -> Iterator[tuple[str, float, Plan]]:
    """All plans: the name of their strategy, and their threshold."""
    measured = gains["empirical_time"]
    everything = mp.solve(gains["memory"], losses, tau=1e9).nrmse or 0.0
    for share in PARTS_OF_ALL:
        tau = share * everything
        for objective, each in gains.items():
            yield objective, tau, mp.solve(each, losses, tau=tau)
        for name in ("random", "prefix"):
            yield name, tau, mp.baseline(measured, losses, name, tau)


def loss_mse(timed: Timed, samples: list[dict[str, Any]], plan: Plan, base: torch.Tensor) -> float:
    """Measure the loss MSE of a plan in FP8 products."""
    timed.switch.select(plan.lowered)
    try:
        return float((losses_of(timed, samples) - base).square().mean())
    finally:
        timed.switch.select({})


@torch.inference_mode()
def losses_of(timed: Timed, samples: list[dict[str, Any]]) -> torch.Tensor:
    """The loss of each sample."""
    return torch.cat([language_model_loss(timed.model, batch).double().cpu() for batch in samples])


def compared(
    name: str, tau: float, plan: Plan, *, gains: Gains, measured: TimedConfiguration
) -> dict[str, object]:
    """A plan's sum of groups beside its own time."""
    total = gains.total(plan.formats)
    sum_s, sum_stderr_s = total if total is not None else (None, None)
    undecided = sum_s is None or not sum_s or abs(sum_stderr_s / sum_s) > PRECISE
    return {
        "strategy": name,
        "tau": tau,
        "ops": len(plan.quantized),
        "sum_s": sum_s,
        "sum_stderr_s": sum_stderr_s,
        "measured_s": measured.gain_s,
        "stderr_s": measured.stderr_s,
        "decided": not undecided,
        "failure": measured.failure,
    }


def main() -> None:
    """Plan at all thresholds, and measure every plan once."""
    part = Part()
    timed = Timed(part)
    gains = gains_of(timed, part.left_s / 3)
    samples = samples_of(timed)
    losses = mp.measure_sensitivity(timed.model, timed.graph, samples).of(timed.ops)
    plans = [each for each in plans_of(gains, losses) if each[2].quantized]
    different = {plan.quantized: plan.lowered for _, _, plan in plans}
    wanted = [Candidate(formats, 0, total=i) for i, formats in enumerate(different.values())]
    passes = timed.passes(request_of(part, whole=False), graphs=True)
    timing = timed.measure(passes, wanted, graphs=True, budget_s=0.7 * part.left_s)
    times = dict(zip(different, timing.configurations, strict=True))
    base = losses_of(timed, samples)
    mse = {plan.quantized: loss_mse(timed, samples, plan, base) for _, _, plan in plans}
    measured = gains["empirical_time"]
    part.content = {
        "request": asdict(request_of(part, whole=False)),
        "base_s": timing.price_s,
        "plans": [
            compared(name, tau, plan, gains=measured, measured=times[plan.quantized])
            | {"loss_mse_predicted": plan.loss_mse, "loss_mse_measured": mse[plan.quantized]}
            for name, tau, plan in plans
        ],
    }
    part.save()


if __name__ == "__main__":
    main()
