"""Blocks of experts as transformers 4 and optimum-habana write them, and the kernel that the latter calls."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

_ARGUMENTS = (
    "Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights, Tensor[] w1, Tensor[] w2, "
    "Tensor[] w3, bool permuted_weights, str activation, int experts_min, int experts_max"
)
HIDDEN, INNER, EXPERTS, CHOSEN = 6, 8, 4, 2


def every_expert_on_every_token(
    hidden_states,
    expert_routing_table,
    router_weights,
    w1,
    w2,
    w3,
    permuted_weights,
    activation,
    experts_min,
    experts_max,
):
    """What the kernel computes, in plain torch."""
    output = torch.zeros_like(hidden_states)
    act = getattr(nn.functional, activation)
    for number, *weights in zip(range(experts_min, experts_max + 1), w1, w2, w3, strict=True):
        gate, up, down = (weight.T if permuted_weights else weight for weight in weights)
        share = (router_weights * (expert_routing_table == number)).sum(dim=-1, keepdim=True)
        output = output + share * (act(hidden_states @ gate) * (hidden_states @ up)) @ down
    return output


@contextlib.contextmanager
def gaudi_kernel():
    """torch.ops.hpu.mixture_of_experts for the length of a test, where no software for Gaudi brings one."""
    if hasattr(torch.ops.hpu, "mixture_of_experts"):
        yield
        return
    library = torch.library.Library("hpu", "FRAGMENT")
    library.define(f"mixture_of_experts({_ARGUMENTS}) -> Tensor")
    library.impl("mixture_of_experts", every_expert_on_every_token, "CompositeImplicitAutograd")
    try:
        yield
    finally:
        library._destroy()


class Expert(nn.Module):
    """An expert with the names of Mixtral's: w1 is the gate, w3 goes up, w2 down."""

    def __init__(self, bias=False):
        super().__init__()
        self.w1 = nn.Linear(HIDDEN, INNER, bias=bias)
        self.w2 = nn.Linear(INNER, HIDDEN, bias=bias)
        self.w3 = nn.Linear(HIDDEN, INNER, bias=bias)

    def forward(self, hidden):
        return self.w2(nn.functional.silu(self.w1(hidden)) * self.w3(hidden))


class Block(nn.Module):
    """A linear router, and experts in a list."""

    def __init__(self, bias=False):
        super().__init__()
        self.top_k = CHOSEN
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert(bias) for _ in range(EXPERTS))

    def route(self, tokens):
        scores = self.gate(tokens)
        weights, chosen = torch.topk(torch.softmax(scores, dim=-1), self.top_k)
        return scores, weights, chosen

    def run(self, tokens, weights, chosen, skip_idle=True):
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if len(token) or not skip_idle:
                rows = expert(tokens[token]) * weights[token, place, None]
                output.index_add_(0, token, rows)
        return output


class Kernel(Block):
    """The experts' weights go to the kernel, as in optimum-habana; their modules never run."""

    def forward(self, hidden, **scales):
        tokens = hidden.flatten(0, -2)
        _, weights, chosen = self.route(tokens)
        names = ("w1", "w3", "w2")
        w1, w2, w3 = ([getattr(e, name).weight.squeeze() for e in self.experts] for name in names)
        output = torch.ops.hpu.mixture_of_experts(
            tokens, chosen, weights, w1=w1, w2=w2, w3=w3,
            permuted_weights=True, activation="silu", experts_min=0, experts_max=EXPERTS - 1, **scales,
        )  # fmt: skip
        return output.view_as(hidden)


class Loop(Block):
    """A Python loop over the experts that were chosen, which gives the router's scores, too."""

    def forward(self, hidden):
        tokens = hidden.flatten(0, -2)
        scores, weights, chosen = self.route(tokens)
        return self.run(tokens, weights, chosen).view_as(hidden), scores


class LoopOverAll(Block):
    """A Python loop over all experts: some get no token at all."""

    def forward(self, hidden):
        tokens = hidden.flatten(0, -2)
        _, weights, chosen = self.route(tokens)
        return self.run(tokens, weights, chosen, skip_idle=False).view_as(hidden)


class LoopBesideShared(Block):
    """A Python loop beside an expert that every token goes to, behind a gate of one output."""

    def __init__(self):
        super().__init__()
        self.shared_expert = Expert()
        self.shared_expert_gate = nn.Linear(HIDDEN, 1, bias=False)

    def forward(self, hidden):
        tokens = hidden.flatten(0, -2)
        _, weights, chosen = self.route(tokens)
        shared = torch.sigmoid(self.shared_expert_gate(tokens)) * self.shared_expert(tokens)
        return (self.run(tokens, weights, chosen) + shared).view_as(hidden)


class LoopInMethod(Block):
    """A Python loop in a method of its own, `moe`, as DeepSeek's: the rest can be traced as it is."""

    def moe(self, hidden_states, topk_indices, topk_weights):
        return self.run(hidden_states, topk_weights, topk_indices)

    def forward(self, hidden):
        tokens = hidden.flatten(0, -2)
        _, weights, chosen = self.route(tokens)
        return self.moe(tokens, chosen, weights).view_as(hidden)


class Model(nn.Module):
    """A linear layer, a block of experts beside a residual edge, and another linear layer."""

    def __init__(self, block, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.first = nn.Linear(HIDDEN, HIDDEN)
        self.block = block()
        self.last = nn.Linear(HIDDEN, 3)

    def forward(self, hidden):
        hidden = self.first(hidden)
        added = self.block(hidden)
        return self.last(hidden + (added[0] if isinstance(added, tuple) else added))


def inputs(*sizes, tokens=5, seed=0):
    """Batches of so many samples."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, tokens, HIDDEN, generator=generator) for size in sizes]
