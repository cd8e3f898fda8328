"""Sensitivities the naive way: one sample, one op at a time, in float64, by plain autograd."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.testing import assert_close

from inc_mp_plugin.model.attention import expose_bgemms
from inc_mp_plugin.model.experts import expose_experts


def naive_sensitivity(model, names, batches, loss_fn):
    """Return {op name: [s of each sample]} and the losses; no run shares anything with another."""
    model = copy.deepcopy(model).double().eval()
    expose_bgemms(model)
    expose_experts(model)
    sensitivities = {name: [] for name in names}
    losses = []
    for batch in batches:
        values = batch.values() if isinstance(batch, dict) else [batch]
        for i in range(next(iter(values)).shape[0]):
            sample = one_sample(batch, i)
            losses.append(float(loss_fn(model, sample)))
            for name in names:
                sensitivities[name].append(_one_op(model, name, sample, loss_fn))
    return sensitivities, losses


def assert_sensitivities_agree(sensitivity, model, batch, loss_fn):
    """Compare what was measured of one batch, losses and all, with the naive way, to 1e-4."""
    by_hand, losses = naive_sensitivity(model, sensitivity.ops, [batch], loss_fn)
    assert_close(torch.tensor(sensitivity.loss), torch.tensor(losses).double(), rtol=1e-4, atol=0)
    for column, name in enumerate(sensitivity.ops):
        measured = torch.tensor(sensitivity.input[:, column] + sensitivity.weight[:, column])
        assert_close(measured, torch.tensor(by_hand[name]).double(), rtol=1e-4, atol=1e-12)


def one_sample(batch, i):
    """Sample i of a batch, in float64; tensors whose first axis counts something else stay whole."""
    count = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)

    def cut(tensor):
        part = tensor[i : i + 1] if len(tensor) == count else tensor
        return part.double() if part.is_floating_point() else part

    if isinstance(batch, dict):
        return {key: cut(value) for key, value in batch.items()}
    return cut(batch)


def _one_op(model, name, sample, loss_fn):
    """Add a zero to every input of the op's calls and to its weight; differentiate by the zeros."""
    module = model.get_submodule(name)
    values, zeros = [], []

    def add_zero(_, args):
        shifted = []
        for x in args:
            zero = torch.zeros_like(x, requires_grad=True)
            values.append(x.detach())
            zeros.append(zero)
            shifted.append(x + zero)
        return tuple(shifted)

    handle = module.register_forward_pre_hook(add_zero)
    shared = getattr(module, "weight", None)
    if shared is not None:  # a weight of this op's own, whoever else uses the tensor
        module.weight = nn.Parameter(shared.detach().clone())
        values.append(module.weight.detach())
        zeros.append(module.weight)
    try:
        gradients = torch.autograd.grad(loss_fn(model, sample).sum(), zeros, allow_unused=True)
    finally:
        handle.remove()
        if shared is not None:
            module.weight = shared
    pairs = [(v, g) for v, g in zip(values, gradients, strict=True) if g is not None]
    return sum(float(((v * g) ** 2).sum()) for v, g in pairs)


def kl_of_positions(base, logits):
    """KL of every position by the definition, one class after the other, in FP64."""
    p, q = (x.double().softmax(dim=-1) for x in (base, logits))
    return torch.stack([p[..., v] * (p[..., v].log() - q[..., v].log()) for v in range(p.shape[-1])]).sum(0)
