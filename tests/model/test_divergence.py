"""KL divergence by blocks, against plain sums in FP64 and numbers worked by hand."""

import math

import helpers
import numpy as np
import pytest
import torch
from naive import kl_of_positions

from inc_mp_plugin.core.divergence import Divergence, from_arrays
from inc_mp_plugin.model import divergence as module
from inc_mp_plugin.model.distributions import Distributions, distributions
from inc_mp_plugin.model.divergence import divergence_rows, joined, labels_in, row_blocks


def measured(base, logits, counted, labels=None):
    predicted = Distributions(logits, counted)
    return divergence_rows(row_blocks(Distributions(base, counted)), predicted, labels)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [3.0, 1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("block", [1, 100, 2**18])
def test_every_position_against_the_definition(monkeypatch, size, block):
    """KL from 1 to 1e-11, in blocks of a row, of some, and of all."""
    monkeypatch.setattr(module, "_BLOCK", block)
    base = 3 * drawn(3, 7, 33)
    logits = base + size * drawn(3, 7, 33, seed=1)
    counted = drawn(3, 7, seed=2) > -0.5
    rows, expected = measured(base, logits, counted), kl_of_positions(base, logits)
    assert rows.kl == pytest.approx(expected[counted].numpy(), rel=2e-5)
    sums = expected.masked_fill(~counted, 0.0).sum(dim=1)
    assert rows.sums[:, 0] == pytest.approx(sums.numpy(), rel=1e-5)
    assert rows.sums[:, 1].tolist() == counted.sum(dim=1).tolist()
    flips = (base.argmax(-1) != logits.argmax(-1)) & counted
    assert rows.sums[:, 2].tolist() == flips.sum(dim=1).tolist()


def test_half_precision_logits_are_taken_as_they_are():
    base, counted = drawn(2, 3, 40).bfloat16(), torch.ones(2, 3, dtype=torch.bool)
    logits = (base.float() + 0.01 * drawn(2, 3, 40, seed=1)).bfloat16()
    assert measured(base, logits, counted).kl == pytest.approx(
        kl_of_positions(base, logits).flatten().numpy()
    )


def test_the_same_logits_have_no_divergence():
    base, counted = drawn(2, 3, 40), torch.ones(2, 3, dtype=torch.bool)
    shifted = measured(base, base + 1.0, counted)  # a constant changes no distribution
    assert not measured(base, base.clone(), counted).kl.any()
    assert shifted.kl.max() < 1e-12


def test_by_hand():
    """1/2, 1/2 against 3/4, 1/4: KL = log 2 - log(3) / 2; a class that is ruled out adds nothing."""
    base = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    logits = torch.tensor([[[math.log(3.0), 0.0, -torch.inf]]])
    labels = torch.tensor([[1]])
    divergence = joined([measured(base, logits, torch.ones(1, 1, dtype=torch.bool), labels)])
    assert divergence.mean == pytest.approx(math.log(2) - math.log(3) / 2, rel=1e-6)
    assert divergence.perplexity_ratio == pytest.approx(2.0)  # p of the label falls from 1/2 to 1/4
    assert divergence.flip_share == 0.0
    lost = torch.tensor([[[0.0, -torch.inf, 0.0]]])  # what the base model expects is ruled out
    assert measured(base, lost, torch.ones(1, 1, dtype=torch.bool)).kl.tolist() == [math.inf]


def test_percentile_share_and_perplexity_of_many_batches():
    base, logits = drawn(4, 5, 9), drawn(4, 5, 9, seed=1)
    counted, labels = torch.ones(4, 5, dtype=torch.bool), torch.randint(0, 9, (4, 5))
    labels[0, 0] = -100
    parts = [slice(0, 1), slice(1, 4)]
    together = joined([measured(base[k], logits[k], counted[k], labels[k]) for k in parts])
    expected = kl_of_positions(base, logits).numpy()
    assert together.mean == pytest.approx(expected.mean(), rel=1e-6)
    assert together.p99 == pytest.approx(np.quantile(expected, 0.99), rel=1e-6)
    assert together.kl == pytest.approx(expected.sum(axis=1), rel=1e-6)
    entropy = torch.nn.functional.cross_entropy
    change = entropy(logits.flatten(0, 1), labels.flatten()) - entropy(base.flatten(0, 1), labels.flatten())
    assert together.perplexity_ratio == pytest.approx(float(change.exp()), rel=1e-5)
    assert together.labels.tolist() == [4, 5, 5, 5]
    again = from_arrays(together.to_arrays("x"), "x")
    assert isinstance(again, Divergence)
    assert (again.mean, again.p99, again.kl.tolist()) == (together.mean, together.p99, together.kl.tolist())
    assert from_arrays({}, "x") is None


def test_labels_of_a_language_model_and_of_a_classifier():
    batch = {"input_ids": helpers.tokens(2, 5), "attention_mask": torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])}
    model = helpers.language_model("llama")
    with torch.no_grad():
        predicted = distributions(model, batch)
    labels = labels_in(model, batch, predicted)
    ids = batch["input_ids"]
    assert labels[0].tolist() == [*ids[0, 1:].tolist(), -100]
    assert labels[1].tolist() == [-100, -100, *ids[1, 3:].tolist(), -100]
    classifier, batch = helpers.encoder(), {"input_ids": helpers.tokens(2, 5), "labels": torch.tensor([2, 1])}
    with torch.no_grad():
        predicted = distributions(classifier, batch)
    assert labels_in(classifier, batch, predicted).tolist() == [[2], [1]]
    for unfit in (torch.tensor([[0.0], [1.0]]), torch.tensor([1])):
        assert labels_in(classifier, {**batch, "labels": unfit}, predicted) is None
