"""Sensitivities computed the naive way: one sample, one op, one tensor at a time, by plain autograd."""

from __future__ import annotations

import copy

import torch
from torch import nn

from inc_mp_plugin.attention import expose_bgemms


def naive_sensitivity(model, names, batches, loss_fn):
    """Return {op name: [s of each sample]}, and the losses, with nothing shared between runs."""
    model = copy.deepcopy(model).double().eval()
    expose_bgemms(model)
    sensitivities = {name: [] for name in names}
    losses = []
    for batch in batches:
        count = next(iter(batch.values() if isinstance(batch, dict) else [batch])).shape[0]
        for i in range(count):
            sample = _sample(batch, i)
            losses.append(float(loss_fn(model, sample)))
            for name in names:
                sensitivities[name].append(_one_op(model, name, sample, loss_fn))
    return sensitivities, losses


def _sample(batch, i):
    def cut(t):
        t = t[i : i + 1]
        return t.double() if t.is_floating_point() else t

    return {k: cut(v) for k, v in batch.items()} if isinstance(batch, dict) else cut(batch)


def _one_op(model, name, sample, loss_fn):
    module = model.get_submodule(name)
    leaves = []

    def separate_inputs(_, args):
        # x + 0 * x-shaped leaf: the leaf's gradient is this op's alone, whatever else reads x.
        shifted = []
        for x in args:
            leaf = torch.zeros_like(x, requires_grad=True)
            leaves.append((x.detach(), leaf))
            shifted.append(x.detach() + leaf if not x.requires_grad else x + leaf)
        return tuple(shifted)

    handle = module.register_forward_pre_hook(separate_inputs)
    weight = getattr(module, "weight", None)
    own = None
    if weight is not None:  # cut ties: this op's own copy of the weight
        own = nn.Parameter(weight.detach().clone())
        module.weight = own
    try:
        loss = loss_fn(model, sample).sum()
        wanted = [leaf for _, leaf in leaves] + ([own] if own is not None else [])
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    finally:
        handle.remove()
        if weight is not None:
            module.weight = weight
    values = [x for x, _ in leaves] + ([own.detach()] if own is not None else [])
    return sum(float(((v * g) ** 2).sum()) for v, g in zip(values, gradients, strict=True) if g is not None)
