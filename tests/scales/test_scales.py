"""Scales against INC's own classes, for the CPU and for Gaudi."""

import math
import subprocess
import sys

import helpers
import pytest
import torch
from neural_compressor.torch.algorithms.fp8_quant._core.common import QuantTensorType
from neural_compressor.torch.algorithms.fp8_quant._core.fp_utils import FP8_143_SCALES, get_fullscale
from neural_compressor.torch.algorithms.fp8_quant._core.scale_methods.round_scales_function import (
    ScaleHwAlignedFixed,
    ScaleIdentity,
    ScaleToHwAligned,
    ScaleToPow2,
    ScaleUnit,
)
from neural_compressor.torch.algorithms.fp8_quant._core.scale_methods.scale_method_config import (
    CfgStr,
    ScaleGranularity,
    ScaleMethodString,
    scale_method_config_mapping,
)
from neural_compressor.torch.algorithms.fp8_quant._core.scale_methods.scales_method import (
    MaxAbsPcs,
    MaxAbsPts,
)
from neural_compressor.torch.utils.auto_accelerator import INCAcceleratorType

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.scales.methods import DEVICES, SCALE_METHODS, Scales

try:
    from neural_compressor.torch.algorithms.fp8_quant._core.fp_utils import calc_scale_from_maxabs
except ImportError:
    pytest.skip("INC has no function of its own for a scale without rounding", allow_module_level=True)

ROUNDING = {
    "none": "IDENTITY",
    "pow2": "POW2",
    "hw": "HW_ALIGNED",
    "unit": "SCALE_UNIT",
    "hw_single": "HW_ALIGNED_FIXED",
}
INC_DEVICE = {"cpu": None, "gaudi2": INCAcceleratorType.GAUDI2, "gaudi3": INCAcceleratorType.GAUDI3}
INC_DTYPE = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
DTYPES = [torch.float32, torch.bfloat16]
PAIRS = [
    (name, device)
    for name, method in SCALE_METHODS.items()
    for device in DEVICES
    if device != "cpu" or not method.hardware
]


def inc_rounding(name, device):
    """INC's own object that rounds scales."""
    return {
        "none": ScaleIdentity,
        "pow2": ScaleToPow2,
        "unit": ScaleUnit,
        "hw": lambda: ScaleToHwAligned(INC_DEVICE[device]),
        "hw_single": lambda: ScaleHwAlignedFixed(INC_DEVICE[device]),
    }[name]()


def inc_params(format_name, dtype):
    return {"hp_dtype": dtype, "lp_dtype": INC_DTYPE[format_name]}


def magnitudes(dtype):
    """Powers of two from 2^-60 to 2^20 with their neighbours, and numbers between them."""
    powers = 2.0 ** torch.arange(-60, 21, dtype=torch.float64)
    ulp = torch.finfo(dtype).eps
    between = powers * (1 + torch.rand(len(powers), generator=torch.Generator().manual_seed(0)))
    backed_off = [powers * 448 * 0.25, powers * 240 * 0.25, powers * 57344 * 0.25]
    exact = torch.cat([powers, *backed_off])
    return torch.cat([exact, exact * (1 + ulp), exact * (1 - ulp), between]).to(dtype)


@pytest.mark.parametrize("name", SCALE_METHODS)
def test_the_table_is_that_of_inc(name):
    ours, theirs = SCALE_METHODS[name], scale_method_config_mapping[ScaleMethodString[name.upper()]]
    activation, weight = theirs[CfgStr.ACTIVATION], theirs[CfgStr.WEIGHT]
    assert (ROUNDING[ours.activation], ROUNDING[ours.weight]) == (
        activation.rounding_method.name,
        weight.rounding_method.name,
    )
    assert activation.granularity is ScaleGranularity.PTS
    assert ours.per_channel_weight == (weight.granularity is ScaleGranularity.PCS)
    if ours.activation not in {"unit", "hw_single"}:
        assert (ours.activation_backoff, ours.weight_backoff) == (activation.backoff, weight.backoff)


@pytest.mark.parametrize("format_name", INC_DTYPE)
@pytest.mark.parametrize("device", DEVICES)
def test_full_scales(device, format_name):
    expected = get_fullscale(INC_DTYPE[format_name], INC_DEVICE[device])
    assert Scales("maxabs_pow2", device).full_scale(format_name) == expected


@pytest.mark.parametrize("dtype", helpers.mostly_slow(DTYPES, torch.bfloat16), ids=str)
@pytest.mark.parametrize("format_name", INC_DTYPE)
@pytest.mark.parametrize(("name", "device"), PAIRS)
def test_input_scales(name, device, format_name, dtype):
    scales, method = Scales(name, device), SCALE_METHODS[name]
    rounding = inc_rounding(method.activation, device)
    limit = get_fullscale(INC_DTYPE[format_name], INC_DEVICE[device])
    for maxabs in magnitudes(dtype):
        unrounded = calc_scale_from_maxabs(maxabs, limit, method.activation_backoff)
        expected = torch.as_tensor(rounding.calc(unrounded), dtype=dtype)
        scale = scales.of_input(maxabs, format_name)
        # as QuantDequant keeps it: a tensor, inverted twice
        assert scale.divisor == torch.reciprocal(torch.reciprocal(expected)).float()
        assert scale.factor == scale.divisor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format_name", INC_DTYPE)
@pytest.mark.parametrize(("name", "device"), PAIRS)
def test_weight_scales(name, device, format_name, dtype):
    method = SCALE_METHODS[name]
    generator = torch.Generator().manual_seed(0)
    spread = 2.0 ** torch.linspace(-40, 10, 64)[:, None]
    weight = (torch.randn(64, 16, generator=generator) * spread).to(dtype)
    weight[3] = 0.0
    scale = Scales(name, device).of_weight(weight, format_name)
    kind = MaxAbsPcs if method.per_channel_weight else MaxAbsPts
    rounding = inc_rounding(method.weight, device)
    if method.weight in {"unit", "hw_single"}:
        expected = torch.tensor(rounding.calc(None), dtype=dtype)
    else:
        inc = kind(rounding, inc_params(format_name, dtype), INC_DEVICE[device], method.weight_backoff)
        expected = inc.calc_scales(weight, QuantTensorType.CONST)
    assert torch.equal(scale.factor.flatten(), expected.float().flatten())
    assert torch.isfinite(scale.divisor).all() and (scale.divisor > 0).all()
    # as QuantInput keeps it: inverted as a tensor, then as a number
    inverse = torch.reciprocal(expected).double().flatten()
    assert torch.equal(scale.divisor.flatten(), (1.0 / inverse).float())
    if method.per_channel_weight:
        assert scale.factor.shape == (64, 1)


@pytest.mark.parametrize("device", ["gaudi2", "gaudi3"])
def test_hardware_scales_are_those_of_the_device(device):
    scales = Scales("maxabs_hw", device)
    factors = {float(scales.of_input(m, "fp8_e4m3").factor) for m in magnitudes(torch.float32)}
    assert factors <= set(FP8_143_SCALES[INC_DEVICE[device]])
    if device == "gaudi2":
        assert factors == {2.0**-8, 2.0**-4, 1.0, 2.0**4}


def test_channels_of_a_convolution():
    weight = torch.ones(4, 3, 2, 2) * torch.tensor([1.0, 2.0, 4.0, 0.0])[:, None, None, None]
    weight[0, 1, 1, 0] = -16.0
    scale = Scales("act_maxabs_pow2_weights_pcs_maxabs_pow2", "cpu").of_weight(weight, "fp8_e4m3")
    assert scale.factor.shape == (4, 1, 1, 1)
    limit = 448 * 0.5
    expected = [2.0 ** math.ceil(math.log2(m / limit)) for m in (16, 2, 4)]
    assert scale.factor.flatten().tolist() == [*expected, 2.0**-126]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["maxabs_arbitrary", "maxabs_pow2"])
@pytest.mark.parametrize("maxabs", [0.0, 1e-7, 1e-38])
def test_no_scale_is_zero_or_infinite(maxabs, name, dtype):
    """INC divides by zero here: scale 0 at once, or after its inverse has overflowed."""
    tensor = torch.tensor(maxabs).to(dtype)
    for scale in (
        Scales(name, "cpu").of_input(tensor, "fp8_e4m3"),
        Scales(name, "cpu").of_weight(tensor.expand(3, 2), "fp8_e5m2"),
    ):
        assert all(0 < float(part) < math.inf for part in (scale.divisor, scale.factor))
    if not tensor:
        assert float(scale.factor) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("maxabs_pow", "cpu"), "unknown scale method 'maxabs_pow'; did you mean 'maxabs_pow2'"),
        (("maxabs_pow2", "gaudi1"), "unknown device for scales 'gaudi1'; did you mean 'gaudi"),
        (("maxabs_hw", "cpu"), "'cpu' does not have; give device gaudi2 or gaudi3, or one of .* maxabs_pow2"),
        (("hw_aligned_single_scale", "cpu"), "takes the scales of Gaudi hardware"),
        (("act_maxabs_hw_weights_pcs_maxabs_pow2", "cpu"), "takes the scales of Gaudi hardware"),
    ],
)
def test_wrong_scales(arguments, message):
    with pytest.raises(InputError, match=message):
        Scales(*arguments)


def test_wrong_formats():
    with pytest.raises(InputError, match="unknown FP8 format 'bf16'.*known: fp8_e4m3, fp8_e5m2"):
        Scales("maxabs_pow2", "cpu").full_scale("bf16")


def test_the_table_loads_without_torch():
    code = "import sys; import inc_mp_plugin.scales.methods; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
