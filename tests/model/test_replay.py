"""Blocks that run once more for their gradients: against the same model without them."""

import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_mp_plugin.model import in_files, replay
from inc_mp_plugin.model.replay import Replays


class Block(nn.Module):
    """A block with keywords, a tensor among them, and outputs in a dict."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.modes = []

    def forward(self, x, *, beside, scale, nothing=None):
        self.modes.append(torch.is_grad_enabled())
        y = torch.tanh(self.inner(x)) * scale + beside["memory"]
        return {"y": y, "count": 3, "nothing": nothing}


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.start = nn.Linear(4, 4)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        memory = self.start(x)
        for layer in self.layers:
            outcome = layer(x, beside={"memory": memory}, scale=2.0)
            assert outcome["count"] == 3
            assert outcome["nothing"] is None
            x = outcome["y"]
        return x.square().sum()


BLOCKS = ("layers.0", "layers.1", "layers.2")


@pytest.fixture
def model():
    return Chain()


def gradients(model, x, times=1):
    value = model(x)
    for time in range(times):
        value.backward(retain_graph=time + 1 < times)
    parts = [p.grad for p in model.parameters()]
    model.zero_grad()
    return [value.detach(), *parts]


@pytest.mark.parametrize("times", [1, 2])
def test_values_and_gradients_are_the_same_bit_for_bit(model, times):
    x = torch.randn(5, 4)
    plain = gradients(model, x, times)
    told = []
    with Replays(told.append).of(model, BLOCKS):
        replayed = gradients(model, x, times)
    assert all(torch.equal(a, b) for a, b in zip(plain, replayed, strict=True))
    assert told == [*reversed(BLOCKS)] * times


def test_large_inputs_are_kept_in_files_that_go_with_them(model, monkeypatch, tmp_path):
    """What a block reads beside, and its input but for the first, which has no gradient; no name is left."""
    x, made, empty = torch.randn(5, 4), [], in_files.empty_in_a_file
    plain = gradients(model, x, 2)
    monkeypatch.setattr(in_files, "LARGE", 1)
    monkeypatch.setattr(in_files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(in_files, "empty_in_a_file", lambda *of: made.append(empty(*of)) or made[-1])
    with Replays(lambda block: None).of(model, BLOCKS):
        replayed = gradients(model, x, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, replayed, strict=True))
    assert [tuple(tensor.shape) for tensor in made if tensor.dim()] == 5 * [(5, 4)]
    assert all(str(tmp_path) in mapping(tensor) for tensor in made)
    assert not list(tmp_path.iterdir())


def test_inputs_in_files_are_nowhere_else(model, monkeypatch):
    monkeypatch.setattr(in_files, "LARGE", 1)
    inputs = []
    for layer in model.layers[1:]:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])))
    with Replays(lambda block: None).of(model, BLOCKS):
        value = model(torch.randn(5, 4))
        assert [ref() for ref in inputs] == [None, None]
        value.backward()


def mapping(tensor):
    """The line of the memory map that a tensor lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(place, 16) for place in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line
    return ""


def test_a_block_runs_without_gradients_first_and_tells_so(model):
    replays, rehearsing = Replays(lambda block: None), []
    model.layers[1].inner.register_forward_hook(lambda *_: rehearsing.append(replays.rehearsing))
    with replays.of(model, BLOCKS):
        model(torch.randn(2, 4)).backward()
    assert rehearsing == [True, False]
    assert model.layers[1].modes == [False, True]
    assert not replays.rehearsing


def test_inputs_and_weights_without_gradients_do_not_stop_them(model):
    model.requires_grad_(False)
    caught = []
    model.layers[0].inner.register_forward_pre_hook(lambda _, args: (args[0].detach().requires_grad_(),))

    def watch(module, args, output):
        if output.requires_grad:
            output.register_hook(caught.append)

    model.layers[0].inner.register_forward_hook(watch)
    with Replays(lambda block: None).of(model, BLOCKS):
        model(torch.randn(2, 4)).backward()
    assert len(caught) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_leaves_as_it_came(model, fails):
    def mine(*args, **kwargs):
        raise KeyboardInterrupt

    if fails:
        model.layers[2].forward = mine
    before = [dict(vars(layer)) for layer in model.layers]
    with pytest.raises(KeyboardInterrupt) if fails else torch.no_grad(), Replays(print).of(model, BLOCKS):
        model(torch.randn(2, 4))
    assert [dict(vars(layer)) for layer in model.layers] == before


def test_freed_memory_goes_back_once_and_when_more_is_kept_than_a_block_frees(monkeypatch):
    """In two backward passes of five blocks: before the first block, and where a quarter more is kept."""
    kept, given_back = iter([9, 70, 40, 49, 51, 40, 9, 900, 200, 250, 251, 0]), []
    monkeypatch.setattr(replay, "kept_freed", lambda: next(kept))
    monkeypatch.setattr(replay, "give_back_freed", lambda: given_back.append(len(given_back)))
    replays, asked = Replays(lambda name: None), []
    for _ in range(2):
        with torch.no_grad(), replays._rehearsal("a"):
            pass
        for _ in range(5):
            with torch.enable_grad(), replays._rehearsal("a"):
                asked.append(len(given_back))
    assert asked == [2, 2, 2, 3, 3, 5, 5, 5, 6, 6]  # and before the first runs


def test_freed_memory_always_goes_back_where_the_library_does_not_say_how_much(monkeypatch):
    given_back = []
    monkeypatch.setattr(replay, "kept_freed", lambda: None)
    monkeypatch.setattr(replay, "give_back_freed", lambda: given_back.append(1))
    replays = Replays(lambda name: None)
    for _ in range(4):
        with torch.enable_grad(), replays._rehearsal("a"):
            pass
    assert len(given_back) == 4
