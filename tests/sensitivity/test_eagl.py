import math

import helpers
import numpy as np
import pytest
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity.eagl import code_entropy, eagl_values, measure_eagl, weight_codes

SCALES = Scales("maxabs_pow2", "cpu")
UNIT = Scales("unit_scale", "cpu")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([5] * 7, 0.0),
        ([0, 0, 1, 1], 1.0),
        (list(range(-8, 8)), 4.0),
        (list(range(16)) * 3, 4.0),
        ([0, 0, 0, 1], 0.75 * math.log2(4 / 3) + 0.25 * 2),
        ([-2, -1, 0, 1, 1, 1, 1, 1], 3 / 8 * 3 + 5 / 8 * math.log2(8 / 5)),
    ],
    ids=["one bin", "two bins", "uniform", "uniform thrice", "three to one", "most in one bin"],
)
def test_entropy_by_hand(codes, expected):
    assert code_entropy(torch.tensor(codes)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_entropy_is_that_of_scipy(bits):
    from scipy.stats import entropy

    codes = np.random.default_rng(bits).normal(scale=2.0 ** (bits - 2), size=(40, 25)).round().astype(int)
    _, counts = np.unique(codes, return_counts=True)
    assert code_entropy(torch.from_numpy(codes)) == pytest.approx(entropy(counts, base=2), rel=1e-12)


def test_entropy_of_nothing():
    with pytest.raises(InputError, match="no weights at all"):
        code_entropy(torch.empty(0, dtype=torch.long))


def test_codes_of_fp8_are_its_numbers():
    """1, 1.0625 (rounds to 1), 2, -2 and both zeros: codes 0x38, 0x38, 0x40, 0xC0, 0 and 0."""
    weight = torch.tensor([[1.0, 1.0625, 2.0], [-2.0, 0.0, -0.0]])
    codes = weight_codes(weight, "fp8_e4m3", UNIT)
    assert codes.tolist() == [[0x38, 0x38, 0x40], [0xC0, 0, 0]]


def test_fp8_has_256_codes_at_most():
    weight = torch.randn(400, 400)
    assert 6 < code_entropy(weight_codes(weight, "fp8_e4m3", SCALES)) < 8
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = every[every.isfinite()]  # 254, with both zeros
    assert len(weight_codes(numbers, "fp8_e4m3", UNIT).unique()) == 253


@pytest.mark.parametrize(
    ("format_name", "scales"), [("int4", SCALES), ("fp32", SCALES), ("fp8_e4m3", None)], ids=str
)
def test_codes_that_cannot_be_told(format_name, scales):
    with pytest.raises(InputError, match="step or scale"):
        weight_codes(torch.ones(2), format_name, scales)


def test_values_of_a_model():
    model = helpers.language_model("llama")
    graph = capture(model, {"input_ids": helpers.tokens(1)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    eagl = measure_eagl(model, graph, ("fp32", "fp8_e4m3", "bf16"), SCALES)
    assert (eagl.method, eagl.unit) == ("eagl", "bit")
    assert set(eagl.values) == {"fp8_e4m3", "bf16"}
    assert set(eagl.values["bf16"]) == {op.name for op in graph.ops if op.kind != "bgemm"}
    weight = model.lm_head.weight
    scale = SCALES.of_weight(weight, "fp8_e4m3").divisor
    rounded = (weight / scale).to(torch.float8_e4m3fn).float()
    counts = np.unique(rounded.detach().numpy(), return_counts=True)[1] / weight.numel()
    assert eagl.values["fp8_e4m3"]["lm_head"] == pytest.approx(-(counts * np.log2(counts)).sum())
    # A wider format has more bins, so no less entropy.
    assert all(eagl.values["bf16"][op] >= bits for op, bits in eagl.values["fp8_e4m3"].items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_experts_have_values_of_their_own():
    model = helpers.mixture("mixtral")
    graph = capture(model, {"input_ids": helpers.tokens(1)})
    eagl = measure_eagl(model, graph, ("fp32", "fp8_e4m3"), SCALES)
    experts = [op for op in eagl.values["fp8_e4m3"] if ".experts." in op]
    assert len(experts) == 2 * 4 * 3


def test_values_of_given_codes():
    eagl = eagl_values({"a": torch.tensor([0, 1]), "b": torch.zeros(4, dtype=torch.long)}, ("int2",))
    assert eagl.values == {"int2": {"a": 1.0, "b": 0.0}}


def test_a_weight_that_is_not_finite():
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    graph = Graph((Op("0", "linear", 4, 4, 1),), (("0",),), (), {})
    with pytest.raises(NonFiniteError, match="op '0'"):
        measure_eagl(model, graph, ("fp32", "bf16"))
