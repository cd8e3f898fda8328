"""One expert as linear modules, and the rows that are sent to the experts of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import parameters_of

Projection = tuple[Tensor, Tensor | None]  # weight, shape (outputs, inputs), and bias


class Expert(nn.Module):
    """One expert, whose projections are linear modules."""

    def __init__(
        self, projections: Iterable[Projection], apply_gate: Callable[[Tensor], Tensor], *, interleaved: bool
    ) -> None:
        """Take weights and biases, which are not copied.

        Args:
            projections: gate, up and down.
            apply_gate: makes one tensor of the outputs of gate and up.
            interleaved: the outputs of gate and up take turns in what `apply_gate` takes; else the gate's
                come first.
        """
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (_linear(*pair) for pair in projections)
        self.apply_gate, self.interleaved = apply_gate, interleaved

    def forward(self, hidden: Tensor) -> Tensor:
        """Map tokens, shape (rows, hidden), to their outputs."""
        output: Tensor = self.down_proj(self.join(self.gate_proj(hidden), self.up_proj(hidden)))
        return output

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """Make the input of `down_proj` of the outputs of the other two, all of shape (rows, inner)."""
        parts = (gate, up)
        both = torch.stack(parts, dim=-1).flatten(-2) if self.interleaved else torch.cat(parts, dim=-1)
        return self.apply_gate(both)


class Sent(NamedTuple):
    """Rows that are sent to experts, sorted by expert, and in the order of the tokens for each.

    `source` holds the rows' indices in the hidden states, `tokens` the number of tokens: row i of the hidden
    states is of token i modulo `tokens`. `counts` holds the number of rows of each expert that gets any, by
    its number. `weights` are those of the experts' outputs, shape (rows,); None if there are none.
    """

    source: Tensor
    tokens: int
    counts: dict[int, int]
    weights: Tensor | None = None

    @staticmethod
    def by_number(numbers: Tensor, weights: Tensor, experts: range) -> Sent:
        """Sort tokens by the numbers of their experts.

        Args:
            numbers: of each token's experts, shape (tokens, experts per token).
            weights: of their outputs, same shape.
            experts: numbers of those that are here; what is sent to others is left out.
        """
        flat, order = numbers.flatten().sort(stable=True)
        here = (flat >= experts.start) & (flat < experts.stop)
        flat, order = flat[here], order[here]
        source = order // numbers.shape[1]
        return Sent(source, len(numbers), _counts(flat), weights.flatten()[order])

    @staticmethod
    def by_place(hidden: Tensor, experts: int) -> Sent:
        """Find the rows of each expert where every expert has one row for every token, most of them zeros.

        An expert without biases makes zeros of zeros, so these rows are not sent.

        Args:
            hidden: shape (experts x tokens, hidden), expert by expert.
            experts: their number.
        """
        source = hidden.detach().any(dim=1).nonzero().flatten()
        tokens = len(hidden) // experts
        return Sent(source, tokens, _counts(source // tokens))


def routed(hidden: Tensor, sent: Sent, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Run every chosen expert on its own rows and add up the weighted outputs.

    Args:
        hidden: hidden states, shape (rows, hidden).
        sent: the rows that go to experts.
        run: from an expert's number and its rows, shape (rows, hidden), to their outputs.
    """
    # Gathered once: the gradient of one gather per expert would fill the whole of `hidden` each time.
    parts = torch.split(hidden[sent.source], list(sent.counts.values()))
    outputs = [run(number, part) for number, part in zip(sent.counts, parts, strict=False)]
    return add_up(hidden, sent, torch.cat(outputs)) if outputs else torch.zeros_like(hidden)


def add_up(hidden: Tensor, sent: Sent, rows: Tensor) -> Tensor:
    """Add the outputs of experts up, weighted, where their rows came from.

    Args:
        hidden: hidden states, shape (rows, hidden).
        sent: the rows that went to experts.
        rows: the experts' outputs.
    """
    if sent.weights is not None:
        rows = rows * sent.weights[:, None]
    return torch.zeros_like(hidden).index_add(0, sent.source, rows.to(hidden.dtype))


def _counts(numbers: Tensor) -> dict[int, int]:
    values, counts = torch.unique_consecutive(numbers, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # Without its constructor, whose random weight is not wanted: there may be twenty thousand of these.
    module = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(module)
    vars(module).update(out_features=weight.shape[0], in_features=weight.shape[1])
    for name, value in (("weight", weight), ("bias", bias)):
        parameters_of(module)[name] = None if value is None else nn.Parameter(value, requires_grad=False)
    return module
