"""torch.ops.hpu.mixture_of_experts: differentiable reference in plain torch."""

import torch
from torch.nn.functional import gelu, relu, silu

ACTIVATIONS = {"silu": silu, "gelu": gelu, "relu": relu}
INPUTS = (
    "Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights, "
    "Tensor[] w1, Tensor[] w2, Tensor[] w3"
)
OPTIONS = "bool permuted_weights, str activation, int experts_min, int experts_max"

library = torch.library.Library("hpu", "DEF")
library.define(f"mixture_of_experts({INPUTS}, {OPTIONS}) -> Tensor")


def share(expert: int, table: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """How much of each token goes to an expert, shape (tokens, 1); 0 where it was not chosen."""
    return (weights * (table == expert)).sum(dim=-1, keepdim=True)


def intermediate(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """What goes into an expert's last matrix; weights are (inputs, outputs)."""
    return ACTIVATIONS[activation](x @ gate) * (x @ up)


def as_inputs_by_outputs(weights: list[torch.Tensor], permuted: bool) -> list[torch.Tensor]:
    """Weights as (inputs, outputs); permuted ones come as nn.Linear holds them, (outputs, inputs)."""
    return [weight.t() if permuted else weight for weight in weights]


def mixture_of_experts(
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
    """Every expert on every token, weighted by the router: slow, exact, differentiable.

    w1 are the gates, w2 the up and w3 the down projections of experts experts_min to experts_max.
    """
    gates, ups, downs = (as_inputs_by_outputs(w, permuted_weights) for w in (w1, w2, w3))
    total = torch.zeros_like(hidden_states)
    for i, expert in enumerate(range(experts_min, experts_max + 1)):
        inner = intermediate(hidden_states, gates[i], ups[i], activation)
        part = share(expert, expert_routing_table, router_weights).to(inner.dtype)
        total = total + part * (inner @ downs[i])
    return total


library.impl("mixture_of_experts", mixture_of_experts, "CompositeImplicitAutograd")
