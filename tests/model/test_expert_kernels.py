"""Gaudi's kernel for experts, stood in for by the modules whose weights it reads."""

import mixtures
import pytest
import torch
from torch import nn

from inc_mp_plugin.model.expert_kernels import kernel_calls, kernels_through_modules


@pytest.fixture(autouse=True)
def kernel():
    with mixtures.gaudi_kernel():
        yield


@pytest.fixture
def block():
    torch.manual_seed(0)
    return mixtures.Kernel()


def rows_of(block):
    """Rows that each projection of the first expert got, by hooks that stay."""
    rows = {}
    for name, module in block.experts[0].named_children():
        module.register_forward_hook(lambda m, args, out, name=name: rows.update({name: len(args[0])}))
    return rows


@torch.no_grad()
def test_modules_run_on_their_own_tokens(block):
    (hidden,) = mixtures.inputs(3)
    expected, rows = block(hidden), rows_of(block)
    with kernels_through_modules(block):
        torch.testing.assert_close(block(hidden), expected)
    _, _, chosen = block.route(hidden.flatten(0, 1))
    assert rows == dict.fromkeys(("w1", "w2", "w3"), int((chosen == 0).sum()))
    rows.clear()
    block(hidden)
    assert rows == {}


@torch.no_grad()
def test_weights_that_are_replaced_on_the_way_are_used(block):
    (hidden,) = mixtures.inputs(3)
    expected = block(hidden)
    with kernels_through_modules(block):
        block(hidden)
        for expert in block.experts:
            expert.w2._parameters["weight"] = nn.Parameter(2 * expert.w2.weight, requires_grad=False)
        rows = rows_of(block)
        torch.testing.assert_close(block(hidden), 2 * expected)
    assert rows


def test_gradients_are_those_of_the_kernel(block):
    (hidden,) = mixtures.inputs(3)
    expected = torch.autograd.grad(block(hidden).square().sum(), list(block.parameters()))
    with kernels_through_modules(block):
        gradients = torch.autograd.grad(block(hidden).square().sum(), list(block.parameters()))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@torch.no_grad()
@pytest.mark.parametrize("what", ["a copy of a weight", "biases"])
def test_where_no_module_fits_the_kernel_runs(what):
    torch.manual_seed(0)
    block = mixtures.Kernel(bias=what == "biases")
    (hidden,) = mixtures.inputs(2)
    expected, rows = block(hidden), rows_of(block)
    other = nn.Linear(2, 2) if what == "a copy of a weight" else block  # another model's modules
    with kernels_through_modules(other):
        torch.testing.assert_close(block(hidden), expected)
    assert rows == {}


def test_only_this_call_of_the_kernel_is_given_away(block):
    calls = []
    (hidden,) = mixtures.inputs(2)
    with kernel_calls(lambda call: calls.append(dict(call))):
        block(hidden)
        with pytest.raises(RuntimeError, match="11 argument"):  # of FP8 weights, which this stand-in has not
            block(hidden, d_scale_w1=[])
    assert len(calls) == 1
    assert [name for name in calls[0] if "expert" in name] == [
        "expert_routing_table",
        "experts_min",
        "experts_max",
    ]
