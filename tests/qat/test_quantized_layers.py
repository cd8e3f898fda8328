"""Copies of models whose ops are rounded: names, formats, first steps, codes, and the model left alone."""

import copy
import math

import pytest
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.qat.layers import (
    SCALED,
    STATISTICS,
    as_plain,
    in_formats,
    quantized,
    rounded_ops,
    weight_codes,
)

FORMATS = {"0": "int4", "3": "int4", "6": "int8"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def images(number=6):
    return torch.randn(number, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def by_hand(value, step, least, largest):
    return torch.clamp(value / step, least, largest).round() * step


def test_ops_are_rounded_under_their_names():
    model, batch = network().eval(), images()
    before = state(model)
    made = quantized(model, FORMATS, [batch[:4], batch[4:]])
    assert same(before, state(model)) and type(model[0]) is nn.Conv2d
    ops = rounded_ops(made)
    assert {name: op.format for name, op in ops.items()} == FORMATS
    # The images have negative pixels; what comes from a ReLU has none.
    assert [op.input_quantizer.signed for op in ops.values()] == [True, False, False]
    # 2 mean|v| / sqrt(Qp) over both batches, of the weight and of the input.
    assert float(ops["0"].weight_quantizer.step) == pytest.approx(
        float(2 * model[0].weight.abs().mean() / math.sqrt(7))
    )
    inner = model[2](model[1](model[0](batch)))
    assert float(ops["3"].input_quantizer.step) == pytest.approx(float(2 * inner.mean() / math.sqrt(15)))
    assert float(ops["6"].weight_quantizer.step) == pytest.approx(
        float(2 * model[6].weight.abs().mean() / math.sqrt(127))
    )


def test_a_rounded_model_computes_what_rounding_by_hand_does():
    model, batch = network().eval(), images()
    made = quantized(model, FORMATS, [batch]).eval()
    steps = {
        name: (float(op.input_quantizer.step), float(op.weight_quantizer.step))
        for name, op in rounded_ops(made).items()
    }
    expected = copy.deepcopy(model)
    for name, largest in (("0", 7), ("3", 7), ("6", 127)):
        weight = expected.get_submodule(name).weight
        weight.data = by_hand(weight.data, steps[name][1], -largest - 1, largest)
    value = expected[:3](by_hand(batch, steps["0"][0], -8, 7))
    value = expected[3:6](by_hand(value, steps["3"][0], 0, 15))
    value = expected[6](by_hand(value, steps["6"][0], 0, 255))
    torch.testing.assert_close(made(batch), value)


def test_a_step_per_channel():
    model = network()
    made = quantized(model, {"3": "int2"}, [images()], per_channel=True)
    step = rounded_ops(made)["3"].weight_quantizer.step
    expected = 2 * model[3].weight.abs().mean(dim=(1, 2, 3))  # Qp is 1
    torch.testing.assert_close(step.detach(), expected.detach())
    lower = in_formats(
        quantized(model, {"3": "int4"}, [images()], per_channel=True), {"3": "int2"}, [images()]
    )
    torch.testing.assert_close(rounded_ops(lower)["3"].weight_quantizer.step, step)


def test_codes_of_weights():
    made = quantized(network(), {"0": "int4", "3": "int2"}, [images()])
    codes = weight_codes(made)
    assert set(codes["0"].flatten().tolist()) <= set(range(-8, 8))
    assert set(codes["3"].flatten().tolist()) == {-1, 0, 1} or set(codes["3"].flatten().tolist()) == {
        -2,
        -1,
        0,
        1,
    }
    op = rounded_ops(made)["3"]
    torch.testing.assert_close(op.weight.detach(), codes["3"] * op.weight_quantizer.step.detach())


@pytest.mark.parametrize("steps", [STATISTICS, SCALED])
def test_some_ops_in_another_format(steps):
    base = quantized(network(), {"0": "int4", "3": "int4", "6": "int8"}, [images()])
    with torch.no_grad():
        rounded_ops(base)["3"].weight_quantizer.step.mul_(0.5)  # as if it had been trained
    before = state(base)
    made = in_formats(base, {"0": "int4", "3": "int2"}, [images()], steps=steps)
    assert same(before, state(base))
    old, new = rounded_ops(base), rounded_ops(made)
    assert [op.format for op in new.values()] == ["int4", "int2", "int8"]
    assert same(old["0"].state_dict(), new["0"].state_dict())  # it has that format already
    assert new["3"].weight_quantizer.range == (-2, 1) and new["3"].input_quantizer.range == (0, 3)
    factor = float(new["3"].weight_quantizer.step / old["3"].weight_quantizer.step)
    # Two bits less: 2^2; or anew, from a step that was halved: 2 * sqrt(7) / sqrt(1).
    assert factor == pytest.approx(4 if steps == SCALED else 2 * math.sqrt(7))


def test_a_plain_copy_computes_the_same_bit_for_bit():
    made = quantized(network().eval(), FORMATS, [images()]).eval()
    before = state(made)
    plain = as_plain(made)
    seen = []
    plain[3].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert torch.equal(plain(images()), made(images()))
    assert type(plain[3]) is nn.Conv2d and same(before, state(made))
    # What a hook sees is rounded: whole multiples of the step.
    step = rounded_ops(made)["3"].input_quantizer.step
    torch.testing.assert_close((seen[0] / step).round() * step, seen[0])
    assert torch.equal(plain[3].weight, rounded_ops(made)["3"].weight)


@pytest.mark.parametrize(
    ("formats", "said"),
    {
        "no such module": ({"7": "int4"}, "'7' is not a module"),
        "no op": ({"1": "int4"}, "BatchNorm2d"),
        "no integer": ({"0": "bf16"}, "no integer"),
        "unknown format": ({"0": "int3"}, "unknown format"),
    }.values(),
    ids=["no such module", "no op", "no integer", "unknown format"],
)
def test_what_cannot_be_rounded_is_refused(formats, said):
    with pytest.raises(InputError, match=said):
        quantized(network(), formats, [images()])


def test_other_faults_are_said():
    model = network()
    with pytest.raises(InputError, match="no calibration batch reached op '0'"):
        quantized(model, {"0": "int4"}, [])
    base = quantized(model, {"0": "int4"}, [images()])
    with pytest.raises(InputError, match="'3' is no rounded op"):
        in_formats(base, {"3": "int2"}, [images()])
    with pytest.raises(InputError, match="steps is 'new'"):
        in_formats(base, {"0": "int2"}, [images()], steps="new")
