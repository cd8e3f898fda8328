"""Measured noise of a server's scheme: against its arithmetic written out, and naive gradients."""

from dataclasses import replace

import helpers
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model.batches import samples
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.scales.served import ServedScales
from inc_mp_plugin.sensitivity.resume import measure_in_steps
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import Rounding
from inc_mp_plugin.sensitivity.taylor import measure_sensitivity

FORMAT = "fp8_e4m3"
DYNAMIC = {"scales": ServedScales("dynamic", "vllm"), "formats": (FORMAT,)}


def batches():
    return [{"input_ids": ids} for ids in helpers.tokens(5).split([2, 3])]


def scale_of(value):
    return value.abs().amax(dim=-1, keepdim=True) / 448


def codes(value, inverse):
    return (value * inverse).clamp(-448, 448).to(torch.float8_e4m3fn).float()


def weight_codes(weight):
    return (weight / scale_of(weight)).clamp(-448, 448).to(torch.float8_e4m3fn).float()


class Served(nn.Module):
    """A linear layer as vLLM runs it: products of codes, times both scales."""

    def __init__(self, layer):
        super().__init__()
        self.codes, self.scale = weight_codes(layer.weight.detach()), scale_of(layer.weight.detach())
        self.bias = layer.bias

    def forward(self, value):
        scale = scale_of(value)
        output = linear(codes(value, scale.reciprocal()), self.codes) * scale * self.scale.T
        return output if self.bias is None else output + self.bias


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_hooks_round_as_the_server_does(name):
    """Each op alone: sums in another order would move codes of the ops after it."""
    model = helpers.language_model(name)
    graph, batch = capture(model, batches()[0]), batches()[0]
    rounding = Rounding(DYNAMIC["scales"], (FORMAT,))
    for op in (op.name for op in graph.ops if op.kind == "linear" and not op.tied):
        layer, (parent, _, child) = model.get_submodule(op), op.rpartition(".")
        with torch.no_grad(), rounded(model, rounding, {op: FORMAT}):
            ours = model(**batch).logits
        setattr(model.get_submodule(parent), child, Served(layer))
        with torch.no_grad():
            theirs = model(**batch).logits
        setattr(model.get_submodule(parent), child, layer)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def naive(model, name, batch):
    """||q * dg/dz||^2 of an op and a sample, q by the arithmetic above, the gradients by zeros added."""
    module, errors, zeros = model.get_submodule(name), [], []

    def add_zero(_, args):
        (value,) = args
        scale = scale_of(value.detach())
        errors.append(codes(value.detach(), scale.reciprocal()) * scale - value.detach())
        zeros.append(torch.zeros_like(value, requires_grad=True))
        return (value + zeros[-1],)

    weight = module.weight
    module.weight = nn.Parameter(weight.detach().clone())
    handle = module.register_forward_pre_hook(add_zero)
    gradients = torch.autograd.grad(language_model_loss(model, batch).sum(), [*zeros, module.weight])
    handle.remove()
    module.weight = weight
    errors.append(weight_codes(weight.detach()) * scale_of(weight.detach()) - weight.detach())
    return sum(float((q * g).square().sum()) for q, g in zip(errors, gradients, strict=True))


def test_noise_equals_the_naive_computation():
    model, passes = helpers.language_model("llama"), []
    graph = capture(model, batches()[0])
    model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    plain = measure_sensitivity(model, graph, batches())
    of_gradients = passes.copy()
    passes.clear()
    sensitivity = measure_sensitivity(model, graph, batches(), **DYNAMIC)
    assert passes == [*of_gradients, False, False]  # no pass for scales, and one with everything rounded
    for op in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj", "lm_head"):
        column = sensitivity.ops.index(op)
        expected = [
            naive(model, op, samples(b, i, i + 1)) for b in batches() for i in range(len(b["input_ids"]))
        ]
        np.testing.assert_allclose(sensitivity.rounding[FORMAT][:, column], expected, rtol=0.03)
    np.testing.assert_array_equal(plain.input, sensitivity.input)
    largest = sensitivity.maxabs["input"][sensitivity.ops.index("lm_head")]
    with torch.no_grad():
        hidden = [model.model(**batch).last_hidden_state.abs().max() for batch in batches()]
    assert largest == max(hidden)  # for static scales, though these need none


@helpers.since_5
def test_experts_do_not_depend_on_the_batch_size():
    """Rows of several experts stand in one tensor, each row with a scale of its own."""
    model = helpers.mixture("mixtral")
    graph = capture(model, batches()[0])
    singles = [samples(b, i, i + 1) for b in batches() for i in range(len(b["input_ids"]))]
    together, alone = (measure_sensitivity(model, graph, each, **DYNAMIC) for each in (batches(), singles))
    np.testing.assert_allclose(together.rounding[FORMAT], alone.rounding[FORMAT], rtol=1e-3)


@pytest.mark.parametrize("done", [1, 2])
def test_it_goes_on_after_an_interrupt(tmp_path, done):
    model = helpers.language_model("llama")
    graph = capture(model, batches()[0])
    expected = measure_sensitivity(model, graph, batches(), **DYNAMIC)

    class Interrupted(Partial):
        saved = 0

        def save(self, arrays):
            super().save(arrays)
            Interrupted.saved += 1
            if Interrupted.saved == done:
                raise KeyboardInterrupt

    partial = Partial(tmp_path / "partial.npz", "key")
    with pytest.raises(KeyboardInterrupt):
        measure_in_steps(model, graph, batches(), None, partial=Interrupted(*partial_of(partial)), **DYNAMIC)
    result = measure_in_steps(model, graph, batches(), None, partial=partial, **DYNAMIC)
    np.testing.assert_array_equal(result.rounding[FORMAT], expected.rounding[FORMAT])
    assert result.measured_drift == expected.measured_drift
    assert replace(result, rounding={}).ops == expected.ops


def partial_of(partial):
    return partial.path, partial.key
