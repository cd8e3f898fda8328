"""Ops that INC has no scale for, against what INC's own quantize-dequantize makes of them on this CPU."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neural_compressor.torch.algorithms.fp8_quant._core.fp_utils import invert_scale
from neural_compressor.torch.algorithms.fp8_quant._core.scale_methods.round_scales_function import (
    ScaleIdentity,
    ScaleToPow2,
    ScaleUnit,
)
from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.inc.convert import quantize
from inc_mp_plugin.libraries.neural_compressor import channel_scales_have_a_floor
from inc_mp_plugin.model.attention import Matmul
from inc_mp_plugin.scales.methods import SCALE_METHODS, Scales
from inc_mp_plugin.scales.scaleless import without_scale
from inc_mp_plugin.sensitivity.taylor import measure_sensitivity
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.targets import CPU_QDQ

try:
    from neural_compressor.torch.algorithms.fp8_quant._core.fp_utils import calc_scale_from_maxabs
except ImportError:
    pytest.skip("INC has no function of its own for a scale without rounding", allow_module_level=True)

PCS = "act_maxabs_pow2_weights_pcs_maxabs_pow2"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ON_CPU = [Scales(name, "cpu") for name in ("maxabs_arbitrary", "maxabs_pow2", PCS, "unit_scale")]
FLOOR = channel_scales_have_a_floor()


class Small(nn.Module):
    """One op with numbers of a chosen size in one place."""

    def __init__(self, place, size, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.place, self.size = place, size
        self.op = nn.Linear(8, 4, bias=False) if place != "second" else Matmul()
        if place in ("weight", "channel"):
            part = self.op.weight.data[1:2] if place == "channel" else self.op.weight.data
            part *= 0.9 * size / part.abs().max()
        self.to(dtype)
        self.inputs = torch.randn(2, 3, 8)
        if place in ("input", "second"):
            self.inputs *= size / self.inputs.abs().max()
        self.inputs = self.inputs.to(dtype)

    def forward(self, x):
        return self.op(torch.ones_like(x), x.transpose(-1, -2)) if self.place == "second" else self.op(x)


def maxima(model):
    """What the sensitivity pass would see: the maxabs of each part, by hand."""
    weight = getattr(model.op, "weight", torch.full((1, 1), torch.inf)).detach().double().abs()
    parts = {"input": model.inputs.double().abs().max(), "weight": weight.max()}
    parts["channel"] = weight.amax(dim=1).min()
    return {name: np.array([float(value)]) for name, value in parts.items()}


def of_maxabs(maxabs):
    ones = np.ones((1, 1))
    return Sensitivity(("op",), np.ones(1), ones, ones, maxabs=maxabs)


def relative_error(model, scales, base, format_name):
    """What INC's conversion makes of the rows that hold the small numbers; infinite for NaN."""
    rows = (..., slice(1, 2)) if model.place == "channel" else ...
    before = model(model.inputs).detach().double()[rows]
    formats = {"op": format_name}
    config = {**config_of(base, formats, CPU_QDQ), "scale_method": scales.method}
    after = quantize(model, config, [model.inputs])(model.inputs).detach().double()[rows]
    norm = float(before.norm())
    return float((after - before).norm()) / norm if after.isfinite().all() and norm else np.inf


NAMES = {"input": "activation", "weight": "weight"}
ROUNDING = {"none": ScaleIdentity, "pow2": ScaleToPow2, "unit": ScaleUnit}
FULL = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}
SIZES = {
    "fp32": [0.0, 1e-45, 1e-40, 1e-38, 2e-37, 3e-37, 5e-37, 1e-36, 1e-30],
    "bf16": [0.0, 1e-40, 1e-38, 2e-37, 3e-37, 5e-37, 1.5e-36, 1e-30],
    "fp16": [0.0, 1e-6, 1e-4, 1e-3, 2e-3, 0.1],  # all but channels in BF16
}


@pytest.mark.parametrize("base", DTYPES)
@pytest.mark.parametrize("place", ["weight", "channel", "input", "second"])
@pytest.mark.parametrize("scales", ON_CPU[:3], ids=lambda scales: scales.method[:16])
def test_held_back_is_what_inc_breaks(scales, place, base):
    """Where INC has a scale, an op's error is that of FP8; else NaN or many times that."""
    for size in SIZES[base]:
        model = Small(place, size, DTYPES[base])
        held_back = without_scale(of_maxabs(maxima(model)), base, ["fp8_e4m3"], [scales])
        if place == "channel" and not SCALE_METHODS[scales.method].per_channel_weight:
            assert not held_back  # hidden by the other channels
            continue
        error = relative_error(model, scales, base, "fp8_e4m3")
        floored = scales.method == PCS and place in ("weight", "channel") and FLOOR and base != "fp16"
        if floored:
            assert not held_back and (error < 1.1 or not size)
        else:
            assert bool(held_back) == (error > 0.2), (size, error, held_back)


def test_a_unit_scale_is_never_missing():
    nothing = of_maxabs({part: np.zeros(1) for part in ("input", "weight", "channel")})
    assert not without_scale(nothing, "bf16", ["fp8_e4m3", "fp8_e5m2"], [Scales("unit_scale", "cpu")])


@pytest.mark.parametrize("device", ["gaudi2", "gaudi3"])
def test_scales_of_the_hardware_are_never_missing(device):
    nothing = of_maxabs({part: np.zeros(1) for part in ("input", "weight")})
    assert not without_scale(nothing, "bf16", ["fp8_e4m3"], [Scales("maxabs_hw", device)])
    # of any version of INC, the channels of older ones among them
    pcs = Scales("act_maxabs_hw_weights_pcs_maxabs_pow2", device)
    assert without_scale(of_maxabs({"channel": np.zeros(1)}), "bf16", ["fp8_e4m3"], [pcs])


@settings(max_examples=200, deadline=None)
@given(
    maxabs=st.floats(min_value=0.0, max_value=3e38, allow_subnormal=True),
    scales=st.sampled_from(ON_CPU),
    part=st.sampled_from(["input", "weight"]),
    base=st.sampled_from(["fp32", "bf16"]),
    format_name=st.sampled_from(["fp8_e4m3", "fp8_e5m2"]),
)
def test_the_inverse_of_incs_own_scale_is_finite_or_the_op_is_held_back(
    maxabs, scales, part, base, format_name
):
    value = torch.tensor(maxabs).to(DTYPES[base])
    if not value.isfinite():
        return
    method = SCALE_METHODS[scales.method]
    held_back = without_scale(of_maxabs({part: np.array([float(value)])}), base, [format_name], [scales])
    if part == "weight" and method.per_channel_weight:
        assert not held_back  # its channels decide
        return
    rounding, backoff = (getattr(method, name) for name in (NAMES[part], f"{NAMES[part]}_backoff"))
    scale = torch.as_tensor(
        ROUNDING[rounding]().calc(calc_scale_from_maxabs(value, FULL[format_name], backoff))
    )
    assert bool(held_back) == (not bool(invert_scale(scale).isfinite()))


def test_nothing_is_said_without_maxima_or_of_other_formats():
    assert not without_scale(of_maxabs({}), "fp32", ["fp8_e4m3"])
    assert not without_scale(of_maxabs({"input": np.zeros(1)}), "fp32", ["bf16", "fp16"])


def test_the_decision_loads_no_torch_where_there_is_no_doubt():
    code = (
        "import sys, numpy as np\n"
        "from inc_mp_plugin.core.sensitivity import Sensitivity\n"
        "from inc_mp_plugin.scales.scaleless import without_scale\n"
        "ones = np.ones((1, 1))\n"
        "losses = Sensitivity(('op',), ones[0], ones, ones, maxabs={'input': np.array([1e-3])})\n"
        "assert not without_scale(losses, 'bf16', ['fp8_e4m3'])\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Twice(nn.Module):
    """A linear layer that runs twice, one that reads zeros, one of zeros, and a product with zeros."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.reads, self.zeros = (nn.Linear(6, 6) for _ in range(3))
        self.product = Matmul()
        self.zeros.weight.data.zero_()
        self.twice.weight.data[2] = 0.0

    def forward(self, x):
        y = self.twice(torch.tanh(self.twice(100.0 * x)))
        y = y + self.reads(0.0 * x) + self.zeros(y)
        return y + self.product(y, 0.0 * y.transpose(-1, -2)) @ y


def test_maxima_are_those_of_all_batches():
    kinds = {"Linear": "linear", "Matmul": "bgemm"}
    model = Twice().eval()
    kind_of = {n: kinds[type(m).__name__] for n, m in model.named_modules() if type(m).__name__ in kinds}
    ops = tuple(Op(name, kind, 1, 1, 1) for name, kind in kind_of.items())
    graph = Graph(ops, tuple((op.name,) for op in ops), (), {})
    batches = [torch.randn(2, 4, 6), 3 * torch.randn(3, 4, 6), torch.randn(1, 4, 6)]
    sensitivity = measure_sensitivity(model, graph, batches, lambda m, x: m(x).square().mean(dim=(1, 2)))
    maxabs = {
        part: dict(zip(sensitivity.ops, values, strict=True)) for part, values in sensitivity.maxabs.items()
    }
    assert maxabs["input"]["twice"] == max(float((100.0 * x).abs().max()) for x in batches)
    assert maxabs["input"]["reads"] == maxabs["input"]["product"] == 0.0
    assert maxabs["weight"]["twice"] == float(model.twice.weight.abs().max())
    assert maxabs["channel"] == {
        "twice": 0.0,
        "reads": float(model.reads.weight.abs().amax(dim=1).min()),
        "zeros": 0.0,
        "product": np.inf,
    }
    held_back = without_scale(sensitivity, "fp32", ["fp8_e4m3"])
    assert held_back == {
        "reads": "INC has no scale for an input of zeros that calibration gave it",
        "zeros": "INC has no scale for a weight of zeros",
        "product": "INC has no scale for an input of zeros that calibration gave it",
    }
    assert sensitivity.of(["zeros", "twice"]).maxabs["weight"].tolist() == [maxabs["weight"]["twice"], 0.0]


def two_ops(formats, maxabs):
    """A program of two ops alike, of which one has a weight of zeros."""
    groups = tuple(
        GroupGains((op,), tuple((f,) for f in formats), tuple(map(float, range(len(formats)))), (0.0,) * 3)
        for op in "ab"
    )
    groups = tuple(GroupGains(g.ops, g.configurations, g.gain, (0.0,) * len(formats)) for g in groups)
    ones = np.ones((1, 2))
    return Gains("memory", "byte", "exact", formats[0], groups), Sensitivity(
        ("a", "b"), np.ones(1), ones, ones, maxabs=maxabs
    )


def test_a_plain_program_keeps_zeros_in_the_base_format():
    zeros = {"weight": np.array([1.0, 0.0])}
    assert solve(*two_ops(["fp32", "fp8_e4m3"], zeros), tau=10.0).quantized == ("a",)
    assert solve(*two_ops(["fp32", "fp8_e4m3"], {}), tau=10.0).quantized == ("a", "b")
    assert solve(*two_ops(["fp32", "bf16"], zeros), tau=10.0).quantized == ("a", "b")
    gains, sensitivity = two_ops(["fp32", "fp8_e4m3"], zeros)
    must = GroupGains(("b",), (("fp8_e4m3",),), (1.0,), (0.0,))
    with pytest.raises(InputError, match="'b' must leave the base format, but INC has no scale for a weight"):
        solve(Gains("memory", "byte", "exact", "fp32", (gains.groups[0], must)), sensitivity, tau=10.0)
