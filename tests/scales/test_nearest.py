"""Rounding by additions against torch's own casts, bit for bit; the sign of zeros aside."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inc_mp_plugin.scales.dtypes import dtype_of
from inc_mp_plugin.scales.nearest import largest_magnitude, to_nearest

FORMATS = ("fp8_e4m3", "fp8_e5m2")


def cast(value, format_name):
    return value.to(dtype_of(format_name)).float()


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_value_of_a_format_and_all_between(format_name):
    """Each value, the middle to its neighbour (a tie), and the numbers of FP32 beside the middle."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype_of(format_name)).float()
    values = values[values.isfinite()].unique()
    middle = (values[1:] + values[:-1]) / 2
    beside = [torch.nextafter(middle, values[1:]), torch.nextafter(middle, values[:-1])]
    tried = torch.cat([values, middle, *beside])
    assert torch.equal(to_nearest(tried.clone(), format_name), cast(tried, format_name))


@pytest.mark.parametrize("format_name", FORMATS)
@given(bits=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=64))
def test_any_bits(format_name, bits):
    largest = torch.finfo(dtype_of(format_name)).max
    tried = torch.tensor(bits, dtype=torch.int32).view(torch.float32).clamp(-largest, largest)
    rounded, expected = to_nearest(tried.clone(), format_name), cast(tried, format_name)
    assert torch.equal(rounded.isnan(), expected.isnan())
    assert torch.equal(rounded.nan_to_num(), expected.nan_to_num())


def test_the_tensor_itself_is_rounded():
    value = torch.tensor([1.07, 300.0])
    assert to_nearest(value, "fp8_e4m3") is value
    assert value.tolist() == [1.125, 288.0]


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_the_largest_magnitude(dim):
    value = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) - 1.0
    expected = value.abs().max() if dim is None else value.abs().max(dim=dim).values
    assert torch.equal(largest_magnitude(value, dim), expected)
