"""A model that cannot be traced: the module, the line of its code, and what to do."""

import pytest
import torch
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import CaptureError


class Branching(nn.Module):
    """Asks for a value."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        if self.linear(x).sum() > 0:
            x = x + 1
        return x


class Outer(nn.Module):
    """Holds a module of another module's choice."""

    def __init__(self, inner):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), inner])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def total(x):
    return x.sum(dim=7)


class Remembering(nn.Module):
    """Writes what follows from weights into numbers that do not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, count):
        places = torch.zeros(int(count.sum()), dtype=torch.long)
        places[0] = self.linear(x).argmax()
        return self.linear(x)[places]


class Failing(nn.Module):
    """Fails in a function that its forward calls; its own name of itself is another one."""

    def forward(this, x):  # noqa: N805
        return total(x)


def test_a_branch_on_values():
    with pytest.raises(CaptureError) as caught:
        mp.capture(Outer(Branching()), torch.zeros(2, 4))
    text = str(caught.value)
    assert "cannot trace Outer at module 'blocks.1' (test_trace_errors.py, line " in text
    assert "`if self.linear(x).sum() > 0:`" in text and "replace that by tensor operations" in text
    assert "\n" not in text and len(text) < 600


def test_an_error_of_the_models_own_code():
    with pytest.raises(CaptureError) as caught:
        mp.capture(Outer(Failing()), torch.zeros(2, 4))
    assert "at module 'blocks.1'" in str(caught.value) and "`return x.sum(dim=7)`" in str(caught.value)
    assert "Dimension out of range" in str(caught.value) and "branches" not in str(caught.value)


def test_a_model_alone_is_named_by_its_class():
    with pytest.raises(CaptureError, match="cannot trace Branching at module 'Branching'"):
        mp.capture(Branching(), torch.zeros(2, 4))


def test_a_choice_of_the_weights_among_numbers_that_are_known():
    with pytest.raises(CaptureError) as caught:
        mp.capture(Remembering(), (torch.zeros(2, 4), torch.tensor([1, 2])))
    assert "`places[0] = self.linear(x).argmax()`" in str(caught.value)
