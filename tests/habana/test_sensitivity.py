"""Graphs and sensitivities of optimum-habana's modelling code against stock transformers, same weights."""

import sys

import helpers
import models
import numpy as np
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.model.expert_kernels import kernels_through_modules

MIXTURES = ("mixtral", "qwen3_moe")
FUSED = "mixtral"  # its attention always runs in a fused kernel on optimum-habana


def pair(name):
    """The stock model and optimum-habana's, both with eager masks: with others it forgets causality."""
    stock, gaudi = models.stock(name), models.gaudi(name, torch.float32)
    gaudi.config._attn_implementation = "eager"
    return stock, gaudi


def batches():
    """Prompts padded on the left, and two that are not padded."""
    ids = torch.randint(3, models.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    return [models.prompts(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


def fused(op):
    return op.rpartition(".")[2] in {"matmul_qk", "matmul_av"}


@pytest.fixture(params=models.NAMES)
def name(request):
    return request.param


@pytest.mark.parametrize("cached_tokens", [0, 7], ids=["prompt", "decode step"])
def test_graphs_agree(name, cached_tokens):
    """Ops, shapes, order, and groups but for what one of the two has not."""
    ids = models.prompts()["input_ids"]
    inputs = {"input_ids": ids[:, :1] if cached_tokens else ids}
    stock, gaudi = (mp.capture(model, inputs, cached_tokens=cached_tokens) for model in pair(name))
    missing = {op for op in stock.by_name if fused(op)} if name == FUSED else set()
    assert gaudi.by_name.keys() == stock.by_name.keys() - missing
    wanted = [[op for op in group if op not in missing] for group in stock.groups]
    assert [sorted(group) for group in gaudi.groups] == [sorted(group) for group in wanted]
    for op, found in gaudi.by_name.items():
        other = stock.by_name[op]
        for what in ("kind", "macs", "weight_elements", "gemms", "share", "tied"):
            assert getattr(found, what) == getattr(other, what), (op, what)
        assert set(found.after) == set(other.after) - missing or name == FUSED
    experts = [op for op in gaudi.by_name if ".experts." in op]
    assert len(experts) == (3 * models.EXPERTS * models.LAYERS if name in MIXTURES else 0)
    routers = [one.name for one in gaudi.unsupported if one.reason.startswith("router")]
    assert len(routers) == (models.LAYERS if experts else 0)


def test_sensitivities_agree(name):
    stock, gaudi = pair(name)
    with torch.no_grad():
        torch.testing.assert_close(stock(**models.prompts()).logits, models.stock_logits(name))
    before = helpers.state(gaudi)
    found, wanted = (
        mp.measure_sensitivity(model, mp.capture(model, batches()[0]), batches()) for model in (gaudi, stock)
    )
    helpers.assert_same_state(before, helpers.state(gaudi))
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-5)
    common = [op for op in wanted.ops if not (name == FUSED and fused(op))]
    assert sorted(found.ops) == sorted(common)
    for op in common:
        assert found.total[op] == pytest.approx(wanted.total[op], rel=1e-3), op
    for one, other in ((found.input, wanted.input), (found.weight, wanted.weight)):
        columns = [[measured.ops.index(op) for op in common] for measured in (found, wanted)]
        np.testing.assert_allclose(one[:, columns[0]], other[:, columns[1]], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    "targets", [["optimum-habana"], ["vllm-gaudi"]], ids=["optimum-habana", "vllm-gaudi"]
)
def test_both_calibrations_give_the_same_plan(name, targets):
    """For memory, in which the fused attention of Mixtral has no part."""
    plans = []
    for model in pair(name):
        graph = mp.capture(model, batches()[0])
        seen = mp.measure_sensitivity(model, graph, batches())
        held = mp.demands(graph, targets)
        gains = mp.memory_gains(graph, ("bf16", "fp8_e4m3"))
        wanted = [mp.solve(gains, seen, gain_fraction=share, demands=held) for share in (0.2, 0.5, 0.8)]
        plans.append([plan.quantized for plan in wanted])
    assert plans[0] == plans[1]
    assert all(plans[0])


def test_measured_rounding_agrees(name):
    """But for the first product of attention where optimum-habana scales queries before it, not after."""
    scales = {"scales": mp.Scales("maxabs_pow2", "cpu"), "formats": ("fp8_e4m3",)}
    found, wanted = (
        mp.measure_sensitivity(model, mp.capture(model, models.prompts()), batches(), **scales)
        for model in pair(name)[::-1]
    )
    wanted = mp.LossModel(wanted, "measured").costs("fp8_e4m3")
    for op, loss_mse in mp.LossModel(found, "measured").costs("fp8_e4m3").items():
        if not fused(op):
            assert loss_mse == pytest.approx(wanted[op], rel=0.1), op


@pytest.mark.parametrize("name", MIXTURES, indirect=True)
def test_experts_run_as_modules_on_their_tokens(name):
    _, gaudi = pair(name)
    block = gaudi.get_submodule("model.layers.0." + ("block_sparse_moe" if name == "mixtral" else "mlp"))
    rows = []
    for expert in block.experts:
        first = next(module for module in expert.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    with torch.no_grad():
        gaudi(**models.prompts(), use_cache=False)
        assert rows == []
        with kernels_through_modules(gaudi):
            gaudi(**models.prompts(), use_cache=False)
    assert sum(rows) == 2 * models.prompts()["input_ids"].numel()


@pytest.mark.parametrize("name", ["mistral", "mixtral"], indirect=True)
def test_a_rotary_embedding_that_needs_gaudi_is_repaired(name, monkeypatch):
    """As optimum-habana 1.21.2 has it: off Gaudi it takes the cosines of all positions."""
    code = sys.modules[f"optimum.habana.transformers.models.{name}.modeling_{name}"]

    def of_all_positions(q, k, cos, sin, position_ids, training=True):
        return code.apply_rotary_pos_emb(q, k, cos, sin)

    _, gaudi = pair(name)
    wanted = mp.capture(gaudi, models.prompts())
    monkeypatch.setattr(code, "apply_customized_rope", of_all_positions)
    assert mp.capture(gaudi, models.prompts()).ops == wanted.ops
    assert code.apply_customized_rope is of_all_positions


@pytest.mark.parametrize("name", ["mixtral"], indirect=True)
def test_fused_attention_is_no_op_and_needs_no_kernel(name, monkeypatch):
    _, gaudi = pair(name)
    attention = gaudi.model.layers[0].self_attn.fused_scaled_dot_product_attention
    monkeypatch.setattr(attention._hpu_kernel_fsdpa, "apply", None)
    graph = mp.capture(gaudi, models.prompts())
    reasons = {one.name: one.reason for one in graph.unsupported}
    module = "model.layers.0.self_attn.fused_scaled_dot_product_attention"
    assert "fused attention kernel" in reasons[module]
