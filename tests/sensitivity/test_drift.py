"""The drift of the mean loss: losses as INC's converted model gives them, and the second-order theory."""

import math
from dataclasses import replace

import helpers
import numpy as np
import pytest
import torch
from torch import nn

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.inc.convert import switchable
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.tail import Tails
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity.drift import rounded_losses
from inc_mp_plugin.sensitivity.one_batch import Pass
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.taylor import measure_sensitivity
from inc_mp_plugin.targets import CPU_QDQ
from inc_mp_plugin.targets.layout import Captured

E4M3 = "fp8_e4m3"
SCALES = Scales("maxabs_arbitrary", "cpu")


def text():
    ids = helpers.tokens(6)
    return [{"input_ids": ids[:4]}, {"input_ids": ids[4:]}]


def losses_of(model, graph, rounding):
    ops = [op.name for op in graph.ops if (op.name, 0) in rounding.maxabs]
    tails = Tails(model, graph)
    return np.concatenate(rounded_losses(Pass(model, graph), rounding, text(), ops, tails=tails))


@pytest.mark.parametrize(
    "name", helpers.mostly_slow(["llama", "phi3", "opt", "mixtral", "qwen2_moe"], "llama", "mixtral")
)
def test_everything_rounded_is_what_inc_converts(name):
    """Loss for loss: our pass with hooks against INC's own modules, attention products included."""
    model = helpers.mixture(name)
    graph = capture(model, text()[0])
    before = helpers.state(model)
    rounding = observe_rounding(model, graph, text(), None, scales=SCALES, formats=(E4M3,))
    ours = losses_of(model, graph, rounding)
    helpers.assert_same_state(before, helpers.state(model))
    formats = {op.name: E4M3 for op in graph.ops}
    switch = switchable(model, config_of("fp32", formats, CPU_QDQ, Captured.of(graph)), E4M3, text())
    switch.select(formats)
    with torch.no_grad():
        theirs = torch.cat([sample_losses(model, batch, None) for batch in text()])
    assert ours.tolist() == theirs.double().tolist()


def test_what_no_sample_reached_is_not_rounded():
    """As an expert that gets its first token when everything else is rounded: no scale is known for it."""
    model = helpers.language_model("llama")
    graph = capture(model, text()[0])
    rounding = observe_rounding(model, graph, text(), None, scales=SCALES, formats=(E4M3,))
    reached = {key: value for key, value in rounding.maxabs.items() if key[0] != "lm_head"}
    losses = losses_of(model, graph, replace(rounding, maxabs=reached)).tolist()
    others = replace(graph, ops=tuple(op for op in graph.ops if op.name != "lm_head"))
    assert losses == losses_of(model, others, rounding).tolist()
    assert losses != losses_of(model, graph, rounding).tolist()


def test_drift_by_hand():
    model = helpers.language_model("llama")
    graph = capture(model, text()[0])
    sensitivity = measure_sensitivity(model, graph, text(), scales=SCALES, formats=(E4M3,))
    rounding = observe_rounding(model, graph, text(), None, scales=SCALES, formats=(E4M3,))
    change = losses_of(model, graph, rounding) - sensitivity.loss
    first_order = sensitivity.rounding[E4M3].mean(axis=0).sum()
    drift = sensitivity.measured_drift
    assert drift.value == pytest.approx(change.mean() / first_order)
    of_samples = np.std(change, ddof=1) / math.sqrt(6) / first_order
    assert drift.stderr == pytest.approx(math.hypot(of_samples, drift.value / 4))


def test_a_quadratic_loss_drifts_as_its_hessian_says():
    """G = h ||W x||^2 / 2 at x near 0 gradient: q^T H q / 2 is all there is, and its mean is known."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    target = torch.randn(256, 64)

    def loss(model, batch):
        """Zero and flat at the unrounded model: only the second order moves it."""
        rows = model(batch)
        return 50.0 * (rows - batch @ start.T).square().sum(dim=1) + rows.mean(dim=1) + 10.0

    start = model[0].weight.detach().clone()
    graph = Graph((Op("0", "linear", 1, 4096, 1),), (("0",),), (), {})
    sensitivity = measure_sensitivity(model, graph, [target], loss, scales=SCALES, formats=(E4M3,))
    rounding = observe_rounding(model, graph, [target], loss, scales=SCALES, formats=(E4M3,))
    weight_error = rounding.of_weight(start, E4M3)
    input_error = rounding.of_input("0", 0, target, E4M3)
    moved = (target + input_error) @ (start + weight_error).T - target @ start.T
    second_order = 50.0 * moved.square().sum(dim=1).mean().item()
    losses = LossModel(sensitivity, "measured")
    first_order = sum(losses.costs(E4M3).values())
    assert losses.drift.value * first_order == pytest.approx(second_order + moved.mean().item(), rel=1e-4)
    ops, tails = list(graph.by_name), Tails(model, graph)
    (moved,) = rounded_losses(Pass(model, graph, loss), rounding, [target], ops, tails=tails)
    measured = (moved - sensitivity.loss) ** 2
    assert losses.with_shift(first_order, losses.drift.value * first_order) == pytest.approx(
        measured.mean(), rel=0.2
    )
    assert first_order < 0.01 * measured.mean()  # the first order alone would miss nearly all of it


def test_a_loss_that_breaks_when_rounded():
    model = helpers.language_model("llama")
    graph = capture(model, text()[0])
    weight = model.lm_head.weight

    def loss(model, batch):
        changed = not torch.equal(model.lm_head.weight, weight)
        losses = sample_losses(model, batch, None)
        return losses / 0.0 if changed else losses

    before = helpers.state(model)
    with pytest.raises(NonFiniteError, match="NaN or infinite when every op runs in fp8_e4m3"):
        measure_sensitivity(model, graph, text(), loss, scales=SCALES, formats=(E4M3,))
    helpers.assert_same_state(before, helpers.state(model))
