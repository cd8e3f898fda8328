"""The maxabs of inputs: against what hooks see in plain runs, and with a head that need not run."""

import pytest
import torch
from torch import nn

from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.sensitivity.maxabs import observe_maxabs


class Words(nn.Module):
    """A body and a head; in some batches the head's output goes through the body again."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.head(self.body(x))
        if x.max() > 10.0:
            y = self.body(1e3 * y)
        return y


GRAPH = Graph(tuple(Op(n, "linear", 1, 16, 1) for n in ("body", "head")), (("body",), ("head",)), (), {})


def batches(*largest):
    generator = torch.Generator().manual_seed(1)
    return [{"x": most * torch.rand(3, 4, generator=generator).clamp(max=1.0)} for most in largest]


def by_hooks(model, data):
    seen = {}

    def look(name):
        def hook(module, args):
            seen[name, 0] = max(seen.get((name, 0), 0.0), float(args[0].detach().abs().max()))

        return hook

    handles = [getattr(model, name).register_forward_pre_hook(look(name)) for name in ("body", "head")]
    for batch in data:
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    "largest", [(1.0, 3.0, 2.0), (1.0, 40.0, 2.0), (40.0, 1.0), (1.0, 2.0, 90.0, 80.0)], ids=str
)
def test_zeros_of_a_head_that_is_left_out_reach_no_op(largest):
    """From 10 on, the body runs after the head."""
    model, data = Words().eval(), batches(*largest)
    found = observe_maxabs(model, GRAPH, data, None)
    assert {key: float(value) for key, value in found.items()} == pytest.approx(by_hooks(model, data))


def multiplied(model, data, loss_fn=None):
    """Count the head's products while the maxabs is observed."""
    count = 0
    forward = model.head.forward

    def counted(x):
        nonlocal count
        count += 1
        return forward(x)

    model.head.forward = counted
    observe_maxabs(model, GRAPH, data, loss_fn)
    assert model.head.forward is counted
    return count


def test_the_head_runs_in_the_first_batch_alone():
    assert multiplied(Words().eval(), batches(1.0, 2.0, 3.0)) == 1


def test_a_loss_of_the_users_sees_what_the_model_gives():
    outputs = []

    def loss_fn(model, batch):
        outputs.append(model(**batch))
        return outputs[-1].square().mean(dim=1)

    assert multiplied(Words().eval(), batches(1.0, 2.0, 3.0), loss_fn) == 3
    assert all(output.abs().max() > 0 for output in outputs)


def test_the_model_leaves_as_it_came_where_a_batch_fails():
    model, data = Words().eval(), [*batches(1.0, 2.0), {"x": torch.zeros(2, 3)}]
    with pytest.raises(RuntimeError, match="shapes"):
        observe_maxabs(model, GRAPH, data, None)
    assert "forward" not in vars(model.head)
