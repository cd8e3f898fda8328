"""LSQ's rounding and its gradients: against autograd, against numbers by hand, and for any tensor."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.qat.lsq import CodeRange, Quantizer, code_range, initial_step, quantize

RANGES = {
    "int8": ((-128, 127), (0, 255)),
    "int4": ((-8, 7), (0, 15)),
    "int2": ((-2, 1), (0, 3)),
}


@pytest.mark.parametrize("format_name", RANGES)
def test_ranges(format_name):
    assert code_range(format_name, signed=True) == RANGES[format_name][0]
    assert code_range(format_name, signed=False) == RANGES[format_name][1]


@pytest.mark.parametrize("format_name", ["bf16", "fp8_e4m3", "int3"])
def test_what_is_no_integer_is_refused(format_name):
    with pytest.raises(InputError, match=format_name):
        code_range(format_name, signed=True)


# v / s is -2.6, -1.3, -0.4, 0.3, 0.8, 1.7 at s = 0.5; with codes -2 to 1 the first and the last are outside.
VALUES = [-1.3, -0.65, -0.2, 0.15, 0.4, 0.85]
BY_HAND = {
    # rounded / s; gradient to v; dv^/ds: Q outside, round(v / s) - v / s inside
    "signed": (
        CodeRange(-2, 1),
        [-2, -1, 0, 0, 1, 1],
        [0, 1, 1, 1, 1, 0],
        [-2, 0.3, 0.4, -0.3, 0.2, 1],
    ),
    "unsigned": (
        CodeRange(0, 3),
        [0, 0, 0, 0, 1, 2],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, -0.3, 0.2, 0.3],
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_gradients_worked_by_hand(case):
    codes, rounded, to_value, to_step = BY_HAND[case]
    value = torch.tensor(VALUES, requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    result = quantize(value, step, codes, gradient_scale=0.1)
    (result * factors).sum().backward()
    torch.testing.assert_close(result, 0.5 * torch.tensor(rounded, dtype=torch.float32))
    torch.testing.assert_close(value.grad, factors * torch.tensor(to_value))
    torch.testing.assert_close(step.grad, 0.1 * (factors * torch.tensor(to_step)).sum())


def straight_through(value, step, codes, gradient_scale):
    """The same written with autograd: rounding passes gradients on, the step's is scaled by detaching."""
    step = step * gradient_scale + (step * (1.0 - gradient_scale)).detach()
    clipped = (value / step).clamp(*codes)
    return (clipped + (clipped.round() - clipped).detach()) * step


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("format_name", RANGES)
@pytest.mark.parametrize(
    ("shape", "step_shape"),
    {"per tensor": ((5, 7), ()), "per channel": ((4, 3, 3, 3), (4, 1, 1, 1))}.values(),
    ids=["per tensor", "per channel"],
)
def test_gradients_against_autograd(format_name, signed, shape, step_shape):
    generator = torch.Generator().manual_seed(0)
    codes = code_range(format_name, signed=signed)
    value = torch.randn(shape, generator=generator, dtype=torch.float64)
    # So small that some values lie outside of the range on either side.
    step = (0.5 + torch.rand(step_shape, generator=generator, dtype=torch.float64)) / codes.largest
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    results = []
    for function in (quantize, straight_through):
        leaves = [value.clone().requires_grad_(), step.clone().requires_grad_()]
        result = function(*leaves, codes, 0.3)
        (result * weights).sum().backward()
        results.append((result.detach(), *(leaf.grad for leaf in leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20),
    st.floats(2**-7, 2, width=32),
    st.sampled_from(sorted(RANGES)),
    st.booleans(),
)
def test_codes_errors_and_repetition(values, step, format_name, signed):
    quantizer = Quantizer(format_name, torch.tensor(step), signed=signed)
    value = torch.tensor(values)
    least, largest = code_range(format_name, signed=signed)
    rounded, codes = quantizer(value).detach(), quantizer.codes(value)
    assert least <= int(codes.min()) and int(codes.max()) <= largest
    torch.testing.assert_close(rounded, codes * quantizer.step.detach())
    inside = (value / step >= least) & (value / step <= largest)
    assert bool(((rounded - value).abs()[inside] <= step / 2 * (1 + 1e-5)).all())
    torch.testing.assert_close(quantizer(rounded).detach(), rounded)


def test_first_step():
    # 2 mean|v| / sqrt(Qp): 2 * 2.5 / sqrt(7)
    step = initial_step(torch.tensor([1.0, -2.0, 3.0, -4.0]).abs().mean(), code_range("int4", signed=True))
    assert float(step) == pytest.approx(5 / math.sqrt(7))


def test_a_channel_of_zeros_gets_the_mean_of_the_other_steps():
    step = initial_step(torch.tensor([1.0, 0.0, 3.0]), CodeRange(-2, 1))
    assert step.tolist() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("mean", [0.0, math.nan, math.inf])
def test_values_without_a_step_are_refused(mean):
    with pytest.raises(InputError, match="no step can be found"):
        initial_step(torch.tensor(mean), CodeRange(-2, 1))


@pytest.mark.parametrize(
    ("value_shape", "step_shape", "samples", "sharing"),
    {
        "weight, one step": ((6, 5), (), 1, 30),
        "weight, a step per channel": ((6, 5), (6,), 1, 5),
        "input of 4 samples": ((4, 9), (), 4, 9),
    }.values(),
    ids=["weight, one step", "weight, a step per channel", "input of 4 samples"],
)
def test_gradient_scale(value_shape, step_shape, samples, sharing):
    """The scale is 1 / sqrt(N Qp), N being the values of one sample that share a step."""
    quantizer = Quantizer("int4", torch.full(step_shape, 0.2), signed=True)
    value = torch.randn(value_shape, generator=torch.Generator().manual_seed(1))
    quantizer(value, samples).sum().backward()
    scaled = quantizer.step.grad.clone()
    step = torch.full(step_shape, 0.2).requires_grad_()
    broadcast = step.view(-1, 1) if step_shape else step
    quantize(value, broadcast, CodeRange(-8, 7)).sum().backward()
    torch.testing.assert_close(scaled, step.grad / math.sqrt(sharing * 7))
