"""A format that nobody has: 4 bits in blocks of 16, with a scale for each, from the noise to the page.

Nothing between the file of formats and the report may assume FP8.
"""

import itertools
from dataclasses import dataclass

import helpers
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core import formats
from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.formats import Format, alpha
from inc_mp_plugin.report.text import plan_table
from inc_mp_plugin.runtime.codec import from_json, to_json
from inc_mp_plugin.sensitivity.one_batch import Pass
from inc_mp_plugin.sensitivity.taylor import sensitivity_rows, united

NAME, BLOCK = "fp4_in_16", 16
VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@dataclass(frozen=True)
class Blocks:
    """Rounding errors of blocks of 16 along the last axis, each scaled to its largest magnitude."""

    formats = (NAME,)
    maxabs = {}

    def of_input(self, op, index, value, format_name):
        return self.of_weight(value, format_name)

    def of_weight(self, weight, format_name, rows=slice(None)):
        weight = weight[rows]
        blocks = torch.nn.functional.pad(weight.float(), (0, -weight.shape[-1] % BLOCK))
        blocks = blocks.unflatten(-1, (-1, BLOCK))
        scale = blocks.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 6.0
        nearest = VALUES[((blocks / scale).abs()[..., None] - VALUES).abs().argmin(dim=-1)]
        rounded = (nearest * scale * blocks.sign()).flatten(-2)
        return rounded[..., : weight.shape[-1]] - weight.float()


@pytest.fixture
def four_bits(monkeypatch):
    monkeypatch.setitem(formats.FORMATS, NAME, Format(NAME, 4, 1))


def by_hand(kl, lowered):
    """The sum of what ops cost alone, and of their shares beside the others that read the same tensor."""
    alone, shared = (part[NAME].mean(axis=0) / 7 for part in (kl.rounding, kl.shared))
    total = 0.0
    for column, op in enumerate(kl.ops):
        if op in lowered:
            number = kl.reads[column]
            others = [o for c, o in enumerate(kl.ops) if c != column and kl.reads[c] == number >= 0]
            part = sum(other in lowered for other in others) / len(others) if others else 0.0
            total += alone[column] + part * max(0.0, shared[column])
    return total


def test_a_plan_in_four_bits(four_bits):
    model, batch = helpers.language_model("llama"), {"input_ids": helpers.tokens(8, 8)}
    graph = mp.capture(model, batch)
    settings = Pass(model, graph, None, Blocks(), kl=Estimate())
    sensitivity = united(settings, list(sensitivity_rows(settings, [batch])))
    gains = mp.memory_gains(graph, ("fp32", NAME))
    linear = [op for op in graph.ops if op.kind == "linear"]
    assert gains.largest == sum(op.weight_elements * (4 - 0.5) for op in linear)
    costs = Costs(sensitivity, "measured")
    everything = mp.solve(gains, costs, kl=1e9)
    assert set(everything.lowered.values()) == {NAME}
    plan = mp.solve(gains, costs, kl=everything.predicted_kl / 3)
    assert 0 < len(plan.quantized) < len(everything.quantized)
    assert plan.predicted_kl <= everything.predicted_kl / 3
    assert plan.predicted_kl == pytest.approx(by_hand(sensitivity.kl, plan.quantized))
    table = plan_table(plan, gains, costs)
    assert table.lower == (NAME,)
    assert any(NAME in line for line in table.summary)
    assert from_json(type(plan), to_json(plan)) == plan


def test_its_noise_by_the_model_of_the_paper(four_bits):
    """One bit of mantissa: 2^-2 / 12; and it may stand beside FP8, each op in the better of both."""
    assert alpha(NAME) == 2.0**-2 / 12
    model, batch = helpers.language_model("llama"), {"input_ids": helpers.tokens(8, 8)}
    graph = mp.capture(model, batch)
    sensitivity = mp.measure_sensitivity(model, graph, [batch], yardstick="kl")
    gains = mp.memory_gains(graph, ("fp32", "fp8_e4m3", NAME))
    costs = Costs(sensitivity)
    everything = mp.solve(gains, costs, kl=1e9)
    plans = [mp.solve(gains, costs, kl=everything.predicted_kl * share) for share in (0.02, 0.1, 0.5)]
    assert all(a.gain <= b.gain for a, b in itertools.pairwise(plans))
    assert {NAME, "fp8_e4m3"} <= set(plans[1].formats.values())
