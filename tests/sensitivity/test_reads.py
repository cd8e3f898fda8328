"""Rounding errors that are the same in several places: against autograd by one zero for all of these."""

from types import SimpleNamespace

import capabilities
import helpers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.model.distributions import distributions, distributions_in
from inc_mp_plugin.sensitivity.drawn_labels import drawn_losses
from inc_mp_plugin.sensitivity.one_batch import Pass
from inc_mp_plugin.sensitivity.pieces import norm, pieces, squared_norm
from inc_mp_plugin.sensitivity.reads import Reader, add_inputs
from inc_mp_plugin.sensitivity.repeats import repeats
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.taylor import sensitivity_rows, united
from inc_mp_plugin.sensitivity.totals import Totals

SCALES, E4M3 = mp.Scales("maxabs_arbitrary", "cpu"), "fp8_e4m3"


@pytest.mark.parametrize("shape", [(2048, 2, 128), (4096, 64), (7,)])
def test_a_norm_does_not_depend_on_the_layout(shape):
    """Heads that lie beside each other in memory, or one after the other; in FP64 both are the same."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = float(values.double().norm())
    for layout in (values, values.transpose(0, -1).contiguous().transpose(0, -1), values.flip(0)):
        assert float(norm(layout)) == pytest.approx(exact, rel=3e-7)


class Gated(nn.Module):
    """Two ops that read one tensor, which holds a row for each token; a third reads what they give."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.table = nn.Embedding(6, 16)
        self.gate, self.up, self.down = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(12, 7)

    def forward(self, input_ids, shift=0.0):
        x = self.table(input_ids) + shift
        return SimpleNamespace(logits=self.down(torch.tanh(self.gate(x)) * self.up(x)))


GRAPH = Graph(
    tuple(Op(name, "linear", 1, 192, 1) for name in ("gate", "up", "down")),
    (("gate", "up"), ("down",)),
    (),
    {},
)
IDS = torch.tensor([[1, 2, 1, 3, 1], [4, 4, 0, 5, 2]])


def by_autograd(model, rounding, ids, number):
    """Half the squared sum over places with equal errors, and over the weights, of one sample."""
    x = model.table(ids).detach()
    error = rounding.of_input("gate", 0, x, E4M3)
    kinds, places = ids.unique(return_inverse=True)
    zeros = torch.zeros(len(kinds), x.shape[-1], requires_grad=True)
    found = distributions_in(model(ids, zeros[places] * error), model, {"input_ids": ids})
    weights = [model.gate.weight, model.up.weight]
    loss = drawn_losses(found, [number], seed=0, draw=0).sum()
    of_zeros, *of_weights = torch.autograd.grad(loss, [zeros, *weights])
    parts = [of_zeros, *(rounding.of_weight(w, E4M3) * g for w, g in zip(weights, of_weights, strict=True))]
    return 0.5 * sum(float(part.detach().double().square().sum()) for part in parts)


def measured(model, yardstick="kl"):
    batch = {"input_ids": IDS}
    settings = {"scales": SCALES, "formats": (E4M3,)}
    rounding = observe_rounding(model, GRAPH, [batch], None, **settings)
    return mp.measure_sensitivity(model, GRAPH, [batch], yardstick=yardstick, **settings), rounding


def test_ops_that_read_one_tensor_cost_together_what_its_error_does():
    """In the first sample one token comes three times: its rows have one error."""
    model = Gated().eval()
    sensitivity, rounding = measured(model)
    for row, number in enumerate((1, 2)):
        expected = by_autograd(model, rounding, IDS[row : row + 1], number)
        assert together(sensitivity)[row, :2].sum() == pytest.approx(expected, rel=1e-4)
    # Read by both: `down` reads alone.
    assert sensitivity.reads.tolist() == [0, 0, -1]
    assert (sensitivity.shared[E4M3][:, 2] == 0).all()


def together(sensitivity):
    return sensitivity.rounding[E4M3] + sensitivity.shared[E4M3]


def test_the_loss_of_the_paper_counts_every_op_by_itself():
    """By hand, of each op: the square of its own products, of input and weight, in the paper's order."""
    model = Gated().eval()
    sensitivity, rounding = measured(model, "loss")
    x = model.table(IDS).detach()
    branches = [x.clone().requires_grad_() for _ in range(2)]
    logits = model.down(torch.tanh(model.gate(branches[0])) * model.up(branches[1]))[:, :-1]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), IDS[:, 1:], reduction="none").mean(dim=1)
    for column, (branch, linear) in enumerate(zip(branches, (model.gate, model.up), strict=True)):
        for row, loss in enumerate(losses):
            of_input, of_weight = torch.autograd.grad(loss, [branch, linear.weight], retain_graph=True)
            parts = (
                rounding.of_input("gate", 0, x, E4M3) * of_input,
                rounding.of_weight(linear.weight, E4M3) * of_weight,
            )
            expected = sum(float(part.detach().square().sum()) for part in parts)
            assert sensitivity.rounding[E4M3][row, column] == pytest.approx(expected, rel=1e-4)
    assert (sensitivity.shared, sensitivity.reads) == ({}, None)


def test_an_op_whose_output_is_ignored_does_not_hold_up_the_others():
    """The branch of `up` never has a gradient: `gate` counts all the same."""
    model = Gated().eval()
    model.forward = lambda input_ids: SimpleNamespace(
        logits=(model.down(torch.tanh(model.gate(x := model.table(input_ids)))), model.up(x))[0]
    )
    sensitivity, _ = measured(model)
    gate, up, _ = sensitivity.rounding[E4M3].T
    assert (gate > 0).all()
    assert (up == 0).all()


def test_an_op_that_reads_beside_several_is_in_one_set_with_all():
    """`up` runs after `gate` and after `third`: where all are lowered, all that equal errors add counts."""
    model = Gated().eval()
    model.third = nn.Linear(16, 12)

    def forward(input_ids):
        x = model.table(input_ids)
        y = torch.tanh(model.gate(x)) * model.up(x)
        x = torch.sin(x)
        return SimpleNamespace(logits=model.down(y + torch.tanh(model.third(x)) * model.up(x)))

    model.forward = forward
    ops = (*GRAPH.ops, Op("third", "linear", 1, 192, 1))
    batch, settings = {"input_ids": IDS}, {"scales": SCALES, "formats": (E4M3,)}
    graph = Graph(ops, (tuple(op.name for op in ops),), (), {})
    sensitivity = mp.measure_sensitivity(model, graph, [batch], yardstick="kl", **settings)
    assert sensitivity.ops == ("gate", "up", "down", "third")
    gate, up, down, third = sensitivity.reads
    assert gate == up == third >= 0 > down
    costs = KLModel(sensitivity, "measured")
    readers = costs.row_costs(E4M3)[:, [0, 1, 3]].sum(axis=1)
    assert costs.plan_row_costs(E4M3, ["gate", "up", "third"]) == pytest.approx(readers)
    alone = sensitivity.rounding[E4M3][:, 0] / sensitivity.tokens_per_row
    assert costs.plan_row_costs(E4M3, ["gate"]) == pytest.approx(alone)


class InputsOnly:
    """A cast of inputs without a scale, so that all experts round alike; weights are exact."""

    formats = (E4M3,)
    maxabs = {}

    def of_input(self, op, index, value, format_name):
        return value.to(torch.float8_e4m3fn).float() - value

    def of_weight(self, weight, format_name, rows=slice(None)):
        return torch.zeros_like(weight[rows])


@capabilities.fused_experts
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_token_has_one_error_in_all_its_experts(name):
    """Several experts per token, each with two projections: by one zero for each hidden state."""
    model, batch = helpers.mixture(name), {"input_ids": helpers.tokens(2, 8)}
    graph = mp.capture(model, batch)
    settings = Pass(model, graph, None, InputsOnly(), loss=False, kl=Estimate())
    sensitivity = united(settings, list(sensitivity_rows(settings, [batch])))
    layer, zeros = "model.layers.1.mlp.experts", []

    def shift(_, args):
        x = args[0]
        zeros.append(torch.zeros_like(x, requires_grad=True))
        return (x + zeros[0] * InputsOnly().of_input("", 0, x.detach(), E4M3), *args[1:])

    with model.get_submodule(layer).register_forward_pre_hook(shift):
        losses = drawn_losses(distributions(model, batch), [1, 2], seed=0, draw=0)
    (of_zeros,) = torch.autograd.grad(losses.sum(), zeros)
    expected = 0.5 * of_zeros.square().view(2, -1).sum(dim=1)
    columns = [c for c, op in enumerate(sensitivity.ops) if op.startswith(layer) and "down" not in op]
    assert together(sensitivity)[:, columns].sum(axis=1) == pytest.approx(expected.numpy(), rel=1e-4)
    assert len(set(sensitivity.reads[columns].tolist())) == 1


def test_heads_that_read_the_same_values_have_one_error():
    """Values of two heads, each read by three: the gradients of the three add up."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 2, 5, 4, generator=generator)
    gradient = torch.randn(1, 6, 5, 4, generator=generator)
    totals = Totals.zeros(1, 1, formats=(E4M3,), device=torch.device("cpu"))
    rows = list(zip(values.repeat_interleave(3, dim=1), gradient, strict=True))
    reader = Reader("attention", 1, 0, "bgemm")
    add_inputs(totals, rows, [reader], errors=InputsOnly(), together=True)
    error = InputsOnly().of_input("", 1, values, E4M3)
    expected = (error * gradient.unflatten(1, (2, 3)).sum(dim=2)).square().sum()
    assert float(totals.rounding[E4M3]) == pytest.approx(float(expected), rel=1e-5)
    assert float(totals.second[E4M3]) == float(totals.rounding[E4M3])
    paper = (values.repeat_interleave(3, dim=1) * gradient).square().sum()
    assert float(totals.input) == pytest.approx(float(paper), rel=1e-5)


KINDS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12)


@given(KINDS, st.integers(1, 30))
def test_repeats_by_comparing_all_pairs(kinds, width):
    """Of few columns all are compared first; of more, rows that are told to be the same still are."""
    rows = torch.zeros(len(kinds), width)
    for row, (kind, last) in zip(rows, kinds, strict=True):
        row[:] = float(kind)
        row[-1] = float(last)
    first = [next(i for i, other in enumerate(rows) if torch.equal(other, row)) for row in rows]
    places = repeats(rows)
    told = list(range(len(rows))) if places is None else places.tolist()
    assert torch.equal(rows[told], rows)
    if width < 16:
        assert told == first


@pytest.mark.parametrize("shape", [(7,), (3, 5), (300, 2**10), (5, 3, 2**16), (2, 2**18), (0, 4)])
def test_pieces_are_the_whole(shape):
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape)
    cut = [part for (part,) in pieces(tensor)]
    assert torch.equal(torch.cat([part.flatten() for part in cut]), tensor.flatten())
    assert all(part.shape[-1] == shape[-1] for part in cut)
    a, b = tensor.sin(), tensor.cos().to(torch.bfloat16)
    assert float(squared_norm(a, b)) == pytest.approx(
        float((a * b.float()).double().square().sum()), rel=1e-5
    )
