"""Chains of blocks: other states sent through them or put at their end, against the blocks by hand."""

import helpers
import pytest
import torch
from torch import nn

from inc_mp_plugin.model.chain import NoChain, chain_of


class Block(nn.Module):
    """A block with a keyword, whose output is a tuple."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, *, beside, scale=2.0):
        return torch.tanh(self.inner(x)) * scale + beside, None


class Rows(nn.Module):
    """Three blocks between two layers; a way to call the blocks may be given."""

    def __init__(self, between=None):
        super().__init__()
        torch.manual_seed(0)
        self.start, self.end = nn.Linear(4, 4), nn.Linear(4, 2)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.between = between

    def forward(self, x):
        beside = self.start(x)
        x = beside.clone()
        for number, layer in enumerate(self.layers):
            x = self.between(self, layer, x, beside, number) if self.between else layer(x, beside=beside)[0]
        return self.end(x)


BLOCKS = ("layers.0", "layers.1", "layers.2")
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    return Rows()


@torch.no_grad()
def test_a_state_runs_through_the_blocks_beside_the_models_own(model):
    chain = chain_of(model, BLOCKS, lambda: model(X))
    start, states, seen = torch.randn(5, 4), [], []

    def see(call):
        seen.append(call.block)
        states.append(call.run(states[-1] if states else start))

    plain = model(X)
    with chain.watched(see) as passed:
        assert torch.equal(model(X), plain)
    assert tuple(seen) == BLOCKS
    expected, own, beside = start, model.start(X), model.start(X)
    for layer in model.layers:
        expected, own = layer(expected, beside=beside)[0], layer(own, beside=beside)[0]
    assert torch.equal(states[-1], expected)
    assert torch.equal(passed.state, own)
    assert chain.state_bytes == 5 * 4 * 4


@torch.no_grad()
def test_what_is_behind_the_blocks_reads_the_given_state(model):
    chain = chain_of(model, BLOCKS, lambda: model(X))
    ran = []
    model.layers[1].inner.register_forward_hook(lambda *_: ran.append(1))
    for state in (torch.randn(5, 4), torch.randn(2, 4)):  # the second has fewer rows than the batch
        with chain.ending_in(state):
            assert torch.equal(model(X), model.end(state))
    assert not ran


@torch.no_grad()
def test_logits_of_some_tokens_of_a_language_model():
    model, batch = helpers.language_model("llama"), {"input_ids": helpers.tokens(2), "use_cache": False}
    chain = chain_of(model, ("model.layers.0", "model.layers.1"), lambda: model(**batch))
    with chain.watched(lambda call: None) as passed:
        whole = model(**batch).logits
    with chain.ending_in(passed.state[:, 3:7]):
        assert torch.allclose(model(**batch).logits, whole[:, 3:7], atol=1e-6)


def changed(model, layer, x, beside, number):
    return layer(x + 0, beside=beside)[0]


def twice(model, layer, x, beside, number):
    return layer(x, beside=x)[0]


def skipped(model, layer, x, beside, number):
    return x if number == 1 else layer(x, beside=beside)[0]


def again(model, layer, x, beside, number):
    return layer(layer(x, beside=beside)[0], beside=beside)[0]


def remembered(model, layer, x, beside, number):
    return layer(x, beside=beside, scale=Memory())[0]


class Memory:
    def __rmul__(self, other):
        return other


CASES = {
    "another tensor in its place": (changed, "layers.1 is not given the output of the block before it"),
    "read twice": (twice, "layers.1 is not given the output of the block before it, as it is and once"),
    "a block is skipped": (skipped, "layers.2 runs twice, or not in its turn"),
    "a block runs twice": (again, "layers.0 runs twice, or not in its turn"),
    "something that remembers": (remembered, "layers.0 is given a Memory, which may keep"),
}


@pytest.mark.parametrize(("between", "message"), CASES.values(), ids=CASES)
def test_no_chain(between, message):
    model = Rows(between)
    before = [dict(vars(layer)) for layer in model.layers]
    with pytest.raises(NoChain, match=message):
        chain_of(model, BLOCKS, lambda: model(X))
    assert [dict(vars(layer)) for layer in model.layers] == before


def test_more_that_is_no_chain(model):
    with pytest.raises(NoChain, match="no repeated blocks"):
        chain_of(model, BLOCKS[:1], lambda: model(X))
    with pytest.raises(NoChain, match=r"layers.0 did not run"):
        chain_of(model, BLOCKS, lambda: None)
    pairs = Rows(lambda model, layer, x, beside, number: x)
    pairs.layers[0].forward = lambda x, beside: (x, beside)
    with pytest.raises(NoChain, match=r"layers.0 returns 2 tensors"):
        chain_of(pairs, BLOCKS, lambda: pairs.layers[0](X, beside=X))


@torch.no_grad()
def test_a_block_that_changes_its_input_in_place(model):
    class InPlace(nn.Module):
        def forward(self, x, *, beside):
            return x.mul_(2.0) + beside, None

    model.layers[1] = InPlace()
    chain = chain_of(model, BLOCKS, lambda: model(X))
    before = [dict(vars(layer)) for layer in model.layers]
    with (
        pytest.raises(NoChain, match=r"layers.1 changes its input in place"),
        chain.watched(lambda call: call.run(torch.randn(5, 4))),
    ):
        model(X)
    assert [dict(vars(layer)) for layer in model.layers] == before
