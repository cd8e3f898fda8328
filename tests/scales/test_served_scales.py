"""Scales of a server: against vLLM's own operator, recorded, and compressed-tensors' own compressor."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.scales.served import ServedScales
from inc_mp_plugin.sensitivity.rounding import Rounding, scaled

RECORDED = Path(__file__).parent.parent / "data" / "vllm-quant-fp8.npz"
FORMAT = "fp8_e4m3"
DYNAMIC = ServedScales("dynamic", "vllm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("name", DTYPES)
def test_activations_are_those_of_vllm(recorded, name):
    """Bit for bit, scales and codes; the rounded values are their products in FP32."""
    value = recorded[f"{name} value"].to(DTYPES[name])
    scale = DYNAMIC.of_input(value.abs().amax(dim=-1, keepdim=True), FORMAT)
    assert torch.equal(scale.factor, recorded[f"{name} scale"])
    codes = recorded[f"{name} codes"].view(torch.float8_e4m3fn)
    assert torch.equal(scaled(value, scale, 448.0).to(torch.float8_e4m3fn).float(), codes.float())
    rounding = Rounding(DYNAMIC, (FORMAT,))
    expected = (codes.float() * recorded[f"{name} scale"]).to(DTYPES[name])
    assert torch.equal(rounding.input("any op", 0, value, FORMAT), expected)
    errors = rounding.of_input("any op", 0, value, FORMAT)
    assert torch.equal(errors, expected.float() - value.float())
    assert rounding.of_input("another op", 0, value, FORMAT) is errors  # of the same tensor
    batch = value.reshape(2, 12, -1)
    assert torch.equal(rounding.of_input("any op", 0, batch, FORMAT), errors.reshape(batch.shape))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_weights_are_those_of_compressed_tensors(dtype):
    """Bit for bit: codes of its compressor, times its scales in FP32, whole or by slabs of rows."""
    pytest.importorskip("compressed_tensors.compressors.naive_quantized")
    from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[0], weight[1], weight[2] = 0.0, weight[1] * 1e-5, weight[2] * 1e4
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True, dynamic=False)
    scale, _ = calculate_qparams(weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True), args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = FloatQuantizationCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    expected = (state["weight"].float() * scale.float()).to(dtype)
    rounding = Rounding(DYNAMIC, (FORMAT,))
    assert torch.equal(rounding.weight(weight, FORMAT), expected)
    errors = expected.float() - weight.float()
    assert torch.equal(rounding.of_weight(weight, FORMAT), errors)
    assert torch.equal(rounding.of_weight(weight, FORMAT, slice(7, 19)), errors[7:19])


def test_another_method_or_format_is_refused():
    with pytest.raises(InputError, match="maxabs_pow2"):
        ServedScales("maxabs_pow2", "vllm")
    with pytest.raises(InputError, match="fp8_e5m2"):
        DYNAMIC.full_scale("fp8_e5m2")


def test_everything_has_a_scale():
    nothing = torch.zeros(3)
    assert DYNAMIC.doubtful("input", FORMAT, "bf16") == 0.0
    assert DYNAMIC.usable("input", nothing, FORMAT).all()
    assert DYNAMIC.of_input(nothing, FORMAT).divisor.tolist() == pytest.approx([1 / (448 * 512)] * 3)
