"""Rounding errors: bit for bit as INC's modules on the CPU, and their sensitivities as naive autograd's."""

import copy
import math
from functools import partial

import helpers
import numpy as np
import pytest
import torch
from naive import one_sample
from torch import nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError, PluginError
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.inc.convert import quantize
from inc_mp_plugin.model.attention import Matmul, expose_bgemms
from inc_mp_plugin.model.batches import batch_size, samples
from inc_mp_plugin.model.experts import expose_experts
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity import sweeps
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.taylor import measure_sensitivity
from inc_mp_plugin.targets import CPU_QDQ

PCS = "act_maxabs_pow2_weights_pcs_maxabs_pow2"
POW2 = Scales("maxabs_pow2", "cpu")
E4M3 = ("fp8_e4m3",)
FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
LIMIT = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}


class EveryKind(nn.Module):
    """A convolution, a linear layer that is called twice, and a product of two activations."""

    def __init__(self, convolution=True):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1) if convolution else nn.Identity()
        self.linear = nn.Linear(6, 6)
        self.product = Matmul()

    def forward(self, x):
        y = self.linear(self.convolution(x))
        return self.product(y, 3.0 * torch.tanh(self.linear(5.0 * y)).transpose(-1, -2))


def ops_of(model):
    kinds = {"Linear": "linear", "Conv2d": "conv2d", "Matmul": "bgemm"}
    modules = [(n, kinds.get(type(m).__name__)) for n, m in model.named_modules()]
    ops = tuple(Op(name, kind, 1, 1, 1) for name, kind in modules if kind)
    return Graph(ops, tuple((op.name,) for op in ops), (), {})


def images(*sizes, shape=(3, 6, 6), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, *shape, generator=generator).to(dtype) for n in sizes]


def text():
    ids = helpers.tokens(5)
    return [{"input_ids": ids[:3]}, {"input_ids": ids[3:]}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("method", "format_name"),
    [
        ("maxabs_arbitrary", "fp8_e4m3"),
        ("maxabs_arbitrary", "fp8_e5m2"),
        ("maxabs_pow2", "fp8_e4m3"),
        (PCS, "fp8_e4m3"),
        ("unit_scale", "fp8_e4m3"),
    ],
)
def test_bit_for_bit_as_inc(method, format_name, dtype):
    torch.manual_seed(0)
    # INC's scales per channel break on convolutions
    model = EveryKind(convolution=method != PCS).eval().to(dtype)
    batches, graph = images(2, 3, dtype=dtype), ops_of(model)
    rounding = observe_rounding(
        model, graph, batches, helpers.squared_loss, scales=Scales(method, "cpu"), formats=[format_name]
    )
    weights = {op.name: model.get_submodule(op.name).weight.clone() for op in graph.ops if op.kind != "bgemm"}
    base = "fp32" if dtype == torch.float32 else "bf16"
    config = config_of(base, {op.name: format_name for op in graph.ops}, CPU_QDQ)
    converted = quantize(model, {**config, "scale_method": method}, batches)

    values = torch.cat([torch.randn(4000) * 3, torch.randn(1000) * 1e-3, torch.tensor([0.0, 1e4, -1e4])])
    values = values.to(dtype)
    for op in graph.ops:
        module = converted.get_submodule(op.name)
        inputs = ("quant_input_0", "quant_input_1") if op.kind == "bgemm" else ("quant_input",)
        for index, quantizer in enumerate(getattr(module, name) for name in inputs):
            scale = rounding.scales.of_input(rounding.maxabs[op.name, index], format_name)
            assert scale.divisor == torch.tensor(float(quantizer.scale))
            expected = quantizer(values).float() - values.float()
            assert torch.equal(rounding.of_input(op.name, index, values, format_name), expected)
        if op.kind != "bgemm":
            dequantized = module.dequant_weights(module.weight)
            dequantized = dequantized.t() if op.kind == "linear" else dequantized
            assert dequantized.dtype == dtype
            expected = dequantized.float() - weights[op.name].float()
            assert torch.equal(rounding.of_weight(weights[op.name], format_name), expected)


def test_gaudi2_clamps_at_its_own_full_scale():
    model = EveryKind().eval()
    scales = Scales("unit_scale", "gaudi2")
    graph, batches = ops_of(model), images(2)
    rounding = observe_rounding(model, graph, batches, helpers.squared_loss, scales=scales, formats=E4M3)
    values = torch.tensor([1.0, 239.0, 241.0, 500.0, -500.0])
    expected = [0.0, 1.0, -1.0, -260.0, 260.0]
    assert rounding.of_input("linear", 0, values, "fp8_e4m3").tolist() == expected


def naive_rounding(model, names, batches, loss_fn, *, format_name, per_channel=False):
    """{op name: [||q * dg/dz||^2 of each sample]}: powers of two as scales, one sample and op at a time."""
    model = copy.deepcopy(model).double().eval()
    expose_bgemms(model)
    expose_experts(model)
    singles = [one_sample(batch, i) for batch in batches for i in range(batch_size(batch))]
    squares = {}
    for name in names:
        maxabs = {}
        with torch.no_grad():
            for sample in singles:
                watch = partial(_note, maxabs)
                handle = model.get_submodule(name).register_forward_pre_hook(watch)
                loss_fn(model, sample)
                handle.remove()
        options = {"format_name": format_name, "maxabs": maxabs, "per_channel": per_channel}
        squares[name] = [_one_op(model, name, sample, loss_fn, **options) for sample in singles]
    return squares


def _note(maxabs, _, args):
    for index, x in enumerate(x for x in args if x.numel()):
        maxabs[index] = max(maxabs.get(index, 0.0), float(x.abs().max()))


def _q(z, maxabs, format_name, backoff):
    scale = 2.0 ** math.ceil(math.log2(maxabs / (LIMIT[format_name] * backoff)))
    return (z / scale).float().to(FP8[format_name]).double() * scale - z


def _one_op(model, name, sample, loss_fn, *, format_name, maxabs, per_channel):
    """Add a zero to every input of the op's calls and to its weight; differentiate by the zeros."""
    module = model.get_submodule(name)
    errors, zeros = [], []

    def add_zero(_, args):
        shifted = []
        for index, x in enumerate(args):
            zeros.append(torch.zeros_like(x, requires_grad=True))
            errors.append(_q(x.detach(), maxabs[index], format_name, 0.25))
            shifted.append(x + zeros[-1])
        return tuple(shifted)

    handle = module.register_forward_pre_hook(add_zero)
    shared = getattr(module, "weight", None)
    if shared is not None:
        module.weight = nn.Parameter(shared.detach().clone())
        parts = module.weight.detach()
        channels = parts if per_channel else parts[None]
        q = [_q(part, float(part.abs().max()), format_name, 0.5) for part in channels]
        errors.append(torch.stack(q) if per_channel else q[0])
        zeros.append(module.weight)
    try:
        gradients = torch.autograd.grad(loss_fn(model, sample).sum(), zeros, allow_unused=True)
    finally:
        handle.remove()
        if shared is not None:
            module.weight = shared
    return sum(float(((q * g) ** 2).sum()) for q, g in zip(errors, gradients, strict=True) if g is not None)


CASES = {
    "llama": (lambda: helpers.language_model("llama"), text, language_model_loss),
    "experts": (lambda: helpers.mixture("mixtral"), text, language_model_loss),
    "convolutions": (helpers.ResidualCNN, lambda: images(3, 2, shape=(3, 8, 8)), helpers.squared_loss),
    "called twice": (helpers.HandWritten, lambda: images(4, shape=(5, 6)), helpers.squared_loss),
}


@pytest.mark.parametrize("method", ["maxabs_pow2", pytest.param(PCS, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case in ("experts", "llama") else ()) for case in CASES],
)
def test_equals_the_naive_computation(case, method):
    build, make_batches, loss_fn = CASES[case]
    torch.manual_seed(0)
    model, batches = build(), make_batches()
    graph = capture(model, batches[0])
    # an iterator will do, although the batches are run twice
    sensitivity = measure_sensitivity(
        model, graph, iter(batches), loss_fn, scales=Scales(method, "cpu"), formats=tuple(FP8)
    )
    assert list(sensitivity.rounding) == list(FP8)
    for format_name in FP8:
        options = {"format_name": format_name, "per_channel": method == PCS}
        expected = naive_rounding(model, sensitivity.ops, batches, loss_fn, **options)
        rows = sensitivity.rounding[format_name]
        for column, name in enumerate(sensitivity.ops):
            np.testing.assert_allclose(rows[:, column], expected[name], rtol=2e-3)
    plain = measure_sensitivity(model, graph, batches, loss_fn)
    assert plain.rounding == {}
    np.testing.assert_array_equal(plain.input, sensitivity.input)
    np.testing.assert_array_equal(plain.weight, sensitivity.weight)


@pytest.mark.parametrize("case", CASES)
def test_does_not_depend_on_the_batch_size(case):
    build, make_batches, loss_fn = CASES[case]
    torch.manual_seed(0)
    model, batches = build(), make_batches()
    graph = capture(model, batches[0])
    measure = partial(measure_sensitivity, model, graph, loss_fn=loss_fn, scales=POW2, formats=E4M3)
    singles = [samples(batch, i, i + 1) for batch in batches for i in range(batch_size(batch))]
    together, alone = measure(batches).rounding, measure(singles).rounding
    np.testing.assert_allclose(together["fp8_e4m3"], alone["fp8_e4m3"], rtol=1e-3)


def test_tokens_routed_to_experts_are_told_apart():
    torch.manual_seed(1)
    model, batches = helpers.RoutedExperts(), [torch.randn(2, 3, 6), torch.randn(3, 4, 6)]
    names = ["experts.0", "experts.1"]
    graph = Graph(tuple(Op(n, "linear", 1, 36, 1) for n in names), tuple((n,) for n in names), (), {})
    sensitivity = measure_sensitivity(model, graph, batches, helpers.squared_loss, scales=POW2, formats=E4M3)
    expected = naive_rounding(model, names, batches, helpers.squared_loss, format_name="fp8_e4m3")
    for column, name in enumerate(names):
        np.testing.assert_allclose(sensitivity.rounding["fp8_e4m3"][:, column], expected[name], rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_agrees_with_full(dtype):
    model = helpers.language_model("llama")
    graph = capture(model, text()[0])
    measure = partial(measure_sensitivity, graph=graph, batches=text(), scales=POW2, formats=E4M3)
    full = measure(model).rounding["fp8_e4m3"].mean(axis=0)
    half = measure(model.to(dtype)).rounding["fp8_e4m3"].mean(axis=0)
    assert np.all((half / full > 0.8) & (half / full < 1.25))


def test_zeros_have_no_rounding_error():
    model = EveryKind().eval()
    nn.init.zeros_(model.linear.weight)
    nn.init.zeros_(model.linear.bias)
    for scales in (POW2, Scales("maxabs_arbitrary", "cpu"), Scales("maxabs_hw", "gaudi2")):
        sensitivity = measure_sensitivity(
            model, ops_of(model), images(2), helpers.squared_loss, scales=scales, formats=E4M3
        )
        assert sensitivity.rounding["fp8_e4m3"].tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_model_leaves_as_it_came(training):
    model = helpers.language_model("llama")
    model.train(training)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    graph = capture(model, text()[0])
    before = helpers.state(model)
    measure = partial(measure_sensitivity, model, graph, text(), scales=POW2, formats=E4M3)
    with torch.inference_mode():
        measure()
    helpers.assert_same_state(before, helpers.state(model))
    for in_maxabs_pass in (True, False):

        def interrupted(model, batch, grad_off=in_maxabs_pass):
            losses = language_model_loss(model, batch)
            if torch.is_grad_enabled() != grad_off:
                raise KeyboardInterrupt
            return losses

        with pytest.raises(KeyboardInterrupt):
            measure(loss_fn=interrupted)
        helpers.assert_same_state(before, helpers.state(model))


def test_nan_names_the_op():
    model = EveryKind().eval()
    graph, measure = ops_of(model), partial(measure_sensitivity, scales=POW2, formats=E4M3)
    before = helpers.state(model)
    infinite = [torch.full((2, 3, 6, 6), torch.inf)]
    with pytest.raises(NonFiniteError, match="input of op 'convolution'"):
        measure(model, graph, infinite, helpers.squared_loss)
    helpers.assert_same_state(before, helpers.state(model))
    with torch.no_grad():
        model.linear.weight[1, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="weight of op 'linear'"):
        measure(model, graph, images(2), helpers.squared_loss)


def test_rounding_that_overflows_names_the_op():
    """The largest FP16 number rounds up to infinity."""
    model = nn.Sequential(nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    batch = torch.full((1, 6), 65504.0, dtype=torch.float16)
    measure = partial(measure_sensitivity, model.half(), ops_of(model), [batch], scales=POW2, formats=E4M3)
    with pytest.raises(NonFiniteError, match="op '0' overflows when rounded to fp8_e4m3"):
        measure(lambda model, batch: model(batch).float().sum(dim=1) * 1e-6)


def test_an_input_that_appears_with_gradients_only(monkeypatch):
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.other(self.linear(x)) if torch.is_grad_enabled() else self.linear(x)

    monkeypatch.setattr(sweeps, "free_bytes", lambda device: None)  # a pass for the scales of its own
    model, batch = Moody(), torch.randn(2, 3)
    with pytest.raises(PluginError, match="input 0 of op 'other' was not seen when the maxabs was taken"):
        measure_sensitivity(model, ops_of(model), [batch], helpers.squared_loss, scales=POW2, formats=E4M3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"scales": POW2}, "give both or neither"),
        ({"formats": E4M3}, r"formats \['fp8_e4m3'\].*give both or neither"),
        ({"scales": POW2, "formats": ["bf16"]}, "unknown FP8 format 'bf16'"),
    ],
)
def test_wrong_arguments(keywords, message):
    model = EveryKind().eval()
    with pytest.raises(InputError, match=message):
        measure_sensitivity(model, ops_of(model), images(2), helpers.squared_loss, **keywords)


def test_wrong_batches_and_models():
    model = EveryKind().eval()
    keywords = {"scales": POW2, "formats": E4M3}
    with pytest.raises(InputError, match="no calibration batch"):
        measure_sensitivity(model, ops_of(model), [], helpers.squared_loss, **keywords)
    with pytest.raises(InputError, match="not a module of this model"):
        measure_sensitivity(helpers.ResidualCNN(), ops_of(model), images(2), helpers.squared_loss, **keywords)
