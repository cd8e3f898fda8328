"""Checkpoints of the scheme "dynamic", against compressed-tensors' own compressor."""

import checkpoints
import helpers
import pytest
import torch

from inc_mp_plugin.export.casts import rows_cast

pytest.importorskip("compressed_tensors.compressors.naive_quantized")


def compressed(weight):
    """A weight and its scales as compressed-tensors makes them: per channel, from the rows' extremes."""
    from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True, dynamic=False)
    least, most = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    scale, _ = calculate_qparams(least, most, args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = FloatQuantizationCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    return state["weight"], state["weight_scale"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_and_scales_are_those_of_compressed_tensors(tmp_path, dtype):
    """Bit for bit, rows of zeros and of very small and large numbers included."""
    model = helpers.language_model("llama").to(dtype)
    weight = model.model.layers[0].mlp.down_proj.weight.detach()
    weight[0], weight[1], weight[2] = 0.0, weight[1] * 1e-5, weight[2] * 1e4
    source = checkpoints.saved(model, tmp_path / "source")
    captured = checkpoints.captured_linear(model)
    lowered = [op for op in captured.ops if ".layers.0." in op]
    checkpoints.exported(model, source, lowered, tmp_path / "out", captured=captured)
    before, after = checkpoints.tensors(tmp_path / "source"), checkpoints.tensors(tmp_path / "out")
    for op in lowered:
        codes, scale = compressed(before.pop(f"{op}.weight"))
        assert checkpoints.same(after.pop(f"{op}.weight"), codes)
        assert checkpoints.same(after.pop(f"{op}.weight_scale"), scale)
    assert before.keys() == after.keys()
    assert all(checkpoints.same(tensor, after[name]) for name, tensor in before.items())


def test_its_config_is_one_of_compressed_tensors(tmp_path):
    from compressed_tensors.quantization import QuantizationConfig

    model = helpers.language_model("llama")
    source = checkpoints.saved(model, tmp_path / "source")
    captured = checkpoints.captured_linear(model)
    lowered = [op for op in captured.ops if "mlp" in op or op == "lm_head"]
    checkpoints.exported(model, source, lowered, tmp_path / "out", captured=captured)
    content = checkpoints.config(tmp_path / "out")
    read = QuantizationConfig.model_validate(content.pop("quantization_config"))
    assert read.format == "float-quantized"
    assert read.ignore == sorted(set(captured.ops) - set(lowered))
    (group,) = read.config_groups.values()
    assert group.targets == ["Linear", "lm_head"]
    assert (group.weights.strategy, group.weights.dynamic) == ("channel", False)
    assert (group.input_activations.strategy, group.input_activations.dynamic) == ("token", True)
    assert content == checkpoints.config(tmp_path / "source")


def test_a_slab_is_rounded_as_the_whole():
    weight = torch.randn(37, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    parts = torch.cat([*rows_cast(weight.split(5), "op")])
    assert checkpoints.same(parts, compressed(weight)[0])
