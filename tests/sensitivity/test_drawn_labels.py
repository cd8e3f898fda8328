"""Labels drawn from a model's distributions: by their probabilities, and by nothing but their numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from inc_mp_plugin.model.distributions import Distributions
from inc_mp_plugin.sensitivity.drawn_labels import draw_labels


@pytest.mark.parametrize("classes", [2, 511, 512, 513, 1500, 4000])
def test_labels_are_drawn_by_their_probabilities(classes):
    logits = torch.randn(classes, generator=torch.Generator().manual_seed(classes)) * 2
    rows = 20_000
    found = Distributions(logits.expand(1, rows, classes), torch.ones(1, rows, dtype=torch.bool))
    labels = draw_labels(found, [1], seed=0, draw=0)[0]
    expected = logits.double().softmax(0) * rows
    counts = torch.bincount(labels, minlength=classes).double()
    # Rare classes are counted together: chi-square wants five of each.
    often = expected >= 5
    seen = [*counts[often].tolist(), float(counts[~often].sum())]
    hoped = [*expected[often].tolist(), float(expected[~often].sum())]
    if hoped[-1] == 0:
        seen, hoped = seen[:-1], hoped[:-1]
    assert chisquare(seen, np.array(hoped) * sum(seen) / sum(hoped)).pvalue > 1e-3


def test_small_probabilities_at_the_end_of_a_vocabulary_count():
    """Half of all probability in 200,000 classes of 2.5e-6: FP32 sums, one by one, would lose some of it."""
    logits = torch.full((200_001,), math.log(2.5e-6))
    logits[0] = math.log(0.5)
    found = Distributions(logits.expand(1, 2000, -1), torch.ones(1, 2000, dtype=torch.bool))
    labels = draw_labels(found, [1], seed=0, draw=0)[0]
    assert 900 < int((labels == 0).sum()) < 1100
    assert 400 < int((labels > 100_000).sum()) < 600


def test_labels_depend_on_seed_draw_and_number_alone():
    logits = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))
    found = Distributions(logits, torch.ones(2, 6, dtype=torch.bool))
    labels = draw_labels(found, [4, 5], seed=1, draw=0)
    second = Distributions(logits[1:], torch.ones(1, 6, dtype=torch.bool))
    assert (draw_labels(second, [5], seed=1, draw=0) == labels[1:]).all()
    for other in ({"seed": 2, "draw": 0}, {"seed": 1, "draw": 1}):
        assert (draw_labels(found, [4, 5], **other) != labels).any()
