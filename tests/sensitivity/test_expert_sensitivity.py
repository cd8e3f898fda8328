"""Sensitivities of experts: on stock code, in loops, behind Gaudi's kernel; experts that nothing reached."""

from dataclasses import replace
from functools import partial

import capabilities
import helpers
import mixtures
import numpy as np
import pytest
import torch
from naive import assert_sensitivities_agree, naive_sensitivity
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.sensitivity.resume import measure_in_steps

ROUNDING = {"scales": mp.Scales("maxabs_pow2", "cpu"), "formats": ("fp8_e4m3",)}


def squared(model, batch):
    """Mean square of what a `mixtures.Model` gives, per sample."""
    return model(batch).square().flatten(1).mean(dim=1)


def assert_same(ours, expected, rtol=1e-4):
    assert ours.ops == expected.ops
    for part in ("loss", "input", "weight"):
        np.testing.assert_allclose(getattr(ours, part), getattr(expected, part), rtol=rtol)
    for format_name in expected.rounding:
        np.testing.assert_allclose(ours.rounding[format_name], expected.rounding[format_name], rtol=rtol)


@capabilities.fused_experts
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_weights_as_stock_code_has_them(name):
    """By autograd through the model's own eager code, on its 3-D parameters, sample by sample."""
    model = helpers.mixture(name, _experts_implementation="eager")
    ids = helpers.tokens(3, 8)
    graph = mp.capture(model, {"input_ids": ids})
    sensitivity = mp.measure_sensitivity(model, graph, [{"input_ids": ids}])
    layer = model.get_submodule("model.layers.1.mlp.experts")
    inner = layer.down_proj.shape[2]
    expected = []
    for row in ids:
        loss = language_model_loss(model, {"input_ids": row[None]}).sum()
        stacks = (layer.gate_up_proj, layer.down_proj)
        gate_up, down = ((w * g) ** 2 for w, g in zip(stacks, torch.autograd.grad(loss, stacks), strict=True))
        parts = (gate_up[:, :inner], gate_up[:, inner:], down)
        expected.append(torch.stack([part.sum(dim=(1, 2)) for part in parts], dim=1).flatten())
    names = [f"model.layers.1.mlp.experts.{e}.{p}_proj" for e in range(4) for p in ("gate", "up", "down")]
    columns = [sensitivity.ops.index(name) for name in names]
    np.testing.assert_allclose(
        sensitivity.weight[:, columns], torch.stack(expected).detach(), rtol=1e-3, atol=1e-12
    )


FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3", *helpers.MIXTURES]


@capabilities.fused_experts
@pytest.mark.parametrize("name", helpers.mostly_slow(FAMILIES, "qwen3_moe", "gpt_oss", "llama4_text"))
def test_a_batch_equals_naive_autograd(name, monkeypatch):
    """All ops of the last layer, of a batch of three: by one backward pass of the batch."""
    model = helpers.mixture(name)
    batch = {"input_ids": helpers.tokens(3, 8)}
    graph = last_layer_of(mp.capture(model, batch))
    passes = backward_passes(monkeypatch)
    sensitivity = mp.measure_sensitivity(model, graph, [batch])
    assert len(passes) == 2  # the other one tries whether samples are separate
    monkeypatch.undo()
    assert sum(".experts." in op for op in sensitivity.ops) >= 9
    assert_sensitivities_agree(sensitivity, model, batch, language_model_loss)


def last_layer_of(graph):
    ops = tuple(op for op in graph.ops if op.name.startswith("model.layers.1."))
    return replace(graph, ops=ops, groups=(tuple(op.name for op in ops),))


def backward_passes(monkeypatch):
    """What is differentiated from now on."""
    passes, backward = [], torch.autograd.backward

    def record(tensors, *gradients, **settings):
        passes.append(tensors)
        return backward(tensors, *gradients, **settings)

    monkeypatch.setattr(torch.autograd, "backward", record)
    return passes


@capabilities.fused_experts
@pytest.mark.parametrize("large", [0, 2**40], ids=["pairs", "gradients"])
@pytest.mark.parametrize("rounding", [{}, ROUNDING], ids=["uniform", "measured"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_equals_its_samples(large, rounding, dtype, monkeypatch):
    """Where weights are large, short segments take another way."""
    from inc_mp_plugin.sensitivity import expert_weights

    monkeypatch.setattr(expert_weights, "_LARGE", large)
    model, ids = helpers.mixture("gpt_oss").to(dtype), helpers.tokens(5, 10)
    graph = mp.capture(model, {"input_ids": ids})
    together = mp.measure_sensitivity(model, graph, [{"input_ids": ids}], **rounding)
    alone = mp.measure_sensitivity(model, graph, [{"input_ids": row[None]} for row in ids], **rounding)
    assert together.ops == alone.ops
    for part in ("loss", "input", "weight"):
        ours, theirs = getattr(together, part), getattr(alone, part)
        tolerance = {"rtol": 1e-4, "atol": 1e-12} if dtype == torch.float32 else {"rtol": 0.2, "atol": 1e-3}
        np.testing.assert_allclose(ours, theirs, **tolerance)
    for key in together.maxabs:
        np.testing.assert_allclose(together.maxabs[key], alone.maxabs[key], rtol=1e-2)


@capabilities.fused_experts
def test_a_layer_that_runs_twice_has_one_weight():
    """The products of both runs are added before they are squared; a third run does not reach the loss."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = (
                helpers.mixture("mixtral", hidden_size=8, intermediate_size=6).model.layers[0].mlp.experts
            )

        def forward(self, hidden):
            chosen = hidden.argsort(dim=-1)[..., :2] % 4
            hidden = self.experts(hidden, chosen, hidden.sigmoid()[..., :2])
            self.experts(hidden, chosen, hidden[..., :2])
            return self.experts(torch.tanh(hidden), chosen, hidden.sigmoid()[..., :2])

    def loss(model, batch):
        return model(batch.flatten(0, 1)).view_as(batch).square().flatten(1).mean(dim=1)

    torch.manual_seed(0)
    model, batch = Twice(), torch.randn(3, 7, 8)
    ops = tuple(
        Op(f"experts.{n}.{p}", "linear", 1, 48, 2, share=0.9)
        for n in range(4)
        for p in ("gate_proj", "up_proj", "down_proj")
    )
    graph = Graph(ops, (tuple(op.name for op in ops),), (), {})
    sensitivity = mp.measure_sensitivity(model, graph, [batch], loss)
    assert_sensitivities_agree(sensitivity, model, batch, loss)


@capabilities.fused_experts
def test_experts_whose_tokens_are_not_in_the_order_of_samples():
    """Token by token instead of sample by sample: the samples are run one by one."""

    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = helpers.mixture("mixtral", hidden_size=8, intermediate_size=6).model.layers[0].mlp

        def forward(self, hidden):
            return self.block(hidden.transpose(0, 1).contiguous()).transpose(0, 1)

    torch.manual_seed(0)
    model, batch = Crossed(), torch.randn(2, 4, 8)
    graph = mp.capture(model, batch)
    sensitivity = mp.measure_sensitivity(model, graph, [batch], squared)
    assert_sensitivities_agree(sensitivity, model, batch, squared)


@pytest.mark.parametrize("block", ["Loop", "LoopOverAll", "LoopBesideShared", "LoopInMethod"])
def test_lists_of_experts_equal_the_naive_computation(block):
    model, batches = mixtures.Model(getattr(mixtures, block)), mixtures.inputs(3, 2)
    graph = mp.capture(model, batches[0])
    sensitivity = mp.measure_sensitivity(model, graph, batches, squared)
    expected, losses = naive_sensitivity(model, sensitivity.ops, batches, squared)
    np.testing.assert_allclose(sensitivity.loss, losses, rtol=1e-5)
    for column, name in enumerate(sensitivity.ops):
        per_sample = sensitivity.input[:, column] + sensitivity.weight[:, column]
        np.testing.assert_allclose(per_sample, expected[name], rtol=1e-4, atol=1e-15, err_msg=name)


def test_behind_the_kernel_as_in_a_loop():
    """Same weights, same graph but for the classes; rounding and drift go through the modules, too."""
    loop, kernel = (mixtures.Model(block) for block in (mixtures.Loop, mixtures.Kernel))
    batches = mixtures.inputs(3, 2)
    measured = {}
    for model in (loop, kernel):
        before = helpers.state(model)
        with mixtures.gaudi_kernel():
            graph = mp.capture(model, batches[0])
            measured[model] = mp.measure_sensitivity(model, graph, batches, squared, **ROUNDING)
        helpers.assert_same_state(before, helpers.state(model))
    assert_same(measured[kernel], measured[loop])
    assert measured[kernel].measured_drift == pytest.approx(measured[loop].measured_drift, rel=1e-3)


@capabilities.fused_experts
@pytest.mark.parametrize("stage", [False, True], ids=["function", "stage"])
@pytest.mark.parametrize("rounding", [{}, ROUNDING], ids=["uniform", "measured"])
def test_experts_that_no_token_reached_are_named_and_left_out(rounding, stage, caplog, tmp_path):
    model = helpers.mixture("qwen3_moe", num_experts=16)
    batches = [{"input_ids": helpers.tokens(1, 3)}]
    graph = mp.capture(model, batches[0])
    routed = set()
    for index, layer in enumerate(model.model.layers):
        layer.mlp.experts.register_forward_hook(
            lambda m, args, out, index=index: routed.update((index, e) for e in args[1].flatten().tolist())
        )
    if stage:
        saved = Partial(tmp_path / "partial.npz", "key")
        sensitivity = measure_in_steps(model, graph, batches, None, partial=saved, **rounding)
    else:
        sensitivity = mp.measure_sensitivity(model, graph, batches, **rounding)
    reached = {
        f"model.layers.{layer}.mlp.experts.{e}.{p}_proj"
        for layer, e in routed
        for p in ("gate", "up", "down")
    }
    assert {op for op in sensitivity.ops if ".experts." in op} == reached
    missed = [op.name for op in graph.ops if op.name not in sensitivity.ops]
    assert len(missed) == 3 * (32 - len(routed)) > 3
    text = caplog.text
    names = f"{', '.join(missed[:3])} and {len(missed) - 3} more"
    expected = f"no sample reached {len(missed)} of {len(graph.ops)} ops ({names})"
    assert expected in text
    assert "they stay in the base format; more samples may reach them" in text


def test_nothing_is_said_where_everything_was_reached(caplog):
    model, batches = mixtures.Model(mixtures.Loop), mixtures.inputs(20)
    sensitivity = mp.measure_sensitivity(model, mp.capture(model, batches[0]), batches, squared)
    assert len(sensitivity.ops) == 14
    assert "reached" not in caplog.text


@pytest.mark.parametrize("rounding", [{}, ROUNDING], ids=["uniform", "measured"])
def test_an_expert_that_is_called_without_tokens_was_not_reached(rounding):
    model, batches = mixtures.Model(mixtures.LoopOverAll), mixtures.inputs(1)
    graph = mp.capture(model, batches[0])
    model.block.top_k = 1
    with torch.no_grad():
        model.block.gate.weight[1] = -model.block.gate.weight[0]
        model.block.gate.weight[2:] = 0.0
    sensitivity = mp.measure_sensitivity(model, graph, batches, squared, **rounding)
    reached = {op.split(".")[2] for op in sensitivity.ops if op.startswith("block.experts.")}
    assert reached
    assert reached <= {"0", "1"}


def test_as_many_tokens_as_samples():
    """Each expert gets two rows of a batch of two: of both samples in one batch, of one in the other."""

    class OneOfTwo(mixtures.Loop):
        def __init__(self):
            super().__init__()
            self.top_k = 1
            with torch.no_grad():
                self.gate.weight.zero_()
                self.gate.weight[0, 0], self.gate.weight[1, 0] = 10.0, -10.0

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.last = OneOfTwo(), nn.Linear(mixtures.HIDDEN, 3)

        def forward(self, hidden):
            return self.last(self.block(hidden)[0])

    torch.manual_seed(0)
    model, batches = Model(), mixtures.inputs(2, 2, tokens=2)
    batches[0][..., 0] = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    batches[1][..., 0] = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    graph = mp.capture(model, batches[0])
    together = mp.measure_sensitivity(model, graph, batches, squared)
    alone = mp.measure_sensitivity(model, graph, [b[i : i + 1] for b in batches for i in range(2)], squared)
    assert len(together.ops) == 7
    assert_same(together, alone)


@capabilities.fused_experts
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_the_model_leaves_as_it_came(name):
    model = helpers.mixture(name).train()
    model.model.layers[1].mlp.experts.down_proj.requires_grad_(False)
    batches = [{"input_ids": helpers.tokens(2)}]
    graph = mp.capture(model, batches[0])
    before = helpers.state(model)
    with torch.inference_mode():
        mp.measure_sensitivity(model, graph, batches, **ROUNDING)
    helpers.assert_same_state(before, helpers.state(model))

    def interrupted(model, batch):
        language_model_loss(model, batch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mp.measure_sensitivity(model, graph, batches, interrupted)
    helpers.assert_same_state(before, helpers.state(model))


class Config:
    """What optimum-habana's modules hold."""

    def __init__(self, attention_dropout=0.0, router_jitter_noise=0.0):
        self.attention_dropout, self.router_jitter_noise = attention_dropout, router_jitter_noise
        self.rms_norm_eps = 1e-6


class Layer(nn.Module):
    """Adds in place in evaluation mode, as optimum-habana's layers do: no gradient survives that."""

    __module__ = "optimum.habana.transformers.models.tiny.modeling_tiny"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        residual = torch.tanh(x)
        inner = self.dropout(self.inner(residual))
        return residual + inner if self.training else residual.add_(inner)

    def inner(self, x):
        return self.down(torch.tanh(self.up(x)))


class Plain(Layer):
    """The same without dropout, and never in place."""

    def forward(self, x):
        residual = torch.tanh(x)
        return residual + self.inner(residual)


class Tiny(nn.Module):
    def __init__(self, layer, **settings):
        torch.manual_seed(0)
        super().__init__()
        self.layer, self.head = layer(Config(**settings)), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.layer(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_code_of_optimum_habana_runs_in_training_mode_without_dropout(training):
    model, batch = Tiny(Layer).train(training), torch.randn(3, 6)
    graph, before = mp.capture(model, batch), helpers.state(model)
    sensitivity = mp.measure_sensitivity(model, graph, [batch], helpers.squared_loss, **ROUNDING)
    helpers.assert_same_state(before, helpers.state(model))
    expected = mp.measure_sensitivity(Tiny(Plain), graph, [batch], helpers.squared_loss, **ROUNDING)
    assert sensitivity.ops == ("layer.up", "layer.down", "head")
    assert_same(sensitivity, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model.eval()(batch).sum().backward()


@pytest.mark.parametrize("setting", ["attention_dropout", "router_jitter_noise"])
def test_code_of_optimum_habana_with_randomness_is_refused(setting):
    model, batch = Tiny(Layer, **{setting: 0.1}), torch.randn(3, 6)
    graph, before = mp.capture(model, batch), helpers.state(model)
    measure = partial(mp.measure_sensitivity, model, graph, [batch], helpers.squared_loss)
    with pytest.raises(InputError, match=rf"config has {setting}=0\.1, which must be 0"):
        measure()
    helpers.assert_same_state(before, helpers.state(model))
