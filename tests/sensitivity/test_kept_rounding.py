"""Rounded weights that are kept: in one byte per element, and the same again, bit for bit."""

import pytest
import torch

from inc_mp_plugin.scales.methods import SCALE_METHODS, Scales
from inc_mp_plugin.sensitivity.kept_rounding import KeptRounding, PackedRounding
from inc_mp_plugin.sensitivity.rounding import Cast, Rounding

FP8 = ("fp8_e4m3", "fp8_e5m2")


def rounding(method, device):
    return Rounding(Scales(method, device), FP8)


def every_way():
    """All scale methods on the devices that have them, and casts, with their formats."""
    ways = []
    for name, method in SCALE_METHODS.items():
        for device in ("gaudi2", "gaudi3") if method.hardware else ("cpu", "gaudi2"):
            ways += [pytest.param(rounding(name, device), f, 1, id=f"{name}-{device}-{f}") for f in FP8]
    return ways + [pytest.param(Cast({}), f, 2, id=f) for f in ("bf16", "fp16")]


def weight(dtype):
    """Magnitudes of many powers of two, zeros and the smallest numbers among them."""
    generator = torch.Generator().manual_seed(0)
    powers = torch.randint(-24, 4, (64, 48), generator=generator)
    values = torch.ldexp(torch.randn(64, 48, generator=generator), powers)
    values[0, :3] = torch.tensor([0.0, -0.0, 1e-30])
    return torch.nn.Parameter(values.to(dtype))


def bits(tensor):
    return tensor.detach().view(torch.uint8).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rounder", "format_name", "width"), every_way())
def test_packed_weights_are_those_that_are_rounded_anew(rounder, format_name, width, dtype):
    given = weight(dtype)
    packed = rounder.packed(given, format_name)
    assert packed.nbytes == width * given.numel()
    assert packed.weight().dtype is dtype
    assert torch.equal(packed.weight(), rounder.weight(given, format_name))
    keeper = PackedRounding(rounder, 1e9)
    first, again = (keeper.weight(given, format_name) for _ in range(2))
    assert bits(first.abs()) == bits(again.abs())  # zeros may change their sign


@pytest.mark.parametrize("format_name", FP8)
def test_every_value_of_the_format(format_name):
    """All 256 bytes, but those of NaN and infinity, against torch's own cast."""
    stored = torch.arange(256, dtype=torch.uint8).view(
        torch.float8_e4m3fn if format_name == FP8[0] else torch.float8_e5m2
    )
    values = stored.float()
    values = torch.nn.Parameter(values[values.isfinite()])
    packed = rounding("unit_scale", "cpu").packed(values, format_name)
    assert torch.equal(packed.weight(), values)


class Counted:
    def __init__(self):
        self.rounder, self.rounded = rounding("maxabs_pow2", "cpu"), []

    def weight(self, value, format_name):
        self.rounded.append(value)
        return self.rounder.weight(value, format_name)

    def packed(self, value, format_name):
        return self.rounder.packed(value, format_name)


def test_as_many_as_there_is_room_for():
    counted, weights = Counted(), [weight(torch.float32) for _ in range(3)]
    keeper = PackedRounding(counted, 2.5 * weights[0].numel())
    for _ in range(3):
        for value in weights:
            keeper.weight(value, FP8[0])
    assert list(map(id, counted.rounded)) == [*map(id, weights), *[id(weights[2])] * 2]


@pytest.mark.parametrize("keeper_of", [KeptRounding, lambda rounder: PackedRounding(rounder, 1e9)])
def test_another_format_and_a_changed_weight_are_rounded_anew(keeper_of):
    counted, value = Counted(), weight(torch.float32)
    keeper = keeper_of(counted)
    for format_name in (*FP8, *FP8):
        keeper.weight(value, format_name)
    assert len(counted.rounded) == 2
    with torch.no_grad():
        value.mul_(3.0)
    changed = keeper.weight(value, FP8[0])
    assert torch.equal(changed, counted.rounder.weight(value, FP8[0]))
    assert len(counted.rounded) == 3


def test_what_bytes_cannot_hold_is_rounded_each_time():
    """NaN has no bits of its own here, and a loss that is NaN must stay one."""
    counted, value = Counted(), weight(torch.float32)
    with torch.no_grad():
        value[1, 1] = float("nan")
    keeper = PackedRounding(counted, 1e9)
    assert all(keeper.weight(value, FP8[0]).isnan().any() for _ in range(2))
    assert len(counted.rounded) == 2
