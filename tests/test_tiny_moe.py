"""The small mixture of experts that is trained here: its loss, and what it says it learned."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "recipes" / "tiny-moe" / "train.py"


@pytest.fixture(scope="module")
def train():
    spec = importlib.util.spec_from_file_location("tiny_moe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(train):
    torch.manual_seed(0)
    return train.build()


def test_the_load_is_balanced_in_training_only(train, model):
    """The load of a layer: its experts' shares of the tokens times mean probabilities, times their number."""
    ids = torch.randint(0, 1024, (2, 16))
    with torch.no_grad():
        balanced = train.Balanced(model).train()(ids, ids).loss
        plain = train.Balanced(model).eval()(ids, ids).loss
        output = model(input_ids=ids, labels=ids, output_router_logits=True)
    load = 0.0
    for layer in output.router_logits:
        rows = layer.softmax(dim=1)
        for expert in range(8):
            chosen = sum(float(expert in row.topk(2).indices) for row in rows)
            load += 8 * chosen / len(rows) * float(rows[:, expert].mean())
    assert load > 4 * 0.5
    assert float(balanced - plain) == pytest.approx(0.01 * load, rel=1e-3)
    assert float(plain) == pytest.approx(float(output.loss))


def test_shares_are_counted_layer_by_layer(train, model):
    tokens = torch.randint(0, 1024, (8, 16))  # of which every fourth sample is looked at
    with torch.no_grad():
        logits = model(input_ids=tokens[::4], output_router_logits=True).router_logits
    for share, layer in zip(train.expert_shares(model, tokens), logits, strict=True):
        chosen = [expert for row in layer for expert in row.topk(2).indices.tolist()]
        assert share == pytest.approx([chosen.count(expert) / 64 for expert in range(8)])


def test_perplexity_of_frequencies_by_hand(train):
    """Each count is one more than it is: 3 and 2 of 1027."""
    perplexity = train.unigram_perplexity(torch.tensor([1, 1, 2]), torch.tensor([[0, 1, 2]]))
    assert perplexity == pytest.approx(1027 / math.sqrt(6))
