"""Perturbed scales, against quantizing by hand."""

import helpers
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.inc.convert import switchable
from inc_mp_plugin.inc.mixed_precision import half_precision_switch
from inc_mp_plugin.inc.perturb import perturbed
from inc_mp_plugin.targets import CPU_QDQ
from inc_mp_plugin.targets.layout import Captured

BATCH = {"input_ids": helpers.tokens(3)}
PRODUCT = "model.layers.0.self_attn.matmul_qk"
LINEAR = "model.layers.1.mlp.down_proj"


def whole_switch(dtype=torch.float32):
    model = helpers.language_model("llama").to(dtype)
    graph = mp.capture(model, BATCH)
    base = "fp32" if dtype == torch.float32 else "bf16"
    ops = [op.name for op in graph.ops]
    config = config_of(base, dict.fromkeys(ops, "fp8_e4m3"), CPU_QDQ, Captured.of(graph))
    return switchable(model, config, "fp8_e4m3", [BATCH])


@pytest.fixture(scope="module")
def switch():
    return whole_switch()


def modules(switch):
    return {op: (base, patched) for op, base, patched in switch.pairs()}


def scales(switch):
    """All scales of all ops, {op: [scale of every input, scale of the weight]}."""
    scales = {}
    for op, (_, patched) in modules(switch).items():
        extra = patched._mod_extra_config
        quantizers = [*extra.inputs, *(q for pair in extra.params.values() for q in pair)]
        scales[op] = [float(q.scale) for q in quantizers]
    return scales


def contents(switch):
    """Every scale and weight, with its identity."""
    parts = []
    for _, (_, patched) in modules(switch).items():
        for part in patched.modules():
            parts += [(name, getattr(part, name, None)) for name in ("scale", "scale_inv", "weight")]
        extra = patched._mod_extra_config
        for q in (q for pair in extra.params.values() for q in pair):
            parts += [(name, getattr(q, name, None)) for name in ("scale", "scale_inv")]
    return parts


@torch.no_grad()
def logits(switch, ops):
    switch.select(dict.fromkeys(ops, "fp8_e4m3"))
    return switch.model(**BATCH).logits


def rounded(x, scale):
    scale = torch.tensor(scale, dtype=torch.float32)
    return ((x.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_linear_op_is_quantized_as_by_hand(dtype):
    switch = whole_switch(dtype)
    base, patched = modules(switch)[LINEAR]
    x = torch.randn(5, base.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = scales(switch)[LINEAR]
    with perturbed(switch, seed=1, spread=0.3):
        of_input, of_weight, back = scales(switch)[LINEAR]
        for new, old in zip((of_input, of_weight), given, strict=False):
            assert 0.7 <= new / old <= 1.3
            assert abs(new / old - 1) > 1e-4
        # INC inverts a scale in the base format, and so uses two that differ by its rounding.
        assert of_weight == pytest.approx(back, rel=torch.finfo(dtype).eps)
        weight = (base.weight.float() / torch.tensor(of_weight)).to(torch.float8_e4m3fn)
        assert torch.equal(patched.weight.float(), weight.t().float())  # of the base weight
        output = patched(x)
        expected = rounded(x, of_input) @ (weight.float() * torch.tensor(back)).to(dtype).t()
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_product_is_quantized_as_by_hand(switch):
    _, patched = modules(switch)[PRODUCT]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 2, 4, 4, generator=generator) for _ in range(2))
    given = scales(switch)[PRODUCT]
    with perturbed(switch, seed=1):
        left, right = scales(switch)[PRODUCT]
        assert left / given[0] != pytest.approx(right / given[1], rel=1e-3)  # a factor for each input
        output = patched(a, b)
        torch.testing.assert_close(output, rounded(a, left) @ rounded(b, right), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_convolutions_are_not_transposed():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, bias=False)).eval()
    images = torch.randn(2, 4, 6, 6)
    config = config_of("fp32", {"0": "fp8_e4m3"}, CPU_QDQ)
    switch = switchable(model, config, "fp8_e4m3", [images])
    base, patched = modules(switch)["0"]
    with perturbed(switch, seed=0):
        of_input, _, back = scales(switch)["0"]
        expected = torch.nn.functional.conv2d(rounded(images, of_input), rounded(base.weight, back))
        torch.testing.assert_close(patched(images), expected, rtol=1e-5, atol=1e-6)


def test_everything_is_put_back_bit_by_bit(switch):
    ops = switch.ops
    before, outputs = contents(switch), logits(switch, ops)
    with perturbed(switch, seed=0):
        assert not torch.equal(logits(switch, ops), outputs)
        base = logits(switch, ())
    after = contents(switch)
    assert all(a[1] is b[1] for a, b in zip(before, after, strict=True))
    assert torch.equal(logits(switch, ops), outputs)
    assert torch.equal(logits(switch, ()), base)  # the base modules are never touched
    with pytest.raises(KeyboardInterrupt), perturbed(switch, seed=0):
        raise KeyboardInterrupt
    assert all(a[1] is b[1] for a, b in zip(before, contents(switch), strict=True))


def test_seeds(switch):
    drawn = []
    for seed in (0, 0, 1, -1):
        with perturbed(switch, seed):
            drawn.append((scales(switch), logits(switch, switch.ops)))
    assert drawn[0][0] == drawn[1][0]
    assert torch.equal(drawn[0][1], drawn[1][1])
    for other in drawn[2:]:
        assert not torch.equal(drawn[0][1], other[1])
    with perturbed(switch, 0, spread=0.0):
        same = logits(switch, switch.ops)
    assert torch.equal(same, logits(switch, switch.ops))


def test_factors_are_uniform_and_belong_to_the_op(switch):
    given, factors = scales(switch), []
    for seed in range(40):
        with perturbed(switch, seed, spread=0.2):
            new = scales(switch)
            factors += [new[op][0] / given[op][0] for op in given]
    factors = torch.tensor(factors)
    assert (factors - 1).abs().max() <= 0.2 + 1e-6
    assert factors.mean() == pytest.approx(1, abs=0.02)
    assert factors.std() == pytest.approx(0.4 / 12**0.5, rel=0.1)
    # The same whatever else the switch holds, in whatever order.
    part = type(switch)(
        switch.model,
        {op: base for op, base, _ in switch.pairs()},
        {"fp8_e4m3": {op: modules(switch)[op][1] for op in (PRODUCT, LINEAR)}},
    )
    with perturbed(switch, 5):
        whole = scales(switch)
    with perturbed(part, 5):
        assert scales(part) == {op: whole[op] for op in (PRODUCT, LINEAR)}


def test_errors(switch):
    for spread in (-0.1, 0.5, float("nan")):
        with pytest.raises(InputError, match="at least 0 and less than 0.5"), perturbed(switch, 0, spread):
            pass
    model = helpers.language_model("llama")
    half = half_precision_switch(model, {LINEAR: "bf16"})
    with (
        pytest.raises(
            InputError, match=f"'{LINEAR}' runs in a HalfPrecisionModuleWrapper, which has no scales"
        ),
        perturbed(half, 0),
    ):
        pass
