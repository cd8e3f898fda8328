"""Models whose code asks for values that follow from their inputs alone."""

import pytest
import torch
from torch import nn

import inc_mp_plugin as mp


class Padded(nn.Module):
    """Drops padding, runs what is left in pieces, and puts it back: the count of rows is a value."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, lengths):
        steps = torch.arange(x.shape[1], device=x.device)
        kept = steps < lengths[:, None]
        rows = self.first(x)[kept]
        pieces = torch.split(rows, lengths.tolist())
        done = torch.cat([self.second(piece) for piece in pieces])
        if lengths.max() > 10:
            done = self.unused(done)
        out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        wide = kept[..., None].expand_as(x)
        assert self.first(x)[wide].numel() == done.numel()
        return out.masked_scatter(wide, done)


BATCH = (torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 5, 1]))


def test_shapes_are_those_of_the_values():
    graph = mp.capture(Padded(), BATCH)
    assert [tuple(gemm) for gemm in graph.by_name["first"].gemms] == [(1, 15, 4, 4)] * 2
    assert [gemm.rows for gemm in graph.by_name["second"].gemms] == [2, 5, 1]
    assert graph.by_name.keys() == {"first", "second"}


def test_ops_that_follow_each_other_are_still_known_to():
    graph = mp.capture(Padded(), BATCH)
    assert graph.groups == (("first",), ("second",)) or graph.by_name["second"].after == ("first",)


def test_the_other_branch_of_other_values():
    x, lengths = torch.zeros(1, 12, 4), torch.tensor([12])
    assert "unused" in mp.capture(Padded(), (x, lengths)).by_name


def test_values_of_the_batch_stay():
    x, lengths = (part.clone() for part in BATCH)
    mp.capture(Padded(), (x, lengths))
    assert torch.equal(x, BATCH[0]) and torch.equal(lengths, BATCH[1])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_are_not_needed(device):
    assert len(mp.capture(Padded().to(device), BATCH).ops) == 2
