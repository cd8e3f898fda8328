"""FP8 linear layers: on a CPU only their values can be tried, never their time."""

import helpers
import pytest
import torch

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.float8 import Float8Linear, float8_switch
from inc_mp_plugin.targets.timed import runnable_kinds

BATCH = {"input_ids": helpers.tokens(3)}


def rounded(x, scale):
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_values_are_those_of_rounding_both_by_hand(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48, bias=bias).bfloat16()
    x = torch.randn(2, 5, 64).bfloat16()
    weight = linear.weight.float()
    x_scale, w_scale = float(x.abs().max()) / (0.25 * 448), float(weight.abs().max()) / (0.5 * 448)
    # Rounding happens on x times the inverse scale in BF16, so that is what is done by hand too.
    inverse = torch.tensor(1 / x_scale).bfloat16()
    lowered = (x * inverse).clamp(-448, 448).to(torch.float8_e4m3fn).float() * x_scale
    expected = lowered @ rounded(weight, w_scale).t() + (linear.bias.float() if bias else 0.0)
    output = Float8Linear(linear, float(x.abs().max()))(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_the_switch_leaves_the_model_as_it_came():
    model = helpers.language_model("llama").bfloat16()
    before = helpers.state(model)
    expected = model(**BATCH).logits
    ops = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    switch = float8_switch(model, ops, [BATCH])
    helpers.assert_same_state(before, helpers.state(model))
    switch.select(dict.fromkeys(ops, "fp8_e4m3"))
    lowered = model(**BATCH).logits
    assert 0 < float((lowered - expected).norm() / expected.norm()) < 0.2
    switch.select({})
    assert torch.equal(model(**BATCH).logits, expected)


def test_only_linear_layers_that_calibration_ran():
    model = helpers.language_model("llama").bfloat16()
    with pytest.raises(InputError, match="'model.norm' is a LlamaRMSNorm; only linear layers"):
        float8_switch(model, ["model.norm"], [BATCH])
    with pytest.raises(InputError, match="no calibration batch ran 'lm_head'"):
        float8_switch(model, ["lm_head"], [])


@pytest.mark.parametrize(
    ("device", "format_name", "kinds"),
    [
        ("cpu", "bf16", ("linear", "conv2d")),
        ("cuda", "bf16", ("linear", "conv2d")),
        ("cuda", "fp8_e4m3", ("linear",)),
        ("hpu", "fp8_e4m3", ("linear", "conv2d", "bgemm")),
    ],
)
def test_what_each_device_really_runs(device, format_name, kinds):
    assert runnable_kinds(device, format_name) == kinds


@pytest.mark.parametrize("format_name", ["fp8_e4m3", "fp8_e5m2"])
def test_emulation_is_never_timed(format_name):
    with pytest.raises(InputError, match=f"a CPU only emulates {format_name}"):
        runnable_kinds("cpu", format_name)


def test_what_no_device_runs():
    with pytest.raises(InputError, match="fp8_e5m2 cannot be run on 'cuda'"):
        runnable_kinds("cuda", "fp8_e5m2")
