"""Products of BF16 and FP16 in FP32: exact sums, rounded once; gradients and whole measurements alike."""

import helpers
import numpy as np
import pytest
import torch
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.model import products_in_fp32 as module
from inc_mp_plugin.model.modes import Kernels, as_measured
from inc_mp_plugin.model.products_in_fp32 import products_in_fp32
from inc_mp_plugin.sensitivity import taylor

NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PRODUCTS = {
    "mm": lambda a, b, c: a[0] @ b[0],
    "mm of a transposed": lambda a, b, c: b[0].T @ a[0].T,
    "bmm": lambda a, b, c: a @ b,
    "addmm": lambda a, b, c: torch.addmm(c, a[0], b[0], beta=0.5, alpha=2.0),
    "linear": lambda a, b, c: nn.functional.linear(a, b[0].T.contiguous(), c),
    "into memory": lambda a, b, c: torch.mm(a[0], b[0], out=torch.empty(5, 6, dtype=a.dtype)),
}


@NARROW
@pytest.mark.parametrize("at_once", [1, 2**23], ids=["parts", "whole"])
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_products_are_exact_sums_rounded_once(monkeypatch, product, at_once, dtype):
    monkeypatch.setattr(module, "_WIDE_AT_ONCE", at_once)
    factors = [t.to(dtype) for t in (drawn(3, 5, 7), drawn(3, 7, 6, seed=1), drawn(6, seed=2))]
    exact = product(*(t.double() for t in factors)).to(dtype)
    with products_in_fp32():
        got = product(*factors)
    assert got.dtype == dtype
    steps = torch.finfo(dtype).eps * exact.abs().clamp(min=1.0)  # FP32 sums may fall on either side of a tie
    assert ((got.double() - exact.double()).abs() <= steps).all()
    assert (got == exact).double().mean() > 0.9


@NARROW
def test_whole_numbers_have_the_results_of_the_dtypes_own_kernel(dtype):
    a, b = (drawn(4, 32, 32, seed=seed).mul(3).round().to(dtype) for seed in (0, 1))
    expected = torch.matmul(a, b)
    with products_in_fp32():
        assert torch.equal(torch.matmul(a, b), expected)


def test_backward_passes_are_computed_in_fp32_too_and_others_are_left_alone():
    value, layer = drawn(5, 7).bfloat16().requires_grad_(), nn.Linear(7, 6).bfloat16()
    upstream = drawn(5, 6, seed=1).bfloat16()
    with products_in_fp32():
        own = torch.autograd.grad(layer(value), [value, layer.weight], upstream)
        assert torch.equal(drawn(5, 7) @ drawn(7, 6), PLAIN)
    exact = [upstream.double() @ layer.weight.double(), upstream.double().T @ value.double()]
    for gradient, whole in zip(own, exact, strict=True):
        assert (gradient == whole.bfloat16()).double().mean() > 0.9
        torch.testing.assert_close(gradient.double(), whole, rtol=2**-8, atol=1e-3)


PLAIN = drawn(5, 7) @ drawn(7, 6)


@pytest.mark.parametrize("memory", ["high", "low"])
def test_a_whole_measurement(monkeypatch, memory):
    """Against products of its own kernels; the model leaves as it came, and so do all operators."""
    model, batches = helpers.language_model("llama").bfloat16(), [{"input_ids": helpers.tokens(3)}]
    graph, before = mp.capture(model, batches[0]), helpers.state(model)
    options = {"yardstick": "kl", "estimate": Estimate("batch"), "memory": memory}
    options |= {"scales": mp.Scales("maxabs_arbitrary", "cpu"), "formats": ("fp8_e4m3",)}
    expected = mp.measure_sensitivity(model, graph, batches, **options)
    monkeypatch.setattr(taylor, "faster_in_fp32", lambda model, graph: True)
    calls, product = [], module._mm
    monkeypatch.setattr(module, "_mm", lambda a, b, **out: calls.append(a.dtype) or product(a, b, **out))
    got = mp.measure_sensitivity(model, graph, batches, **options)
    helpers.assert_same_state(before, helpers.state(model))
    assert set(calls) == {torch.bfloat16}
    assert len(calls) >= 3 * 15  # forward, backward and weight gradients of 15 linear ops
    whole, other = (part.input.sum() + part.weight.sum() for part in (got, expected))
    assert whole == pytest.approx(other, rel=0.05)
    assert not np.array_equal(got.weight, expected.weight)


def test_products_are_the_models_own_again_after_an_error():
    model = helpers.language_model("llama").bfloat16()
    a, b = drawn(64, 64).bfloat16(), drawn(64, 64, seed=1).bfloat16()
    expected = a @ b
    with pytest.raises(KeyboardInterrupt), as_measured(model, Kernels(in_fp32=True)):
        raise KeyboardInterrupt
    assert torch.equal(a @ b, expected)
