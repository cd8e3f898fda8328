"""What a KV cache in FP8 costs: keys and values, as the products of attention read them."""

from dataclasses import replace

import helpers
import numpy as np
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.solver.baselines import baseline
from inc_mp_plugin.solver.frontier import frontier
from inc_mp_plugin.solver.uncertainty import plan_rows

E4M3 = "fp8_e4m3"
BATCHES = [{"input_ids": helpers.tokens(3)}]


def measured(name, **options):
    model = helpers.language_model(name)
    graph = mp.capture(model, BATCHES[0])
    return model, graph, mp.measure_sensitivity(model, graph, BATCHES, **options)


def naive_second_input(model, op, sample):
    """||x * dg/dx||^2 of the second input alone, with a zero added to it."""
    pairs = []

    def add_zero(_, args):
        zero = torch.zeros_like(args[1], requires_grad=True)
        pairs.append((args[1].detach(), zero))
        return (args[0], args[1] + zero)

    with as_measured(model):
        handle = model.get_submodule(op).register_forward_pre_hook(add_zero)
        try:
            loss = sample_losses(model, {"input_ids": sample}, None).sum()
        finally:
            handle.remove()
        ((value, zero),) = pairs
        (gradient,) = torch.autograd.grad(loss, [zero])
    return float(((value * gradient).double() ** 2).sum())


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_second_inputs_against_naive_autograd(name):
    model, graph, sensitivity = measured(name)
    for op in graph.ops:
        column = sensitivity.second["input"][:, sensitivity.ops.index(op.name)]
        if op.kind != "bgemm":
            assert not column.any()
            continue
        expected = [naive_second_input(model, op.name, row[None]) for row in BATCHES[0]["input_ids"]]
        assert column == pytest.approx(expected, rel=1e-4)


def test_the_rounding_of_second_inputs_is_a_part_of_the_whole():
    _, graph, sensitivity = measured("llama", scales=mp.Scales("maxabs_hw", "gaudi2"), formats=(E4M3,))
    assert sensitivity.second.keys() == {"input", E4M3}
    products = [sensitivity.ops.index(op.name) for op in graph.ops if op.kind == "bgemm"]
    part, whole = sensitivity.second[E4M3][:, products], sensitivity.rounding[E4M3][:, products]
    assert (part > 0).all()
    assert (part < whole).all()


def kv_case(noise="uniform"):
    options = {}
    if noise == "measured":
        options = {"scales": mp.Scales("maxabs_hw", "gaudi2"), "formats": (E4M3,)}
    _, graph, sensitivity = measured("llama", **options)
    demanded = mp.demands(graph, ["vllm-gaudi"], mp.Serving(kv_cache="fp8"))
    gains = mp.mac_gains(graph, ("bf16", E4M3))
    return graph, LossModel(sensitivity, noise), demanded, gains


@pytest.mark.parametrize("noise", ["uniform", "log_uniform", "measured"])
def test_a_plan_pays_for_its_cache_once(noise):
    """Whatever runs in FP8 beside it: with everything lowered, the loss MSE is that of a BF16 cache."""
    _, losses, demanded, gains = kv_case(noise)
    everything = mp.solve(gains, losses, tau=10.0)
    cached = mp.solve(gains, losses, tau=10.0, demands=demanded)
    assert cached.quantized == everything.quantized
    assert cached.loss_mse == pytest.approx(everything.loss_mse, rel=1e-12)
    assert cached.interval == pytest.approx(everything.interval, rel=1e-9)


def test_a_plan_without_ops_pays_for_its_cache_alone():
    _, losses, demanded, gains = kv_case()
    nothing = mp.solve(gains, losses, gain_fraction=1e-12, demands=replace(demanded, ties=()))
    cache = alpha(E4M3, "uniform") * losses.sensitivity.second["input"].sum(axis=1)
    priced = replace(losses, cached=demanded.cached).costs(E4M3)
    least = nothing.loss_mse - sum(priced[op] for op in nothing.quantized)
    assert least == pytest.approx(cache.mean(), rel=1e-9)


def test_a_cache_that_the_threshold_does_not_allow():
    _, losses, demanded, gains = kv_case()
    with pytest.raises(mp.InfeasibleError, match="the least tau that can be met is") as refused:
        mp.solve(gains, losses, tau=1e-9, demands=demanded)
    least = float(str(refused.value).rsplit(" ", 1)[1])
    assert mp.solve(gains, losses, tau=least * 1.001, demands=demanded).loss_mse > 0


def test_baselines_and_frontier_pay_for_it_too():
    _, losses, demanded, gains = kv_case()
    priced = replace(losses, cached=demanded.cached)
    cache = float(priced.cache_row_costs.mean())
    assert baseline(gains, losses, "prefix", 1.0, demands=demanded).loss_mse > cache
    free = replace(demanded, ties=(), lowered={})
    curves = frontier(gains, losses, points=3, draws=1, demands=free).curves
    assert all(curve.loss_mse[0] == pytest.approx(cache, rel=1e-9) for curve in curves)
    assert all(curve.low[0] > 0 for curve in curves)
    assert plan_rows(priced, {}, "bf16") == pytest.approx(priced.cache_row_costs)


def test_what_was_not_measured_is_not_guessed():
    _, losses, demanded, gains = kv_case()
    with pytest.raises(InputError, match="what a KV cache in fp8_e4m3 costs was not measured"):
        mp.solve(gains, LossModel(replace(losses.sensitivity, second={})), tau=1.0, demands=demanded)


def test_samples_and_ops_are_taken_with_their_second_inputs():
    _, losses, demanded, _ = kv_case()
    rows = np.array([2, 0])
    ops = [op for op in losses.ops if "layers.0" in op]
    part = Costs(losses.sensitivity, cached=demanded.cached).take(rows).of(ops).loss
    columns = [losses.ops.index(op) for op in ops]
    expected = alpha(E4M3, "uniform") * losses.sensitivity.second["input"][rows][:, columns].sum(axis=1)
    assert part.cache_row_costs == pytest.approx(expected)
